//! File bytes as they are: downloads, and uploads and removal by path (contract 8.10; PUT and DELETE are our own).
//!
//! A download is always `application/octet-stream`: the SDK would take JSON for something else. Files go through in
//! chunks; a small one is read whole first, so that its length and any error are known before the answer begins.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use bytes::Bytes;
use cove_engine::protocol::guest::Entry;
use cove_engine::{BoxError, FileStream, SandboxId};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::files::checked_path;
use super::sandbox_id;
use crate::Api;
use crate::error::ApiError;
use crate::extract::{CHUNK_TIMEOUT, Id, Query};
use crate::types::{Data, Removed, Written};

/// Files up to this size are answered in one piece.
const WHOLE_BYTES_MAX: usize = 256 << 10;

/// Permission bits of an uploaded file unless the caller says.
const FILE_MODE: u32 = 0o644;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(download_file))
        .routes(routes!(download_file_alias))
        .routes(routes!(download_file_by_path, upload_file, remove_file))
        // Files of the root directory whose names are those of other routes.
        .route("/sandboxes/{id}/files/read", delete(remove_file).put(upload_file))
        .route("/sandboxes/{id}/files/list", delete(remove_file).put(upload_file))
        .route("/sandboxes/{id}/files/stat", delete(remove_file).put(upload_file).merge(get(download_file_by_path)))
        .route(
            "/sandboxes/{id}/files/write-many",
            delete(remove_file).put(upload_file).merge(get(download_file_by_path)),
        )
}

/// What stands after `/files/` in the URL: a path in the sandbox without its leading slash, percent-encoded.
pub struct PathInUrl(String);

impl<S: Sync> FromRequestParts<S> for PathInUrl {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // The route is /sandboxes/{id}/files/..., and an id has no slash.
        let rest = parts.uri.path().splitn(5, '/').nth(4).unwrap_or_default();
        let rest = percent_decode_str(rest).decode_utf8();
        let rest = rest.map_err(|_| ApiError::invalid_path("path is not UTF-8 after percent-decoding"))?;
        Ok(Self(format!("/{}", rest.trim_start_matches('/'))))
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadQuery {
    /// Absolute path of the file.
    path: Option<String>,
}

impl ReadQuery {
    pub(super) fn path(self) -> Result<String, ApiError> {
        self.path.ok_or_else(|| ApiError::invalid("path", "path is missing"))
    }
}

async fn send(api: &Api, id: &SandboxId, path: &str) -> Result<Response, ApiError> {
    let (entry, chunks) = api.engine.read_file(id, checked_path(path)?).await?;
    file(entry, chunks).await
}

/// The answer that carries a file.
pub(super) async fn file(entry: Entry, mut chunks: FileStream) -> Result<Response, ApiError> {
    let mut head = Vec::new();
    let mut head_bytes = 0;
    while head_bytes <= WHOLE_BYTES_MAX {
        match chunks.next().await {
            Some(chunk) => {
                let chunk = chunk?;
                head_bytes += chunk.len();
                head.push(Ok(chunk));
            }
            None => {
                let whole: Vec<Bytes> = head.into_iter().collect::<Result<_, BoxError>>().unwrap_or_default();
                return Ok((octets(), whole.concat()).into_response());
            }
        }
    }
    let all = stream::iter(head).chain(chunks.map_err(BoxError::from));
    // Files of /proc and /sys have a size that is not theirs, and a file may grow while it is read.
    if entry.size <= head_bytes as u64 {
        return Ok((octets(), Body::from_stream(all)).into_response());
    }
    let mut response = (octets(), Body::from_stream(exactly(entry.size, all))).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(entry.size));
    Ok(response)
}

pub(super) fn octets() -> [(header::HeaderName, HeaderValue); 2] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ]
}

/// The first `bytes` bytes. A file that became shorter breaks the answer off, so that nobody takes it for whole.
fn exactly(
    bytes: u64,
    chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    stream::try_unfold((Box::pin(chunks), bytes), |(mut chunks, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut chunk) = chunks.try_next().await? else {
            return Err(BoxError::from("The file became shorter while it was read"));
        };
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - chunk.len() as u64;
        Ok(Some((chunk, (chunks, left))))
    })
}

/// The bytes of a file.
#[utoipa::path(get, path = "/sandboxes/{id}/fs/download", tag = "files", params(("id" = String, Path), ReadQuery),
    responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
pub async fn download_file(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<ReadQuery>,
) -> Result<Response, ApiError> {
    send(&api, &sandbox_id(&id)?, &query.path()?).await
}

/// The same as `/fs/download`.
#[utoipa::path(get, path = "/sandboxes/{id}/files/read", tag = "files", params(("id" = String, Path), ReadQuery),
    responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
pub async fn download_file_alias(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<ReadQuery>,
) -> Result<Response, ApiError> {
    send(&api, &sandbox_id(&id)?, &query.path()?).await
}

