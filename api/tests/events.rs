//! Event streams and tickets, without a machine.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, TestServer};

#[tokio::test]
async fn a_ticket_opens_one_stream_once_and_nothing_else() {
    let server = TestServer::start().await;
    let ticket = server.post("/sse/ticket", json!({})).await;
    assert_eq!((ticket.status, &ticket.body["data"]["expires_in"]), (201, &60.into()));
    let ticket = ticket.body["data"]["ticket"].as_str().unwrap().to_owned();
    let open = async |path: &str| server.bare(Method::GET, path).send().await.unwrap();

    assert_eq!(open(&format!("/api/v1/sandboxes?ticket={ticket}")).await.status(), 401, "no stream");
    let mut stream = open(&format!("/api/v1/events/stream?types=sandbox.*&ticket={ticket}")).await;
    assert_eq!(stream.status(), 200);
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(stream.chunk().await.unwrap().unwrap(), ": open\n\n");
    assert_eq!(open(&format!("/api/v1/events/stream?ticket={ticket}")).await.status(), 401, "used before");
    assert_eq!(open("/api/v1/events/stream?ticket=tkt_x").await.status(), 401, "made up");

    let other = server.post("/auth/sse-ticket", json!({})).await;
    assert!(other.body["data"]["ticket"].as_str().is_some_and(|other| other != ticket));
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn who_comes_back_with_an_unknown_event_is_told_of_a_gap() {
    let server = TestServer::start().await;
    let request = server.request(Method::GET, "/events/stream").header("Last-Event-ID", "01ARZ3NDEKTSV4RRFFQ69G5FAV");
    let mut stream = request.send().await.unwrap();
    let mut text = String::new();
    while !text.contains("event: gap") {
        text.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().expect("the stream ended")).unwrap());
    }
    assert!(text.contains("\"reason\":\"unknown_id\"") && text.ends_with("\n\n"), "{text:?}");
    drop(stream);
    let wrong = Answer::of(server.request(Method::GET, "/events/stream?last_event_id=x").send().await.unwrap()).await;
    assert_eq!((wrong.status, wrong.field()), (422, "last_event_id"));
    assert_eq!(server.get("/sandboxes/sbx_1/events").await.refusal(), (404, "SANDBOX_NOT_FOUND"));
    server.stop().await;
}

#[tokio::test]
async fn the_routes_of_an_unknown_sandbox_are_404() {
    let server = TestServer::start().await;
    for path in [
        "usage",
        "metrics",
        "resources",
        "logs",
        "logs/stream",
        "env",
        "events",
        "files/tree",
        "files/watch",
        "exports/download?path=/a",
        "artifacts",
    ] {
        let answer = server.get(&format!("/sandboxes/sbx_1/{path}")).await;
        assert_eq!(answer.refusal(), (404, "SANDBOX_NOT_FOUND"), "{path}");
    }
    for (path, query) in [("metrics", "window=2d"), ("metrics", "window=x"), ("files/tree", "depth=0")] {
        let answer = server.get(&format!("/sandboxes/sbx_1/{path}?{query}")).await;
        assert_eq!(answer.status, 422, "{path} {query}");
        assert!(query.starts_with(answer.field()));
    }
    server.stop().await;
}
