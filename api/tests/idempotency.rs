//! What a key means. A sandbox cannot be made here, so the first answer is put in through the engine.

use cove_engine::{Answer as Kept, Claim};
use reqwest::Method;
use sha2::{Digest, Sha256};

use crate::harness::{Answer, TestServer};

const BODY: &str = "{\"template_id\":\"miosa-sandbox\"}";

async fn create(server: &TestServer, path: &str, key: &str, body: &'static str) -> Answer {
    let request = server.request(Method::POST, path).header("idempotency-key", key);
    Answer::of(request.header("content-type", "application/json").body(body).send().await.unwrap()).await
}

async fn answered(server: &TestServer, key: &str, status: u16, body: &str) {
    let hash = format!("{:x}", Sha256::digest(BODY));
    match server.engine.claim(&format!("POST /sandboxes {key}"), &hash).await.unwrap() {
        Claim::New(guard) => guard.complete(status, Kept::Body(body.into())).await.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_same_request_is_answered_the_same_under_every_prefix() {
    let server = TestServer::start().await;
    answered(&server, "k-1", 409, "{\"error\":{\"code\":\"NAME_TAKEN\"}}").await;
    for path in ["/sandboxes", "/sandboxes?wait=30", "/api/v1/sandboxes"] {
        assert_eq!(create(&server, path, "k-1", BODY).await.refusal(), (409, "NAME_TAKEN"), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_same_key_with_another_body_is_refused() {
    let server = TestServer::start().await;
    answered(&server, "k-1", 409, "{}").await;
    let answer = create(&server, "/sandboxes", "k-1", "{\"template_id\":\"other\"}").await;
    assert_eq!(answer.refusal(), (422, "IDEMPOTENCY_KEY_REUSED"));
    server.stop().await;
}

#[tokio::test]
async fn a_failure_of_the_server_is_forgotten() {
    let server = TestServer::start().await;
    for _ in 0..2 {
        let answer = create(&server, "/sandboxes", "k-1", BODY).await;
        assert_eq!(answer.refusal(), (501, "HOST_NOT_READY"));
    }
    // Another body is no conflict: nothing was kept.
    assert_eq!(create(&server, "/sandboxes", "k-1", "{}").await.refusal(), (501, "HOST_NOT_READY"));
    server.stop().await;
}

#[tokio::test]
async fn a_second_request_waits_for_the_first() {
    let server = TestServer::start().await;
    let hash = format!("{:x}", Sha256::digest(BODY));
    let Claim::New(first) = server.engine.claim("POST /sandboxes k-1", &hash).await.unwrap() else { panic!() };
    let mut second = Box::pin(create(&server, "/sandboxes", "k-1", BODY));
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut second).await;
    assert!(early.is_err(), "{early:?}");
    first.complete(409, Kept::Body("{\"error\":{\"code\":\"NAME_TAKEN\"}}".into())).await.unwrap();
    assert_eq!(second.as_mut().await.refusal(), (409, "NAME_TAKEN"));
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let server = TestServer::start().await;
    let answer = create(&server, "/sandboxes", &"k".repeat(256), BODY).await;
    assert_eq!((answer.refusal(), answer.field()), ((422, "VALIDATION_ERROR"), "Idempotency-Key"));
    server.stop().await;
}
