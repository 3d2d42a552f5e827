//! Files as JSON: write, write many, list, stat, on both families of routes (contract 8.10).
//!
//! `/fs/...` is what the SDK calls first, `/files...` is its fallback on 404 and what old SDKs call. They differ in one
//! word: `content` is text on `/fs/write` and base64 on `/files`. File bytes themselves are in `transfer.rs`.

use std::pin::Pin;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use cove_engine::{BoxError, Error, SandboxId};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sandbox_id;
use super::transfer::{download_file_by_path, remove_file, upload_file};
use crate::Api;
use crate::base64::{Encoded, part_of};
use crate::error::ApiError;
use crate::extract::{FILES_BODY_BYTES_MAX, Id, JsonBody, JsonBytes, Query, number, parse};
use crate::heartbeat::{self, Unmistakable};
use crate::types::{
    Borrowed, Data, DirMade, FileEntry, FileFailure, FileInMany, FileWritten, Listing, MakeDirBody, MoveBody, Moved,
    PathBody, Removed, WriteBody, WriteMany, WriteManyBody, Written,
};

/// Permission bits of a file that these routes make.
const FILE_MODE: u32 = 0o644;

/// Longest path in a sandbox, as Linux has it.
const PATH_BYTES_MAX: usize = 4096;

/// Directory that a listing without a path means.
const LIST_DEFAULT: &str = "/workspace";

/// Deepest listing.
const DEPTH_MAX: u32 = 64;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(write_file))
        .routes(routes!(write_file_legacy, list_files, remove_by_query))
        .routes(routes!(list_files_alias))
        .routes(routes!(stat_file))
        .routes(routes!(stat_file_legacy))
        .routes(routes!(write_files))
        .routes(routes!(write_files_legacy))
        .routes(routes!(write_files_batch))
        .routes(routes!(move_file))
        .routes(routes!(make_dir))
        // Files of the root directory whose names are those of these routes.
        .route("/sandboxes/{id}/files/batch", by_path())
        .route("/sandboxes/{id}/files/move", by_path())
        .route("/sandboxes/{id}/files/mkdir", by_path())
}

/// The calls on a file whose path is in the URL.
fn by_path() -> MethodRouter<Api> {
    get(download_file_by_path).put(upload_file).delete(remove_file)
}

/// A path that can be one: absolute, not too long, without a zero byte.
pub(super) fn checked_path(path: &str) -> Result<&str, ApiError> {
    if path.is_empty() {
        return Err(ApiError::invalid_path("path is empty"));
    }
    if !path.starts_with('/') {
        return Err(ApiError::invalid_path(format!("path is '{path}', which is not absolute")));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(ApiError::invalid_path(format!("path has {} bytes; {PATH_BYTES_MAX} is the most", path.len())));
    }
    if path.contains('\0') {
        return Err(ApiError::invalid_path("path holds a zero byte"));
    }
    Ok(path)
}

/// The bytes of a file inside a JSON body.
enum Content {
    Text(Bytes),
    Base64(Encoded),
}

impl Content {
    fn into_stream(self) -> Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>> {
        match self {
            Content::Text(text) => stream::once(async { Ok(text) }).boxed(),
            Content::Base64(encoded) => encoded.decoded().boxed(),
        }
    }
}

/// What the field `content` of a body means.
#[derive(Clone, Copy)]
enum ContentIs {
    Text,
    Base64,
}

fn content_of(
    content: &Option<Borrowed<'_>>,
    content_base64: &Option<Borrowed<'_>>,
    meaning: ContentIs,
    body: &Bytes,
) -> Result<Content, ApiError> {
    match (content_base64, content, meaning) {
        (Some(Borrowed(text)), _, _) => Encoded::check(text, body, "content_base64").map(Content::Base64),
        (None, Some(Borrowed(text)), ContentIs::Text) => Ok(Content::Text(part_of(body, text))),
        (None, Some(Borrowed(text)), ContentIs::Base64) => Encoded::check(text, body, "content").map(Content::Base64),
        (None, None, ContentIs::Text) => Err(ApiError::invalid("content_base64", "content_base64 is missing")),
        (None, None, ContentIs::Base64) => Err(ApiError::invalid("content", "content is missing")),
    }
}

