//! Reading a regular file from its start.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt, path::Path};

use cove_protocol::{
    frame::FrameError,
    guest::{CHUNK_BYTES_MAX, Reply},
};

use super::{FileError, content::read_all, entry};
use crate::{
    failure::{Failure, absolute},
    transport::Transport,
};

/// Sends the file's description, its bytes, and gives the final reply.
pub fn read_file(transport: &mut Transport, path: &str, buffer: &mut Vec<u8>) -> Result<Reply, FileError> {
    absolute("path", path)?;
    let failed = |what: &str, error| Failure::io(format!("Cannot {what} {path}"), &error);
    // O_NONBLOCK, so that a named pipe is refused instead of waited for.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| failed("open", error))?;
    let metadata = file.metadata().map_err(|error| failed("stat", error))?;
    if !metadata.is_file() {
        return Err(Failure::path(path, "is not a regular file").into());
    }
    transport.send_all(&Reply::FileInfo(entry(Path::new(path), &metadata)))?;
    let sent = read_all(&mut file, buffer, CHUNK_BYTES_MAX, |bytes| {
        Ok(transport.send_all(&Reply::Data(bytes.to_vec().into()))?)
    });
    match sent {
        Ok(()) => Ok(Reply::Done),
        Err(ReadError::File(error)) => Err(failed("read", error).into()),
        Err(ReadError::Broken(error)) => Err(error.into()),
    }
}

/// Whose fault it is that reading stopped.
enum ReadError {
    File(io::Error),
    Broken(FrameError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::File(error)
    }
}

impl From<FrameError> for ReadError {
    fn from(error: FrameError) -> Self {
        ReadError::Broken(error)
    }
}
