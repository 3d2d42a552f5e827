//! What everyone takes on the disk, as the file system says it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::share::{Graph, Share};
use super::{ImageId, LayerId};
use crate::config::Paths;
use crate::db::References;
use crate::error::Error;
use crate::template::store::blocking;

/// Bytes of one block in `st_blocks` (inode(7)).
const BLOCK_BYTES: u64 = 512;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum File {
    Layer(LayerId),
    Image(ImageId),
}

/// The shares of all owners: sandboxes and snapshots by their ids, warm templates by their keys; and the bytes that all of
/// them take together.
pub(crate) async fn sizes(paths: &Paths, references: References) -> Result<(HashMap<String, Share>, u64), Error> {
    let paths = paths.clone();
    blocking(move || {
        let mut files = HashMap::new();
        for (id, parent) in references.layers {
            let bytes = allocated(&paths.layer(&id));
            files.insert(File::Layer(id), (bytes, parent.map(File::Layer)));
        }
        for (id, layer, _) in references.images {
            let entries = fs::read_dir(paths.image(&id)).into_iter().flatten().flatten();
            let bytes = entries.map(|entry| allocated(&entry.path())).sum();
            files.insert(File::Image(id), (bytes, Some(File::Layer(layer))));
        }
        let held = |layer: Option<LayerId>, image: Option<ImageId>| {
            layer.map(File::Layer).into_iter().chain(image.map(File::Image)).collect()
        };
        let owners = references.owners.into_iter().map(|(owner, layer, image)| (owner, held(layer, image))).collect();
        let graph = Graph { files, owners };
        Ok((graph.shares(), graph.needed_bytes()))
    })
    .await
}

/// What a file takes on the disk; nothing when it was deleted meanwhile.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.blocks() * BLOCK_BYTES)
}
