//! `vmm disk`: makes layer files and sets them right, for the engine, which links no disk code.
//!
//! ```text
//! vmm disk create --size BYTES [--backing PATH --backing-format raw|qcow2] PATH
//! vmm disk repair PATH
//! vmm disk merge --out PATH LAYER...
//! ```
//!
//! `create` makes an empty writable layer; its backing path is recorded for tools only, a machine gets its chain from
//! its spec. `merge` makes one layer of several frozen ones, the lowest first. `repair` does what opening for writing does: after a killed vmm it frees the clusters that leaked.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, bail};
use cove_protocol::vmm::LayerFormat;

use crate::devices::virtio::block::format::{self, Backing};
use crate::devices::virtio::block::{layers, merge};

/// How the subcommand is called.
pub const USAGE: &str = "usage: vmm disk create --size BYTES [--backing PATH --backing-format raw|qcow2] PATH\n       \
                         vmm disk repair PATH\n       vmm disk merge --out PATH LAYER...";

/// Does what `arguments`, those after `disk`, ask for.
///
/// # Errors
/// What is wrong with the arguments, or why the file could not be made or repaired.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let mut arguments = arguments.into_iter();
    match arguments.next().as_ref().and_then(|word| word.to_str()) {
        Some("create") => create(arguments),
        Some("repair") => repair(arguments),
        Some("merge") => merge_layers(arguments),
        _ => bail!("disk wants create, repair or merge\n{USAGE}"),
    }
}

fn create(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let (mut size, mut backing, mut backing_format, mut path) = (None, None, None, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument:?} wants a value\n{USAGE}"));
        match argument.to_str() {
            Some("--size") => size = Some(size_bytes(&value()?)?),
            Some("--backing") => backing = Some(PathBuf::from(value()?)),
            Some("--backing-format") => backing_format = Some(layer_format(&value()?)?),
            Some(option) if option.starts_with("--") => bail!("unknown option {option:?}\n{USAGE}"),
            _ if path.is_some() => bail!("one PATH is wanted, not also {argument:?}\n{USAGE}"),
            _ => path = Some(PathBuf::from(argument)),
        }
    }
    let size = size.with_context(|| format!("--size is missing\n{USAGE}"))?;
    let path = path.with_context(|| format!("PATH is missing\n{USAGE}"))?;
    let backing = match (backing, backing_format) {
        (Some(path), Some(format)) => Some(Backing { path, format }),
        (None, None) => None,
        _ => bail!("--backing and --backing-format come together\n{USAGE}"),
    };
    Ok(format::create(&path, size, backing.as_ref())?)
}

fn repair(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let (Some(path), None) = (arguments.next(), arguments.next()) else { bail!("one PATH is wanted\n{USAGE}") };
    let found = layers::repair(&PathBuf::from(path))?;
    println!("{} leaked clusters freed, {} missing refcounts set", found.leaked, found.missing);
    Ok(())
}

fn merge_layers(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let (Some(option), Some(out)) = (arguments.next(), arguments.next()) else {
        bail!("--out PATH is missing\n{USAGE}")
    };
    if option != "--out" {
        bail!("--out PATH comes first, not {option:?}\n{USAGE}");
    }
    let layers: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    Ok(merge::merge(&PathBuf::from(out), &layers)?)
}

fn size_bytes(text: &OsString) -> anyhow::Result<u64> {
    let bytes = text.to_str().and_then(|text| text.parse().ok());
    bytes.with_context(|| format!("--size is a number of bytes, not {text:?}"))
}

fn layer_format(text: &OsString) -> anyhow::Result<LayerFormat> {
    match text.to_str() {
        Some("raw") => Ok(LayerFormat::Raw),
        Some("qcow2") => Ok(LayerFormat::Qcow2),
        _ => bail!("--backing-format is raw or qcow2, not {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_words(words: &[&str]) -> Result<(), String> {
        run(words.iter().map(OsString::from)).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_layer_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("top.qcow2");
        let words =
            ["create", "--size", "1048576", "--backing", "base", "--backing-format", "raw", path.to_str().unwrap()];
        run_words(&words).unwrap();
        assert!(run_words(&words).unwrap_err().contains("Cannot make the layer"));
        run_words(&["repair", path.to_str().unwrap()]).unwrap();
    }

    #[test]
    fn wrong_words_name_what_is_wrong() {
        for (words, what) in [
            (&["create", "x"][..], "--size is missing"),
            (&["create", "--size", "512"], "PATH is missing"),
            (&["create", "--size", "many", "x"], "not \"many\""),
            (&["create", "--size"], "wants a value"),
            (&["create", "--size", "100", "x"], "multiple of 512"),
            (&["create", "--size", "512", "--backing", "b", "x"], "come together"),
            (&["create", "--size", "512", "--backing-format", "vmdk", "x"], "raw or qcow2"),
            (&["create", "--size", "512", "--sparse", "x"], "unknown option"),
            (&["create", "--size", "512", "x", "y"], "one PATH"),
            (&["repair"], "one PATH"),
            (&["shrink"], "create, repair or merge"),
            (&["merge"], "--out PATH is missing"),
            (&["merge", "a", "b"], "comes first"),
            (&["merge", "--out", "a"], "no layers"),
            (&[], "create, repair or merge"),
        ] {
            let error = run_words(words).unwrap_err();
            assert!(error.contains(what), "{words:?}: {error}");
        }
    }
}
