//! Prefixes, what is not there, and names with slashes.

use reqwest::Method;

use crate::harness::{Answer, TOKEN, TestServer};

#[tokio::test]
async fn the_api_answers_under_every_prefix() {
    let server = TestServer::start().await;
    for prefix in ["/api/v1", "/api/v1/api/v1", "/v1", "/v1/api/v1", ""] {
        let request = server.bare(Method::GET, &format!("{prefix}/sandboxes")).bearer_auth(TOKEN);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!((answer.status, answer.body["data"].is_array()), (200, true), "{prefix}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_route_is_a_json_404_that_names_it() {
    let server = TestServer::start().await;
    for (method, path) in [
        (Method::GET, "/galaxies"),
        (Method::GET, "/sandboxes/run"),
        (Method::POST, "/sandboxes/sbx_1/hibernate"),
        (Method::GET, "/"),
        (Method::GET, "/sandboxes/"),
    ] {
        let answer = Answer::of(server.request(method.clone(), path).send().await.unwrap()).await;
        if path == "/" {
            continue; // The page, when this build has one.
        }
        assert_eq!(answer.refusal(), (404, "NOT_FOUND"), "{path}");
        assert!(answer.message().contains(&format!("{method} /api/v1{path}")), "{}", answer.message());
        assert_eq!(answer.headers["content-type"], "application/json");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_method_is_a_json_405() {
    let server = TestServer::start().await;
    for (method, path) in
        [(Method::DELETE, "/sandboxes"), (Method::PUT, "/sandboxes/sbx_1/exec"), (Method::POST, "/sandboxes/sbx_1")]
    {
        let answer = Answer::of(server.request(method, path).send().await.unwrap()).await;
        assert_eq!(answer.refusal(), (405, "METHOD_NOT_ALLOWED"), "{path}");
        assert!(answer.headers.contains_key("allow"));
    }
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_sandbox_is_404_on_every_route_whatever_its_id() {
    let server = TestServer::start().await;
    for id in ["sbx_1", "nope", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "a%2Fb", "%ff", "sbx_%00"] {
        for path in [
            "",
            "/readiness",
            "/readiness/stream",
            "/logs",
            "/stats",
            "/files",
            "/fs/download?path=/a",
            "/files/a",
            "/snapshots",
        ] {
            let answer = server.get(&format!("/sandboxes/{id}{path}")).await;
            assert_eq!(answer.status, 404, "{id}{path}: {:?}", answer.body);
        }
        for (path, body) in [
            ("exec", serde_json::json!({"command": "true"})),
            ("exec/stream", serde_json::json!({"command": "true"})),
            ("fs/stat", serde_json::json!({"path": "/a"})),
            ("fs/write", serde_json::json!({"path": "/a", "content": "x"})),
            ("files", serde_json::json!({"path": "/a", "content": "eA=="})),
            ("fs/write-many", serde_json::json!({"files": [{"path": "/a", "content": "x"}]})),
            ("pause", serde_json::json!({})),
            ("resume", serde_json::json!({"env": {"A": "1"}})),
            ("stop", serde_json::json!({})),
            ("extend", serde_json::json!({"timeout_sec": 60})),
            ("snapshot", serde_json::json!({})),
            ("snapshots", serde_json::json!({"comment": "c"})),
            ("restore/snap_1", serde_json::json!({})),
            ("fork", serde_json::json!({})),
        ] {
            let answer = server.post(&format!("/sandboxes/{id}/{path}"), body).await;
            assert_eq!(answer.status, 404, "{id}/{path}: {:?}", answer.body);
        }
        for method in [Method::DELETE, Method::PUT] {
            let path = format!("/sandboxes/{id}/files/workspace/a");
            let answer = Answer::of(server.request(method, &path).send().await.unwrap()).await;
            assert_eq!(answer.status, 404, "{path}: {:?}", answer.body);
        }
        for (method, path) in
            [(Method::DELETE, ""), (Method::PATCH, ""), (Method::PATCH, "/tags"), (Method::DELETE, "/snapshots/snap_1")]
        {
            let request = server.request(method.clone(), &format!("/sandboxes/{id}{path}"));
            let answer = Answer::of(request.json(&serde_json::json!({"tags": []})).send().await.unwrap()).await;
            assert_eq!(answer.status, 404, "{method} {id}{path}: {:?}", answer.body);
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_name_may_hold_encoded_slashes() {
    let server = TestServer::start().await;
    let answer = server.get("/sandboxes/by-name/a%2Fb%20c").await;
    assert_eq!(answer.refusal(), (404, "SANDBOX_NOT_FOUND"));
    assert!(answer.message().contains("'a/b c'"), "{}", answer.message());
    server.stop().await;
}
