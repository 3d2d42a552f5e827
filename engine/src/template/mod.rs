//! Templates: what sandboxes are made from.

pub(crate) mod store;

pub(crate) mod warm;

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

impl Template {
    /// True when `name` is its id or one of its aliases.
    pub fn is_called(&self, name: &str) -> bool {
        self.id == name || self.aliases.iter().any(|alias| alias == name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sandbox::Size;

    /// A template for tests; its file does not exist.
    pub(crate) fn template() -> Template {
        Template {
            id: "miosa-sandbox".into(),
            version: "v1".into(),
            name: "MIOSA sandbox".into(),
            description: "For tests".into(),
            aliases: vec!["default".into(), "python".into()],
            built_in: true,
            default: true,
            shape: Size::Small.shape(),
            workdir: "/workspace".into(),
            tags: vec![],
            root: "/nonexistent/root.ext4".into(),
            root_bytes: 1 << 30,
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_template_is_found_by_its_aliases() {
        assert!(template().is_called("python") && template().is_called("miosa-sandbox"));
        assert!(!template().is_called("ruby"));
    }
}
