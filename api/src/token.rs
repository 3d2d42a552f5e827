//! The API token: made once per data directory, kept in a file that its owner alone can read. Whoever hosts the API,
//! `cove serve` or the window, gets it here.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

/// The token's file in the data directory, mode 0600.
pub const FILE_NAME: &str = "token";

/// Random bytes of a token: more than can be guessed.
const TOKEN_BYTES: usize = 32;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read, made or protected.
    #[error("Cannot {action} the token in {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The token's file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no token: delete it, and the next start makes a new one", path.display())]
    Malformed {
        /// The token's file.
        path: PathBuf,
    },
}

/// The token of the server that has `data_dir`.
///
/// # Errors
/// When there is none yet, or its file cannot be read.
pub fn load(data_dir: &Path) -> Result<String, TokenError> {
    let path = data_dir.join(FILE_NAME);
    let text = fs::read_to_string(&path).map_err(|source| failed("read", &path, source))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::Malformed { path });
    }
    Ok(token.to_owned())
}

/// The token of `data_dir`, made when it is missing. The data directory's lock is held by then, so no other server makes
/// one at the same time.
///
/// # Errors
/// When its file cannot be read, made or protected, or holds no token.
pub fn load_or_make(data_dir: &Path) -> Result<String, TokenError> {
    let path = data_dir.join(FILE_NAME);
    let mode = match fs::metadata(&path) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(error) if error.kind() == ErrorKind::NotFound => return make(&path),
        Err(source) => return Err(failed("read", &path, source)),
    };
    if mode & 0o077 != 0 {
        let private = Permissions::from_mode(0o600);
        fs::set_permissions(&path, private).map_err(|source| failed("protect", &path, source))?;
        tracing::warn!(path = %path.display(), "the token was readable by others; it is not any more, but it may be known: delete it for a new one");
    }
    load(data_dir)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> TokenError {
    TokenError::File { action, path: path.to_owned(), source }
}

fn make(path: &Path) -> Result<String, TokenError> {
    let token = random().and_then(|token| write(path, &token).map(|()| token));
    token.map_err(|source| failed("make", path, source))
}

fn random() -> io::Result<String> {
    Ok(format!("cove_{}", random_text()?))
}

/// Text that cannot be guessed.
pub(crate) fn random_text() -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if filled != TOKEN_BYTES {
        return Err(io::Error::other(format!("the kernel gave {filled} random bytes of {TOKEN_BYTES}")));
    }
    Ok(bytes.iter().flat_map(|byte| hex(*byte)).collect())
}

/// Complete before it has its name: a crash between leaves no half token.
fn write(path: &Path, token: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(format!("{token}\n").as_bytes()).and_then(|()| file.sync_all())?;
    fs::rename(&new, path)
}

fn hex(byte: u8) -> [char; 2] {
    [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = load_or_make(dir.path()).unwrap();
        assert_eq!(token.len(), "cove_".len() + 2 * TOKEN_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_make(dir.path()).unwrap(), token);

        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load_or_make(dir.path()).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        fs::write(&path, " \n").unwrap();
        assert!(load_or_make(dir.path()).unwrap_err().to_string().contains("holds no token"));
    }
}
