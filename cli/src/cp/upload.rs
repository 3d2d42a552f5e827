//! From here into a sandbox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use reqwest::Body;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::skip;
use crate::client::Client;
use crate::text::printable;

/// Copies `from` to `to` in the sandbox and gives how many things were skipped.
pub async fn copy(client: &Client, id: &str, from: &Path, to: &str) -> Result<usize> {
    // As with `cp`, a link that is named is followed; links inside a directory stay links.
    let metadata = fs::metadata(from).with_context(|| format!("Cannot read {}", from.display()))?;
    let target = target(client, id, from, to).await?;
    if metadata.is_dir() {
        return directory(client, id, from, &target).await;
    }
    if !metadata.is_file() {
        bail!("{} is neither a file nor a directory", from.display());
    }
    file(client, id, from, metadata.permissions().mode(), &target).await.map(|()| 0)
}

/// Where the source itself goes: inside `to` when that is a directory.
async fn target(client: &Client, id: &str, from: &Path, to: &str) -> Result<String> {
    let inside = to.ends_with('/')
        || match client.stat(id, to).await {
            Ok(entry) => entry.is_dir,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error.into()),
        };
    if !inside {
        return Ok(to.to_owned());
    }
    let from = fs::canonicalize(from).with_context(|| format!("Cannot read {}", from.display()))?;
    let name = from.file_name().and_then(|name| name.to_str()).context("The source has no name to copy it under")?;
    Ok(join(to, name))
}

async fn file(client: &Client, id: &str, from: &Path, mode: u32, to: &str) -> Result<()> {
    let cannot_read = || format!("Cannot read {}", from.display());
    let content = File::open(from).await.with_context(cannot_read)?;
    let body = Body::wrap_stream(ReaderStream::with_capacity(content, 1 << 16));
    let copied = client.upload(id, to, mode & 0o7777, body).await;
    copied.with_context(|| format!("Cannot copy {} to {to}", from.display()))
}

/// A directory with all it holds, breadth first, so that the open ones are a list and not a call stack.
async fn directory(client: &Client, id: &str, from: &Path, to: &str) -> Result<usize> {
    let mut skipped = 0;
    let mut directories = vec![(from.to_path_buf(), to.to_owned())];
    while let Some((from, to)) = directories.pop() {
        in_guest(client, id, &["mkdir", "-p", "--", &to]).await?;
        let entries = fs::read_dir(&from).with_context(|| format!("Cannot read {}", from.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("Cannot read {}", from.display()))?;
            let path = entry.path();
            let metadata = entry.metadata().with_context(|| format!("Cannot read {}", path.display()))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                skip(&path, "its name is not UTF-8");
                skipped += 1;
                continue;
            };
            let to = join(&to, &name);
            if metadata.is_dir() {
                directories.push((path, to));
            } else if metadata.is_file() {
                file(client, id, &path, metadata.permissions().mode(), &to).await?;
            } else if metadata.is_symlink() {
                link(client, id, &path, &to).await?;
            } else {
                skip(&path, "it is a device, a socket or a pipe");
                skipped += 1;
            }
        }
    }
    Ok(skipped)
}

async fn link(client: &Client, id: &str, from: &Path, to: &str) -> Result<()> {
    let target = fs::read_link(from).with_context(|| format!("Cannot read {}", from.display()))?;
    let target = target.to_str().with_context(|| format!("The target of {} is not UTF-8", from.display()))?;
    in_guest(client, id, &["ln", "-sfnT", "--", target, to]).await
}

async fn in_guest(client: &Client, id: &str, words: &[&str]) -> Result<()> {
    let result = client.exec_value(id, &json!({ "command": words })).await?;
    if result.get("exit_code") == Some(&Value::from(0)) {
        return Ok(());
    }
    let reason = result.get("stderr").and_then(Value::as_str).unwrap_or_default();
    bail!("`{}` failed in the sandbox: {}", words.join(" "), printable(reason.trim()))
}

/// `name` inside the directory at `path`.
fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}
