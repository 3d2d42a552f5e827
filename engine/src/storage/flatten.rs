//! Flattening: a chain that grew too long gets one layer in place of all its frozen ones, while everything goes on.
//!
//! ```text
//!  base ◄─ 1 ◄─ 2 ◄─ ... ◄─ 9 ◄─ top      becomes      base ◄─ merged ◄─ top       (1 ... 9 stay as far as others need them)
//! ```
//!
//! A running machine keeps the files that it has open until it ends; from its next start on it has the short chain.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::{Layer, LayerId, layers, sweep};
use crate::disk;
use crate::error::Error;
use crate::fault;
use crate::shared::Shared;
use crate::template::store::blocking;

/// Longest chain above a template's base layer that is left as it is.
const LAYERS_MAX: usize = 8;

/// Chains that may be too long.
#[derive(Debug, Default)]
pub(crate) struct Flattener {
    tops: Mutex<BTreeSet<LayerId>>,
    more: Notify,
}

impl Flattener {
    /// Looks at a chain of this many layers later, if that is too many.
    pub(crate) fn look(&self, top: &LayerId, layers: usize) {
        if layers > LAYERS_MAX {
            self.tops().insert(top.clone());
            self.more.notify_one();
        }
    }

    fn tops(&self) -> std::sync::MutexGuard<'_, BTreeSet<LayerId>> {
        self.tops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flattens one chain after the other until the engine stops.
pub(crate) async fn keep(shared: Arc<Shared>) {
    loop {
        let next = shared.flattener.tops().pop_first();
        let work = async {
            match next {
                Some(top) => flatten(&shared, &top).await,
                None => {
                    shared.flattener.more.notified().await;
                    Ok(())
                }
            }
        };
        let done = tokio::select! {
            done = work => done,
            () = shared.stopping.cancelled() => return,
        };
        if let Err(error) = done {
            tracing::warn!(error = &error as &dyn std::error::Error, "a chain was not flattened");
        }
    }
}

/// Flattens the chain below `top`, if it is too long.
async fn flatten(shared: &Shared, top: &LayerId) -> Result<(), Error> {
    let chain = shared.db.chain(top).await?;
    let written = shared.db.written_layers().await?;
    let frozen = frozen_part(&chain, |id| written.contains(id));
    let (Some(highest), true) = (frozen.last(), chain.len() > LAYERS_MAX && frozen.len() > 1) else { return Ok(()) };
    let tools = shared.tools()?;
    let paths = shared.config.paths.clone();
    let merged = Layer { id: LayerId::generate(), parent: None, frozen: true, ..(*highest).clone() };
    tracing::info!(layers = frozen.len(), merged = %merged.id, "a chain is flattened");
    let files: Vec<_> = frozen.iter().map(|layer| paths.layer(&layer.id)).collect();
    let (part, whole) = (paths.layer(&merged.id).with_extension("part"), paths.layer(&merged.id));
    let merge = disk::merge(&tools.vmm, &part, &files).await;
    let kept = match merge {
        Ok(()) => {
            let part = part.clone();
            blocking(move || {
                File::open(&part).and_then(|file| file.sync_all()).map_err(Error::file("write down", &part))?;
                fs::rename(&part, &whole).map_err(Error::file("keep", &whole))
            })
            .await
        }
        Err(source) => Err(Error::Flatten { source }),
    };
    if let Err(error) = kept {
        // It may not even be there.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fault::point("flatten.merged", None).await;
    let noted = {
        let _nobody_builds_on_it = shared.chains.write().await;
        shared.db.replace_layer(&highest.id, &merged).await
    };
    if let Err(error) = noted {
        layers::remove(&paths, &merged.id)?;
        return Err(error.into());
    }
    fault::point("flatten.noted", None).await;
    sweep(shared).await
}

/// The layers of a chain that nobody writes to, lowest first.
fn frozen_part(chain: &[Layer], is_written: impl Fn(&LayerId) -> bool) -> Vec<&Layer> {
    chain.iter().take_while(|layer| layer.frozen && !is_written(&layer.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::tests::layer;

    #[test]
    fn what_is_written_and_all_above_it_stays() {
        let chain: Vec<Layer> = (0..4).map(|at| Layer { frozen: at < 3, ..layer(None) }).collect();
        assert_eq!(frozen_part(&chain, |_| false).len(), 3);
        assert_eq!(frozen_part(&chain, |id| *id == chain[1].id).len(), 1);
        assert_eq!(frozen_part(&[], |_| false).len(), 0);
    }
}
