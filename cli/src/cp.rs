//! `cove cp`: files and directories into and out of a sandbox, streamed both ways.
//!
//! One side is `SANDBOX:/path`, the other a path here. As with `cp`, a destination that is a directory (or ends in `/`)
//! gets the source inside it. Directories go with all they hold; symbolic links stay links; devices, sockets and pipes
//! are skipped with a word. A file appears at its place only when it is complete.

mod download;
mod upload;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::client::{Client, ConnectionArgs};

/// Arguments of `cove cp`.
#[derive(clap::Args)]
pub struct Args {
    /// What to copy: a path here, or SANDBOX:/path
    from: String,
    /// Where to: a path here, or SANDBOX:/path
    to: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Here(PathBuf),
    Sandbox { sandbox: String, path: String },
}

impl Side {
    /// `SANDBOX:/path` when there is a colon before any slash and an absolute path after it; else a path here.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') && path.starts_with('/') => {
                Side::Sandbox { sandbox: sandbox.to_owned(), path: path.to_owned() }
            }
            _ => Side::Here(PathBuf::from(text)),
        }
    }
}

/// Runs `cove cp`. Gives 1 when something was skipped.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let skipped = match (Side::parse(&args.from), Side::parse(&args.to)) {
        (Side::Here(from), Side::Sandbox { sandbox, path }) => {
            let client = Client::connect(connection)?;
            let id = client.resolve(&sandbox).await?.id;
            upload::copy(&client, &id, &from, &path).await?
        }
        (Side::Sandbox { sandbox, path }, Side::Here(to)) => {
            let client = Client::connect(connection)?;
            let id = client.resolve(&sandbox).await?.id;
            download::copy(&client, &id, &path, &to).await?
        }
        (Side::Here(_), Side::Here(_)) => bail!("Neither side is in a sandbox: write one as SANDBOX:/path"),
        (Side::Sandbox { .. }, Side::Sandbox { .. }) => {
            bail!("Copying from sandbox to sandbox is not possible: copy here first")
        }
    };
    Ok(u8::from(skipped > 0))
}

/// A word about something that cannot be copied.
fn skip(path: &Path, reason: &str) {
    eprintln!("cove: skipped {}: {reason}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_in_a_sandbox_when_an_absolute_path_follows_a_colon() {
        let sandbox = |sandbox: &str, path: &str| Side::Sandbox { sandbox: sandbox.to_owned(), path: path.to_owned() };
        assert_eq!(Side::parse("web:/workspace/a:b"), sandbox("web", "/workspace/a:b"));
        for here in ["a.txt", "./web:/x", "web:x", ":/x", "/a:/b"] {
            assert_eq!(Side::parse(here), Side::Here(PathBuf::from(here)));
        }
    }
}
