//! What is passed on byte for byte, and what is not.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::mock::{Door, head};

#[tokio::test]
async fn the_app_sees_the_clients_request_and_who_passed_it_on() {
    let door = Door::to(async |mut stream| {
        let asked = head(&mut stream).await;
        let answer =
            format!("HTTP/1.1 299 Odd But Mine\r\nX-App: yes\r\nContent-Length: {}\r\n\r\n{asked}", asked.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let answer = door.ask("GET /a%20b/../c?x=%2F&y HTTP/1.1\r\nX-Odd-Case: Kept\r\nAccept: */*\r\nKeep-Alive: 5").await;
    let (top, asked) = answer.split_once("\r\n\r\n").unwrap();
    assert!(top.starts_with("HTTP/1.1 299 Odd But Mine\r\n"), "{top}");
    assert!(top.contains("X-App: yes") && !top.contains("x-cove-error"), "{top}");
    assert!(asked.starts_with("GET /a%20b/../c?x=%2F&y HTTP/1.1\r\n"), "{asked}");
    for line in [
        format!("Host: {}", door.at),
        "X-Odd-Case: Kept".into(),
        "x-forwarded-for: 127.0.0.1".into(),
        format!("x-forwarded-host: {}", door.at),
        "x-forwarded-proto: http".into(),
    ] {
        assert!(asked.contains(&format!("\r\n{line}\r\n")), "{line} is not in {asked}");
    }
    assert!(!asked.contains("Keep-Alive") && !asked.contains("Connection: close"), "{asked}");
}

#[tokio::test]
async fn a_head_request_has_the_length_and_no_body() {
    let door = Door::to(async |mut stream| {
        assert!(head(&mut stream).await.starts_with("HEAD / "));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n").await.unwrap();
    })
    .await;
    let answer = door.ask("HEAD / HTTP/1.1").await;
    assert!(answer.to_lowercase().contains("content-length: 12345\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_apps_errors_are_its_own() {
    for status in [204, 304, 404, 500, 502, 503] {
        let door = Door::to(move |mut stream| async move {
            head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
        })
        .await;
        let answer = door.ask("GET / HTTP/1.1").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && !answer.contains("x-cove-error"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection_and_a_broken_one_is_not_whole() {
    for broken in [false, true] {
        let door = Door::to(move |mut stream| async move {
            head(&mut stream).await;
            let length = if broken { "Content-Length: 100\r\n" } else { "" };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{length}\r\npart").as_bytes()).await.unwrap();
        })
        .await;
        let mut stream = door.connect().await;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", door.at).as_bytes()).await.unwrap();
        if broken {
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            assert!(all.ends_with("part") && all.to_lowercase().contains("content-length: 100"), "{all}");
        } else {
            let top = head(&mut stream).await.to_lowercase();
            assert!(top.contains("transfer-encoding: chunked"), "{top}");
            let mut body = [0; 14];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"4\r\npart\r\n0\r\n\r\n");
        }
    }
}
