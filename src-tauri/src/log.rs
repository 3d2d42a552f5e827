//! Log lines: to a file in the data directory, since a window has no terminal that anybody sees, and to standard error.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

/// A file that is larger at a start becomes the old one, whose place it takes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What is logged unless `COVE_LOG` says otherwise.
const FILTER_DEFAULT: &str = "info";

/// Starts logging; gives the file.
pub fn init(data_dir: &Path) -> Result<PathBuf> {
    let (path, file) = open(data_dir)?;
    let filter = match std::env::var("COVE_LOG") {
        Ok(text) => EnvFilter::try_new(text).context("COVE_LOG is not a log filter")?,
        Err(_) => EnvFilter::new(FILTER_DEFAULT),
    };
    let writer = Arc::new(file).and(std::io::stderr);
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).try_init();
    started.map_err(|error| anyhow!(error)).context("Cannot start logging")?;
    Ok(path)
}

fn open(data_dir: &Path) -> Result<(PathBuf, File)> {
    let dir = data_dir.join("log");
    let path = dir.join("window.log");
    let failed = || format!("Cannot write {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(failed)?;
    if fs::metadata(&path).is_ok_and(|found| found.len() > FILE_BYTES_MAX) {
        fs::rename(&path, dir.join("window.log.1")).with_context(failed)?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).with_context(failed)?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_makes_room_for_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = open(folder.path()).unwrap();
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        let (again, file) = open(folder.path()).unwrap();
        assert_eq!((&path, file.metadata().unwrap().len()), (&again, 0));
        assert!(folder.path().join("log/window.log.1").exists());
    }
}
