//! One request through a preview: found, allowed, passed on; the answer passed back, or a page of ours.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use cove_engine::{Activity, Error, OpenPreview, Preview, Scope, Visibility};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::access::{self, Shown};
use super::body::{OutBody, Passing, Touching};
use super::headers;
use super::page::{OUR_ERROR, Refusal};
use super::upstream::{GuestClient, Upstream, authority, client};
use super::{frame, listener::Served};
use crate::error::ApiError;

/// Bytes that each direction of an upgraded connection holds.
const RELAY_BYTES: usize = 64 << 10;

/// Passes requests on; clones share the connections to guests.
#[derive(Clone)]
pub struct Proxy {
    upstream: Arc<dyn Upstream>,
    client: GuestClient,
    own_pages: Arc<[String]>,
    stopping: CancellationToken,
}

impl Proxy {
    pub fn new(upstream: Arc<dyn Upstream>, own_pages: Vec<String>, stopping: CancellationToken) -> Self {
        Self { client: client(Arc::clone(&upstream)), upstream, own_pages: own_pages.into(), stopping }
    }

    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Answers a request that came from `peer` to `served`.
    pub async fn answer(&self, request: Request<Incoming>, peer: IpAddr, served: &Served) -> Response<OutBody> {
        let asked = request.headers().clone();
        match self.try_answer(request, peer, served).await {
            Ok(response) => response,
            Err(refusal) => refusal.answer(&asked),
        }
    }

    async fn try_answer(
        &self,
        mut request: Request<Incoming>,
        peer: IpAddr,
        served: &Served,
    ) -> Result<Response<OutBody>, Refusal> {
        let host = access::host(request.headers(), request.uri()).map(str::to_owned);
        let (OpenPreview { record: preview, closed }, host) = self.find(served, host)?;
        if preview.is_expired(OffsetDateTime::now_utc()) {
            return Err(Refusal::new(StatusCode::GONE, "PREVIEW_EXPIRED", "The time of this preview is over."));
        }
        let mut uri = request.uri().clone();
        let port = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(preview.at.port());
        let token = access::take_token(request.headers_mut(), &mut uri, port);
        // A token that was shown on purpose says more than where its request came from; a cookie comes by itself.
        if token.as_ref().is_none_or(|(_, shown)| *shown == Shown::Cookie) {
            access::refuse_foreign_page(request.method(), request.headers(), &self.own_pages, &host)?;
        }
        if let Some(response) = self.check_token(&preview, token, &request, &uri, port).await? {
            return Ok(response);
        }
        let for_frame = frame::is_for_frame(request.headers());
        let mut response = self.pass(&preview, request, &uri, peer, &host, closed).await?;
        if for_frame {
            frame::allow(response.headers_mut(), &self.own_pages);
        }
        Ok(response)
    }

    /// The preview of a request, and the name by which it was asked for.
    fn find(&self, served: &Served, host: Option<String>) -> Result<(OpenPreview, String), Refusal> {
        let wrong = |own: &str, host: Option<String>| {
            let named = host.unwrap_or_else(|| "none, or several".into());
            let message = format!("This preview answers only to {own}; the request names {named}.");
            Refusal::new(StatusCode::MISDIRECTED_REQUEST, "HOST_NOT_ALLOWED", message)
        };
        let gone = || Refusal::new(StatusCode::GONE, "PREVIEW_GONE", "There is no such preview (any more).");
        match (served, host) {
            (Served::Door { preview, at }, Some(host)) if host == at.to_string() => {
                Ok((self.upstream.preview(preview).ok_or_else(gone)?, host))
            }
            (Served::Door { at, .. }, host) => Err(wrong(&at.to_string(), host)),
            (Served::Alias(alias), host) => {
                let found = host.as_deref().and_then(|host| alias.parse(host));
                match found {
                    Some((port, label)) => {
                        let found = self.upstream.by_alias(port, label).ok_or_else(gone)?;
                        Ok((found, host.unwrap_or_default()))
                    }
                    None => Err(wrong(&format!("<port>-<sandbox>.localhost:{}", alias.port), host)),
                }
            }
        }
    }

