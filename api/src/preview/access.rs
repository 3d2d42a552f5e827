//! Who may use a preview.
//!
//! Every request must name exactly the place that it came to (`Host`): a foreign name that was made to point at this
//! computer (DNS rebinding) is refused. **Public** means: everything on this computer, processes and pages alike, without a
//! token. A page from elsewhere, and so a page of another sandbox, is no part of this computer even though its browser is:
//! it may link here, but neither call nor change anything. **Private** means: whoever shows a token, in the header `X-Cove-Preview-Token`, in the query (`mt`
//! or `ms`) or in a cookie. A browser that comes with the query gets the cookie and is sent on to the clean URL. The app
//! never sees a token.

use std::net::IpAddr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};

use super::page::Refusal;

const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-cove-preview-token");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names of a token in a query: of preview tokens, and of shares.
const QUERY_NAMES: [&str; 2] = ["mt", "ms"];

/// How the cookie's name begins; the port follows, since cookies do not tell ports apart.
const COOKIE_PREFIX: &str = "cove_preview_";

/// The one `Host` of a request.
pub fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let mut named = headers.get_all(header::HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host.to_str().ok()?,
        _ => return None,
    };
    // A request line with a whole URL must name the same place (RFC 9112, 3.2.2).
    uri.authority().is_none_or(|authority| authority.as_str() == host).then_some(host)
}

/// Refuses what a page from elsewhere does in a browser of this computer. `host` is where the request came to.
pub fn refuse_foreign_page(
    method: &Method,
    headers: &HeaderMap,
    own_pages: &[String],
    host: &str,
) -> Result<(), Refusal> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let is_known = |origin: &str| is_local_origin(origin, host) || own_pages.iter().any(|known| known == origin);
    let navigates = text(&FETCH_MODE) == Some("navigate") && (method == Method::GET || method == Method::HEAD);
    let fine = match text(&header::ORIGIN) {
        Some(origin) => is_known(origin) || navigates,
        // Without an origin only a browser of today says where a request comes from.
        None if text(&FETCH_SITE) == Some("cross-site") => {
            navigates || text(&header::REFERER).and_then(origin_of).is_some_and(|origin| is_known(&origin))
        }
        None => true,
    };
    if fine {
        return Ok(());
    }
    let message = "A page from elsewhere may not use a preview of this computer.";
    Err(Refusal::new(StatusCode::FORBIDDEN, "FOREIGN_PAGE", message))
}

fn origin_of(referer: &str) -> Option<String> {
    let uri: Uri = referer.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// A page that was served by this computer itself, or by the sandbox that was asked. Other sandboxes' pages are what their
/// guests want them to be.
fn is_local_origin(origin: &str, asked: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let Some(host) = uri.host().filter(|_| matches!(uri.scheme_str(), Some("http" | "https"))) else { return false };
    let name = host.to_ascii_lowercase();
    let asked = asked.rsplit_once(':').map_or(asked, |(name, _)| name);
    if let Some(below) = name.strip_suffix(".localhost") {
        // An alias of a preview, or a name that somebody's own server has.
        return match alias_label(below) {
            Some(label) => asked.strip_suffix(".localhost").and_then(alias_label) == Some(label),
            None => true,
        };
    }
    match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        // 127.0.x.x is never a sandbox's (`engine/src/preview/address.rs`).
        Ok(IpAddr::V4(address)) => address.octets()[..2] == [127, 0] || (address.is_loopback() && name == asked),
        Ok(IpAddr::V6(address)) => address.is_loopback(),
        Err(_) => name == "localhost",
    }
}

/// What stands for the sandbox in `<port>-<label>`.
fn alias_label(name: &str) -> Option<&str> {
    let (port, label) = name.split_once('-')?;
    (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(label)
}

/// Where a token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Header,
    Query,
    Cookie,
}

/// Takes the tokens out of a request, so that the app does not see them: the first of header, query and cookie is given.
pub fn take_token(headers: &mut HeaderMap, uri: &mut Uri, port: u16) -> Option<(String, Shown)> {
    let header = headers.remove(&TOKEN_HEADER).and_then(|value| value.to_str().map(str::to_owned).ok());
    let query = take_query_token(uri);
    let cookie = take_cookie(headers, port);
    let header = header.map(|token| (token, Shown::Header));
    header.or(query.map(|token| (token, Shown::Query))).or(cookie.map(|token| (token, Shown::Cookie)))
}

