//! The prefixes under which the API answers (contract section 1).
//!
//! Clients build URLs in several ways: the SDK adds `/api/v1`, old SDKs add nothing, the MCP server doubles the prefix.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;

/// Longest first; a path under none of them stays as it is.
const PREFIXES: [&str; 4] = ["/api/v1/api/v1", "/v1/api/v1", "/api/v1", "/v1"];

/// Calls of the devices facade that are the same as those of sandboxes (contract X111-X120).
const DEVICE_CALLS: [&str; 6] = ["", "pause", "stop", "resume", "extend", "expose"];

/// A path without its prefix.
pub fn without_prefix(path: &str) -> &str {
    let rest = PREFIXES
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')));
    rest.unwrap_or(path)
}

/// What a path is another name for.
fn alias(path: &str) -> Option<String> {
    if path == "/devices" {
        return Some("/sandboxes".to_owned());
    }
    if let Some(rest) = path.strip_prefix("/devices/") {
        let (id, call) = rest.split_once('/').unwrap_or((rest, ""));
        return DEVICE_CALLS
            .contains(&call)
            .then(|| format!("/sandboxes/{id}/{call}").trim_end_matches('/').to_owned());
    }
    // Bytes to and from the guest's SSH server (contract X37).
    let id = path.strip_prefix("/sandboxes/")?.strip_suffix("/ssh-tunnel")?;
    (!id.contains('/')).then(|| format!("/sandboxes/{id}/tunnel/22"))
}

/// Middleware: cuts the prefix off the request's path.
pub async fn strip_prefix(mut request: Request) -> Request {
    if let Some(uri) = stripped(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

fn stripped(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let rest = without_prefix(path);
    let alias = alias(rest);
    if alias.is_none() && rest.len() == path.len() {
        return None;
    }
    let rest = alias.as_deref().unwrap_or(rest);
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let rest = if rest.is_empty() { "/" } else { rest };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{rest}{query}")).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_leads_to_the_same_path_and_keeps_what_is_encoded() {
        let path = "/sandboxes/by-name/a%2Fb%20c?x=%26&y";
        for prefix in ["", "/api/v1", "/api/v1/api/v1", "/v1", "/v1/api/v1"] {
            let uri: Uri = format!("{prefix}{path}").parse().unwrap();
            let uri = stripped(&uri).unwrap_or(uri);
            assert_eq!(uri.to_string(), path, "{prefix}");
        }
    }

    #[test]
    fn a_device_is_a_sandbox_and_ssh_a_tunnel() {
        for (path, alias) in [
            ("/api/v1/devices?limit=1", "/sandboxes?limit=1"),
            ("/devices/sbx_1", "/sandboxes/sbx_1"),
            ("/v1/devices/sbx_1/pause", "/sandboxes/sbx_1/pause"),
            ("/sandboxes/sbx_1/ssh-tunnel?a=b", "/sandboxes/sbx_1/tunnel/22?a=b"),
        ] {
            assert_eq!(stripped(&path.parse().unwrap()).unwrap(), *alias, "{path}");
        }
        for path in ["/devices/sbx_1/exec", "/devices/sbx_1/files/read", "/sandboxes/a/b/ssh-tunnel"] {
            assert_eq!(stripped(&path.parse().unwrap()), None, "{path}");
        }
    }

    #[test]
    fn what_only_looks_like_a_prefix_stays() {
        for path in ["/api/v10/sandboxes", "/v1x", "/apis/v1", "/sandboxes/api/v1"] {
            assert_eq!(stripped(&path.parse().unwrap()), None, "{path}");
        }
        assert_eq!(stripped(&"/api/v1".parse().unwrap()).unwrap(), "/");
    }
}
