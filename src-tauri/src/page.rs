//! The page inside the window: where it comes from, and what it may not do.
//!
//! It has a scheme of its own with a host that is not "localhost", since only then may apps in preview frames set cookies by
//! script (a frame of `tauri://localhost` may not), and the web view takes third parties' cookies. Frames get no IPC object,
//! and whoever navigates the window itself away from the page is sent back.

use tauri::http::{Request, Response, StatusCode, header};
use tauri::webview::PageLoadEvent;
use tauri::webview::PageLoadPayload;
use tauri::{AppHandle, Runtime, Url, WebviewWindow};

/// The page's scheme.
pub const SCHEME: &str = "cove";

/// Its address; its origin, `cove://app.shell`, is one of those that the API answers to.
pub const ADDRESS: &str = "cove://app.shell/index.html";

/// The host in it.
const HOST: &str = "app.shell";

/// Answers with a file of the built page.
pub fn file<R: Runtime>(app: &AppHandle<R>, request: &Request<Vec<u8>>) -> Response<Vec<u8>> {
    let found = (request.uri().host() == Some(HOST)).then(|| app.asset_resolver().get(request.uri().path().to_owned()));
    let Some(asset) = found.flatten() else { return refusal(StatusCode::NOT_FOUND) };
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, &asset.mime_type)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    if let Some(policy) = &asset.csp_header {
        response = response.header(header::CONTENT_SECURITY_POLICY, policy);
    }
    response.body(asset.bytes).unwrap_or_else(|_| refusal(StatusCode::INTERNAL_SERVER_ERROR))
}

fn refusal(status: StatusCode) -> Response<Vec<u8>> {
    let mut response = Response::new(Vec::new());
    *response.status_mut() = status;
    response
}

/// The window shows our page and no other: told of each load of the window itself, not of frames.
pub fn stay<R: Runtime>(window: &WebviewWindow<R>, payload: &PageLoadPayload<'_>) {
    if payload.event() == PageLoadEvent::Started && !is_ours(payload.url()) {
        tracing::warn!(url = %payload.url(), "the window was led away from its page");
        if let Ok(home) = Url::parse(ADDRESS)
            && let Err(error) = window.navigate(home)
        {
            tracing::error!("cannot go back: {error}");
        }
    }
}

fn is_ours(url: &Url) -> bool {
    url.scheme() == SCHEME && url.host_str() == Some(HOST)
}

/// Lets apps in preview frames keep cookies, as they can in a browser's tab.
pub fn accept_cookies<R: Runtime>(window: &WebviewWindow<R>) {
    use webkit2gtk::{CookieAcceptPolicy, CookieManagerExt, WebContextExt, WebViewExt};
    let done = window.with_webview(|view| {
        if let Some(cookies) = view.inner().context().and_then(|context| context.cookie_manager()) {
            cookies.set_accept_policy(CookieAcceptPolicy::Always);
        }
    });
    if let Err(error) = done {
        tracing::warn!("previews may not keep cookies: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_address_is_ours() {
        for (url, ours) in [
            (ADDRESS, true),
            ("cove://app.shell/index.html#/sandboxes/sbx_1", true),
            ("cove://elsewhere/index.html", false),
            ("http://app.shell/index.html", false),
            ("http://127.83.0.5:3000/", false),
        ] {
            assert_eq!(is_ours(&Url::parse(url).unwrap()), ours, "{url}");
        }
    }
}
