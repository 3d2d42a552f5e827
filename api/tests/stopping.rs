//! Stopping, and what every connection is like.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::harness::{TOKEN, TestServer};

#[tokio::test]
async fn a_stopping_server_closes_idle_connections_and_returns() {
    let server = TestServer::start().await;
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).await.unwrap();
    let request = format!(
        "GET /api/v1/sandboxes HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n",
        server.port
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = connection.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    // Head and body came in one piece.
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"data\":[]}"), "{answer}");
    assert!(answer.contains("content-length: 11"), "{answer}");
    server.stop().await;
    assert_eq!(connection.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn only_loopback_is_served() {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let refused = cove_api::serve(listener, axum::Router::new(), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("loopback only"), "{refused}");
}

#[tokio::test]
async fn small_answers_do_not_wait_for_acknowledgements() {
    let server = TestServer::start().await;
    server.get("/sandboxes").await;
    // The stall would hit every one of them, a busy host only some.
    let mut fastest_ms = u128::MAX;
    for _ in 0..30 {
        let began = std::time::Instant::now();
        assert_eq!(server.get("/sandboxes").await.status, 200);
        fastest_ms = fastest_ms.min(began.elapsed().as_millis());
    }
    assert!(fastest_ms < 30, "{fastest_ms} ms");
    server.stop().await;
}
