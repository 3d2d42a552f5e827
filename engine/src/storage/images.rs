//! Folders of memory images: written under another name, and whole once they have their own.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::ImageId;
use crate::config::Paths;
use crate::data_dir::make_dir;
use crate::error::Error;

/// The file that a vmm writes last.
const MANIFEST: &str = "manifest.json";

/// Makes the folder into which a vmm captures.
pub(crate) fn begin(paths: &Paths, id: &ImageId) -> Result<PathBuf, Error> {
    let folder = paths.image_part(id);
    make_dir(&folder)?;
    Ok(folder)
}

/// The vmm wrote it to its end: manifest and all.
pub(crate) fn is_captured(paths: &Paths, id: &ImageId) -> bool {
    [paths.image_part(id), paths.image(id)].iter().any(|folder| folder.join(MANIFEST).exists())
}

/// Gives a captured folder its own name; nothing when it has it.
pub(crate) fn keep(paths: &Paths, id: &ImageId) -> Result<(), Error> {
    let (part, folder) = (paths.image_part(id), paths.image(id));
    match fs::rename(&part, &folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.exists() => {}
        other => other.map_err(Error::file("keep the captured machine in", &folder))?,
    }
    let parent = paths.images();
    File::open(&parent).and_then(|parent| parent.sync_all()).map_err(Error::file("write down", &parent))
}

/// Bytes that an image takes on the disk.
pub(crate) fn bytes(paths: &Paths, id: &Option<ImageId>) -> u64 {
    let entries = id.iter().flat_map(|id| fs::read_dir(paths.image(id))).flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.blocks() * 512).sum()
}

/// Removes an image under either name. One that is not there is fine.
pub(crate) fn remove(paths: &Paths, id: &ImageId) -> Result<(), Error> {
    for folder in [paths.image_part(id), paths.image(id)] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", folder)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
