//! From what the kernel tells (inotify(7)) to what the peer is told.
//!
//! The kernel speaks of directories by number and of names in them; moves come in two halves; a directory that is new may
//! have been filled before it could be watched. Here numbers become paths, halves become renames, and a new directory is
//! watched first and then read, so that whatever is put into it is seen one way or the other and told once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cove_protocol::guest::{Change, ChangeKind};
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use super::{
    queue::Queue,
    tree::{Tree, Wd},
};

/// Directories of one watch.
const DIRECTORIES_MAX: usize = 65_536;

/// How long the second half of a move may take; both are written by one system call.
const MOVE_WAIT: Duration = Duration::from_millis(20);

/// Events that wait behind the first half of a move; when there are more it has no second.
const WAITING_MAX: usize = 16_384;

/// Bytes of events taken from the kernel in one turn.
const TURN_BYTES: usize = 64 << 10;

/// What is never looked into: file systems that the kernel makes up.
const LEFT_OUT: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Names of files that the agent itself is writing; their renames are told as what they mean.
const OWN_TEMPORARIES: [&str; 2] = [".cove-write-", ".cove-move-"];

/// What an own temporary file of a path where nothing was ends in.
const NEW_SUFFIX: &str = "-new";

/// One watch: the kernel's queue, the directories, and what is still to be told.
pub struct Watcher {
    inotify: OwnedFd,
    tree: Tree,
    root: PathBuf,
    recursive: bool,
    /// Events that are not interpreted yet: the first of them is the first half of a move, whose second is still to come.
    waiting: VecDeque<Raw>,
    /// Names that the reading of a new directory told of already. Forgotten when the kernel's queue was empty once, since all
    /// that it said of that time has come then.
    told: HashMap<Wd, HashSet<OsString>>,
    unwatched: Option<(PathBuf, u64)>,
    buffer: Vec<MaybeUninit<u8>>,
    /// What is to be told.
    pub queue: Queue,
    /// The directory itself is gone.
    pub ended: bool,
}

/// An event, in owned form.
struct Raw {
    wd: Wd,
    flags: ReadFlags,
    cookie: u32,
    name: OsString,
    /// When it was taken from the kernel.
    taken: Instant,
}

