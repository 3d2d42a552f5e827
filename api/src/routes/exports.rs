//! Files out of a sandbox for people: links, and downloads of one file or of an archive (contract X11, X12; X85 for folders).
//!
//! Archives are made while they are sent: the agent packs, this server compresses. Nothing is kept.

use std::io::Write;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cove_engine::protocol::guest::{EntryKind, ErrorKind};
use cove_engine::{BoxError, Error, FileStream, SandboxId};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::files::checked_path;
use super::{sandbox_id, transfer};
use crate::Api;
use crate::config::base_url;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody};
use crate::token;
use crate::types::{Data, Export, ExportBody, ExportFile, FileEntry, timestamp};

/// Paths of one export.
const PATHS_MAX: usize = 100;

/// Longest name of a download.
const FILENAME_CHARS_MAX: usize = 200;

/// What an archive is called when nobody says.
const ARCHIVE_NAME: &str = "export.tar.gz";

/// Letters that stay as they are in a URL and in a header (RFC 3986, 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(create_export)).routes(routes!(download_export))
}

/// Says where files can be downloaded. Each path must be there.
#[utoipa::path(post, path = "/sandboxes/{id}/exports", tag = "files", params(("id" = String, Path)),
    request_body = ExportBody, responses((status = 200, body = Data<Export>)))]
pub async fn create_export(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<ExportBody>,
) -> Result<Json<Data<Export>>, ApiError> {
    let id = sandbox_id(&id)?;
    let paths = match (body.path, body.paths) {
        (Some(path), None) => vec![path],
        (None, Some(paths)) => paths,
        (Some(_), Some(_)) => return Err(ApiError::invalid("paths", "path and paths cannot be given together")),
        (None, None) => return Err(ApiError::invalid("path", "path is missing; or give paths")),
    };
    check_count(&paths)?;
    let filename = body.filename.as_deref().map(checked_filename).transpose()?;
    let root = download_root(&api, &id);
    let named = filename.map(|name| format!("&filename={}", encoded(name))).unwrap_or_default();
    let mut files = Vec::new();
    for path in &paths {
        let entry: FileEntry = api.engine.stat(&id, checked_path(path)?).await?.into();
        let own_name = if entry.is_dir { format!("{}.tar.gz", entry.name) } else { entry.name };
        let (name, query) = match filename {
            Some(name) if paths.len() == 1 => (name.to_owned(), named.as_str()),
            _ => (own_name, ""),
        };
        files.push(ExportFile {
            download_url: format!("{root}path={}{query}", encoded(path)),
            path: path.clone(),
            filename: name,
            kind: entry.kind,
            size: (!entry.is_dir).then_some(entry.size),
        });
    }
    let all: Vec<String> = paths.iter().map(|path| format!("paths%5B%5D={}", encoded(path))).collect();
    let random = token::random_text().map_err(|error| ApiError::internal(format!("No id can be made: {error}")))?;
    let data = Export {
        id: format!("exp_{}", &random[..16]),
        sandbox_id: id.to_string(),
        label: body.label,
        status: "ready",
        files,
        archive_download_url: (paths.len() > 1).then(|| format!("{root}{}{named}", all.join("&"))),
        created_at: timestamp(OffsetDateTime::now_utc()),
    };
    Ok(Json(Data { data }))
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "for the document: repeated names are read by hand")]
pub struct DownloadQuery {
    /// One absolute path: a file as it is, a directory as `.tar.gz`.
    path: Option<String>,
    /// Several: a `.tar.gz` of them all.
    #[param(rename = "paths[]")]
    paths: Option<Vec<String>>,
    /// What the download is to be called.
    filename: Option<String>,
}

/// A file as it is; a directory, or several paths, as a `.tar.gz` that is made while it is sent.
#[utoipa::path(get, path = "/sandboxes/{id}/exports/download", tag = "files",
    params(("id" = String, Path), DownloadQuery),
    responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
pub async fn download_export(
    State(api): State<Api>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let wanted = Wanted::of(query.as_deref().unwrap_or_default())?;
    match wanted.paths.as_slice() {
        [path] => download_one(&api, &id, path, wanted.filename).await,
        paths => {
            let name = wanted.filename.unwrap_or_else(|| ARCHIVE_NAME.into());
            Ok(archive(api.engine.archive(&id, paths).await?, &name))
        }
    }
}

async fn download_one(api: &Api, id: &SandboxId, path: &str, filename: Option<String>) -> Result<Response, ApiError> {
    let entry = api.engine.stat(id, path).await?;
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("root");
    if entry.kind != EntryKind::Directory {
        match api.engine.read_file(id, path).await {
            Ok((entry, chunks)) => {
                let mut response = transfer::file(entry, chunks).await?;
                attach(&mut response, filename.as_deref().unwrap_or(name));
                return Ok(response);
            }
            // A link to a directory.
            Err(Error::Guest { kind: ErrorKind::InvalidPath, .. }) if entry.kind == EntryKind::Symlink => {}
            Err(error) => return Err(error.into()),
        }
    }
    let filename = filename.unwrap_or_else(|| format!("{name}.tar.gz"));
    Ok(archive(api.engine.archive(id, &[path.to_owned()]).await?, &filename))
}

/// What the query of a download says.
#[derive(Debug)]
struct Wanted {
    paths: Vec<String>,
    filename: Option<String>,
}

