//! What lasts: WebSockets and other upgrades, server-sent events, and how they end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::mock::{Door, exactly, head};

const PATIENCE: Duration = Duration::from_secs(10);

fn upgrade(at: std::net::SocketAddr, protocol: &str) -> String {
    format!(
        "GET /live HTTP/1.1\r\nHost: {at}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://{at}\r\n\r\n"
    )
}

async fn echo_app() -> Door {
    Door::to(async |mut stream| {
        let asked = head(&mut stream).await.to_lowercase();
        assert!(asked.contains("\r\nconnection: upgrade\r\n"), "{asked}");
        assert!(asked.contains("\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n"), "{asked}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let _ = tokio::io::copy(&mut reading, &mut writing).await;
        let _ = writing.write_all(b"last").await;
    })
    .await
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_half_closes() {
    let door = echo_app().await;
    let mut stream = door.connect().await;
    stream.write_all(upgrade(door.at, "websocket").as_bytes()).await.unwrap();
    let top = head(&mut stream).await;
    assert!(top.starts_with("HTTP/1.1 101 ") && top.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{top}");
    assert!(top.to_lowercase().contains("upgrade: websocket"), "{top}");
    assert_eq!(exactly(&mut stream, 5).await, b"first");
    for size in [1, 1000, 300_000] {
        let said = vec![b'x'; size];
        let (mut reading, mut writing) = stream.split();
        let mut heard = vec![0; size];
        tokio::try_join!(writing.write_all(&said), reading.read_exact(&mut heard)).unwrap();
        assert_eq!(heard, said);
    }
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"last");
}

#[tokio::test]
async fn an_app_that_does_not_change_its_protocol_answers_as_usual() {
    let door = Door::to(async |mut stream| {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    })
    .await;
    let mut stream = door.connect().await;
    stream.write_all(upgrade(door.at, "strange/2").as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 426 "));
    assert_eq!(exactly(&mut stream, 2).await, b"no");
}

#[tokio::test]
async fn events_come_when_they_are_sent() {
    let (tick, ticks) = tokio::sync::mpsc::channel::<()>(1);
    let ticks = std::sync::Arc::new(tokio::sync::Mutex::new(ticks));
    let door = Door::to(move |mut stream| {
        let ticks = std::sync::Arc::clone(&ticks);
        async move {
            head(&mut stream).await;
            let top = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(top.as_bytes()).await.unwrap();
            while ticks.lock().await.recv().await.is_some() {
                stream.write_all(b"b\r\ndata: tick\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let mut stream = door.connect().await;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", door.at).as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.to_lowercase().contains("content-type: text/event-stream"));
    for _ in 0..3 {
        tick.send(()).await.unwrap();
        let chunk = timeout(PATIENCE, exactly(&mut stream, 16)).await.unwrap();
        assert_eq!(chunk.to_ascii_lowercase(), b"b\r\ndata: tick\n\r\n");
    }
}

#[tokio::test]
async fn a_preview_that_is_taken_away_ends_what_runs_and_a_server_that_stops_too() {
    for stops in [false, true] {
        let door = echo_app().await;
        let mut stream = door.connect().await;
        stream.write_all(upgrade(door.at, "websocket").as_bytes()).await.unwrap();
        head(&mut stream).await;
        exactly(&mut stream, 5).await;
        if stops {
            door.stopping.cancel();
        } else {
            door.closed.cancel();
        }
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it goes on (stops: {stops})");
        let refused = timeout(PATIENCE, async {
            while tokio::net::TcpStream::connect(door.at).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        refused.await.unwrap();
    }
}
