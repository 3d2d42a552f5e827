//! Reading a regular file from its start.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use cove_protocol::guest::{CHUNK_BYTES_MAX, Reply};

use super::{FileError, entry};
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
    buffer.resize(CHUNK_BYTES_MAX, 0);
    // To its end and not to its size: files of /proc have no size, and a log may grow.
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(Reply::Done),
            Ok(count) => transport.send_all(&Reply::Data(buffer[..count].to_vec().into()))?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", error).into()),
        }
    }
}
