//! What a preview says when the app cannot: a small page or a JSON error, as the client accepts, marked as ours.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::body::OutBody;
use crate::error::ApiError;

/// Says that an answer is Cove's and not the app's, and why.
pub const OUR_ERROR: HeaderName = HeaderName::from_static("x-cove-error");

/// Why there is no answer of the app.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// The answer to a client with these request headers.
    pub fn answer(&self, request: &HeaderMap) -> Response<OutBody> {
        let html = header::HeaderValue::from_static("text/html; charset=utf-8");
        let (kind, text) = if accepts_html(request) {
            (html, self.html())
        } else {
            let error = json!({ "error": { "code": self.code, "message": self.message, "details": {} } });
            (HeaderValue::from_static("application/json"), error.to_string())
        };
        let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(OUR_ERROR, HeaderValue::from_static(self.code));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
        );
        response
    }

    fn html(&self) -> String {
        let message = escape(&self.message);
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>Cove: {code}</title>\
             <meta name=viewport content=\"width=device-width\">\
             <style>body{{font:16px system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;\
             color-scheme:light dark}}code{{opacity:.7}}</style>\
             <h1>No answer from this preview</h1><p>{message}<p><code>{code}</code> said by Cove, not by the app\n",
            code = self.code,
        )
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::new(error.status(), error.code(), error.message())
    }
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains("text/html"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