async fn write_one(api: Api, id: SandboxId, body: Bytes, meaning: ContentIs) -> Result<Data<Written>, Unmistakable> {
    let request: WriteBody<'_> = parse(&body)?;
    let path = checked_path(&request.path)?;
    let content = content_of(&request.content, &request.content_base64, meaning, &body)?;
    let size = api.engine.write_file(&id, path, FILE_MODE, content.into_stream()).await?;
    Ok(Data { data: Written { path: path.to_owned(), size } })
}

/// Writes a file; missing parents are made, an old file is replaced. `content` is text.
#[utoipa::path(post, path = "/sandboxes/{id}/fs/write", tag = "files", params(("id" = String, Path)),
    request_body = WriteBody, responses((status = 200, body = Data<Written>)))]
pub async fn write_file(
    State(api): State<Api>,
    Id(id): Id,
    JsonBytes(body): JsonBytes<FILES_BODY_BYTES_MAX>,
) -> Result<Response, ApiError> {
    Ok(heartbeat::answer(StatusCode::OK, write_one(api, sandbox_id(&id)?, body, ContentIs::Text)).await)
}

/// Writes a file; missing parents are made, an old file is replaced. `content` is base64.
#[utoipa::path(post, path = "/sandboxes/{id}/files", tag = "files", params(("id" = String, Path)),
    request_body = WriteBody, responses((status = 200, body = Data<Written>)))]
pub async fn write_file_legacy(
    State(api): State<Api>,
    Id(id): Id,
    JsonBytes(body): JsonBytes<FILES_BODY_BYTES_MAX>,
) -> Result<Response, ApiError> {
    Ok(heartbeat::answer(StatusCode::OK, write_one(api, sandbox_id(&id)?, body, ContentIs::Base64)).await)
}

async fn write_each(api: Api, id: SandboxId, body: Bytes, default: ContentIs) -> Result<Data<WriteMany>, Unmistakable> {
    let request: WriteManyBody<'_> = parse(&body)?;
    // A sandbox that is not there fails the call, not each of its files.
    api.engine.get(id.as_str()).await?;
    let mut outcome = WriteMany::default();
    for file in &request.files {
        let path = file.path.clone().into_owned();
        let written =
            match content_of_many(file, default, &body).and_then(|content| Ok((checked_path(&path)?, content))) {
                Ok((path, content)) => api.engine.write_file(&id, path, FILE_MODE, content.into_stream()).await,
                Err(error) => {
                    outcome.failed.push(FileFailure { path, error: error.message().to_owned(), code: error.code() });
                    continue;
                }
            };
        match written {
            Ok(size_bytes) => outcome.written.push(FileWritten { path, size_bytes }),
            Err(error @ (Error::Guest { .. } | Error::Invalid { .. })) => {
                let error = ApiError::from(error);
                outcome.failed.push(FileFailure { path, error: error.message().to_owned(), code: error.code() });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Data { data: outcome })
}

fn content_of_many(file: &FileInMany<'_>, default: ContentIs, body: &Bytes) -> Result<Content, ApiError> {
    let meaning = match file.encoding.as_ref().map(|encoding| encoding.0.as_ref()) {
        None => default,
        Some("utf8" | "utf-8" | "text") => ContentIs::Text,
        Some("base64") => ContentIs::Base64,
        Some(other) => {
            return Err(ApiError::invalid("encoding", format!("encoding is '{other}'; it can be utf8 or base64")));
        }
    };
    content_of(&file.content, &file.content_base64, meaning, body)
}

/// Writes several files in order; one that fails does not stop the others.
#[utoipa::path(post, path = "/sandboxes/{id}/fs/write-many", tag = "files", params(("id" = String, Path)),
    request_body = WriteManyBody, responses((status = 200, body = Data<WriteMany>)))]
pub async fn write_files(
    State(api): State<Api>,
    Id(id): Id,
    JsonBytes(body): JsonBytes<FILES_BODY_BYTES_MAX>,
) -> Result<Response, ApiError> {
    Ok(heartbeat::answer(StatusCode::OK, write_each(api, sandbox_id(&id)?, body, ContentIs::Text)).await)
}

