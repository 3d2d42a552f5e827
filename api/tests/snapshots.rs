//! Snapshots, names and many at once, where there are none: shapes of empty answers, and what is told of what is not there.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, TestServer};

#[tokio::test]
async fn lists_are_empty_and_have_their_shapes() {
    let server = TestServer::start().await;
    for (path, body) in [
        ("/snapshots", json!({"data": [], "total": 0})),
        (
            "/snapshots?resource_id=sbx_1&q=x&limit=999&offset=5&include_named=true&workspace_id=w",
            json!({"data": [], "total": 0}),
        ),
        ("/snapshots?resource_id=none", json!({"data": [], "total": 0})),
        ("/snapshots/groups", json!({"data": [], "total": 0})),
        ("/named-snapshots", json!({"data": [], "allowance": {"used": 0, "limit": null, "price_cents": 0}})),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, &answer.body), (200, &body), "{path}");
    }
    assert_eq!(server.get("/system/disk").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_snapshot_is_404_on_every_route_whatever_its_id() {
    let server = TestServer::start().await;
    for id in ["snap_1", "golden", "a%2Fb", "%ff"] {
        for (method, path, body) in [
            (Method::GET, format!("/snapshots/{id}"), json!(null)),
            (Method::PATCH, format!("/snapshots/{id}"), json!({"comment": null})),
            (Method::DELETE, format!("/snapshots/{id}"), json!(null)),
            (Method::GET, format!("/snapshots/{id}/tree"), json!(null)),
            (Method::GET, format!("/snapshots/{id}/files?path=/a"), json!(null)),
            (Method::GET, format!("/snapshots/{id}/compare?with=snap_2"), json!(null)),
            (Method::POST, format!("/snapshots/{id}/fork"), json!({})),
            (Method::GET, format!("/named-snapshots/{id}"), json!(null)),
            (Method::DELETE, format!("/named-snapshots/{id}"), json!(null)),
            (Method::POST, format!("/named-snapshots/{id}/deploy"), json!({})),
        ] {
            let mut request = server.request(method.clone(), &path);
            if !body.is_null() {
                request = request.json(&body);
            }
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert_eq!(answer.refusal(), (404, "SNAPSHOT_NOT_FOUND"), "{method} {path}");
        }
    }
    let answer = server.post("/named-snapshots", json!({"name": "a", "snapshot_id": "snap_1"})).await;
    assert_eq!(answer.refusal(), (404, "SNAPSHOT_NOT_FOUND"));
    let answer = server.post("/named-snapshots", json!({"name": "a", "sandbox_id": "sbx_1"})).await;
    assert_eq!(answer.refusal(), (404, "SANDBOX_NOT_FOUND"));
    server.stop().await;
}

#[tokio::test]
async fn a_comparison_names_both_sides_and_a_directory() {
    let server = TestServer::start().await;
    let answer = server.get("/snapshots/snap_1/compare").await;
    assert_eq!((answer.refusal(), answer.field()), ((422, "VALIDATION_ERROR"), "with"));
    let answer = server.get("/snapshots/snap_1/compare?with=snap_2&path=relative").await;
    assert!((400..500).contains(&answer.status), "{}", answer.status);
    server.stop().await;
}

#[tokio::test]
async fn each_of_many_fails_by_itself() {
    let server = TestServer::start().await;
    for act in ["pause", "resume", "destroy"] {
        let answer = server.post(&format!("/bulk/sandboxes/{act}"), json!({"ids": ["sbx_1", "x", "sbx_1"]})).await;
        assert_eq!((answer.status, &answer.body["data"]["succeeded"]), (200, &json!([])), "{act}");
        let failed = answer.body["data"]["failed"].as_array().unwrap();
        assert_eq!(failed.len(), 2);
        assert_eq!((&failed[0]["id"], &failed[1]["code"]), (&json!("sbx_1"), &json!("SANDBOX_NOT_FOUND")));
        let none = server.post(&format!("/bulk/sandboxes/{act}"), json!({"filter": {"tags": "a,b"}})).await;
        assert_eq!(none.body, json!({"data": {"succeeded": [], "failed": []}}));
    }
    let answer = server.post("/snapshots/delete", json!({"ids": ["snap_1"]})).await;
    assert_eq!(answer.body["data"]["failed"][0]["code"], "SNAPSHOT_NOT_FOUND");
    let whole = json!({"resource_id": "sbx_1", "all": true, "confirm": "sbx_1"});
    assert_eq!(server.post("/snapshots/delete", whole).await.body, json!({"data": {"deleted": [], "failed": []}}));
    server.stop().await;
}

#[tokio::test]
async fn a_run_says_what_is_missing_at_once_and_leaves_nothing() {
    let server = TestServer::start().await;
    let answer = server.post("/sandboxes/run", json!({"command": "echo 2", "size": "xs"})).await;
    assert_eq!(answer.refusal(), (501, "HOST_NOT_READY"));
    assert_eq!(server.get("/sandboxes").await.body, json!({"data": []}));
    server.stop().await;
}

#[tokio::test]
async fn the_token_is_asked_for_on_every_new_route() {
    let server = TestServer::start().await;
    for (method, path) in [
        (Method::POST, "/sandboxes/run"),
        (Method::POST, "/sandboxes/sbx_1/pause"),
        (Method::POST, "/sandboxes/sbx_1/fork"),
        (Method::PATCH, "/sandboxes/sbx_1"),
        (Method::GET, "/snapshots"),
        (Method::GET, "/named-snapshots"),
        (Method::POST, "/bulk/sandboxes/destroy"),
        (Method::GET, "/system/disk"),
    ] {
        let answer = Answer::of(server.bare(method, &format!("/api/v1{path}")).send().await.unwrap()).await;
        assert_eq!(answer.refusal(), (401, "invalid_token"), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_key_of_a_fork_is_its_own() {
    let server = TestServer::start().await;
    let fork = async |path: &str, key: &str, body: serde_json::Value| {
        let request = server.request(Method::POST, path).header("idempotency-key", key).json(&body);
        Answer::of(request.send().await.unwrap()).await
    };
    // What was refused is refused again, and the same key elsewhere is another key.
    for _ in 0..2 {
        assert_eq!(fork("/snapshots/snap_1/fork", "k", json!({})).await.refusal(), (404, "SNAPSHOT_NOT_FOUND"));
    }
    let other = fork("/snapshots/snap_1/fork", "k", json!({"name": "a"})).await;
    assert_eq!(other.refusal(), (422, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(fork("/snapshots/snap_2/fork", "k", json!({"name": "a"})).await.refusal(), (404, "SNAPSHOT_NOT_FOUND"));
    server.stop().await;
}
