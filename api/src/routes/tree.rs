//! A directory with all in it as a tree, and what changes in it as it changes (contract X13, X14).

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{delete, put};
use bytes::Bytes;
use cove_engine::Error;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::files::checked_path;
use super::sandbox_id;
use super::transfer::{remove_file, upload_file};
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, Query, number};
use crate::sse;
use crate::types::{Data, FileChange, FileEntry, TreeNode};

/// Directory that is meant without a path.
const PATH_DEFAULT: &str = "/workspace";

/// Levels of a tree when the caller does not say, and most.
const DEPTH_DEFAULT: u32 = 3;
const DEPTH_MAX: u32 = 64;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(get_tree))
        .routes(routes!(watch_files))
        // Files of the root directory whose names are those of these routes.
        .route("/sandboxes/{id}/files/tree", delete(remove_file).merge(put(upload_file)))
        .route("/sandboxes/{id}/files/watch", delete(remove_file).merge(put(upload_file)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TreeQuery {
    /// The directory; `/workspace` when absent.
    path: Option<String>,
    /// Levels below it, 1-64; 3 when absent.
    depth: Option<String>,
    /// Also names that begin with a dot; not when absent.
    include_hidden: Option<bool>,
}

/// A directory with all in it.
#[utoipa::path(get, path = "/sandboxes/{id}/files/tree", tag = "files", params(("id" = String, Path), TreeQuery),
    responses((status = 200, body = Data<TreeNode>)))]
pub async fn get_tree(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<TreeQuery>,
) -> Result<Json<Data<TreeNode>>, ApiError> {
    let id = sandbox_id(&id)?;
    let path = query.path.unwrap_or_else(|| PATH_DEFAULT.into());
    let depth: u32 = query.depth.as_deref().map_or(Ok(DEPTH_DEFAULT), |text| number("depth", text))?;
    if !(1..=DEPTH_MAX).contains(&depth) {
        return Err(ApiError::invalid("depth", format!("depth is {depth}; it must be between 1 and {DEPTH_MAX}")));
    }
    let root = api.engine.stat(&id, checked_path(&path)?).await?;
    let entries = api.engine.list_dir(&id, &path, depth).await?;
    let root = FileEntry { is_dir: true, kind: "directory", ..root.into() };
    let entries = entries.into_iter().map(FileEntry::from);
    Ok(Json(Data { data: tree(root, entries, depth, query.include_hidden.unwrap_or(false)) }))
}

/// Entries, depth first, below `root`, as a tree.
fn tree(root: FileEntry, entries: impl Iterator<Item = FileEntry>, depth: u32, hidden: bool) -> TreeNode {
    // The directories from the root to where we are.
    let mut open = vec![TreeNode::of(root, true)];
    for entry in entries {
        while open.len() > 1 && !open.last().is_some_and(|last| is_in(&entry.path, &last.path)) {
            close(&mut open);
        }
        let Some(parent) = open.last() else { break };
        let level = open.len();
        // Also what is below one that is left out: it lies in none of the open directories.
        let direct = parent_of(&entry.path) == parent.path.trim_end_matches('/');
        if !direct || (!hidden && entry.name.starts_with('.')) {
            continue;
        }
        let goes_on = entry.is_dir && level < depth as usize;
        open.push(TreeNode::of(entry, goes_on));
        if !goes_on {
            close(&mut open);
        }
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.remove(0)
}

/// Puts the last open node into the one above.
fn close(open: &mut Vec<TreeNode>) {
    if let Some(node) = open.pop()
        && let Some(children) = open.last_mut().and_then(|above| above.children.as_mut())
    {
        children.push(node);
    }
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// The directory; `/workspace` when absent.
    path: Option<String>,
    /// Also what is below its directories, new ones too; yes when absent.
    recursive: Option<bool>,
    /// In place of the token: see `POST /sse/ticket`.
    #[allow(dead_code, reason = "read where requests are let in; listed here for the document")]
    ticket: Option<String>,
}

/// What changes in a directory from the moment of the answer's head on. Ends when the directory is gone, or with a frame
/// `error` when the sandbox is paused: a watch does not keep it awake. A frame `overflow` says that changes are missing, and
/// how many; `limit` that directories are not looked at. At most 16 watches of one sandbox at a time.
#[utoipa::path(get, path = "/sandboxes/{id}/files/watch", tag = "files", params(("id" = String, Path), WatchQuery),
    responses((status = 200, description = "Frames `created`, `modified`, `deleted`, `renamed`, `overflow`, `limit`",
        body = FileChange, content_type = "text/event-stream")))]
pub async fn watch_files(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<WatchQuery>,
) -> Result<Response, ApiError> {
    let path = query.path.unwrap_or_else(|| PATH_DEFAULT.into());
    let recursive = query.recursive.unwrap_or(true);
    let changes = api.engine.watch_files(&sandbox_id(&id)?, checked_path(&path)?, recursive).await?;
    let open = Bytes::from(format!(": {} directories\n\n", changes.directories));
    let frames = changes.flat_map(|changes| {
        let frames: Vec<Bytes> = match changes {
            Ok(changes) => changes.into_iter().map(FileChange::from).map(|it| sse::frame(it.event, &it)).collect(),
            Err(error @ Error::Interrupted { .. }) => vec![sse::error_frame(error.into())],
            Err(error) => vec![sse::error_frame(error.into())],
        };
        stream::iter(frames)
    });
    Ok(sse::response(stream::once(async { open }).chain(frames), api.config.stopping.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry(path: &str, is_dir: bool) -> FileEntry {
        FileEntry {
            name: path.rsplit('/').next().unwrap().into(),
            path: path.into(),
            size: 1,
            is_dir,
            kind: if is_dir { "directory" } else { "file" },
            mode: "0644".into(),
            is_symlink: false,
            modified_at: None,
        }
    }

    fn names(node: &TreeNode) -> Value {
        match &node.children {
            Some(children) => json!({ node.name.clone(): children.iter().map(names).collect::<Vec<_>>() }),
            None => json!(node.name),
        }
    }

    fn drawn(root: &str, entries: &[(&str, bool)], depth: u32, hidden: bool) -> Value {
        let entries = entries.iter().map(|(path, is_dir)| entry(path, *is_dir));
        names(&tree(entry(root, true), entries, depth, hidden))
    }

    #[test]
    fn entries_become_a_tree() {
        let entries = [
            ("/w/.git", true),
            ("/w/.git/a", true),
            ("/w/.git/a/b", false),
            ("/w/a", true),
            ("/w/a/b", true),
            ("/w/a/b/c", false),
            ("/w/a/d", false),
            ("/w/ab", true),
            ("/w/z", false),
        ];
        assert_eq!(drawn("/w", &entries, 3, false), json!({"w": [{"a": [{"b": ["c"]}, "d"]}, {"ab": []}, "z"]}));
        let all = drawn("/w", &entries, 3, true);
        assert_eq!(all["w"][0], json!({".git": [{"a": ["b"]}]}));
        let shallow = [("/w/a", true), ("/w/z", false)];
        assert_eq!(drawn("/w", &shallow, 1, false), json!({"w": ["a", "z"]}));
    }

    #[test]
    fn the_root_directory_and_a_slash_at_the_end_are_fine() {
        assert_eq!(drawn("/", &[("/a", true), ("/a/b", false)], 2, false), json!({"": [{"a": ["b"]}]}));
        assert_eq!(drawn("/w/", &[("/w/a", false)], 2, false), json!({"": ["a"]}));
    }
}