/// The same as `/fs/write-many`.
#[utoipa::path(post, path = "/sandboxes/{id}/files/write-many", tag = "files", params(("id" = String, Path)),
    request_body = WriteManyBody, responses((status = 200, body = Data<WriteMany>)))]
pub async fn write_files_legacy(
    State(api): State<Api>,
    Id(id): Id,
    JsonBytes(body): JsonBytes<FILES_BODY_BYTES_MAX>,
) -> Result<Response, ApiError> {
    Ok(heartbeat::answer(StatusCode::OK, write_each(api, sandbox_id(&id)?, body, ContentIs::Text)).await)
}

/// Writes several files in order, `content` being base64: what SDK 1.x sends. One that fails does not stop the others.
#[utoipa::path(post, path = "/sandboxes/{id}/files/batch", tag = "files", params(("id" = String, Path)),
    request_body = WriteManyBody, responses((status = 200, body = Data<WriteMany>)))]
pub async fn write_files_batch(
    State(api): State<Api>,
    Id(id): Id,
    JsonBytes(body): JsonBytes<FILES_BODY_BYTES_MAX>,
) -> Result<Response, ApiError> {
    let work = write_each(api, sandbox_id(&id)?, body, ContentIs::Base64);
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}

/// Renames a file or directory, across file systems too.
#[utoipa::path(post, path = "/sandboxes/{id}/files/move", tag = "files", params(("id" = String, Path)),
    request_body = MoveBody, responses((status = 200, body = Data<Moved>)))]
pub async fn move_file(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<MoveBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let MoveBody { from, to } = body;
    checked_path(&from)?;
    checked_path(&to)?;
    let work = async move {
        api.engine.move_path(&id, &from, &to).await?;
        Ok::<_, Unmistakable>(Data { data: Moved { from, to } })
    };
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}

/// Makes a directory and its missing parents; one that is there is fine.
#[utoipa::path(post, path = "/sandboxes/{id}/files/mkdir", tag = "files", params(("id" = String, Path)),
    request_body = MakeDirBody, responses((status = 200, body = Data<DirMade>)))]
pub async fn make_dir(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<MakeDirBody>,
) -> Result<Json<Data<DirMade>>, ApiError> {
    api.engine.make_dir(&sandbox_id(&id)?, checked_path(&body.path)?).await?;
    Ok(Json(Data { data: DirMade { path: body.path } }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RemoveByQuery {
    /// Absolute path.
    path: Option<String>,
    /// Also what is inside a directory; without it a directory must be empty.
    recursive: Option<bool>,
}

/// Removes a file or directory.
#[utoipa::path(delete, path = "/sandboxes/{id}/files", tag = "files", params(("id" = String, Path), RemoveByQuery),
    responses((status = 200, body = Data<Removed>)))]
pub async fn remove_by_query(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<RemoveByQuery>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let path = query.path.ok_or_else(|| ApiError::invalid("path", "path is missing"))?;
    checked_path(&path)?;
    let recursive = query.recursive.unwrap_or(false);
    let work = async move {
        api.engine.remove(&id, &path, recursive).await?;
        Ok::<_, Unmistakable>(Data { data: Removed { path, deleted: true } })
    };
    Ok(heartbeat::answer(StatusCode::OK, work).await)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListFilesQuery {
    /// The directory; `/workspace` when absent.
    path: Option<String>,
    /// Levels below it, 1-64; 1 when absent.
    depth: Option<String>,
}

async fn list_dir(api: &Api, id: &SandboxId, query: ListFilesQuery) -> Result<Json<Data<Listing>>, ApiError> {
    let path = query.path.unwrap_or_else(|| LIST_DEFAULT.to_owned());
    let depth: u32 = query.depth.as_deref().map_or(Ok(1), |text| number("depth", text))?;
    if !(1..=DEPTH_MAX).contains(&depth) {
        return Err(ApiError::invalid("depth", format!("depth is {depth}; it must be between 1 and {DEPTH_MAX}")));
    }
    let entries = api.engine.list_dir(id, checked_path(&path)?, depth).await?;
    Ok(Json(Data { data: Listing { path, entries: entries.into_iter().map(FileEntry::from).collect() } }))
}

/// What is in a directory.
#[utoipa::path(get, path = "/sandboxes/{id}/files", tag = "files", params(("id" = String, Path), ListFilesQuery),
    responses((status = 200, body = Data<Listing>)))]
