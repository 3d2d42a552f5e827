//! Changes that wait to be sent: a bounded queue that says what it had to drop, at the place where it dropped it.
//!
//! A file that is written again before anyone was told of the last write is one change. Pure.

use std::collections::{HashSet, VecDeque};

use cove_protocol::guest::{CHANGES_PER_FRAME_MAX, Change, ChangeKind};

/// Changes that are held.
pub const CHANGES_MAX: usize = 65_536;

/// Bytes of their paths.
pub const PATH_BYTES_MAX: usize = 8 << 20;

/// Bytes of paths in one frame: well below what a frame holds.
const PATH_BYTES_PER_FRAME_MAX: usize = 256 << 10;

/// The queue of one watch.
#[derive(Debug)]
pub struct Queue {
    /// The watched directory, which is where losses are told of.
    root: String,
    changes: VecDeque<Change>,
    path_bytes: usize,
    /// Paths whose last change here is a `Modified`.
    modified: HashSet<String>,
}

impl Queue {
    /// An empty one.
    pub fn new(root: String) -> Self {
        Self { root, changes: VecDeque::new(), path_bytes: 0, modified: HashSet::new() }
    }

    /// Takes a change, or counts it as lost.
    pub fn push(&mut self, change: Change) {
        match change.kind {
            ChangeKind::Modified if self.modified.contains(&change.path) => return,
            ChangeKind::Modified => {
                self.modified.insert(change.path.clone());
            }
            _ => {
                self.modified.remove(&change.path);
                if let Some(old) = &change.old_path {
                    self.modified.remove(old);
                }
            }
        }
        let bytes = path_bytes(&change);
        if self.changes.len() >= CHANGES_MAX || self.path_bytes + bytes > PATH_BYTES_MAX {
            self.modified.remove(&change.path);
            self.lose(Some(1));
            return;
        }
        self.path_bytes += bytes;
        self.changes.push_back(change);
    }

    /// Notes that so many changes were lost after the newest one; `None` when nobody knows how many.
    pub fn lose(&mut self, lost: Option<u64>) {
        if let Some(Change { kind: ChangeKind::Overflow, count, .. }) = self.changes.back_mut() {
            *count = count.zip(lost).map(|(count, lost)| count.saturating_add(lost));
            return;
        }
        let path = self.root.clone();
        self.path_bytes += path.len();
        self.changes.push_back(Change { kind: ChangeKind::Overflow, path, old_path: None, is_dir: true, count: lost });
    }

    /// What goes into the next frame.
    pub fn take(&mut self) -> Vec<Change> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < CHANGES_PER_FRAME_MAX
            && let Some(change) =
                self.changes.pop_front_if(|change| bytes == 0 || bytes + path_bytes(change) <= PATH_BYTES_PER_FRAME_MAX)
        {
            bytes += path_bytes(&change);
            if change.kind == ChangeKind::Modified {
                self.modified.remove(&change.path);
            }
            taken.push(change);
        }
        self.path_bytes -= bytes;
        taken
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

fn path_bytes(change: &Change) -> usize {
    change.path.len() + change.old_path.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind, path: &str) -> Change {
        Change { kind, path: path.into(), old_path: None, is_dir: false, count: None }
    }

    fn all(queue: &mut Queue) -> Vec<Change> {
        std::iter::from_fn(|| Some(queue.take()).filter(|taken| !taken.is_empty())).flatten().collect()
    }

    #[test]
    fn a_file_that_is_written_again_before_it_is_told_is_one_change() {
        use ChangeKind::{Created, Deleted, Modified};
        let mut queue = Queue::new("/w".into());
        for kind in [Created, Modified, Modified, Deleted, Created, Modified, Modified] {
            queue.push(change(kind, "/w/a"));
        }
        let kinds: Vec<ChangeKind> = all(&mut queue).into_iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [Created, Modified, Deleted, Created, Modified]);
        queue.push(change(Modified, "/w/a"));
        assert_eq!(all(&mut queue).len(), 1, "told again once it was told");
    }

    #[test]
    fn what_does_not_fit_is_counted_where_it_is_missing() {
        let mut queue = Queue::new("/w".into());
        for number in 0..CHANGES_MAX + 5 {
            queue.push(change(ChangeKind::Created, &format!("/w/{number}")));
        }
        assert_eq!(queue.take().len(), CHANGES_PER_FRAME_MAX);
        queue.push(change(ChangeKind::Created, "/w/later"));
        let rest = all(&mut queue);
        assert_eq!(rest.len(), CHANGES_MAX - CHANGES_PER_FRAME_MAX + 2);
        let [.., lost, later] = rest.as_slice() else { panic!() };
        assert_eq!((lost.kind, lost.count, lost.path.as_str()), (ChangeKind::Overflow, Some(5), "/w"));
        assert_eq!(later.path, "/w/later");
        assert_eq!((queue.path_bytes, queue.modified.len()), (0, 0));
    }

    #[test]
    fn what_the_kernel_lost_makes_the_number_unknown() {
        let mut queue = Queue::new("/w".into());
        queue.lose(Some(3));
        queue.lose(None);
        queue.lose(Some(1));
        assert_eq!(all(&mut queue).iter().map(|change| change.count).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn a_frame_is_bounded_by_the_bytes_of_its_paths() {
        let mut queue = Queue::new("/w".into());
        let long = "x".repeat(4000);
        for number in 0..200 {
            queue.push(change(ChangeKind::Created, &format!("/w/{long}{number}")));
        }
        let frame = queue.take();
        assert!(frame.len() < 200 && frame.iter().map(path_bytes).sum::<usize>() <= PATH_BYTES_PER_FRAME_MAX);
    }
}
