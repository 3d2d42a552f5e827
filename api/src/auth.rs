//! Who may call: the exact `Host`, the page's `Origin`, and the bearer token, in this order.
//!
//! The server listens on loopback only, but every page in a browser on this machine can reach loopback. The host list
//! stops DNS rebinding, the origin list stops foreign pages, the token stops other users of the machine.

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Api;
use crate::error::ApiError;
use crate::page::is_page;
use crate::tickets;
use crate::trace::REQUEST_ID;

/// What a page of an allowed origin may send.
const CORS_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
const CORS_REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, accept, idempotency-key, last-event-id, x-miosa-tenant, x-miosa-client-id",
);
const CORS_MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// Needs no token: it says nothing about a sandbox.
fn is_open(path: &str) -> bool {
    path == "/healthz" || is_page(path)
}

/// Middleware: lets a request through, or answers 421, 403, 401 or 429.
pub async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if let Err(error) = check_host(&api, request.headers(), request.uri().authority().map(|name| name.as_str())) {
        return error.into_response();
    }
    let origin = match check_origin(&api, request.headers()) {
        Ok(origin) => origin,
        Err(error) => return error.into_response(),
    };
    let preflight = request.method() == Method::OPTIONS
        && origin.is_some()
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let admitted = if preflight { Ok(()) } else { admit(&api, &request) };
    let mut response = match admitted {
        Ok(()) if preflight => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if let Some(origin) = origin {
        add_cors_headers(response.headers_mut(), origin, preflight);
    }
    response
}

/// Token or ticket, and not too often.
fn admit(api: &Api, request: &Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    if is_open(path) {
        return Ok(());
    }
    if has_token(request.headers(), &api.config.token) || has_ticket(api, request) {
        return api.rates.count_caller(request.method(), path);
    }
    api.rates.count_stranger()?;
    Err(missing_token(request.headers()))
}

fn check_host(api: &Api, headers: &HeaderMap, authority: Option<&str>) -> Result<(), ApiError> {
    let mut named = headers.get_all(header::HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) => authority,
        (Some(_), Some(_)) => None,
    };
    let allowed = api.config.hosts();
    match host {
        Some(host) if allowed.iter().any(|name| name.eq_ignore_ascii_case(host)) => Ok(()),
        _ => Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "HOST_NOT_ALLOWED",
            format!(
                "This server answers only to {}; the request names {}.",
                allowed.join(", "),
                host.unwrap_or("none of them")
            ),
        )),
    }
}

/// The page's origin, if there is one and it is allowed.
fn check_origin(api: &Api, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    match origin.to_str() {
        Ok(text) if api.config.allows_origin(text) => Ok(Some(origin.clone())),
        _ => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "ORIGIN_NOT_ALLOWED",
            format!("Pages of the origin {origin:?} may not call this server."),
        )),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    bearer(headers).is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
}

/// A page that cannot send a header shows a ticket where a stream is asked for.
fn has_ticket(api: &Api, request: &Request) -> bool {
    request.method() == Method::GET
        && tickets::is_stream(request.uri().path())
        && request.uri().query().and_then(tickets::in_query).is_some_and(|ticket| api.tickets.take(ticket))
}

/// Compares without an early end, so that the time taken tells nothing about where the first wrong byte is.
fn same(given: &[u8], right: &[u8]) -> bool {
    let difference = given.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == right.len() && std::hint::black_box(difference) == 0 && !right.is_empty()
}

fn missing_token(headers: &HeaderMap) -> ApiError {
    let message = match bearer(headers) {
        Some(_) => "The bearer token is not this server's; 'cove serve' says where the token lies.",
        None => "The request needs the header 'Authorization: Bearer <token>'; 'cove serve' says where the token lies.",
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_token", message)
}

fn add_cors_headers(headers: &mut HeaderMap, origin: HeaderValue, preflight: bool) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from(header::ORIGIN));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, CORS_METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_REQUEST_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, CORS_MAX_AGE_SECONDS);
    } else {
        let exposed = [REQUEST_ID, header::LOCATION, header::RETRY_AFTER].map(|name| name.to_string()).join(", ");
        if let Ok(value) = HeaderValue::from_str(&exposed) {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        assert!(same(b"abc", b"abc"));
        for (given, right) in [("ab", "abc"), ("abcd", "abc"), ("abd", "abc"), ("", "abc"), ("", "")] {
            assert!(!same(given.as_bytes(), right.as_bytes()), "{given} {right}");
        }
    }

    #[test]
    fn the_scheme_may_be_written_in_any_case() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("bearer t"));
        assert!(has_token(&headers, "t"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic t"));
        assert!(!has_token(&headers, "t"));
    }
}