    /// Refuses who may not, and sends a browser that came with a token in its URL on to the clean one.
    async fn check_token(
        &self,
        preview: &Preview,
        token: Option<(String, Shown)>,
        request: &Request<Incoming>,
        clean: &Uri,
        port: u16,
    ) -> Result<Option<Response<OutBody>>, Refusal> {
        let private = preview.visibility == Visibility::Private;
        let Some((token, shown)) = token else {
            return if private { Err(missing_token()) } else { Ok(None) };
        };
        let scope = self.upstream.scope(&token, preview).await.map_err(refusal)?;
        match scope {
            None if private => {
                let message = "The token is not one of this preview's, or its time is over.";
                return Err(Refusal::new(StatusCode::FORBIDDEN, "PREVIEW_TOKEN_INVALID", message));
            }
            Some(Scope::Read) if private && !access::only_reads(request.method()) => {
                let message = "The token allows to look at this preview, not to change anything (scope read).";
                return Err(Refusal::new(StatusCode::FORBIDDEN, "PREVIEW_READ_ONLY", message));
            }
            _ => {}
        }
        if shown != Shown::Query || !access::opens_page(request.method(), request.headers()) {
            return Ok(None);
        }
        let cookie = scope.and_then(|_| access::cookie(&token, port, frame::is_for_frame(request.headers())));
        Ok(Some(sent_on(clean, cookie)))
    }

    /// Sends the request to the guest and gives its answer.
    async fn pass(
        &self,
        preview: &Preview,
        request: Request<Incoming>,
        uri: &Uri,
        peer: IpAddr,
        host: &str,
        closed: CancellationToken,
    ) -> Result<Response<OutBody>, Refusal> {
        if request.method() == Method::CONNECT {
            let message = "A preview is no proxy to elsewhere.";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message));
        }
        let activity = self.upstream.activity(&preview.sandbox_id).await.map_err(refusal)?;
        // As long as somebody waits for the answer to begin, the sandbox is not idle; after that what moves keeps it busy.
        let waiting = activity.as_ref().map(Activity::begin);
        let (outgoing, theirs) = outgoing(request, preview, uri, peer, host, activity.clone())?;
        let mut response = self.client.request(outgoing).await.map_err(|error| unanswered(preview.port, &error))?;
        drop(waiting);
        // Only we may say that an answer is not the app's.
        response.headers_mut().remove(&OUR_ERROR);
        let upgrade = headers::upgrade_of(response.headers());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let ours = hyper::upgrade::on(&mut response);
            if let Some(theirs) = theirs {
                tokio::spawn(relay(theirs, ours, activity.clone(), [closed, self.stopping.clone()]));
            }
            headers::pass_on(response.headers_mut(), upgrade);
            return Ok(response.map(|_| nothing()));
        }
        headers::pass_on(response.headers_mut(), None);
        // Which version the app speaks ends with it.
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| Passing::new(body, activity).boxed_unsync()))
    }
}

/// The request as the guest gets it, and what the client's connection may become.
fn outgoing(
    mut request: Request<Incoming>,
    preview: &Preview,
    uri: &Uri,
    peer: IpAddr,
    host: &str,
    activity: Option<Activity>,
) -> Result<(Request<Passing>, Option<OnUpgrade>), Refusal> {
    let upgrade = headers::upgrade_of(request.headers());
    let theirs = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let expects = request
        .headers()
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let place = authority(&preview.sandbox_id, preview.port);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let target = Uri::builder().scheme("http").authority(place).path_and_query(path).build().map_err(|_| {
        let message = format!("'{path}' is no path that can be passed on.");
        Refusal::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message)
    })?;
    headers::pass_on(request.headers_mut(), upgrade);
    headers::add_forwarded(request.headers_mut(), peer, host);
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_11;
    let (mut parts, body) = request.into_parts();
    // What hyper knows of the one connection must not be taken for something of the other.
    parts.extensions.remove::<OnUpgrade>();
    let body = Passing::new(body, activity);
    if !expects {
        return Ok((Request::from_parts(parts, body), theirs));
    }
    let (open, opened) = oneshot::channel();
    let mut request = Request::from_parts(parts, body.gated(opened));
    let open = Mutex::new(Some(open));
    hyper::ext::on_informational(&mut request, move |answer| {
        if answer.status() == StatusCode::CONTINUE {
            let open = open.lock().unwrap_or_else(PoisonError::into_inner).take();
            let _ = open.map(|open| open.send(()));
        }
    });
    Ok((request, theirs))
}

