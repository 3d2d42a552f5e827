//! Layer files: making empty ones fast, and the chain that a machine opens.
//!
//! An empty layer of each disk size is made once by the vmm, and copied from then on: it is some KiB of metadata and
//! holes, and a copy takes a tenth of the time of a process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cove_protocol::vmm::{DiskSpec, LayerFormat, LayerSpec};

use super::{Layer, LayerId};
use crate::config::Paths;
use crate::data_dir::make_dir;
use crate::disk::{self, DiskError};
use crate::error::Error;
use crate::template::store::{blocking, copy_file};

/// Makes the file of a new, empty layer.
pub(crate) async fn create(vmm: &Path, paths: &Paths, id: &LayerId, disk_bytes: u64) -> Result<(), DiskError> {
    let (empty, layer) = (paths.empty_layer(disk_bytes), paths.layer(id));
    let copied = |path: PathBuf| move |source: Error| DiskError::Copy { path, source: Box::new(source) };
    if !empty.exists() {
        let folder = paths.layers();
        blocking(move || make_dir(&folder)).await.map_err(copied(layer.clone()))?;
        // Made under another name first, so that half a one is never copied; two makers do no harm.
        let part = paths.layer(&LayerId::generate()).with_extension("part");
        disk::create(vmm, &part, disk_bytes).await?;
        fs::rename(&part, &empty).map_err(|source| DiskError::File { path: empty.clone(), source })?;
    }
    let to = layer.clone();
    blocking(move || copy_file(&empty, &to)).await.map_err(copied(layer))
}

/// Removes a layer's file. One that is not there is fine.
pub(crate) fn remove(paths: &Paths, id: &LayerId) -> Result<(), Error> {
    let path = paths.layer(id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The disk that a machine opens: the template's base layer and `chain`, lowest first.
pub(crate) fn disk(paths: &Paths, base: &Path, chain: &[LayerId]) -> DiskSpec {
    let mut layers = vec![LayerSpec { path: base.into(), format: LayerFormat::Raw }];
    layers.extend(chain.iter().map(|id| LayerSpec { path: paths.layer(id), format: LayerFormat::Qcow2 }));
    DiskSpec { layers, read_only: false }
}

/// The ids of a chain's rows.
pub(crate) fn ids(chain: &[Layer]) -> Vec<LayerId> {
    chain.iter().map(|layer| layer.id.clone()).collect()
}
