//! Why an operation failed, in the words of the protocol: a kind for programs, a sentence for people.

use std::{ffi::CString, io};

use cove_protocol::guest::{ErrorKind, Reply};

/// A failed operation; becomes a [`Reply::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// A sentence with the values.
    pub message: String,
}

impl Failure {
    /// The request itself is wrong.
    pub fn request(message: String) -> Self {
        Self { kind: ErrorKind::InvalidRequest, message }
    }

    /// A path that cannot be meant.
    pub fn path(path: &str, reason: &str) -> Self {
        Self { kind: ErrorKind::InvalidPath, message: format!("{path:?} {reason}") }
    }

    /// The kernel refused: `what` says what was tried.
    pub fn io(what: String, error: &io::Error) -> Self {
        Self { kind: kind(error), message: format!("{what}: {error}") }
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Reply::Error { kind: failure.kind, message: failure.message }
    }
}

/// Checks a path from a request: absolute, and one that the kernel can be given.
///
/// # Errors
/// [`ErrorKind::InvalidPath`], with the field's name.
pub fn absolute(field: &str, path: &str) -> Result<CString, Failure> {
    let invalid = |reason: &str| Failure {
        kind: ErrorKind::InvalidPath,
        message: format!("{field}: {:?} {reason}", path.chars().take(200).collect::<String>()),
    };
    if !path.starts_with('/') {
        return Err(invalid("is not an absolute path"));
    }
    if path.len() >= libc::PATH_MAX as usize {
        return Err(invalid("is longer than a path can be"));
    }
    CString::new(path).map_err(|_| invalid("holds a zero byte"))
}

fn kind(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOENT) => ErrorKind::NotFound,
        Some(
            libc::ENOTDIR
            | libc::EISDIR
            | libc::ELOOP
            | libc::ENAMETOOLONG
            | libc::EEXIST
            | libc::ENOTEMPTY
            | libc::EBUSY,
        ) => ErrorKind::InvalidPath,
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) => ErrorKind::Permission,
        Some(libc::E2BIG | libc::ENOEXEC) => ErrorKind::InvalidRequest,
        _ => ErrorKind::Io,
    }
}