impl Wanted {
    fn of(query: &str) -> Result<Self, ApiError> {
        // The parser below replaces what is not UTF-8, and would name another file.
        if percent_decode_str(query).decode_utf8().is_err() {
            return Err(ApiError::invalid_path("the query is not UTF-8 after percent-decoding"));
        }
        let (mut paths, mut filename) = (Vec::new(), None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "path" | "paths[]" | "paths" => paths.push(checked_path(&value)?.to_owned()),
                "filename" => filename = Some(checked_filename(&value)?.to_owned()),
                _ => {}
            }
        }
        check_count(&paths)?;
        Ok(Self { paths, filename })
    }
}

fn check_count(paths: &[String]) -> Result<(), ApiError> {
    if paths.is_empty() || paths.len() > PATHS_MAX {
        let message = format!("paths has {} entries; 1 to {PATHS_MAX} are possible", paths.len());
        return Err(ApiError::invalid("paths", message));
    }
    Ok(())
}

fn checked_filename(name: &str) -> Result<&str, ApiError> {
    let wrong = name.is_empty() || name.chars().count() > FILENAME_CHARS_MAX;
    if wrong || name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        let message = format!(
            "filename is '{}'; it must be a name of 1 to {FILENAME_CHARS_MAX} characters without a slash",
            name.escape_debug().take(FILENAME_CHARS_MAX).collect::<String>()
        );
        return Err(ApiError::invalid("filename", message));
    }
    Ok(name)
}

/// Where downloads are, up to their query.
pub(super) fn download_root(api: &Api, id: &SandboxId) -> String {
    format!("{}/sandboxes/{id}/exports/download?", base_url(api.config.port))
}

/// `text` as a part of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// The answer that carries an archive, compressed.
fn archive(tar: FileStream, name: &str) -> Response {
    let mut response = Body::from_stream(compressed(tar.map_err(BoxError::from))).into_response();
    set_type(&mut response, "application/gzip");
    attach(&mut response, name);
    response
}

/// The answer that carries a folder as it is packed.
pub(super) fn plain_archive(tar: FileStream, name: &str) -> Response {
    let mut response = Body::from_stream(tar.map_err(BoxError::from)).into_response();
    set_type(&mut response, "application/x-tar");
    attach(&mut response, name);
    response
}

fn set_type(response: &mut Response, kind: &'static str) {
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
}

/// Says what a browser is to call the file (RFC 6266).
fn attach(response: &mut Response, name: &str) {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._ ".contains(c) { c } else { '_' }).collect();
    let value = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{}", encoded(name));
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
}

/// The chunks as one gzip file. The fast level: a download should be bound by what it carries.
fn compressed(
    chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let state = Some((Box::pin(chunks), encoder));
    let pieces = stream::try_unfold(state, |state| async move {
        let Some((mut chunks, mut encoder)) = state else { return Ok(None) };
        match chunks.next().await {
            Some(chunk) => {
                encoder.write_all(&chunk?)?;
                let piece = Bytes::from(std::mem::take(encoder.get_mut()));
                Ok::<_, BoxError>(Some((piece, Some((chunks, encoder)))))
            }
            None => Ok(Some((Bytes::from(encoder.finish()?), None))),
        }
    });
    pieces.try_filter(|piece| std::future::ready(!piece.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn an_archive_comes_back_and_one_that_breaks_off_is_an_error() {
        let chunks: Vec<Result<Bytes, BoxError>> = (0..40u8).map(|at| Ok(Bytes::from(vec![at; 10_000]))).collect();
        let pieces: Vec<Bytes> = compressed(stream::iter(chunks)).try_collect().await.unwrap();
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(pieces.concat().as_slice()).read_to_end(&mut back).unwrap();
        assert_eq!(back, (0..40u8).flat_map(|at| vec![at; 10_000]).collect::<Vec<_>>());
        let broken: Vec<Result<Bytes, BoxError>> = vec![Ok(Bytes::from_static(b"x")), Err("gone".into())];
        assert!(compressed(stream::iter(broken)).try_collect::<Vec<_>>().await.is_err());
    }

    #[test]
    fn a_query_has_one_path_or_several() {
        let wanted = Wanted::of("paths%5B%5D=%2Fa&paths%5B%5D=%2Fb+c&filename=f.tgz").unwrap();
        assert_eq!(
            (wanted.paths, wanted.filename.as_deref()),
            (vec!["/a".to_owned(), "/b c".to_owned()], Some("f.tgz"))
        );
        assert_eq!(Wanted::of("path=/a").unwrap().paths, ["/a"]);
        for (query, code) in [
            ("", "VALIDATION_ERROR"),
            ("path=a", "INVALID_PATH"),
            ("path=%2F%ff", "INVALID_PATH"),
            ("path=/a&filename=..%2Fx", "VALIDATION_ERROR"),
            ("path=/a&filename=a%0d%0ab", "VALIDATION_ERROR"),
        ] {
            assert_eq!(Wanted::of(query).unwrap_err().code(), code, "{query}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        let mut response = Response::new(Body::empty());
        attach(&mut response, "a\"; x=\"ü.tgz");
        let value = response.headers()[header::CONTENT_DISPOSITION].to_str().unwrap();
        assert_eq!(value, "attachment; filename=\"a__ x___.tgz\"; filename*=UTF-8''a%22%3B%20x%3D%22%C3%BC.tgz");
    }
}
