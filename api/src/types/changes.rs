//! Trees of files and changes in them on the wire (contract 6.5, X13, X14).

use cove_engine::protocol::guest::{Change, ChangeKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::FileEntry;

/// A file or directory with what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(no_recursion, example = json!({
    "path": "/workspace", "name": "workspace", "type": "directory", "modified_at": "2026-01-02T03:04:05.000006Z",
    "children": [{"path": "/workspace/a.py", "name": "a.py", "type": "file", "size": 12,
        "modified_at": "2026-01-02T03:04:05.000006Z"}]
}))]
pub struct TreeNode {
    /// Absolute.
    pub path: String,
    /// The last part of its path.
    pub name: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Bytes; not of directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Last change of the content.
    pub modified_at: Option<String>,
    /// What is in a directory, names in byte order; absent where the depth ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<TreeNode>>,
}

impl TreeNode {
    /// The node of an entry; `open` ones have room for what is in them.
    pub fn of(entry: FileEntry, open: bool) -> Self {
        Self {
            size: (!entry.is_dir).then_some(entry.size),
            children: (entry.is_dir && open).then(Vec::new),
            path: entry.path,
            name: entry.name,
            kind: entry.kind,
            modified_at: entry.modified_at,
        }
    }
}

/// The data of a frame of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "event": "renamed", "type": "renamed", "path": "/workspace/b.py", "old_path": "/workspace/a.py", "is_dir": false,
    "size_bytes": null
}))]
pub struct FileChange {
    /// `created`, `modified`, `deleted`, `renamed`; `overflow`: changes are missing here; `limit`: directories are not looked
    /// at.
    #[schema(value_type = String)]
    pub event: &'static str,
    /// The same as `event`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Absolute; of an `overflow` the watched directory, of a `limit` the first directory that is not looked at.
    pub path: String,
    /// Where it was before a `renamed`.
    pub old_path: Option<String>,
    /// It is a directory.
    pub is_dir: bool,
    /// `null`: ask for it.
    pub size_bytes: Option<u64>,
    /// Of an `overflow`: how many changes are missing, `null` when nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub dropped: Option<Option<u64>>,
    /// Of a `limit`: how many directories are not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directories: Option<u64>,
}

impl From<Change> for FileChange {
    fn from(change: Change) -> Self {
        let event = match change.kind {
            ChangeKind::Created => "created",
            ChangeKind::Modified => "modified",
            ChangeKind::Deleted => "deleted",
            ChangeKind::Renamed => "renamed",
            ChangeKind::Overflow => "overflow",
            ChangeKind::Unwatched => "limit",
        };
        Self {
            event,
            kind: event,
            path: change.path,
            old_path: change.old_path,
            is_dir: change.is_dir,
            size_bytes: None,
            dropped: (change.kind == ChangeKind::Overflow).then_some(change.count),
            directories: change.count.filter(|_| change.kind == ChangeKind::Unwatched),
        }
    }
}

/// A path to make a directory at.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/workspace/src/lib"}))]
pub struct MakeDirBody {
    /// Absolute path; missing parents are made.
    pub path: String,
}

/// What to move where.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"from": "/workspace/a.py", "to": "/workspace/old/a.py"}))]
pub struct MoveBody {
    /// Absolute path of what there is.
    pub from: String,
    /// Absolute path of what there will be; missing parents are made, a file that is there is replaced.
    pub to: String,
}

/// A directory was made, or is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DirMade {
    /// Where.
    pub path: String,
}

/// Something was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Moved {
    /// Where it was.
    pub from: String,
    /// Where it is.
    pub to: String,
}

/// Files to be taken out of a sandbox.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"paths": ["/workspace/report.pdf", "/workspace/data"], "label": "results"}))]
pub struct ExportBody {
    /// One absolute path; or give `paths`.
    pub path: Option<String>,
    /// Absolute paths, at most 100.
    pub paths: Option<Vec<String>>,
    /// The caller's own name for it; comes back as it is.
    pub label: Option<String>,
    /// What the download is to be called.
    pub filename: Option<String>,
}

/// Where the files can be had. Nothing is copied: a download takes what is there then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "exp_0f3a", "sandbox_id": "sbx_7", "label": "results", "status": "ready",
    "files": [{"path": "/workspace/report.pdf", "filename": "report.pdf", "type": "file", "size": 4096,
        "download_url": "http://127.0.0.1:7333/api/v1/sandboxes/sbx_7/exports/download?path=%2Fworkspace%2Freport.pdf"}],
    "archive_download_url": null, "created_at": "2026-01-02T03:04:05.000006Z"
}))]
pub struct Export {
    /// Names this answer; the server does not keep it.
    pub id: String,
    /// Of which sandbox.
    pub sandbox_id: String,
    /// As it was given.
    pub label: Option<String>,
    /// `ready`.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// Each path on its own.
    pub files: Vec<ExportFile>,
    /// All of them in one archive; `null` for a single file.
    pub archive_download_url: Option<String>,
    /// Now.
    pub created_at: String,
}

/// One of the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ExportFile {
    /// Absolute.
    pub path: String,
    /// What the download is called.
    pub filename: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Bytes; `null` for a directory.
    pub size: Option<u64>,
    /// Takes the token, as every call.
    pub download_url: String,
}

/// What a sandbox made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ArtifactsRecord {
    /// Files of the workspace.
    pub artifacts: Artifacts,
    /// The newest preview that can be opened.
    pub preview: ArtifactPreview,
}

/// See [`ArtifactsRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Artifacts {
    /// `/workspace`.
    #[schema(value_type = String)]
    pub path: &'static str,
    /// Depth first, names in byte order; at most 1000.
    pub files: Vec<ExportFile>,
    /// There are more.
    pub truncated: bool,
    /// All of the workspace in one archive.
    pub archive_download_url: String,
}

/// See [`ArtifactsRecord`]. All `null` when there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ArtifactPreview {
    /// Where it can be opened.
    pub url: Option<String>,
    /// The port in the guest.
    pub port: Option<u16>,
    /// Its id.
    pub preview_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_says_what_it_dropped_even_when_it_is_unknown() {
        let change = |kind, count| Change { kind, path: "/w".into(), old_path: None, is_dir: true, count };
        let json = |kind, count| serde_json::to_value(FileChange::from(change(kind, count))).unwrap();
        assert_eq!(json(ChangeKind::Overflow, Some(3))["dropped"], 3);
        assert!(json(ChangeKind::Overflow, None).as_object().unwrap()["dropped"].is_null());
        assert_eq!(json(ChangeKind::Unwatched, Some(3))["directories"], 3);
        let created = json(ChangeKind::Created, None);
        assert_eq!((&created["event"], &created["type"]), (&"created".into(), &"created".into()));
        assert!(created.get("dropped").is_none());
    }
}
