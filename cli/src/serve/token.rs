//! The API token: made once per data directory, kept in a file that its owner alone can read.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::rand::{GetRandomFlags, getrandom};

/// Random bytes of a token: more than can be guessed.
const TOKEN_BYTES: usize = 32;

/// The token in the file at `path`, which is made when it is missing. The data directory's lock is held by then, so no
/// other server makes one at the same time.
pub fn load_or_make(path: &Path) -> Result<String> {
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return make(path),
        Err(error) => return Err(error).with_context(|| format!("Cannot read the token in {shown}")),
    };
    let mode = fs::metadata(path).with_context(|| format!("Cannot look at {shown}"))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(|| format!("Cannot protect {shown}"))?;
        tracing::warn!(path = %shown, "the token was readable by others; it is not any more, but it may be known: delete it for a new one");
    }
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{shown} holds no token: delete it, and the next start makes a new one");
    }
    Ok(token.to_owned())
}

fn make(path: &Path) -> Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty()).context("The kernel gives no random bytes")?;
    if filled != TOKEN_BYTES {
        bail!("The kernel gave {filled} random bytes of {TOKEN_BYTES}");
    }
    let token: String = "cove_".chars().chain(bytes.iter().flat_map(|byte| hex(*byte))).collect();
    // Complete before it has its name: a crash between leaves no half token.
    let new = path.with_extension("new");
    let cannot_write = || format!("Cannot write the token to {}", path.display());
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).with_context(cannot_write)?;
    file.write_all(format!("{token}\n").as_bytes()).and_then(|()| file.sync_all()).with_context(cannot_write)?;
    fs::rename(&new, path).with_context(cannot_write)?;
    Ok(token)
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
        let token = load_or_make(&path).unwrap();
        assert_eq!(token.len(), "cove_".len() + 2 * TOKEN_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_make(&path).unwrap(), token);

        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load_or_make(&path).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        fs::write(&path, " \n").unwrap();
        assert!(load_or_make(&path).unwrap_err().to_string().contains("holds no token"));
    }
}
