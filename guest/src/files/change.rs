//! Making directories and moving what there is.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use super::remove::remove_tree;
use crate::failure::{Failure, absolute};

/// Permission bits of a directory made on the way to a path.
const DIRECTORY_MODE: u32 = 0o755;

/// Directories waiting to be copied in a move across file systems.
const COPY_QUEUE_MAX: usize = 200_000;

/// Makes a directory and its missing parents.
pub fn make_dir(path: &str) -> Result<(), Failure> {
    absolute("path", path)?;
    make_dirs(Path::new(path)).map_err(|error| Failure::io(format!("Cannot make directory {path}"), &error))
}

/// Makes the missing directories above a path.
pub fn make_parents(path: &Path) -> Result<(), Failure> {
    let Some(parent) = path.parent() else { return Ok(()) };
    make_dirs(parent).map_err(|error| Failure::io(format!("Cannot make directory {}", parent.display()), &error))
}

fn make_dirs(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Renames, and where that cannot be (another file system) copies, then removes.
pub fn move_path(from: &str, to: &str) -> Result<(), Failure> {
    absolute("from", from)?;
    absolute("to", to)?;
    let (source, target) = (Path::new(from), Path::new(to));
    for (path, text) in [(source, from), (target, to)] {
        if path.file_name().is_none() {
            return Err(Failure::path(text, "cannot be moved"));
        }
    }
    let failed = |error: io::Error| Failure::io(format!("Cannot move {from} to {to}"), &error);
    let metadata = fs::symlink_metadata(source).map_err(failed)?;
    make_parents(target)?;
    match fs::rename(source, target) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            move_across(source, &metadata, target).map_err(failed)
        }
        result => result.map_err(failed),
    }
}

/// Copies to a temporary name beside `target`, renames it into place, and only then removes the source.
fn move_across(source: &Path, metadata: &Metadata, target: &Path) -> io::Result<()> {
    let temporary = target.with_file_name(format!(".cove-move-{}-{}-new", std::process::id(), metadata.ino()));
    let copied = copy(source, &temporary).and_then(|()| fs::rename(&temporary, target));
    if let Err(error) = copied {
        let _ = remove_any(&temporary);
        return Err(error);
    }
    remove_any(source)
}

fn remove_any(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        remove_tree(CString::new(path.as_os_str().as_bytes())?)
    } else {
        fs::remove_file(path)
    }
}

/// Copies a file, link or tree with its permission bits and owners.
fn copy(source: &Path, target: &Path) -> io::Result<()> {
    let mut queue = vec![(source.to_path_buf(), target.to_path_buf())];
    let mut directories: Vec<(PathBuf, Metadata)> = Vec::new();
    while let Some((from, to)) = queue.pop() {
        let metadata = fs::symlink_metadata(&from)?;
        if metadata.is_dir() {
            DirBuilder::new().mode(0o700).create(&to)?;
            for name in fs::read_dir(&from)? {
                let name = name?.file_name();
                if queue.len() == COPY_QUEUE_MAX {
                    return Err(io::Error::other(format!("a directory holds more than {COPY_QUEUE_MAX} names")));
                }
                queue.push((from.join(&name), to.join(&name)));
            }
            directories.push((to, metadata));
        } else if metadata.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            lchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if metadata.is_file() {
            fs::copy(&from, &to)?;
            keep_owner_and_mode(&to, &metadata)?;
        } else {
            return Err(io::Error::other(format!("{} is a device, socket or pipe", from.display())));
        }
    }
    // Last, and from below: a directory may be one that even its owner cannot write to.
    directories.iter().rev().try_for_each(|(path, metadata)| keep_owner_and_mode(path, metadata))
}

fn keep_owner_and_mode(path: &Path, metadata: &Metadata) -> io::Result<()> {
    // The owner first: changing it clears the set-user-id bit.
    chown(path, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}
