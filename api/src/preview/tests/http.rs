//! Bodies, trailers, expectations, connections that are used again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::mock::{Door, exactly, head};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn trailers_go_both_ways() {
    let door = Door::to(async |mut stream| {
        let asked = head(&mut stream).await.to_lowercase();
        assert!(asked.contains("te: trailers") && asked.contains("trailer: x-sum"), "{asked}");
        let mut body = String::new();
        while !body.ends_with("\r\n\r\n") {
            body.push(char::from(stream.read_u8().await.unwrap()));
        }
        assert!(body.to_lowercase().contains("x-sum: 1"), "{body}");
        let answer =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 2\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let mut stream = door.connect().await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
         3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
        door.at
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("2\r\nhi\r\n0\r\nx-sum: 2\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_app_decides_whether_a_body_is_sent() {
    // It wants the body.
    let door = Door::to(async |mut stream| {
        let asked = head(&mut stream).await.to_lowercase();
        assert!(asked.contains("expect: 100-continue"), "{asked}");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        assert_eq!(exactly(&mut stream, 4).await, b"body");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let request = |at| format!("POST / HTTP/1.1\r\nHost: {at}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let mut stream = door.connect().await;
    stream.write_all(request(door.at).as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"body").await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));

    // It does not: the client never hears that it should send it.
    let door = Door::to(async |mut stream| {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 413 Too Much\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
    })
    .await;
    let mut stream = door.connect().await;
    stream.write_all(request(door.at).as_bytes()).await.unwrap();
    let top = timeout(PATIENCE, head(&mut stream)).await.unwrap();
    assert!(top.starts_with("HTTP/1.1 413 "), "{top}");
}

#[tokio::test]
async fn connections_are_used_again_on_both_sides() {
    let door = Door::to(async |mut stream| {
        while head(&mut stream).await.starts_with("GET") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let mut stream = door.connect().await;
    for _ in 0..5 {
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", door.at).as_bytes()).await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(exactly(&mut stream, 2).await, b"ok");
    }
    assert_eq!(door.guests.streams.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_app_that_closes_its_idle_connections_is_asked_on_a_new_one() {
    let door = Door::to(async |mut stream| {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    for _ in 0..5 {
        let answer = door.ask("GET / HTTP/1.1").await;
        assert!(answer.ends_with("ok"), "{answer}");
    }
}

#[tokio::test]
async fn large_bodies_go_through_in_pieces_both_ways() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 24;
    let door = Door::to(async |mut stream| {
        let asked = head(&mut stream).await.to_lowercase();
        assert!(asked.contains(&format!("content-length: {}", CHUNK * CHUNKS)), "{asked}");
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", CHUNK * CHUNKS).as_bytes())
            .await
            .unwrap();
        // Back as it comes: neither side waits for the other to be done.
        let mut piece = vec![0; CHUNK];
        for _ in 0..CHUNKS {
            stream.read_exact(&mut piece).await.unwrap();
            stream.write_all(&piece).await.unwrap();
        }
    })
    .await;
    let stream = door.connect().await;
    let (mut reading, mut writing) = stream.into_split();
    let top = format!("PUT /large HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", door.at, CHUNK * CHUNKS);
    let writer = tokio::spawn(async move {
        writing.write_all(top.as_bytes()).await.unwrap();
        for at in 0..CHUNKS {
            writing.write_all(&vec![at as u8; CHUNK]).await.unwrap();
        }
        writing
    });
    let mut top = Vec::new();
    while !top.ends_with(b"\r\n\r\n") {
        top.push(reading.read_u8().await.unwrap());
    }
    let mut piece = vec![0; CHUNK];
    for at in 0..CHUNKS {
        timeout(PATIENCE, reading.read_exact(&mut piece)).await.unwrap().unwrap();
        assert!(piece.iter().all(|byte| *byte == at as u8));
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_slow_client_makes_the_app_wait_and_nothing_pile_up() {
    let (sender, mut sent) = tokio::sync::watch::channel(0usize);
    let (sender, ended) = (Arc::new(Mutex::new(Some(sender))), Arc::new(Notify::new()));
    let app_ended = Arc::clone(&ended);
    let door = Door::to(move |mut stream| {
        let (sender, ended) = (sender.lock().unwrap().take().unwrap(), Arc::clone(&app_ended));
        async move {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let piece = vec![7; 1 << 16];
            while stream.write_all(&piece).await.is_ok() {
                sender.send_modify(|count| *count += piece.len());
            }
            ended.notify_one();
        }
    })
    .await;
    let mut stream = door.connect().await;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", door.at).as_bytes()).await.unwrap();
    head(&mut stream).await;
    // It comes to a stand: nothing is taken any more for a while.
    while timeout(Duration::from_millis(500), sent.changed()).await.is_ok() {}
    let stood_at = *sent.borrow_and_update();
    assert!(stood_at < 48 << 20, "{stood_at} bytes were taken for a client that reads none");
    // And it goes on when the client reads.
    exactly(&mut stream, stood_at / 2 + (1 << 20)).await;
    assert!(timeout(PATIENCE, sent.changed()).await.is_ok());
    // A client that goes away is the end for the app too.
    drop(stream);
    timeout(PATIENCE, ended.notified()).await.expect("the app was not told");
}
