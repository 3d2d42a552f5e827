//! The page (`ui/`), as a browser gets it from this server. The window carries its own copy of the same build.
//!
//! The page itself holds nothing secret, so it needs no token; what it then asks of the API does.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::Api;
use crate::error::ApiError;

/// What the page may load and call: itself and this server; in frames previews, whose loopback addresses no narrower
/// source can name (CSP has no wildcard for addresses).
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; connect-src 'self' ws:; frame-src http:; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);

/// The built page. The folder may be missing in a build of the crates alone.
#[derive(RustEmbed)]
#[folder = "../ui/dist"]
#[allow_missing = true]
struct Page;

/// True for the paths of [`routes`].
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || path.starts_with("/assets/")
}

/// `/`, and the files that its page loads.
pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/", routing::get(|| async { file("index.html", "no-cache") }))
        // The build puts a hash of the content into these names, so they never change.
        .route(
            "/assets/{*path}",
            routing::get(|Path(path): Path<String>| async move {
                file(&format!("assets/{path}"), "public, max-age=31536000, immutable")
            }),
        )
}

fn file(name: &str, caching: &'static str) -> Response {
    let Some(EmbeddedFile { data, metadata, .. }) = Page::get(name) else {
        let message = format!("This build has no page file {name}; `cargo xtask build` makes one that has");
        return ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", message).into_response();
    };
    let kind =
        HeaderValue::from_str(metadata.mimetype()).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let headers =
        [(CONTENT_TYPE, kind), (CACHE_CONTROL, HeaderValue::from_static(caching)), (CONTENT_SECURITY_POLICY, POLICY)];
    (headers, data.into_owned()).into_response()
}
