//! Files on the wire (contract 6.5, 8.10). The bodies with file content borrow from the request: see [`crate::base64`].

use std::borrow::Cow;

use cove_engine::protocol::guest::{Entry, EntryKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::timestamp_us;

/// A file to write.
#[derive(Debug, Deserialize, ToSchema)]
pub struct WriteBody<'a> {
    /// Absolute path; missing parents are made.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub path: Cow<'a, str>,
    /// On `/fs/write` the text itself; on `/files` base64.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    pub content: Option<Borrowed<'a>>,
    /// Base64.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    pub content_base64: Option<Borrowed<'a>>,
}

/// A string that stays in the request's body when JSON allows it.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Borrowed<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Several files to write.
#[derive(Debug, Deserialize, ToSchema)]
pub struct WriteManyBody<'a> {
    /// In this order.
    #[serde(borrow)]
    pub files: Vec<FileInMany<'a>>,
}

/// One of several files.
#[derive(Debug, Deserialize, ToSchema)]
pub struct FileInMany<'a> {
    /// Absolute path; missing parents are made.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub path: Cow<'a, str>,
    /// Text, or base64 when `encoding` says so.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    pub content: Option<Borrowed<'a>>,
    /// Base64.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    pub content_base64: Option<Borrowed<'a>>,
    /// Of `content`: `utf8`, the default, or `base64`.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    pub encoding: Option<Borrowed<'a>>,
}

/// A path to look at.
#[derive(Debug, Deserialize, ToSchema)]
pub struct PathBody {
    /// Absolute path.
    pub path: String,
}

/// A file was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Written {
    /// Where.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// What became of several files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct WriteMany {
    /// These are written.
    pub written: Vec<FileWritten>,
    /// These are not.
    pub failed: Vec<FileFailure>,
}

/// One of several files was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileWritten {
    /// Where.
    pub path: String,
    /// Bytes.
    pub size_bytes: u64,
}

/// One of several files was not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileFailure {
    /// Where it should have gone.
    pub path: String,
    /// Why not.
    pub error: String,
    /// The stable code of the error.
    #[schema(value_type = String)]
    pub code: &'static str,
}

/// Something was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Removed {
    /// What.
    pub path: String,
    /// `true`.
    pub deleted: bool,
}

/// What is in a directory.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Listing {
    /// The directory.
    pub path: String,
    /// Depth first, names in byte order.
    pub entries: Vec<FileEntry>,
}

/// One file, directory or link in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileEntry {
    /// The last part of its path.
    pub name: String,
    /// Absolute.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// It is a directory.
    pub is_dir: bool,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Permission bits in octal, such as `0644`.
    pub mode: String,
    /// It is a symbolic link.
    pub is_symlink: bool,
    /// Last change of the content.
    pub modified_at: Option<String>,
}

impl From<Entry> for FileEntry {
    fn from(entry: Entry) -> Self {
        let name = entry.path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/").to_owned();
        Self {
            name,
            size: entry.size,
            is_dir: entry.kind == EntryKind::Directory,
            kind: match entry.kind {
                EntryKind::File => "file",
                EntryKind::Directory => "directory",
                EntryKind::Symlink => "symlink",
                EntryKind::Other => "other",
            },
            mode: format!("{:04o}", entry.mode & 0o7777),
            is_symlink: entry.kind == EntryKind::Symlink,
            modified_at: timestamp_us(entry.modified_us),
            path: entry.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_contract_fields() {
        let entry = Entry {
            path: "/workspace/a b#1.py".into(),
            kind: EntryKind::File,
            size: 3,
            mode: 0o100_644,
            modified_us: 1_700_000_000_123_456,
        };
        let json = serde_json::to_value(FileEntry::from(entry)).unwrap();
        assert_eq!(json["name"], "a b#1.py");
        assert_eq!(json["mode"], "0644");
        assert_eq!(json["type"], "file");
        assert_eq!(json["is_dir"], false);
        assert_eq!(json["modified_at"], "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn content_without_escapes_stays_in_the_body() {
        let body = r#"{"path":"/a","content_base64":"eA==","content":"a\nb"}"#;
        let parsed: WriteBody<'_> = serde_json::from_str(body).unwrap();
        assert!(matches!(parsed.content_base64, Some(Borrowed(Cow::Borrowed("eA==")))));
        assert!(matches!(parsed.content, Some(Borrowed(Cow::Owned(text))) if text == "a\nb"));
    }
}