/// The bytes of a file whose path is in the URL, each segment percent-encoded.
#[utoipa::path(get, path = "/sandboxes/{id}/files/{*path}", tag = "files", params(("id" = String, Path), ("path" = String, Path)),
    responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
pub async fn download_file_by_path(
    State(api): State<Api>,
    Id(id): Id,
    PathInUrl(path): PathInUrl,
) -> Result<Response, ApiError> {
    send(&api, &sandbox_id(&id)?, &path).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UploadQuery {
    /// Permission bits of a new file in octal; `0644` when absent.
    mode: Option<String>,
}

/// Writes the request's body, of any length, to a file. Missing parents are made; nothing changes before the last byte.
#[utoipa::path(put, path = "/sandboxes/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path), UploadQuery),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 200, body = Data<Written>)))]
pub async fn upload_file(
    State(api): State<Api>,
    Id(id): Id,
    PathInUrl(path): PathInUrl,
    Query(query): Query<UploadQuery>,
    body: Body,
) -> Result<Json<Data<Written>>, ApiError> {
    let id = sandbox_id(&id)?;
    let mode = query.mode.as_deref().map_or(Ok(FILE_MODE), mode)?;
    let content = patient(body.into_data_stream().map_err(BoxError::from));
    let size = api.engine.write_file(&id, checked_path(&path)?, mode, content).await?;
    Ok(Json(Data { data: Written { path, size } }))
}

/// The content, as long as it keeps coming.
fn patient(
    content: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    stream::try_unfold(Box::pin(content), |mut content| async move {
        match timeout(CHUNK_TIMEOUT, content.try_next()).await {
            Ok(chunk) => Ok(chunk?.map(|chunk| (chunk, content))),
            Err(_) => Err(format!("Nothing of the body came for {} s", CHUNK_TIMEOUT.as_secs()).into()),
        }
    })
}

fn mode(text: &str) -> Result<u32, ApiError> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| ApiError::invalid("mode", format!("mode is '{text}'; it must be octal, 0000 to 7777")))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RemoveQuery {
    /// Also what is inside a directory; without it a directory must be empty.
    recursive: Option<bool>,
}

/// Removes a file or directory.
#[utoipa::path(delete, path = "/sandboxes/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path), RemoveQuery), responses((status = 200, body = Data<Removed>)))]
pub async fn remove_file(
    State(api): State<Api>,
    Id(id): Id,
    PathInUrl(path): PathInUrl,
    Query(query): Query<RemoveQuery>,
) -> Result<Json<Data<Removed>>, ApiError> {
    let recursive = query.recursive.unwrap_or(false);
    api.engine.remove(&sandbox_id(&id)?, checked_path(&path)?, recursive).await?;
    Ok(Json(Data { data: Removed { path, deleted: true } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(sizes: &[usize]) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        stream::iter(sizes.iter().map(|size| Ok(Bytes::from(vec![0; *size]))).collect::<Vec<_>>())
    }

    async fn cut(bytes: u64, given: &[usize]) -> Result<Vec<usize>, BoxError> {
        exactly(bytes, chunks(given)).map_ok(|chunk| chunk.len()).try_collect().await
    }

    #[tokio::test]
    async fn a_file_that_grows_is_cut_and_one_that_shrinks_is_an_error() {
        assert_eq!(cut(5, &[3, 3, 3]).await.unwrap(), [3, 2]);
        assert_eq!(cut(6, &[3, 3]).await.unwrap(), [3, 3]);
        assert!(cut(7, &[3, 3]).await.is_err());
    }

    #[tokio::test]
    async fn a_path_in_the_url_is_decoded_once() {
        for (url, path) in [
            ("/sandboxes/sbx_1/files/workspace/a%20b%231.py", "/workspace/a b#1.py"),
            ("/sandboxes/sbx_1/files//etc/hosts", "/etc/hosts"),
            ("/sandboxes/sbx_1/files/a%2520b", "/a%20b"),
            ("/sandboxes/sbx_1/files/%C3%A4%2Fx", "/ä/x"),
            ("/sandboxes/sbx_1/files/a+b", "/a+b"),
        ] {
            let (mut parts, ()) = axum::http::Request::get(url).body(()).unwrap().into_parts();
            assert_eq!(PathInUrl::from_request_parts(&mut parts, &()).await.ok().unwrap().0, path, "{url}");
        }
        let (mut parts, ()) = axum::http::Request::get("/sandboxes/x/files/%ff").body(()).unwrap().into_parts();
        assert!(PathInUrl::from_request_parts(&mut parts, &()).await.is_err());
    }

    #[test]
    fn a_mode_is_octal() {
        assert_eq!(mode("0755").ok(), Some(0o755));
        for wrong in ["rwx", "8", "10000", "-1"] {
            assert!(mode(wrong).unwrap_err().message().starts_with("mode is"), "{wrong}");
        }
    }
}
