//! Clients that are slow, greedy or hostile: each is told so, and the server goes on answering others.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Answer, TOKEN, TestServer};

async fn connect(server: &TestServer) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).await.unwrap()
}

/// All that comes until the server closes.
async fn rest(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = connection.read_to_end(&mut bytes);
    // A connection that is reset after its answer is an end too.
    let _ = timeout(Duration::from_secs(30), read).await.expect("the server does not close");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The head of a request with the token, without the blank line at its end.
fn head(server: &TestServer, line: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {TOKEN}\r\n", server.port)
}

#[tokio::test]
async fn a_head_that_does_not_end_is_408_and_one_that_is_whole_has_time() {
    let server = TestServer::start().await;
    let (mut silent, mut slow, mut idle) = (connect(&server).await, connect(&server).await, connect(&server).await);
    let whole = head(&server, "GET /api/v1/sandboxes");
    slow.write_all(whole.as_bytes()).await.unwrap();
    idle.write_all(format!("{whole}\r\n").as_bytes()).await.unwrap();
    let began = std::time::Instant::now();
    let answer = rest(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("REQUEST_TIMEOUT"), "{answer}");
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    // Connections at rest are kept: one that has not asked yet, and one that has.
    for connection in [&mut silent, &mut idle] {
        connection.write_all(format!("{whole}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
        assert!(rest(connection).await.contains("HTTP/1.1 200 OK"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_too_large_is_431_and_a_path_too_long_414() {
    let server = TestServer::start().await;
    let ask = async |line: String, headers: String| {
        let mut connection = connect(&server).await;
        let request = format!("{}{headers}Connection: close\r\n\r\n", head(&server, &line));
        // The server may answer and close before all is sent.
        let _ = connection.write_all(request.as_bytes()).await;
        rest(&mut connection).await
    };
    let get = || "GET /api/v1/sandboxes".to_owned();
    let answer = ask(get(), format!("X-Large: {}\r\n", "x".repeat(100 << 10))).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("HEADERS_TOO_LARGE"), "{answer}");
    let answer = ask(get(), (0..200).map(|at| format!("X-{at}: 1\r\n")).collect()).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("HEADERS_TOO_LARGE"), "{answer}");
    let answer = ask(get(), format!("X-Huge: {}\r\n", "x".repeat(4 << 20))).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let answer = ask(format!("GET /api/v1/{}", "x".repeat(40 << 10)), String::new()).await;
    assert!(answer.starts_with("HTTP/1.1 414 ") && answer.contains("URI_TOO_LONG"), "{answer}");
    let answer = ask("\u{1}\u{2} nonsense".into(), String::new()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(server.get("/sandboxes").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn deep_json_is_400() {
    let server = TestServer::start().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [format!("{{\"metadata\":{{\"a\":{deep}}}}}"), "{\"metadata\":".repeat(50_000)] {
        let request = server.request(Method::POST, "/sandboxes").header("content-type", "application/json").body(body);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.refusal(), (400, "VALIDATION_ERROR"), "{}", answer.body);
    }
    server.stop().await;
}

#[tokio::test]
async fn names_that_are_not_utf8_or_lead_elsewhere_are_refused() {
    let server = TestServer::start().await;
    for path in [
        "/sandboxes/sbx_1/fs/download?path=/%ff",
        "/sandboxes/sbx_1/files?path=%2F%c3%28",
        "/sandboxes/sbx_1/files/%ff",
        "/sandboxes/sbx_1/files/tree?path=/%80",
        "/sandboxes/sbx_1/exports/download?path=/%ff",
        "/sandboxes/%ff",
        "/sandboxes/..%2f..%2fetc/events",
        "/sandboxes/%2e%2e/files/read?path=/etc/passwd",
        "/snapshots/..%2f..%2f/files?path=/etc/passwd",
        "/events/stream?types=%ff",
    ] {
        let answer = server.get(path).await;
        assert!((400..500).contains(&answer.status), "{path}: {} {}", answer.status, answer.body);
        assert!(answer.body["error"]["code"].is_string(), "{path}: {}", answer.body);
    }
    // The page's own files: a client that does not tidy its path gets nothing else either.
    for path in
        ["/assets/../../etc/passwd", "/assets/%2e%2e/%2e%2e/Cargo.toml", "/assets//etc/passwd", "/../etc/passwd"]
    {
        let mut connection = connect(&server).await;
        let request = format!("{}Connection: close\r\n\r\n", head(&server, &format!("GET {path}")));
        connection.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_is_told_to_wait_and_polling_for_readiness_is_not_counted() {
    let server = TestServer::start_with(|config| config.rate_per_second = NonZeroU32::new(2)).await;
    let mut refused = None;
    for _ in 0..50 {
        let answer = server.get("/sandboxes").await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("50 calls at 2 a second");
    assert_eq!(refused.refusal(), (429, "rate_limit_exceeded"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.headers.contains_key("x-request-id") && refused.body["error"]["retry_after_ms"].is_number());
    for _ in 0..50 {
        assert_eq!(server.get("/sandboxes/sbx_1/readiness").await.status, 404);
    }
    // Without the token the answer is about the token, until it is asked too often.
    let strangers: Vec<u16> = futures_util::future::join_all(
        (0..400).map(async |_| server.bare(Method::GET, "/api/v1/sandboxes").send().await.unwrap().status().as_u16()),
    )
    .await;
    assert!(strangers.contains(&401) && strangers.contains(&429), "{strangers:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_stops_does_not_hold_up_others() {
    let server = TestServer::start().await;
    let mut stuck = connect(&server).await;
    let request = format!(
        "{}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{",
        head(&server, "POST /api/v1/sandboxes")
    );
    stuck.write_all(request.as_bytes()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(server.get("/sandboxes").await.status, 200);
    }
    drop(stuck);
    server.stop().await;
}
