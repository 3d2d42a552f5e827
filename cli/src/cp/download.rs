//! Out of a sandbox to here. What the sandbox says is not trusted: nothing is written outside the destination.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;

use super::skip;
use crate::client::{Client, FileEntry};

/// Levels of a directory tree that are copied.
const DEPTH_MAX: u32 = 64;

/// Permission bits that are taken over; never set-user-id and the like.
const MODE_MASK: u32 = 0o777;

/// Copies `from` in the sandbox to `to` and gives how many things were skipped.
pub async fn copy(client: &Client, id: &str, from: &str, to: &Path) -> Result<usize> {
    let entry = client.stat(id, from).await?;
    let name = Path::new(from).file_name();
    let inside = to.is_dir() || to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = match (inside, name) {
        (true, Some(name)) => to.join(name),
        _ => to.to_path_buf(),
    };
    if entry.is_dir {
        return directory(client, id, from, &target).await;
    }
    // A link that is named is followed, by the download itself.
    file(client, id, &entry, &target).await.map(|()| 0)
}

async fn directory(client: &Client, id: &str, from: &str, to: &Path) -> Result<usize> {
    let mut skipped = 0;
    let mut modes = Vec::new();
    make_dir(to)?;
    for entry in client.list_files(id, from, DEPTH_MAX).await? {
        let Some(target) = below(&entry.path, from, to) else {
            bail!("The sandbox lists '{}' below '{from}'", entry.path)
        };
        if has_link_above(&target, to) {
            skip(Path::new(&entry.path), "a symbolic link here stands in its way");
            skipped += 1;
        } else if entry.is_dir {
            make_dir(&target)?;
            modes.extend(entry.mode_bits().map(|mode| (target, mode)));
        } else if entry.is_symlink {
            skip(Path::new(&entry.path), "it is a symbolic link, and where it leads is the sandbox's business");
            skipped += 1;
        } else if entry.is_file() {
            file(client, id, &entry, &target).await?;
        }
    }
    // Last, and deepest first: a directory without the write bit takes no more files.
    for (path, mode) in modes.iter().rev() {
        set_mode(path, mode | 0o700)?;
    }
    Ok(skipped)
}

async fn file(client: &Client, id: &str, entry: &FileEntry, to: &Path) -> Result<()> {
    let cannot_write = || format!("Cannot write {}", to.display());
    let mut response = client.download(id, &entry.path).await?;
    let name = to.file_name().with_context(cannot_write)?.to_string_lossy();
    let partial = Partial(to.with_file_name(format!(".{name}.cove-{}", std::process::id())));
    let mut out = OpenOptions::new().write(true).create_new(true).open(&partial.0).await.with_context(cannot_write)?;
    while let Some(bytes) = response.chunk().await.with_context(|| format!("The copy of {} broke off", entry.path))? {
        out.write_all(&bytes).await.with_context(cannot_write)?;
    }
    out.flush().await.with_context(cannot_write)?;
    drop(out);
    if let Some(mode) = entry.mode_bits().filter(|_| entry.is_file()) {
        set_mode(&partial.0, mode)?;
    }
    fs::rename(&partial.0, to).with_context(cannot_write)
}

/// A file on its way to its place; removed when it does not get there.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing of this name, which is the good case.
        let _ = fs::remove_file(&self.0);
    }
}

/// Where a path that the sandbox listed below `from` goes below `to`; `None` if it is not plainly below `from`.
fn below(path: &str, from: &str, to: &Path) -> Option<PathBuf> {
    let relative = Path::new(path).strip_prefix(from).ok()?;
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && relative.components().next().is_some()).then(|| to.join(relative))
}

/// One of the directories between `to` and `target` is a symbolic link, so writing there would leave `to`.
fn has_link_above(target: &Path, to: &Path) -> bool {
    let above = target.ancestors().skip(1).take_while(|path| *path != to);
    above.into_iter().any(Path::is_symlink)
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("Cannot make the directory {}", path.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let permissions = fs::Permissions::from_mode(mode & MODE_MASK);
    fs::set_permissions(path, permissions).with_context(|| format!("Cannot set the permissions of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_destination() {
        let to = Path::new("/d");
        assert_eq!(below("/w/a/b", "/w", to), Some(PathBuf::from("/d/a/b")));
        assert_eq!(below("/w/a", "/w/", to), Some(PathBuf::from("/d/a")));
        for hostile in ["/w", "/etc/passwd", "/w/../etc", "/ww/a", "w/a"] {
            assert_eq!(below(hostile, "/w", to), None, "{hostile}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        assert!(has_link_above(&dir.path().join("link/x/y"), dir.path()));
        assert!(!has_link_above(&dir.path().join("real/x"), dir.path()));
    }
}