/// Carries a connection that changed its protocol, until both sides ended it.
async fn relay(theirs: OnUpgrade, ours: OnUpgrade, activity: Option<Activity>, ends: [CancellationToken; 2]) {
    let (client, guest) = match tokio::try_join!(theirs, ours) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "an upgrade broke off");
            return;
        }
    };
    let mut client = Touching::new(TokioIo::new(client), activity);
    let mut guest = TokioIo::new(guest);
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, RELAY_BYTES, RELAY_BYTES);
    tokio::select! {
        // A broken one is closed on both sides, which is all that can be said of it.
        _ = copied => {}
        () = ends[0].cancelled() => {}
        () = ends[1].cancelled() => {}
    }
}

fn nothing() -> OutBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn sent_on(to: &Uri, cookie: Option<HeaderValue>) -> Response<OutBody> {
    let mut response = Response::new(nothing());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers: &mut HeaderMap = response.headers_mut();
    let path = to.path_and_query().map_or("/", |path| path.as_str());
    // `//name` would lead to another host.
    let path = format!("/{}", path.trim_start_matches('/'));
    headers.insert(header::LOCATION, HeaderValue::from_str(&path).unwrap_or(HeaderValue::from_static("/")));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(cookie) = cookie {
        headers.insert(header::SET_COOKIE, cookie);
    }
    response
}

fn missing_token() -> Refusal {
    let message = "This preview is private. Open it with the link that was shared with you, or show a token in the header \
                   X-Cove-Preview-Token.";
    Refusal::new(StatusCode::UNAUTHORIZED, "PREVIEW_TOKEN_MISSING", message)
}

fn refusal(error: Error) -> Refusal {
    match &error {
        Error::SandboxDestroyed(_) | Error::SandboxNotFound(_) => {
            Refusal::new(StatusCode::GONE, "PREVIEW_GONE", "The sandbox of this preview was destroyed.")
        }
        _ => ApiError::from(error).into(),
    }
}

/// What is said when there is no answer of the app.
fn unanswered(port: u16, error: &hyper_util::client::legacy::Error) -> Refusal {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    for cause in causes {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return refused_by_engine(error, port);
        }
    }
    tracing::debug!(port, error = error as &dyn std::error::Error, "no answer of a guest");
    let message =
        format!("The program on port {port} took the request and ended the connection without a whole answer.");
    Refusal::new(StatusCode::BAD_GATEWAY, "NO_ANSWER", message)
}

fn refused_by_engine(error: &Error, port: u16) -> Refusal {
    match error {
        Error::SandboxDestroyed(_) | Error::SandboxNotFound(_) => {
            Refusal::new(StatusCode::GONE, "PREVIEW_GONE", "The sandbox of this preview was destroyed.")
        }
        Error::Guest { kind: cove_protocol::guest::ErrorKind::Refused, .. } => {
            let message =
                format!("Nothing listens on port {port} in the sandbox. Start the app there, then try again.");
            Refusal::new(StatusCode::BAD_GATEWAY, "PORT_NOT_LISTENING", message)
        }
        error => {
            let (status, code) = crate::error::status_and_code(error);
            Refusal::new(status, code, error.to_string())
        }
    }
}
