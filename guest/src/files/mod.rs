//! File operations, each from its request to its final reply, run by a worker that may block.
//!
//! Whatever a file holds travels in chunks of [`CHUNK_BYTES_MAX`](cove_protocol::guest::CHUNK_BYTES_MAX), so memory
//! stays bounded whatever its size.

mod read;

mod write;

mod content;

mod list;

mod change;

mod changes;

mod archive;

mod remove;

use std::{fs::Metadata, io, os::unix::fs::MetadataExt, path::Path};

use cove_protocol::{
    frame::FrameError,
    guest::{Entry, EntryKind, Reply, Request},
};

use crate::{
    failure::{Failure, absolute},
    transport::Transport,
};

/// Why an operation stopped.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The peer is told, and the connection goes on.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The connection is of no more use.
    #[error("The connection broke")]
    Broken(#[from] FrameError),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        FileError::Broken(error.into())
    }
}

/// Runs one operation up to its final reply. `buffer` is the worker's own and kept between operations.
///
/// # Errors
/// The connection broke: drop it.
pub fn serve(transport: &mut Transport, request: &Request, buffer: &mut Vec<u8>) -> Result<(), FrameError> {
    let last = match run(transport, request, buffer) {
        Ok(reply) => reply,
        Err(FileError::Failed(failure)) => failure.into(),
        Err(FileError::Broken(error)) => return Err(error),
    };
    transport.send_all(&last)
}

fn run(transport: &mut Transport, request: &Request, buffer: &mut Vec<u8>) -> Result<Reply, FileError> {
    let done = |result: Result<(), Failure>| Ok(result.map(|()| Reply::Done)?);
    match request {
        Request::ReadFile { path } => read::read_file(transport, path, buffer),
        Request::WriteFile { path, mode } => write::write_file(transport, path, *mode, buffer),
        Request::List { path, depth } => list::list(transport, path, *depth),
        Request::Stat { path } => Ok(stat(path)?),
        Request::MakeDir { path } => done(change::make_dir(path)),
        Request::Remove { path, recursive } => done(remove::remove(path, *recursive)),
        Request::Move { from, to } => done(change::move_path(from, to)),
        Request::Watch { path, recursive } => changes::watch(transport, path, *recursive, buffer),
        Request::Archive { paths } => archive::archive(transport, paths, buffer),
        Request::Hello
        | Request::Configure(_)
        | Request::Prepare
        | Request::Sync
        | Request::Exec(_)
        | Request::SetClock { .. }
        | Request::PowerOff
        | Request::Connect { .. }
        | Request::Listeners
        | Request::StartJob(_)
        | Request::ListJobs
        | Request::Job { .. }
        | Request::FollowJob(_)
        | Request::OpenTerminal(_)
        | Request::ListTerminals
        | Request::CloseTerminal { .. }
        | Request::AttachTerminal(_) => {
            Err(Failure::request(format!("{} is not a file operation", request.name())).into())
        }
    }
}

fn stat(path: &str) -> Result<Reply, Failure> {
    absolute("path", path)?;
    let metadata =
        std::fs::symlink_metadata(path).map_err(|error| Failure::io(format!("Cannot stat {path}"), &error))?;
    Ok(Reply::FileInfo(entry(Path::new(path), &metadata)))
}

/// How a path is described.
fn entry(path: &Path, metadata: &Metadata) -> Entry {
    let kind = match metadata.file_type() {
        kind if kind.is_file() => EntryKind::File,
        kind if kind.is_dir() => EntryKind::Directory,
        kind if kind.is_symlink() => EntryKind::Symlink,
        _ => EntryKind::Other,
    };
    Entry {
        path: path.to_string_lossy().into_owned(),
        kind,
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        modified_us: metadata.mtime().saturating_mul(1_000_000).saturating_add(metadata.mtime_nsec() / 1000),
    }
}
