//! From what the kernel tells (inotify(7)) to what the peer is told.
//!
//! The kernel speaks of directories by number and of names in them; moves come in two halves; a directory that is new may
//! have been filled before it could be watched. Here numbers become paths, halves become renames, and a new directory is
//! watched first and then read, so that whatever is put into it is seen one way or the other and told once.
//!
//! Events are of the past, paths are of the present: where a directory has moved on before its event is looked at, another
//! one may be watched in its place. That is noticed when the kernel gives a number that belongs elsewhere, and then what is
//! at that place is told anew ([`Watcher::renew`]): a deletion, and all that is there now.

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
    told: HashMap<Wd, Told>,
    /// Directories that had moved on when they, or one in them, were to be looked at; true when nothing in them was told of.
    /// The kernel tells where they went, and there they are looked at again. Forgotten as `told` is.
    missed: HashMap<Wd, bool>,
    /// Directories moved on while they were looked at: what was told of them may lack something.
    unsure: bool,
    unwatched: Option<(PathBuf, u64)>,
    buffer: Vec<MaybeUninit<u8>>,
    /// What is to be told.
    pub queue: Queue,
    /// The directory itself is gone.
    pub ended: bool,
}

/// What was told of a directory since it was read.
#[derive(Default)]
struct Told {
    /// Names that the reading told of, and whose creation the kernel may still tell.
    by_reading: HashSet<OsString>,
    /// Names that the peer knows.
    known: HashSet<OsString>,
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
            missed: HashMap::new(),
            unsure: false,
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
            // All that the kernel knows was looked at: what is still missed is where the tree says, or gone.
            self.catch_up(self.tree.root());
            self.told.clear();
            self.missed.clear();
            if std::mem::take(&mut self.unsure) {
                self.queue.lose(None);
            }
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
        if self.told.get_mut(&parent).is_some_and(|told| told.by_reading.remove(name)) {
            return;
        }
        self.tell_in(ChangeKind::Created, parent, name, is_dir);
        if is_dir {
            self.follow(parent, name);
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
        // Of a directory that is not looked at any more, the kernel may still tell what happened before.
        match (self.tree.contains(first.wd), self.tree.contains(parent)) {
            (true, true) => {}
            (true, false) => {
                self.unsure = true;
                self.forget(first.wd, &first.name);
                return self.deleted(first.wd, &first.name, is_dir);
            }
            (false, true) => {
                self.unsure = true;
                return self.created(parent, name, is_dir);
            }
            (false, false) => return,
        }
        let seen_before = self.was_told(first.wd, &first.name);
        let unknown = self.told.get(&first.wd).is_some_and(|told| !told.known.contains(&first.name));
        let seen_after = self.was_told(parent, name);
        self.forget(first.wd, &first.name);
        self.forget(parent, name);
        // A reading of the new place saw it there already.
        if seen_after && !seen_before {
            self.unsure = true;
            return self.deleted(first.wd, &first.name, is_dir);
        }
        // A reading of the old place came when it had left already.
        if unknown && own_temporary(&first.name).is_none() {
            self.unsure = true;
            return self.created(parent, name, is_dir);
        }
        if let Some(was_new) = own_temporary(&first.name) {
            let kind = if was_new { ChangeKind::Created } else { ChangeKind::Modified };
            self.tell_in(kind, parent, name, is_dir);
            if is_dir {
                self.follow(parent, name);
            }
            return;
        }
        let old = self.tree.path(first.wd).map(|path| path.join(&first.name));
        let known = self.tree.child(first.wd, &first.name).filter(|_| is_dir);
        if let Some(wd) = known {
            let before = self.tree.insert(parent, name, wd);
            self.drop_watches(before);
        }
        let Some(path) = self.tree.path(parent).map(|path| path.join(name)) else { return };
        self.tell(ChangeKind::Renamed, &path, old.as_deref(), is_dir);
        if let Some(told) = self.told.get_mut(&parent) {
            told.known.insert(name.clone());
        }
        if is_dir && self.recursive {
            match add(&self.inotify, &path, WatchFlags::DONT_FOLLOW) {
                Ok(wd) if Some(wd) == known => self.catch_up(wd),
                // Gone meanwhile: the kernel tells of that.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                _ => self.renew(parent, name),
            }
        }
    }

