//! What differs between the files of a snapshot and those of another one, or of a sandbox as it is now.
//!
//! Two listings are compared; files whose time alone differs are read, so that a rebuilt but equal file is no difference.
//! A snapshot is read through its viewer (`files`), whose processes go on: what they write there differs too.

use std::collections::HashMap;

use bytes::Bytes;
use cove_protocol::guest::{Entry, EntryKind, ErrorKind};
use futures_util::StreamExt;

use super::SnapshotId;
use crate::error::Error;
use crate::sandbox::SandboxId;
use crate::{Engine, FileStream};

/// Levels below the compared directory.
const DEPTH_MAX: u32 = 64;

/// Most differences that are told; the others are counted.
const DIFFERENCES_MAX: usize = 5000;

/// Bytes of equally long files that are read; longer ones, and what comes after, count as different.
const READ_BYTES_MAX: u64 = 16 << 20;

/// Directories of the root that are no files of the disk, or say only what runs.
const NOT_COMPARED: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// Whose files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// As they were.
    Snapshot(SnapshotId),
    /// As they are now; a paused one is resumed.
    Sandbox(SandboxId),
}

/// One path that is not the same on both sides. At least one of the two is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// On the first side.
    pub before: Option<Entry>,
    /// On the second side.
    pub after: Option<Entry>,
    /// The bytes may differ; not when only permissions do.
    pub content: bool,
}

/// What differs below a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// By path, in byte order.
    pub differences: Vec<Difference>,
    /// How many more there are.
    pub more: usize,
    /// Entries of both sides that were looked at.
    pub compared: usize,
}

impl Engine {
    /// What differs below the directory `path`, from `before` to `after`. `/proc` and the like are left out of `/`.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`], and as [`Engine::fork`] and [`Engine::list_dir`]; a directory that only one side has is
    /// no error.
    pub async fn compare_files(&self, before: &Side, after: &Side, path: &str) -> Result<Comparison, Error> {
        let left = self.files_below(before, path).await?;
        let right = self.files_below(after, path).await?;
        let (left, right) = match (left, right) {
            (Err(missing), Err(_)) => return Err(missing),
            (left, right) => (left.unwrap_or_default(), right.unwrap_or_default()),
        };
        let compared = left.len() + right.len();
        let mut found = differences(left, right);
        let mut budget = READ_BYTES_MAX;
        let mut kept = Vec::new();
        for difference in found.drain(..) {
            match same_length(&difference) {
                Some(bytes) if bytes <= budget => {
                    budget -= bytes;
                    let path = &difference.before.as_ref().map_or("", |entry| &entry.path).to_owned();
                    let content = !self.same_bytes(before, after, path).await?;
                    let mode = mode_differs(&difference);
                    if content || mode {
                        kept.push(Difference { content, ..difference });
                    }
                }
                _ => kept.push(difference),
            }
        }
        let more = kept.len().saturating_sub(DIFFERENCES_MAX);
        kept.truncate(DIFFERENCES_MAX);
        Ok(Comparison { differences: kept, more, compared })
    }

    /// The sandbox through which a side is read.
    async fn reader(&self, side: &Side) -> Result<SandboxId, Error> {
        match side {
            Side::Snapshot(id) => self.viewer(id).await,
            Side::Sandbox(id) => Ok(id.clone()),
        }
    }

    /// All entries below a directory; the inner error is that it is not there.
    async fn files_below(&self, side: &Side, path: &str) -> Result<Result<Vec<Entry>, Error>, Error> {
        let id = self.reader(side).await?;
        let listed = async {
            if path != "/" {
                return self.list_dir(&id, path, DEPTH_MAX).await;
            }
            let mut all = Vec::new();
            for entry in self.list_dir(&id, path, 1).await? {
                if NOT_COMPARED.contains(&entry.path.as_str()) {
                    continue;
                }
                let below = (entry.kind == EntryKind::Directory).then(|| entry.path.clone());
                all.push(entry);
                if let Some(below) = below {
                    all.extend(self.list_dir(&id, &below, DEPTH_MAX - 1).await?);
                }
            }
            Ok(all)
        };
        match listed.await {
            Err(error @ Error::Guest { kind: ErrorKind::NotFound, .. }) => Ok(Err(error)),
            Err(error) => Err(error),
            Ok(entries) => Ok(Ok(entries)),
        }
    }

    /// True when a file that was listed on both sides still has the same bytes on both.
    async fn same_bytes(&self, before: &Side, after: &Side, path: &str) -> Result<bool, Error> {
        let (left, right) = (self.reader(before).await?, self.reader(after).await?);
        match (self.read_file(&left, path).await, self.read_file(&right, path).await) {
            (Ok((_, left)), Ok((_, right))) => same_streams(left, right).await,
            // Gone meanwhile on one side, or unreadable: not known to be the same.
            _ => Ok(false),
        }
    }
}

