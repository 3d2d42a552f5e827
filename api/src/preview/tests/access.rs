//! Names, pages from elsewhere, tokens, and what is said when there is no answer of the app.

use cove_engine::Visibility;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::mock::{Door, INTERACT, READ, head};

/// An app that answers with the head of the request.
async fn mirror() -> Door {
    Door::to(async |mut stream| {
        let asked = head(&mut stream).await;
        let top = "HTTP/1.1 200 OK\r\nX-Frame-Options: DENY\r\nConnection: close\r\n";
        stream.write_all(format!("{top}Content-Length: {}\r\n\r\n{asked}", asked.len()).as_bytes()).await.unwrap();
    })
    .await
}

fn refusal(answer: &str) -> (u16, String) {
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let mut lines =
        answer.lines().filter_map(|line| line.to_lowercase().strip_prefix("x-cove-error: ").map(str::to_owned));
    (status, lines.next().unwrap_or_default().to_uppercase())
}

#[tokio::test]
async fn only_the_exact_name_is_answered() {
    let door = mirror().await;
    for (host, at) in [
        ("evil.example", door.at),
        ("localhost", door.at),
        ("127.77.1.2", door.at),
        ("127.77.1.2:1", door.at),
        ("3000-app.localhost:1", door.alias),
        ("3000-app.localhost", door.alias),
        ("evil.example", door.alias),
    ] {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(refusal(&answer), (421, "HOST_NOT_ALLOWED".into()), "{host}");
    }
}

#[tokio::test]
async fn an_alias_leads_to_the_same_app_and_keeps_its_name() {
    let door = mirror().await;
    for (name, status) in [("3000-app", 200), ("3001-app", 410), ("3000-other", 410)] {
        let mut stream = tokio::net::TcpStream::connect(door.alias).await.unwrap();
        let host = format!("{name}.localhost:{}", door.alias.port());
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains(&format!("Host: {host}\r\n")), status == 200, "{answer}");
    }
}

#[tokio::test]
async fn a_private_preview_wants_a_token_and_the_app_never_sees_it() {
    let door = mirror().await;
    door.change(|preview| preview.visibility = Visibility::Private);
    let cookie = format!("cove_preview_{}", door.at.port());
    assert_eq!(refusal(&door.ask("GET / HTTP/1.1").await), (401, "PREVIEW_TOKEN_MISSING".into()));
    let wrong = door.ask("GET /?mt=mp_wrongwrongwrongwrongwrong HTTP/1.1").await;
    assert_eq!(refusal(&wrong), (403, "PREVIEW_TOKEN_INVALID".into()));
    for ask in [
        format!("GET /x HTTP/1.1\r\nX-Cove-Preview-Token: {INTERACT}"),
        format!("GET /x?mt={INTERACT} HTTP/1.1"),
        format!("GET /x HTTP/1.1\r\nCookie: a=1; {cookie}={READ}"),
        format!("POST /x?a=1&ms={INTERACT} HTTP/1.1\r\nContent-Length: 0"),
    ] {
        let answer = door.ask(&ask).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{ask}: {answer}");
        assert!(!answer.contains("mp_") && !answer.contains("ms_") && !answer.contains("cove_preview"), "{answer}");
    }
    let post = door.ask(&format!("POST / HTTP/1.1\r\nX-Cove-Preview-Token: {READ}\r\nContent-Length: 0")).await;
    assert_eq!(refusal(&post), (403, "PREVIEW_READ_ONLY".into()));
}

#[tokio::test]
async fn a_browser_gets_a_cookie_for_its_token_and_the_clean_url() {
    let door = mirror().await;
    door.change(|preview| preview.visibility = Visibility::Private);
    let page = format!("GET //evil.example/a?x=1&mt={INTERACT}&y=2 HTTP/1.1\r\nAccept: text/html");
    let answer = door.ask(&page).await;
    assert!(answer.starts_with("HTTP/1.1 303 "), "{answer}");
    assert!(answer.to_lowercase().contains("location: /evil.example/a?x=1&y=2\r\n"), "{answer}");
    let cookie = format!("cove_preview_{}={INTERACT}; Path=/; HttpOnly; SameSite=Lax", door.at.port());
    assert!(answer.contains(&cookie), "{answer}");
    let frame =
        door.ask(&format!("GET /?mt={INTERACT} HTTP/1.1\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe")).await;
    assert!(frame.contains("SameSite=None; Secure; Partitioned"), "{frame}");
    // A cookie comes by itself, so a page from elsewhere cannot use it.
    let cookie = format!("Cookie: cove_preview_{}={INTERACT}", door.at.port());
    let foreign = door.ask(&format!("GET / HTTP/1.1\r\n{cookie}\r\nOrigin: https://evil.example")).await;
    assert_eq!(refusal(&foreign), (403, "FOREIGN_PAGE".into()));
}

#[tokio::test]
async fn only_a_frame_of_our_own_pages_is_let_through() {
    let door = mirror().await;
    let plain = door.ask("GET / HTTP/1.1").await;
    assert!(plain.contains("X-Frame-Options: DENY"), "{plain}");
    let framed = door.ask("GET / HTTP/1.1\r\nSec-Fetch-Dest: iframe").await;
    assert!(!framed.contains("X-Frame-Options"), "{framed}");
    assert!(framed.contains("frame-ancestors tauri://localhost http://127.0.0.1:7333\r\n"), "{framed}");
}

#[tokio::test]
async fn what_cannot_be_answered_is_said_as_the_client_wants_it() {
    let door = Door::open(None).await;
    let page = door.ask("GET / HTTP/1.1\r\nAccept: text/html,*/*").await;
    assert_eq!(refusal(&page), (502, "PORT_NOT_LISTENING".into()));
    assert!(page.contains("<h1>") && page.contains("port 3000"), "{page}");
    let json = door.ask("GET / HTTP/1.1\r\nAccept: application/json").await;
    assert!(json.contains(r#""code":"PORT_NOT_LISTENING""#), "{json}");
    door.change(|preview| preview.expires_at = Some(OffsetDateTime::now_utc()));
    assert_eq!(refusal(&door.ask("GET / HTTP/1.1").await), (410, "PREVIEW_EXPIRED".into()));
    *door.guests.preview.lock().unwrap() = None;
    assert_eq!(refusal(&door.ask("GET / HTTP/1.1").await), (410, "PREVIEW_GONE".into()));
    assert_eq!(door.ask("CONNECT evil.example:443 HTTP/1.1").await.split(' ').nth(1), Some("421"));

    let silent = Door::to(async |mut stream| {
        head(&mut stream).await;
    })
    .await;
    assert_eq!(refusal(&silent.ask("GET / HTTP/1.1").await), (502, "NO_ANSWER".into()));
}