impl Watcher {
    /// Watches a directory and, if `recursive`, all below it.
    ///
    /// # Errors
    /// The kernel's, about the directory itself.
    pub fn begin(root: &Path, recursive: bool) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let wd = add(&inotify, root, WatchFlags::empty())?;
        let mut watcher = Self {
            inotify,
            tree: Tree::new(root.to_owned(), wd),
            root: root.to_owned(),
            recursive,
            waiting: VecDeque::new(),
            told: HashMap::new(),
            unwatched: None,
            buffer: vec![MaybeUninit::uninit(); TURN_BYTES],
            queue: Queue::new(root.to_string_lossy().into_owned()),
            ended: false,
        };
        watcher.read_below(wd, false);
        Ok(watcher)
    }

    /// How many directories are watched.
    pub fn directories(&self) -> u64 {
        self.tree.len() as u64
    }

    /// When to call [`Watcher::read`] again though the kernel says nothing.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|first| first.taken + MOVE_WAIT)
    }

    /// Takes what the kernel has, in a bounded turn.
    ///
    /// # Errors
    /// The kernel's queue cannot be read.
    pub fn read(&mut self) -> io::Result<()> {
        let drained = self.take()?;
        while let Some(event) = self.waiting.pop_front() {
            if !event.flags.contains(ReadFlags::MOVED_FROM) {
                self.interpret(event);
                continue;
            }
            let second = |raw: &Raw| raw.flags.contains(ReadFlags::MOVED_TO) && raw.cookie == event.cookie;
            match self.waiting.iter().position(second).and_then(|at| self.waiting.remove(at)) {
                Some(second) => self.moved(&event, &second),
                None if event.taken.elapsed() < MOVE_WAIT && self.waiting.len() < WAITING_MAX => {
                    self.waiting.push_front(event);
                    break;
                }
                // To where nobody looks.
                None => {
                    self.forget(event.wd, &event.name);
                    self.deleted(event.wd, &event.name, event.flags.contains(ReadFlags::ISDIR));
                }
            }
        }
        if drained && self.waiting.is_empty() {
            self.told.clear();
        }
        if let Some((path, count)) = self.unwatched.take() {
            let path = text(&path);
            let kind = ChangeKind::Unwatched;
            self.queue.push(Change { kind, path, old_path: None, is_dir: true, count: Some(count) });
        }
        Ok(())
    }

    /// Takes the next events; true when the kernel has no more.
    fn take(&mut self) -> io::Result<bool> {
        let taken = Instant::now();
        let mut reader = inotify::Reader::new(&self.inotify, &mut self.buffer);
        loop {
            match reader.next() {
                Ok(event) => self.waiting.push_back(Raw {
                    wd: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: OsString::from_vec(event.file_name().map_or_else(Vec::new, |name| name.to_bytes().to_vec())),
                    taken,
                }),
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                return Ok(false);
            }
        }
    }

    fn interpret(&mut self, Raw { wd, flags, name, .. }: Raw) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.queue.lose(None);
            self.watch_again();
            return;
        }
        if flags.intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            if wd == self.tree.root() && !self.ended {
                self.ended = true;
                self.tell(ChangeKind::Deleted, &self.root.clone(), None, true);
            } else if flags.contains(ReadFlags::IGNORED) {
                self.tree.remove(wd);
                self.told.remove(&wd);
            }
            return;
        }
        if name.is_empty() || !self.tree.contains(wd) {
            return;
        }
        let is_dir = flags.contains(ReadFlags::ISDIR);
        // A second half alone: from where nobody looks.
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.created(wd, &name, is_dir);
        } else if flags.contains(ReadFlags::DELETE) {
            self.forget(wd, &name);
            self.deleted(wd, &name, is_dir);
        } else if !is_dir && flags.intersects(ReadFlags::MODIFY | ReadFlags::ATTRIB) {
            self.tell_in(ChangeKind::Modified, wd, &name, false);
        }
    }

    fn created(&mut self, parent: Wd, name: &OsStr, is_dir: bool) {
        if self.told.get_mut(&parent).is_some_and(|told| told.remove(name)) {
            return;
        }
        self.tell_in(ChangeKind::Created, parent, name, is_dir);
        if is_dir {
            self.follow(parent, name, true);
        }
    }

    fn deleted(&mut self, parent: Wd, name: &OsStr, is_dir: bool) {
        if is_dir && let Some(wd) = self.tree.child(parent, name) {
            self.unwatch(wd);
        }
        self.tell_in(ChangeKind::Deleted, parent, name, is_dir);
    }

    fn moved(&mut self, first: &Raw, second: &Raw) {
        let (is_dir, parent, name) = (second.flags.contains(ReadFlags::ISDIR), second.wd, &second.name);
        self.forget(first.wd, &first.name);
        self.forget(parent, name);
        if let Some(was_new) = own_temporary(&first.name) {
            let kind = if was_new { ChangeKind::Created } else { ChangeKind::Modified };
            self.tell_in(kind, parent, name, is_dir);
            if is_dir {
                self.follow(parent, name, true);
            }
            return;
        }
        let old = self.tree.path(first.wd).map(|path| path.join(&first.name));
        if is_dir {
            match self.tree.child(first.wd, &first.name) {
                Some(wd) => self.tree.insert(parent, name, wd),
                None => self.follow(parent, name, false),
            }
        }
        if let (Some(old), Some(path)) = (old, self.tree.path(parent)) {
            self.tell(ChangeKind::Renamed, &path.join(name), Some(&old), is_dir);
        }
    }

    /// The kernel will tell of what happens to this name from here on.
    fn forget(&mut self, parent: Wd, name: &OsStr) {
        if let Some(told) = self.told.get_mut(&parent) {
            told.remove(name);
        }
    }

    /// Watches a directory that appeared, and all below it; `tell` says what is in it already.
    fn follow(&mut self, parent: Wd, name: &OsStr, tell: bool) {
        if self.recursive
            && let Some(wd) = self.watch(parent, name)
        {
            self.read_below(wd, tell);
        }
    }

    /// Watches one directory; `None` when it is gone, not to be watched, or watched already.
    fn watch(&mut self, parent: Wd, name: &OsStr) -> Option<Wd> {
        let path = self.tree.path(parent)?.join(name);
        if LEFT_OUT.iter().any(|left_out| path == Path::new(left_out)) {
            return None;
        }
        let full = self.tree.len() >= DIRECTORIES_MAX;
        let added = if full { Err(Errno::NOSPC) } else { add(&self.inotify, &path, WatchFlags::DONT_FOLLOW) };
        match added {
            Ok(wd) => {
                let known = self.tree.contains(wd);
                self.tree.insert(parent, name, wd);
                (!known).then_some(wd)
            }
            // It has gone meanwhile, or is something else now: the kernel tells of that.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(_) => {
                self.unwatched.get_or_insert((path, 0)).1 += 1;
                None
            }
        }
    }

    /// Reads a directory that is watched just now, and watches all below it.
    fn read_below(&mut self, top: Wd, tell: bool) {
        if !self.recursive && !tell {
            return;
        }
        let mut waiting = vec![top];
        while let Some(wd) = waiting.pop() {
            let Some(path) = self.tree.path(wd) else { continue };
            let Ok(entries) = fs::read_dir(&path) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if tell {
                    self.tell_in(ChangeKind::Created, wd, &name, is_dir);
                    self.told.entry(wd).or_default().insert(name.clone());
                }
                if is_dir && let Some(below) = self.watch(wd, &name) {
                    waiting.push(below);
                }
            }
        }
    }

    /// After the kernel lost events: watches what is there now, and nothing else.
    fn watch_again(&mut self) {
        let before: Vec<Wd> = self.tree.all().collect();
        self.told.clear();
        self.tree = Tree::new(self.root.clone(), self.tree.root());
        self.read_below(self.tree.root(), false);
        for wd in before.into_iter().filter(|wd| !self.tree.contains(*wd)) {
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    fn unwatch(&mut self, wd: Wd) {
        for wd in self.tree.remove(wd) {
            self.told.remove(&wd);
            // One that was deleted has no watch any more.
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    fn tell_in(&mut self, kind: ChangeKind, parent: Wd, name: &OsStr, is_dir: bool) {
        if own_temporary(name).is_some() {
            return;
        }
        if let Some(path) = self.tree.path(parent) {
            self.tell(kind, &path.join(name), None, is_dir);
        }
    }

    fn tell(&mut self, kind: ChangeKind, path: &Path, old: Option<&Path>, is_dir: bool) {
        self.queue.push(Change { kind, path: text(path), old_path: old.map(text), is_dir, count: None });
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn add(inotify: &OwnedFd, path: &Path, more: WatchFlags) -> Result<Wd, Errno> {
    let events = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    inotify::add_watch(inotify, path, events | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK | more)
}

/// For a file that the agent is writing: whether nothing was at its path before.
fn own_temporary(name: &OsStr) -> Option<bool> {
    let own = OWN_TEMPORARIES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
    own.then(|| name.as_bytes().ends_with(NEW_SUFFIX.as_bytes()))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