/// What is not known to be the same, by path in byte order. Directories are compared by their permissions.
fn differences(left: Vec<Entry>, right: Vec<Entry>) -> Vec<Difference> {
    let mut others: HashMap<String, Entry> = right.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
    let mut found = Vec::new();
    for before in left {
        let Some(after) = others.remove(&before.path) else {
            found.push(Difference { before: Some(before), after: None, content: true });
            continue;
        };
        let kind = before.kind != after.kind;
        let content = before.kind != EntryKind::Directory
            && (before.size != after.size || before.modified_us != after.modified_us);
        if kind || content || before.mode != after.mode {
            found.push(Difference { content: kind || content, before: Some(before), after: Some(after) });
        }
    }
    found.extend(others.into_values().map(|after| Difference { before: None, after: Some(after), content: true }));
    found.sort_unstable_by(|a, b| path(a).cmp(path(b)));
    found
}

fn path(difference: &Difference) -> &str {
    difference.before.as_ref().or(difference.after.as_ref()).map_or("", |entry| &entry.path)
}

fn mode_differs(difference: &Difference) -> bool {
    matches!((&difference.before, &difference.after), (Some(before), Some(after)) if before.mode != after.mode)
}

/// The length of a file that may be the same on both sides, as only its time says otherwise.
fn same_length(difference: &Difference) -> Option<u64> {
    let (before, after) = (difference.before.as_ref()?, difference.after.as_ref()?);
    let files = before.kind == EntryKind::File && after.kind == EntryKind::File;
    (difference.content && files && before.size == after.size).then_some(before.size)
}

/// Compares two streams, whose chunks are of any length.
async fn same_streams(mut left: FileStream, mut right: FileStream) -> Result<bool, Error> {
    let (mut one, mut two) = (Bytes::new(), Bytes::new());
    loop {
        if one.is_empty() {
            one = left.next().await.transpose()?.unwrap_or_default();
        }
        if two.is_empty() {
            two = right.next().await.transpose()?.unwrap_or_default();
        }
        let common = one.len().min(two.len());
        if common == 0 {
            return Ok(one.is_empty() && two.is_empty());
        }
        if one.split_to(common) != two.split_to(common) {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind, size: u64, mode: u32, modified_us: i64) -> Entry {
        Entry { path: path.into(), kind, size, mode, modified_us }
    }

    fn file(path: &str, size: u64, modified_us: i64) -> Entry {
        entry(path, EntryKind::File, size, 0o644, modified_us)
    }

    /// As `+ added`, `- removed`, `~ content`, `m permissions`, `? perhaps the same`.
    fn drawn(left: Vec<Entry>, right: Vec<Entry>) -> Vec<String> {
        let mark = |difference: &Difference| match (&difference.before, &difference.after) {
            (None, _) => '+',
            (_, None) => '-',
            _ if same_length(difference).is_some() => '?',
            _ if difference.content => '~',
            _ => 'm',
        };
        differences(left, right).iter().map(|it| format!("{} {}", mark(it), path(it))).collect()
    }

    #[test]
    fn each_kind_of_difference_is_told_by_path() {
        let directory = |path, mode, at| entry(path, EntryKind::Directory, 4096, mode, at);
        let left = vec![
            directory("/w/a", 0o755, 1),
            file("/w/a/gone", 1, 1),
            file("/w/a/same", 1, 1),
            file("/w/a/touched", 1, 1),
            file("/w/a/grown", 1, 1),
            entry("/w/a/script", EntryKind::File, 1, 0o644, 1),
            file("/w/a/turned", 1, 1),
            directory("/w/locked", 0o755, 1),
        ];
        let right = vec![
            // Its entries changed, and so its time: no difference of its own.
            directory("/w/a", 0o755, 2),
            file("/w/a/same", 1, 1),
            file("/w/a/touched", 1, 2),
            file("/w/a/grown", 2, 2),
            entry("/w/a/script", EntryKind::File, 1, 0o755, 1),
            entry("/w/a/turned", EntryKind::Symlink, 1, 0o644, 1),
            directory("/w/locked", 0o700, 1),
            file("/w/a/new", 1, 1),
        ];
        let expected = [
            "- /w/a/gone",
            "~ /w/a/grown",
            "+ /w/a/new",
            "m /w/a/script",
            "? /w/a/touched",
            "~ /w/a/turned",
            "m /w/locked",
        ];
        assert_eq!(drawn(left, right), expected);
        assert_eq!(drawn(vec![file("/w/x", 1, 1)], vec![file("/w/x", 1, 1)]), Vec::<String>::new());
    }

    /// A link's length is that of its target: it cannot be read to see whether two of one length are the same.
    #[test]
    fn links_are_not_read() {
        let link = |at| entry("/w/l", EntryKind::Symlink, 3, 0o777, at);
        assert_eq!(drawn(vec![link(1)], vec![link(2)]), ["~ /w/l"]);
    }
}