pub async fn list_files(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<ListFilesQuery>,
) -> Result<Json<Data<Listing>>, ApiError> {
    list_dir(&api, &sandbox_id(&id)?, query).await
}

/// The same as `GET /sandboxes/{id}/files`.
#[utoipa::path(get, path = "/sandboxes/{id}/files/list", tag = "files", params(("id" = String, Path), ListFilesQuery),
    responses((status = 200, body = Data<Listing>)))]
pub async fn list_files_alias(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<ListFilesQuery>,
) -> Result<Json<Data<Listing>>, ApiError> {
    list_dir(&api, &sandbox_id(&id)?, query).await
}

async fn stat_path(api: &Api, id: &SandboxId, path: &str) -> Result<Json<Data<FileEntry>>, ApiError> {
    Ok(Json(Data { data: api.engine.stat(id, checked_path(path)?).await?.into() }))
}

/// What is at a path; a symbolic link is not followed.
#[utoipa::path(post, path = "/sandboxes/{id}/fs/stat", tag = "files", params(("id" = String, Path)),
    request_body = PathBody, responses((status = 200, body = Data<FileEntry>)))]
pub async fn stat_file(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<PathBody>,
) -> Result<Json<Data<FileEntry>>, ApiError> {
    stat_path(&api, &sandbox_id(&id)?, &body.path).await
}

/// The same as `/fs/stat`.
#[utoipa::path(post, path = "/sandboxes/{id}/files/stat", tag = "files", params(("id" = String, Path)),
    request_body = PathBody, responses((status = 200, body = Data<FileEntry>)))]
pub async fn stat_file_legacy(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<PathBody>,
) -> Result<Json<Data<FileEntry>>, ApiError> {
    stat_path(&api, &sandbox_id(&id)?, &body.path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bytes_of(json: &str, meaning: ContentIs) -> Result<Vec<u8>, ApiError> {
        let body = Bytes::copy_from_slice(json.as_bytes());
        let request: WriteBody<'_> = serde_json::from_slice(&body).unwrap();
        let content = content_of(&request.content, &request.content_base64, meaning, &body)?;
        let chunks: Vec<Bytes> = content.into_stream().map(Result::unwrap).collect().await;
        Ok(chunks.concat())
    }

    #[tokio::test]
    async fn content_is_text_on_one_route_and_base64_on_the_other() {
        let body = r#"{"path":"/a","content":"eA=="}"#;
        assert_eq!(bytes_of(body, ContentIs::Text).await.unwrap(), b"eA==");
        assert_eq!(bytes_of(body, ContentIs::Base64).await.unwrap(), b"x");
        let body = r#"{"path":"/a","content_base64":"eA==","content":"y"}"#;
        assert_eq!(bytes_of(body, ContentIs::Text).await.unwrap(), b"x");
        assert_eq!(
            bytes_of(r#"{"path":"/a","content":"a\n\u00e9"}"#, ContentIs::Text).await.unwrap(),
            "a\né".as_bytes()
        );
    }

    #[tokio::test]
    async fn a_missing_content_is_named_as_the_route_names_it() {
        for (meaning, field) in [(ContentIs::Text, "content_base64"), (ContentIs::Base64, "content")] {
            let error = bytes_of(r#"{"path":"/a"}"#, meaning).await.unwrap_err();
            assert_eq!(error.message(), format!("{field} is missing"));
        }
    }

    #[test]
    fn paths_that_cannot_be_are_400() {
        let long = "/".repeat(PATH_BYTES_MAX + 1);
        for path in ["", "a", "./a", "/a\0b", long.as_str()] {
            let error = checked_path(path).unwrap_err();
            assert_eq!((error.status().as_u16(), error.code()), (400, "INVALID_PATH"), "{path:?}");
        }
        assert_eq!(checked_path("/workspace/ä b#1.py").unwrap(), "/workspace/ä b#1.py");
    }
}
