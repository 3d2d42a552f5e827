//! Token, Host, Origin.

use reqwest::Method;

use crate::harness::{Answer, TOKEN, TestServer};

#[tokio::test]
async fn only_the_token_lets_in_and_health_needs_none() {
    let server = TestServer::start().await;
    let health = Answer::of(server.bare(Method::GET, "/healthz").send().await.unwrap()).await;
    assert_eq!((health.status, health.body["status"].as_str()), (200, Some("ok")));
    let wrong =
        ["Bearer no", "Bearer", "Bearer ", "Basic abc", "", &format!("Bearer {TOKEN}x"), TOKEN].map(str::to_owned);
    for header in wrong {
        let request = server.bare(Method::GET, "/api/v1/sandboxes").header("authorization", &header);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.refusal(), (401, "invalid_token"), "{header}");
    }
    let none = Answer::of(server.bare(Method::GET, "/api/v1/sandboxes").send().await.unwrap()).await;
    assert_eq!(none.refusal(), (401, "invalid_token"));
    assert_eq!(server.get("/sandboxes").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_foreign_host_name_is_refused_even_with_the_token() {
    let server = TestServer::start().await;
    let port = server.port;
    let status = async |host: String| {
        let request = server.request(Method::GET, "/sandboxes").header("host", &host);
        Answer::of(request.send().await.unwrap()).await
    };
    for host in
        [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("LOCALHOST:{port}"), format!("[::1]:{port}")]
    {
        assert_eq!(status(host.clone()).await.status, 200, "{host}");
    }
    let foreign = [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{}", port ^ 1),
    ];
    for host in foreign {
        assert_eq!(status(host.clone()).await.refusal(), (421, "HOST_NOT_ALLOWED"), "{host}");
    }
    server.stop().await;
}

#[tokio::test]
async fn pages_of_our_own_may_call_and_foreign_ones_may_not() {
    let server = TestServer::start().await;
    for origin in ["tauri://localhost", "cove://app.shell", &server.url("")] {
        let answer =
            Answer::of(server.request(Method::GET, "/sandboxes").header("origin", origin).send().await.unwrap()).await;
        assert_eq!(answer.status, 200, "{origin}");
        assert_eq!(answer.headers["access-control-allow-origin"], origin);
        assert!(answer.headers["access-control-expose-headers"].to_str().unwrap().contains("x-request-id"));
        assert!(answer.headers["vary"].to_str().unwrap().contains("origin"));
    }
    for origin in ["https://evil.example", "null", "http://127.0.0.1"] {
        let answer =
            Answer::of(server.request(Method::GET, "/sandboxes").header("origin", origin).send().await.unwrap()).await;
        assert_eq!(answer.refusal(), (403, "ORIGIN_NOT_ALLOWED"), "{origin}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_preflight_is_answered_without_the_token() {
    let server = TestServer::start().await;
    let preflight = |origin: &str| {
        let request = server.bare(Method::OPTIONS, "/api/v1/sandboxes").header("origin", origin);
        request.header("access-control-request-method", "POST").send()
    };
    let answer = preflight("tauri://localhost").await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["access-control-allow-origin"], "tauri://localhost");
    assert!(answer.headers()["access-control-allow-methods"].to_str().unwrap().contains("PUT"));
    assert!(answer.headers()["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert_eq!(preflight("https://evil.example").await.unwrap().status(), 403);
    // An error of an allowed page can be read by it, too.
    let request = server.bare(Method::GET, "/api/v1/sandboxes").header("origin", "tauri://localhost");
    let refused = request.send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("access-control-allow-origin")), (401, true));
    server.stop().await;
}

#[tokio::test]
async fn every_answer_has_an_id_of_ours() {
    let server = TestServer::start().await;
    let request = server.request(Method::GET, "/sandboxes/sbx_none").header("x-request-id", "theirs");
    let answer = Answer::of(request.send().await.unwrap()).await;
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert!(id.starts_with("req_"), "{id}");
    assert_eq!(answer.body["error"]["request_id"], id);
    assert_ne!(server.get("/sandboxes").await.headers["x-request-id"], id);
    server.stop().await;
}
