//! Files of a sandbox: read and written as streams, listed, described.

use reqwest::{Body, Method, Response};
use serde::Deserialize;

use super::{Client, ClientError};

/// One file, directory or link.
#[derive(Clone, Debug, Deserialize)]
pub struct FileEntry {
    /// Absolute path.
    pub path: String,
    /// It is a directory.
    #[serde(default)]
    pub is_dir: bool,
    /// It is a symbolic link.
    #[serde(default)]
    pub is_symlink: bool,
    /// Permission bits in octal, such as `0644`.
    #[serde(default)]
    pub mode: Option<String>,
}

impl FileEntry {
    /// The permission bits, if the server said them.
    pub fn mode_bits(&self) -> Option<u32> {
        self.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).map(|mode| mode & 0o7777)
    }

    /// It is a file with bytes to read.
    pub fn is_file(&self) -> bool {
        !self.is_dir && !self.is_symlink
    }
}

#[derive(Deserialize)]
struct Listing {
    entries: Vec<FileEntry>,
}

impl Client {
    /// What is at `path`; a symbolic link is not followed.
    pub async fn stat(&self, id: &str, path: &str) -> Result<FileEntry, ClientError> {
        let body = serde_json::json!({ "path": path });
        self.data("a file", self.request(Method::POST, &["sandboxes", id, "fs", "stat"]).json(&body)).await
    }

    /// The entries below the directory at `path`, `depth` levels deep.
    pub async fn list_files(&self, id: &str, path: &str, depth: u32) -> Result<Vec<FileEntry>, ClientError> {
        let query = [("path", path.to_owned()), ("depth", depth.to_string())];
        let request = self.request(Method::GET, &["sandboxes", id, "files"]).query(&query);
        self.data::<Listing>("files", request).await.map(|listing| listing.entries)
    }

    /// The bytes of the file at `path`, as a response whose body is still to be read.
    pub async fn download(&self, id: &str, path: &str) -> Result<Response, ClientError> {
        self.send(self.request(Method::GET, &["sandboxes", id, "fs", "download"]).query(&[("path", path)])).await
    }

    /// Writes the file at `path`; missing parents are made. Nothing is seen of it before it is complete.
    pub async fn upload(&self, id: &str, path: &str, mode: u32, content: Body) -> Result<(), ClientError> {
        let route = ["sandboxes", id, "files"];
        let segments: Vec<&str> = route.into_iter().chain(path.trim_start_matches('/').split('/')).collect();
        let request = self.request(Method::PUT, &segments).query(&[("mode", format!("{mode:04o}"))]);
        self.send(request.header("content-type", "application/octet-stream").body(content)).await.map(drop)
    }
}
