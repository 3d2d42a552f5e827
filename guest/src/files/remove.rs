//! Removing a file, a link, or a directory with all in it.
//!
//! A tree is walked by descriptors and never by path, so that nobody who owns a part of it can swap a directory for a
//! link and have something else removed. It does not recurse: its depth is bounded by [`DEPTH_MAX`].

use std::{ffi::CString, fs, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat},
    io::Errno,
};

use crate::failure::{Failure, absolute};

/// Levels of a tree that can be removed; each holds a descriptor on the way down.
const DEPTH_MAX: usize = 512;

/// Removes what `path` names.
pub fn remove(path: &str, recursive: bool) -> Result<(), Failure> {
    let checked = absolute("path", path)?;
    if Path::new(path).file_name().is_none() {
        return Err(Failure::path(path, "cannot be removed"));
    }
    let failed = |error: io::Error| Failure::io(format!("Cannot remove {path}"), &error);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    match (metadata.is_dir(), recursive) {
        (false, _) => fs::remove_file(path),
        (true, false) => fs::remove_dir(path),
        (true, true) => remove_tree(checked),
    }
    .map_err(failed)
}

/// Removes a directory with all in it.
pub fn remove_tree(path: CString) -> io::Result<()> {
    let top = Level::open(CWD, path)?;
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        match level.names.pop() {
            Some((name, FileType::Directory)) => {
                let below = Level::open(&level.directory, name)?;
                if levels.len() == DEPTH_MAX {
                    return Err(io::Error::other(format!("it is deeper than {DEPTH_MAX} levels")));
                }
                levels.push(below);
            }
            Some((name, _)) => unlink(&level.directory, &name, AtFlags::empty())?,
            None => {
                let Some(Level { name, .. }) = levels.pop() else { break };
                match levels.last() {
                    Some(above) => unlink(&above.directory, &name, AtFlags::REMOVEDIR)?,
                    None => unlink(CWD, &name, AtFlags::REMOVEDIR)?,
                }
            }
        }
    }
    Ok(())
}

/// A directory on the way down, with what is still to be removed in it.
struct Level {
    name: CString,
    directory: OwnedFd,
    names: Vec<(CString, FileType)>,
}

impl Level {
    fn open(above: impl std::os::fd::AsFd, name: CString) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(above, &name, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if ![c".", c".."].contains(&entry.file_name()) {
                names.push((entry.file_name().to_owned(), kind(&directory, &entry)?));
            }
        }
        Ok(Self { name, directory, names })
    }
}

/// What an entry is, also on file systems that do not say it in their directories.
fn kind(directory: &OwnedFd, entry: &rustix::fs::DirEntry) -> io::Result<FileType> {
    match entry.file_type() {
        FileType::Unknown => {
            let stat = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        }
        known => Ok(known),
    }
}

/// Removes one name; one that has gone meanwhile is fine.
fn unlink(directory: impl std::os::fd::AsFd, name: &CString, flags: AtFlags) -> io::Result<()> {
    match unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
