use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::sandbox::Shape;

/// What a sandbox is made from. Its files never change while anything refers to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Its id, which is also its slug, such as `miosa-sandbox`.
    pub id: String,
    /// Changes whenever its files do.
    pub version: String,
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// Other names under which it is found, such as `python`.
    pub aliases: Vec<String>,
    /// Comes with Cove.
    pub built_in: bool,
    /// The one that is used when a caller names none.
    pub default: bool,
    /// The shape of a sandbox whose caller names none.
    pub shape: Shape,
    /// Where commands run.
    pub workdir: String,
    /// Labels.
    pub tags: Vec<String>,
    /// The base layer: a raw image.
    pub root: PathBuf,
    /// The base layer's size in bytes; a sandbox's disk cannot be smaller.
    pub root_bytes: u64,
    /// When this version was imported.
    pub created_at: OffsetDateTime,
}
