//! What a caller may ask for in size and in number: the head of a request, and requests a second.
//!
//! The rate is there against programs that run away, not against people: it is far above what the SDK and the page ask for.
//! Reading whether a sandbox is ready is not counted, since clients ask that a hundred times a second (contract 8.7).

use std::num::NonZeroU32;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::error::ApiError;

/// Headers of one request.
const HEADERS_MAX: usize = 100;

/// Bytes of their names and values.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Bytes of path and query. A path in a sandbox is up to 4096 bytes, each of which may be encoded as three.
const URI_BYTES_MAX: usize = 32 << 10;

/// Requests a second of who has the token, when nothing else is configured.
pub const RATE_DEFAULT: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

/// Seconds' worth of requests that may come at once.
const BURST_SECONDS: u32 = 5;

/// Requests a second without the token: nobody needs more, and it slows down who guesses.
const STRANGERS_RATE: NonZeroU32 = NonZeroU32::new(50).expect("not zero");

/// Middleware: refuses heads that are larger than any client of ours makes.
pub async fn check_head(request: Request, next: Next) -> Response {
    match head_fault(&request) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

fn head_fault(request: &Request) -> Option<ApiError> {
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let too_large = |message| {
        ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", message)
            .with_detail("headers_max", HEADERS_MAX as u64)
            .with_detail("header_bytes_max", HEADER_BYTES_MAX as u64)
    };
    if headers.len() > HEADERS_MAX {
        return Some(too_large(format!("The request has {} headers; {HEADERS_MAX} is the most", headers.len())));
    }
    if bytes > HEADER_BYTES_MAX {
        return Some(too_large(format!("The request's headers have {bytes} bytes; {HEADER_BYTES_MAX} is the most")));
    }
    let uri_bytes = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    (uri_bytes > URI_BYTES_MAX).then(|| {
        let message = format!("The request's path and query have {uri_bytes} bytes; {URI_BYTES_MAX} is the most");
        ApiError::new(StatusCode::URI_TOO_LONG, "URI_TOO_LONG", message)
    })
}

/// Requests a second: one count for who has the token, and one for everyone else.
#[derive(Debug)]
pub struct Rates {
    callers: Option<DefaultDirectRateLimiter>,
    strangers: DefaultDirectRateLimiter,
}

impl Rates {
    /// `None` counts nobody who has the token.
    pub fn new(per_second: Option<NonZeroU32>) -> Self {
        let limiter = |per_second: NonZeroU32| {
            let burst = per_second.saturating_mul(NonZeroU32::new(BURST_SECONDS).unwrap_or(NonZeroU32::MIN));
            RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst))
        };
        Self { callers: per_second.map(limiter), strangers: limiter(STRANGERS_RATE) }
    }

    /// Counts a request with the token.
    ///
    /// # Errors
    /// 429, when there were too many.
    pub fn count_caller(&self, method: &Method, path: &str) -> Result<(), ApiError> {
        match &self.callers {
            Some(limiter) if !is_uncounted(method, path) => count(limiter),
            _ => Ok(()),
        }
    }

    /// Counts a request without it.
    ///
    /// # Errors
    /// 429, when there were too many.
    pub fn count_stranger(&self) -> Result<(), ApiError> {
        count(&self.strangers)
    }
}

fn count(limiter: &DefaultDirectRateLimiter) -> Result<(), ApiError> {
    limiter.check().map_err(|until| {
        let wait = until.wait_time_from(DefaultClock::default().now()).max(Duration::from_millis(1));
        ApiError::too_many_requests(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1))
    })
}

/// Polls and open paths.
fn is_uncounted(method: &Method, path: &str) -> bool {
    method == Method::GET && (path.ends_with("/readiness") || path.ends_with("/readiness/stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_often_is_told_when_to_come_back() {
        let rates = Rates::new(NonZeroU32::new(2));
        let ask = || rates.count_caller(&Method::GET, "/sandboxes");
        assert!((0..10).all(|_| ask().is_ok()), "five seconds' worth at once");
        let error = ask().unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (429, "rate_limit_exceeded"));
        let response = error.into_response();
        assert_eq!(response.headers()["retry-after"], "1");
        assert!((0..100).all(|_| rates.count_caller(&Method::GET, "/sandboxes/sbx_1/readiness").is_ok()));
        assert!(rates.count_stranger().is_ok(), "others have their own count");
    }

    #[test]
    fn nobody_is_counted_when_there_is_no_limit() {
        let rates = Rates::new(None);
        assert!((0..100_000).all(|_| rates.count_caller(&Method::POST, "/sandboxes").is_ok()));
    }

    #[test]
    fn a_head_is_bounded_in_every_direction() {
        let code = |request: axum::http::request::Builder| {
            head_fault(&request.body(axum::body::Body::empty()).unwrap()).map(|e| e.code())
        };
        let get = |uri: &str| Request::get(uri.to_owned());
        assert_eq!(code(get("/sandboxes").header("a", "b")), None);
        let many = (0..=HEADERS_MAX).fold(get("/"), |request, at| request.header(format!("x-{at}"), "1"));
        assert_eq!(code(many), Some("HEADERS_TOO_LARGE"));
        assert_eq!(code(get("/").header("x", "y".repeat(HEADER_BYTES_MAX))), Some("HEADERS_TOO_LARGE"));
        assert_eq!(code(get(&format!("/{}", "x".repeat(URI_BYTES_MAX)))), Some("URI_TOO_LONG"));
    }
}