/// What looks like one of our tokens. An app may have a parameter of the same name.
fn is_token(text: &str) -> bool {
    let rest = text.strip_prefix("mp_").or_else(|| text.strip_prefix("ms_"));
    rest.is_some_and(|rest| rest.len() >= 20 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn take_query_token(uri: &mut Uri) -> Option<String> {
    let (mut token, mut kept) = (None, Vec::new());
    for part in uri.query()?.split('&') {
        match part.split_once('=') {
            Some((name, value)) if QUERY_NAMES.contains(&name) && is_token(value) => {
                token.get_or_insert_with(|| value.to_owned());
            }
            _ => kept.push(part),
        }
    }
    let token = token?;
    let path = uri.path();
    let rest = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
    *uri = rest.parse().ok()?;
    Some(token)
}

fn take_cookie(headers: &mut HeaderMap, port: u16) -> Option<String> {
    let own = format!("{COOKIE_PREFIX}{port}");
    let all: Vec<String> =
        headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect();
    // Cookies that we cannot read are the app's, and stay as they are.
    if !all.iter().any(|line| line.contains(COOKIE_PREFIX)) {
        return None;
    }
    let (mut token, mut kept) = (None, Vec::new());
    for cookie in all.iter().flat_map(|line| line.split(';')).map(str::trim) {
        match cookie.split_once('=') {
            Some((name, value)) if name.starts_with(COOKIE_PREFIX) => {
                if name == own {
                    token = Some(value.to_owned());
                }
            }
            _ => kept.push(cookie),
        }
    }
    headers.remove(header::COOKIE);
    if let Ok(value) = HeaderValue::from_str(&kept.join("; "))
        && !kept.is_empty()
    {
        headers.insert(header::COOKIE, value);
    }
    token
}

/// True when a person's browser opens a page, and can be sent on with a cookie.
pub fn opens_page(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let wants_html = text(&header::ACCEPT).is_some_and(|accept| accept.contains("text/html"));
    let navigates = text(&FETCH_MODE).map_or(wants_html, |mode| mode == "navigate");
    method == Method::GET && navigates && headers.get(header::UPGRADE).is_none()
}

/// The cookie with a token. In a frame of our own window it is another site's, which browsers send only when it says so.
pub fn cookie(token: &str, port: u16, in_frame: bool) -> Option<HeaderValue> {
    let site = if in_frame { "SameSite=None; Secure; Partitioned" } else { "SameSite=Lax" };
    HeaderValue::from_str(&format!("{COOKIE_PREFIX}{port}={token}; Path=/; HttpOnly; {site}")).ok()
}

/// True for requests that change nothing.
pub fn only_reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "mp_abcdefghijklmnopqrstuvwxyz";

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn taken(uri: &str, lines: &[(&'static str, &str)]) -> (Option<Shown>, String, HeaderMap) {
        let (mut uri, mut headers) = (uri.parse().unwrap(), map(lines));
        let found = take_token(&mut headers, &mut uri, 3000);
        assert!(found.as_ref().is_none_or(|(token, _)| token == TOKEN), "{found:?}");
        (found.map(|(_, shown)| shown), uri.to_string(), headers)
    }

    #[test]
    fn tokens_are_taken_out_and_all_else_stays() {
        let query = format!("/a?x=1&mt={TOKEN}&y=%20&ms=5");
        assert_eq!(taken(&query, &[]), (Some(Shown::Query), "/a?x=1&y=%20&ms=5".into(), HeaderMap::new()));
        assert_eq!(taken(&format!("/?ms={TOKEN}"), &[]).1, "/");
        let cookies = format!("a=1; cove_preview_3000={TOKEN}; cove_preview_4000=other; b=2");
        let (shown, _, left) = taken("/", &[("cookie", &cookies)]);
        assert_eq!((shown, left), (Some(Shown::Cookie), map(&[("cookie", "a=1; b=2")])));
        assert_eq!(taken("/", &[("x-cove-preview-token", TOKEN)]), (Some(Shown::Header), "/".into(), HeaderMap::new()));
        let app = [("cookie", "a=1;b=2"), ("cookie", "c")];
        assert_eq!(taken("/?mt=short", &app), (None, "/?mt=short".into(), map(&app)));
    }

    #[test]
    fn a_host_is_one_and_names_the_place_of_the_request_line() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let one = map(&[("host", "127.1.2.3:3000")]);
        assert_eq!(host(&one, &uri("/")), Some("127.1.2.3:3000"));
        assert_eq!(host(&one, &uri("http://127.1.2.3:3000/")), Some("127.1.2.3:3000"));
        assert_eq!(host(&one, &uri("http://evil.example/")), None);
        assert_eq!(host(&map(&[("host", "a"), ("host", "a")]), &uri("/")), None);
        assert_eq!(host(&HeaderMap::new(), &uri("/")), None);
    }

    #[test]
    fn a_page_from_elsewhere_may_link_here_and_no_more() {
        let ours = ["tauri://localhost".to_owned()];
        let refused = |method: Method, lines: &[(&'static str, &str)]| {
            refuse_foreign_page(&method, &map(lines), &ours, "127.9.9.9:3000").is_err()
        };
        let (get, post) = (Method::GET, Method::POST);
        for lines in [
            &[][..],
            &[("origin", "http://127.9.9.9:4000")],
            &[("origin", "http://127.0.0.1:4000")],
            &[("origin", "http://mine.localhost:7334")],
            &[("origin", "http://[::1]:1")],
            &[("origin", "tauri://localhost")],
            &[("origin", "https://evil.example"), ("sec-fetch-mode", "navigate")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("referer", "http://127.0.0.1:7333/x")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")],
        ] {
            assert!(!refused(get.clone(), lines), "{lines:?}");
        }
        for lines in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "http://127.9.9.8:3000")],
            &[("origin", "http://3000-a.localhost:7334")],
            &[("origin", "http://localhost.evil.example")],
            &[("origin", "http://127.0.0.1.evil.example")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("referer", "https://evil.example/")],
        ] {
            assert!(refused(get.clone(), lines), "{lines:?}");
        }
        let alias = |label: &str| {
            let origin = format!("http://8000-{label}.localhost:7334");
            refuse_foreign_page(&get, &map(&[("origin", &origin)]), &ours, "3000-app.localhost:7334").is_ok()
        };
        assert!(alias("app") && !alias("other"));
        assert!(refused(post, &[("origin", "https://evil.example"), ("sec-fetch-mode", "navigate")]));
    }
}
