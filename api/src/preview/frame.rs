//! Showing a preview in a frame of our own window, also when the app forbids frames.
//!
//! Many development servers answer with `X-Frame-Options` or `frame-ancestors 'none'`, which would leave our preview pane
//! blank. Nothing is simply lifted: when a browser asks for a document for a frame (`Sec-Fetch-Dest: iframe`), the answer's
//! `frame-ancestors` gets the origins of our own pages added, and the browser itself refuses every other page as the app
//! wished. So no token or mark is needed that a foreign page could steal. All other answers are left as they are.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// True when a browser wants to show the answer in a frame.
pub fn is_for_frame(request: &HeaderMap) -> bool {
    request.get(FETCH_DEST).is_some_and(|dest| dest == "iframe" || dest == "frame")
}

/// Lets pages of `origins` show the answer, besides those that the app lets.
pub fn allow(response: &mut HeaderMap, origins: &[String]) {
    let ours = origins.join(" ");
    let policies: Vec<String> = response
        .get_all(header::CONTENT_SECURITY_POLICY)
        .iter()
        .filter_map(|value| value.to_str().ok())
        // One header may hold several policies.
        .flat_map(|value| value.split(',').map(str::to_owned))
        .collect();
    let limits = policies.iter().any(|policy| directives(policy).any(is_ancestors));
    // A policy wins over the older header where it says something about frames (CSP 3, 6.4.2.1).
    let older = response.remove(header::X_FRAME_OPTIONS);
    if limits {
        response.remove(header::CONTENT_SECURITY_POLICY);
        for policy in policies {
            let parts: Vec<String> = directives(&policy).map(|directive| with_ours(directive, &ours)).collect();
            if let Ok(value) = HeaderValue::from_str(&parts.join("; ")) {
                response.append(header::CONTENT_SECURITY_POLICY, value);
            }
        }
    } else if let Some(older) = older {
        let own = if older.as_bytes().eq_ignore_ascii_case(b"sameorigin") { "'self' " } else { "" };
        if let Ok(value) = HeaderValue::from_str(&format!("frame-ancestors {own}{ours}")) {
            response.append(header::CONTENT_SECURITY_POLICY, value);
        }
    }
}

fn directives(policy: &str) -> impl Iterator<Item = &str> {
    policy.split(';').map(str::trim).filter(|directive| !directive.is_empty())
}

fn is_ancestors(directive: &str) -> bool {
    directive.split_ascii_whitespace().next().is_some_and(|name| name.eq_ignore_ascii_case("frame-ancestors"))
}

fn with_ours(directive: &str, ours: &str) -> String {
    if !is_ancestors(directive) {
        return directive.to_owned();
    }
    let theirs = directive.split_ascii_whitespace().skip(1).filter(|source| !source.eq_ignore_ascii_case("'none'"));
    ["frame-ancestors"].into_iter().chain(theirs).chain([ours]).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(lines: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        allow(&mut headers, &["tauri://localhost".into(), "http://127.0.0.1:7333".into()]);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn only_our_own_pages_are_added() {
        let csp = |value: &str| vec![("content-security-policy".to_owned(), value.to_owned())];
        let ours = "tauri://localhost http://127.0.0.1:7333";
        assert_eq!(allowed(&[("x-frame-options", "DENY")]), csp(&format!("frame-ancestors {ours}")));
        assert_eq!(allowed(&[("x-frame-options", "SameOrigin")]), csp(&format!("frame-ancestors 'self' {ours}")));
        let policy =
            [("content-security-policy", "default-src 'self'; Frame-Ancestors 'none'"), ("x-frame-options", "DENY")];
        assert_eq!(allowed(&policy), csp(&format!("default-src 'self'; frame-ancestors {ours}")));
        let policy = [("content-security-policy", "frame-ancestors https://a.example")];
        assert_eq!(allowed(&policy), csp(&format!("frame-ancestors https://a.example {ours}")));
    }

    #[test]
    fn what_forbids_no_frame_stays_as_it_is() {
        assert!(allowed(&[]).is_empty());
        let policy = [("content-security-policy", "default-src 'self'")];
        assert_eq!(allowed(&policy)[0].1, "default-src 'self'");
    }
}