    /// Tells anew what is in a directory: what was told of it may be of another one.
    fn renew(&mut self, parent: Wd, name: &OsStr) {
        self.unsure = true;
        let Some(path) = self.tree.path(parent).map(|path| path.join(name)) else { return };
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            return;
        }
        if let Some(wd) = self.tree.child(parent, name) {
            self.unwatch(wd);
        }
        self.tell_in(ChangeKind::Deleted, parent, name, true);
        self.tell_in(ChangeKind::Created, parent, name, true);
        if let Some((wd, _)) = self.watch(parent, name) {
            self.read_below(wd, true);
        }
    }

    /// Looks at what was missed in a directory that is found again, and below it.
    fn catch_up(&mut self, wd: Wd) {
        let missed: Vec<(Wd, bool)> = self
            .missed
            .iter()
            .filter(|(missed, _)| self.tree.is_within(**missed, wd))
            .map(|(wd, all)| (*wd, *all))
            .collect();
        for (wd, all) in missed {
            self.missed.remove(&wd);
            self.unsure = true;
            if all {
                self.read_below(wd, true);
                continue;
            }
            let Some(path) = self.tree.path(wd) else { continue };
            let names: Vec<OsString> = match fs::read_dir(path) {
                Ok(entries) => entries.flatten().filter(is_dir).map(|entry| entry.file_name()).collect(),
                Err(_) => {
                    self.missed.insert(wd, false);
                    continue;
                }
            };
            for name in names {
                if self.tree.child(wd, &name).is_none() {
                    self.follow(wd, &name);
                }
            }
        }
    }

    fn was_told(&self, parent: Wd, name: &OsStr) -> bool {
        self.told.get(&parent).is_some_and(|told| told.by_reading.contains(name))
    }

    /// The kernel will tell of what happens to this name from here on.
    fn forget(&mut self, parent: Wd, name: &OsStr) {
        if let Some(told) = self.told.get_mut(&parent) {
            told.by_reading.remove(name);
            told.known.remove(name);
        }
    }

    /// Watches a directory that appeared and tells what is in it already.
    fn follow(&mut self, parent: Wd, name: &OsStr) {
        if self.recursive
            && let Some((wd, elsewhere)) = self.watch(parent, name)
        {
            self.read_below(wd, true);
            if let Some((parent, name)) = elsewhere {
                self.renew(parent, &name);
            }
        }
    }

    /// Watches one directory, and says where it was taken to be until now; `None` when it is gone, not to be watched, or
    /// watched there already.
    fn watch(&mut self, parent: Wd, name: &OsStr) -> Option<(Wd, Option<(Wd, OsString)>)> {
        let path = self.tree.path(parent)?.join(name);
        if LEFT_OUT.iter().any(|left_out| path == Path::new(left_out)) {
            return None;
        }
        let full = self.tree.len() >= DIRECTORIES_MAX;
        let added = if full { Err(Errno::NOSPC) } else { add(&self.inotify, &path, WatchFlags::DONT_FOLLOW) };
        match added {
            Ok(wd) => {
                let place = self.tree.place(wd);
                if wd == self.tree.root()
                    || place.as_ref().is_some_and(|(at, as_name)| *at == parent && as_name == name)
                {
                    return None;
                }
                let before = self.tree.insert(parent, name, wd);
                self.drop_watches(before);
                Some((wd, place))
            }
            // It has gone meanwhile, or is something else now: the kernel tells of that. Where it is a directory above that
            // moved on, only of that one.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.missed.entry(parent).or_insert(false);
                None
            }
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
            if tell {
                self.told.insert(wd, Told::default());
            }
            let Ok(entries) = fs::read_dir(&path) else {
                self.missed.insert(wd, true);
                continue;
            };
            for entry in entries.flatten() {
                let (name, is_dir) = (entry.file_name(), is_dir(&entry));
                if tell {
                    self.told.entry(wd).or_default().by_reading.insert(name.clone());
                    self.tell_in(ChangeKind::Created, wd, &name, is_dir);
                }
                if is_dir && let Some((below, _)) = self.watch(wd, &name) {
                    waiting.push(below);
                }
            }
        }
    }

    /// After the kernel lost events: watches what is there now, and nothing else.
    fn watch_again(&mut self) {
        let before: Vec<Wd> = self.tree.all().collect();
        self.told.clear();
        self.missed.clear();
        self.tree = Tree::new(self.root.clone(), self.tree.root());
        self.read_below(self.tree.root(), false);
        for wd in before.into_iter().filter(|wd| !self.tree.contains(*wd)) {
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    fn unwatch(&mut self, wd: Wd) {
        let removed = self.tree.remove(wd);
        self.drop_watches(removed);
    }

    fn drop_watches(&mut self, watches: Vec<Wd>) {
        for wd in watches {
            self.told.remove(&wd);
            // One that was deleted has no watch any more.
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    fn tell_in(&mut self, kind: ChangeKind, parent: Wd, name: &OsStr, is_dir: bool) {
        if own_temporary(name).is_some() {
            return;
        }
        if kind == ChangeKind::Created
            && let Some(told) = self.told.get_mut(&parent)
        {
            told.known.insert(name.to_owned());
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

fn is_dir(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// For a file that the agent is writing: whether nothing was at its path before.
fn own_temporary(name: &OsStr) -> Option<bool> {
    let own = OWN_TEMPORARIES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
    own.then(|| name.as_bytes().ends_with(NEW_SUFFIX.as_bytes()))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
