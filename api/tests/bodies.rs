//! Bodies and queries that are wrong: the answer names the field.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, TestServer};

#[tokio::test]
async fn a_wrong_field_is_named() {
    let server = TestServer::start().await;
    for (path, body, field) in [
        ("/sandboxes", json!({"memory_mb": "much"}), "memory_mb"),
        ("/sandboxes", json!({"size": "huge"}), "size"),
        ("/sandboxes", json!({"env": {"A": 1}}), "env.A"),
        ("/sandboxes", json!({"tags": ["a", 2]}), "tags[1]"),
        ("/sandboxes", json!({"runtime_profile": "soma"}), "runtime_profile"),
        ("/sandboxes", json!({"setup_file": "echo"}), "setup_file"),
        ("/sandboxes?wait=soon", json!({}), "wait"),
        ("/sandboxes/sbx_1/exec", json!({}), "command"),
        ("/sandboxes/sbx_1/exec", json!({"command": 3}), "command"),
        ("/sandboxes/sbx_1/exec", json!({"command": ""}), "command"),
        ("/sandboxes/sbx_1/exec", json!({"command": "x", "timeout": -1}), "timeout"),
        ("/sandboxes/sbx_1/exec", json!({"command": "x", "timeout_sec": "long"}), "timeout_sec"),
        ("/sandboxes/sbx_1/exec/stream", json!({"command": "x", "env": []}), "env"),
        ("/sandboxes/sbx_1/fs/write", json!({"content": "x"}), "path"),
        ("/sandboxes/sbx_1/fs/write", json!({"path": "/a"}), "content_base64"),
        ("/sandboxes/sbx_1/fs/write", json!({"path": "/a", "content_base64": "?"}), "content_base64"),
        ("/sandboxes/sbx_1/files", json!({"path": "/a", "content": "?"}), "content"),
        ("/sandboxes/sbx_1/fs/write-many", json!({"files": [{"content": "x"}]}), "files[0].path"),
        ("/sandboxes/sbx_1/fs/stat", json!({"path": null}), "path"),
        ("/sandboxes/run", json!({}), "command"),
        ("/sandboxes/run", json!({"command": "x", "timeout": -1}), "timeout"),
        ("/sandboxes/run", json!({"command": "x", "memory_mb": "much"}), "memory_mb"),
        ("/sandboxes/run", json!({"command": "x", "env": {"A": 1}}), "env.A"),
        ("/sandboxes/run", json!({"command": "x", "services": [1]}), "services"),
        ("/sandboxes/sbx_1/resume", json!({"env": {"A": 1}}), "env.A"),
        ("/sandboxes/sbx_1/resume", json!({"environment": "prod"}), "environment"),
        ("/sandboxes/sbx_1/extend", json!({"timeout_sec": "long"}), "timeout_sec"),
        ("/sandboxes/sbx_1/snapshots", json!({"comment": 1}), "comment"),
        ("/sandboxes/sbx_1/snapshots", json!({"expiration_sec": -1}), "expiration_sec"),
        ("/sandboxes/sbx_1/fork", json!({"timeout_sec": "long"}), "timeout_sec"),
        ("/sandboxes/sbx_1/fork", json!({"env_id": "e"}), "env_id"),
        ("/snapshots/snap_1/fork", json!({"name": 1}), "name"),
        ("/named-snapshots/golden/deploy", json!({"no_env": 1}), "no_env"),
        ("/snapshots/delete", json!({}), "ids"),
        ("/snapshots/delete", json!({"resource_id": "sbx_1"}), "all"),
        ("/snapshots/delete", json!({"resource_id": "sbx_1", "all": true}), "confirm"),
        ("/named-snapshots", json!({"snapshot_id": "snap_1"}), "name"),
        ("/named-snapshots", json!({"name": "a"}), "snapshot_id"),
        ("/named-snapshots", json!({"name": "a", "snapshot_id": "b", "sandbox_id": "c"}), "sandbox_id"),
        ("/named-snapshots", json!({"name": "a", "computer_id": "c"}), "computer_id"),
        ("/bulk/sandboxes/pause", json!({}), "ids"),
        ("/bulk/sandboxes/destroy", json!({"filter": {}}), "filter"),
        ("/bulk/sandboxes/destroy", json!({"filter": {"tgas": ["a"]}}), "filter.tgas"),
        ("/bulk/sandboxes/resume", json!({"filter": {"state": "asleep"}}), "state"),
    ] {
        let answer = server.post(path, body.clone()).await;
        assert_eq!((answer.refusal(), answer.field()), ((422, "VALIDATION_ERROR"), field), "{path} {body}");
        assert!(answer.message().contains(field.split('[').next().unwrap()), "{}", answer.message());
    }
    for (path, field) in [
        ("/sandboxes?state=asleep", "state"),
        ("/sandboxes/sbx_1/files?depth=0", "depth"),
        ("/sandboxes/sbx_1/files?depth=x", "depth"),
        ("/sandboxes/sbx_1/logs?lines=x", "lines"),
        ("/sandboxes/sbx_1/fs/download", "path"),
        ("/snapshots?limit=x", "limit"),
        ("/snapshots/groups?offset=-1", "offset"),
        ("/snapshots?include_named=maybe", "include_named"),
        ("/snapshots/snap_1/files", "path"),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.refusal(), answer.field()), ((422, "VALIDATION_ERROR"), field), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_path_that_cannot_be_is_400() {
    let server = TestServer::start().await;
    for path in ["", "relative", "./a"] {
        let answer = server.post("/sandboxes/sbx_1/fs/stat", json!({ "path": path })).await;
        assert_eq!(answer.refusal(), (400, "INVALID_PATH"), "{path}");
    }
    assert_eq!(server.get("/sandboxes/sbx_1/files/%ff").await.refusal(), (400, "INVALID_PATH"));
    server.stop().await;
}

#[tokio::test]
async fn a_body_must_be_json_and_say_so() {
    let server = TestServer::start().await;
    let post = async |content_type: Option<&str>, body: &'static str| {
        let mut request = server.request(Method::POST, "/sandboxes/sbx_1/fs/stat").body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        Answer::of(request.send().await.unwrap()).await
    };
    assert_eq!(post(Some("text/plain"), "{}").await.refusal(), (415, "UNSUPPORTED_MEDIA_TYPE"));
    assert_eq!(post(None, "{}").await.refusal(), (415, "UNSUPPORTED_MEDIA_TYPE"));
    assert_eq!(post(Some("application/json"), "{").await.refusal(), (400, "VALIDATION_ERROR"));
    assert_eq!(post(Some("application/json; charset=utf-8"), "[]").await.refusal(), (422, "VALIDATION_ERROR"));
    // No body and no content type is an empty object, as the SDK sends it.
    assert_eq!(post(None, "").await.field(), "path");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_and_the_client_sees_it() {
    let server = TestServer::start().await;
    let command = "x".repeat(17 << 20);
    let answer = server.post("/sandboxes/sbx_1/exec", json!({ "command": command })).await;
    assert_eq!(answer.refusal(), (413, "TOO_LARGE"));
    // The same size is fine where files go.
    let answer = server.post("/sandboxes/sbx_1/fs/write", json!({"path": "/a", "content": command})).await;
    assert_eq!(answer.refusal(), (404, "SANDBOX_NOT_FOUND"));
    server.stop().await;
}
