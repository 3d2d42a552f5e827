//! Deletes layers and images that nobody needs any more.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::{ImageId, LayerId, images, layers};
use crate::config::Paths;
use crate::data_dir::make_dir;
use crate::error::Error;
use crate::shared::Shared;
use crate::template::store::blocking;

/// Deletes what nothing refers to: first the rows, then the files.
pub(crate) async fn sweep(shared: &Shared) -> Result<(), Error> {
    let (gone_images, gone_layers) = {
        let _settled = shared.pins.settle.lock().await;
        shared.db.delete_unreferenced(&shared.pins.pinned()).await?
    };
    if gone_images.is_empty() && gone_layers.is_empty() {
        return Ok(());
    }
    crate::fault::point("sweep.rows_deleted", None).await;
    tracing::debug!(images = gone_images.len(), layers = gone_layers.len(), "what nobody needs is deleted");
    let paths = shared.config.paths.clone();
    blocking(move || {
        gone_images.iter().try_for_each(|id| images::remove(&paths, id))?;
        gone_layers.iter().try_for_each(|id| layers::remove(&paths, id))
    })
    .await
}

/// [`sweep`] for those who have nobody to tell: what is left over goes with a later one.
pub(crate) async fn sweep_logged(shared: Arc<Shared>) {
    if let Err(error) = sweep(&shared).await {
        tracing::error!(error = &error as &dyn std::error::Error, "what nobody needs was not deleted");
    }
}

/// Removes files that no row names; called at start, when nothing is being made.
pub(crate) async fn remove_orphans(shared: &Shared) -> Result<(), Error> {
    let (images, layers) = shared.db.storage_ids().await?;
    let paths = shared.config.paths.clone();
    blocking(move || {
        for path in orphans(&paths, &images, &layers)? {
            tracing::warn!(path = %path.display(), "a file that belongs to nothing is removed");
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::file("remove", &path))?;
        }
        Ok(())
    })
    .await
}

fn orphans(paths: &Paths, images: &HashSet<ImageId>, layers: &HashSet<LayerId>) -> Result<Vec<PathBuf>, Error> {
    let images: HashSet<PathBuf> = images.iter().map(|id| paths.image(id)).collect();
    let layers: HashSet<PathBuf> = layers.iter().map(|id| paths.layer(id)).collect();
    let mut found = Vec::new();
    for (folder, known) in [(paths.images(), images), (paths.layers(), layers)] {
        make_dir(&folder)?;
        for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
            let entry = entry.map_err(Error::file("list", &folder))?;
            let ours =
                entry.file_name().to_str().is_some_and(|name| name.starts_with("img_") || name.starts_with("lay_"));
            if ours && !known.contains(&entry.path()) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
