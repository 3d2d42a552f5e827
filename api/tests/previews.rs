//! Previews, shares and tunnels, as far as they need no machine.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, TestServer};

#[tokio::test]
async fn what_is_wrong_is_named_and_an_unknown_sandbox_has_none() {
    let server = TestServer::start().await;
    for (path, body) in [
        ("/sandboxes/sbx_none/expose", json!({ "port": 3000 })),
        ("/sandboxes/sbx_none/previews", json!({ "port": 3000 })),
        ("/sandboxes/sbx_none/previews/prv_x/share", json!({})),
        ("/sandboxes/sbx_none/preview-token", json!({})),
        ("/sandboxes/sbx_none/shares", json!({})),
    ] {
        assert_eq!(server.post(path, body).await.refusal(), (404, "SANDBOX_NOT_FOUND"), "{path}");
    }
    for path in ["previews", "previews/prv_x", "shares", "ports"] {
        let answer = server.get(&format!("/sandboxes/sbx_none/{path}")).await;
        assert_eq!(answer.refusal(), (404, "SANDBOX_NOT_FOUND"), "{path}");
    }
    for (route, body, field) in [
        ("previews", json!({}), "port"),
        ("previews", json!({ "port": 70_000 }), "port"),
        ("previews", json!({ "port": 0 }), "port"),
        ("expose", json!({ "port": 3000, "visibility": "secret" }), "visibility"),
        ("previews", json!({ "port": 3000, "expires_at": "tomorrow" }), "expires_at"),
        ("previews", json!({ "port": 3000, "ttl_seconds": 0 }), "ttl_seconds"),
        ("previews", json!({ "port": 3000, "path": "no-slash" }), "path"),
        ("preview-token", json!({ "expires_in": 90_000 }), "expires_in"),
        ("preview-token", json!({ "scope": "all" }), "scope"),
        ("shares", json!({ "scope": "all" }), "scope"),
    ] {
        let answer = server.post(&format!("/sandboxes/sbx_none/{route}"), body.clone()).await;
        assert_eq!((answer.status, answer.field()), (422, field), "{route} {body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_tunnel_is_a_websocket_with_a_token() {
    let server = TestServer::start().await;
    let path = "/sandboxes/sbx_none/tunnel/5432";
    let bare = Answer::of(server.bare(Method::GET, &format!("/api/v1{path}")).send().await.unwrap()).await;
    assert_eq!(bare.refusal(), (401, "invalid_token"));
    assert_eq!(server.get(path).await.refusal(), (426, "WEBSOCKET_REQUIRED"));
    assert_eq!(server.get("/sandboxes/sbx_none/tunnel/0").await.field(), "port");
    assert_eq!(server.get("/sandboxes/sbx_none/tunnel/http").await.field(), "port");
    let upgrade = |path: &str| {
        server
            .request(Method::GET, path)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let unknown = Answer::of(upgrade(path).send().await.unwrap()).await;
    assert_eq!(unknown.refusal(), (404, "SANDBOX_NOT_FOUND"));
    server.stop().await;
}
