//! What the guest image is made of: `guest/image/image.toml` and the files beside it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::workspace;

/// `guest/image/image.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The kernels.
    pub kernel: KernelRecipe,
    /// The Debian root.
    pub rootfs: RootfsRecipe,
    /// The file system that holds it.
    pub disk: DiskRecipe,
}

/// The kernels, all from one source package.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecipe {
    /// Debian package with the source.
    pub package: String,
    /// The archive that the package installs.
    pub archive: PathBuf,
    /// What is built from it.
    pub variants: Vec<KernelVariant>,
}

/// One kernel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelVariant {
    /// File name in the guest directory.
    pub name: String,
    /// Config fragments in `guest/image/`; a later one wins.
    pub fragments: Vec<String>,
    /// A change of the source, for this variant alone: a patch in `guest/image/`.
    pub patch: Option<String>,
    /// Timer ticks a second, where none of the source's choices (100 and more) will do.
    pub tick_hz: Option<u32>,
}

/// The Debian root.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsRecipe {
    /// Code name of the release.
    pub suite: String,
    /// Archive components.
    pub components: Vec<String>,
    /// `sources.list` lines for hosts whose own apt does not serve the suite.
    pub mirrors: Vec<String>,
    /// Packages beyond the minimal base.
    pub packages: Vec<String>,
    /// dpkg path-exclude patterns.
    pub exclude: Vec<String>,
    /// dpkg path-include patterns, which win over `exclude`.
    pub include: Vec<String>,
    /// Newest file time, seconds since 1970.
    pub epoch: u64,
    /// Shell commands run as root in the new root, last.
    pub commands: Vec<String>,
}

/// The root file system. All of it is given to mke2fs, so that a host's mke2fs.conf has no say.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecipe {
    /// Size as made; the agent grows it to the disk's size at boot.
    pub size_mib: u64,
    /// Space that must be free in it.
    pub free_mib_min: u64,
    /// Size up to which it can grow while mounted.
    pub grow_gib_max: u64,
    /// Journal size.
    pub journal_mib: u64,
    /// Bytes per inode.
    pub bytes_per_inode: u64,
    /// ext4 features, complete.
    pub features: Vec<String>,
    /// Volume label.
    pub label: String,
    /// File system id; every sandbox's root has it.
    pub uuid: String,
}

impl Recipe {
    /// Read it from the checkout.
    pub fn load() -> Result<Recipe> {
        let path = dir().join("image.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is wrong", path.display()))
    }
}

/// `guest/image/`.
pub fn dir() -> PathBuf {
    workspace::root().join("guest/image")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_is_read_and_fits_the_smallest_sandbox_disk() {
        let recipe = Recipe::load().unwrap();
        assert!(recipe.disk.size_mib <= 1000, "a 1024 MiB disk must hold it");
        assert!(recipe.kernel.variants.iter().all(|variant| !variant.fragments.is_empty()));
    }
}
