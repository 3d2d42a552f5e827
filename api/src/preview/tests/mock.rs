//! A door with the proxy behind it, and an app: a local server that does what a test says.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cove_engine::{Activity, Error, OpenPreview, Preview, PreviewId, SandboxId, Scope, Visibility};
use cove_protocol::guest::ErrorKind;
use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::super::alias::Alias;
use super::super::listener::{Served, serve};
use super::super::proxy::Proxy;
use super::super::upstream::{Stream, Upstream};

pub const INTERACT: &str = "mp_interactinteractinteract";
pub const READ: &str = "ms_readreadreadreadreadread";

/// In the place of the engine.
pub struct Guests {
    pub preview: Mutex<Option<Preview>>,
    app: Mutex<Option<SocketAddr>>,
    pub streams: AtomicUsize,
    closed: CancellationToken,
}

impl Upstream for Guests {
    fn preview(&self, _: &PreviewId) -> Option<OpenPreview> {
        let record = self.preview.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(OpenPreview { record: Arc::new(record), closed: self.closed.clone() })
    }

    fn by_alias(&self, port: u16, label: &str) -> Option<OpenPreview> {
        let open = self.preview(&PreviewId::parse("prv_1").unwrap());
        open.filter(|open| label == "app" && open.record.port == port)
    }

    fn scope<'a>(&'a self, token: &'a str, _: &'a Preview) -> BoxFuture<'a, Result<Option<Scope>, Error>> {
        let scope = match token {
            INTERACT => Some(Scope::Interact),
            READ => Some(Scope::Read),
            _ => None,
        };
        Box::pin(async move { Ok(scope) })
    }

    fn connect(&self, _: SandboxId, port: u16) -> BoxFuture<'static, Result<Box<dyn Stream>, Error>> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let app = *self.app.lock().unwrap();
        Box::pin(async move {
            let message = format!("Nothing listens on port {port}");
            let refused = || Error::Guest { kind: ErrorKind::Refused, message };
            let stream = TcpStream::connect(app.ok_or_else(refused)?).await.unwrap();
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn activity<'a>(&'a self, _: &'a SandboxId) -> BoxFuture<'a, Result<Option<Activity>, Error>> {
        Box::pin(async { Ok(None) })
    }
}

/// A preview that is served.
pub struct Door {
    pub at: SocketAddr,
    pub alias: SocketAddr,
    pub guests: Arc<Guests>,
    pub closed: CancellationToken,
    pub stopping: CancellationToken,
}

impl Door {
    /// Its app is at `app`; nothing listens in its place when that is none.
    pub async fn open(app: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 77, 1, 2), 0)).await.unwrap();
        let alias = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let SocketAddr::V4(at) = listener.local_addr().unwrap() else { panic!() };
        let alias_at = alias.local_addr().unwrap();
        let now = OffsetDateTime::now_utc();
        let preview = Preview {
            id: PreviewId::parse("prv_1").unwrap(),
            sandbox_id: SandboxId::parse("sbx_1").unwrap(),
            port: 3000,
            at,
            name: None,
            path: None,
            visibility: Visibility::Public,
            metadata: serde_json::Map::new(),
            expires_at: None,
            created_at: now,
            updated_at: now,
        };
        let id = preview.id.clone();
        let (closed, stopping) = (CancellationToken::new(), CancellationToken::new());
        let (preview, app, streams) = (Mutex::new(Some(preview)), Mutex::new(app), AtomicUsize::new(0));
        let guests = Arc::new(Guests { preview, app, streams, closed: closed.clone() });
        let own_pages = vec!["tauri://localhost".to_owned(), "http://127.0.0.1:7333".to_owned()];
        let proxy = Proxy::new(guests.clone(), own_pages, stopping.clone());
        tokio::spawn(serve(listener, Served::Door { preview: id, at }, proxy.clone(), closed.clone()));
        let served = Served::Alias(Alias { port: alias_at.port() });
        tokio::spawn(serve(alias, served, proxy, closed.clone()));
        Self { at: at.into(), alias: alias_at, guests, closed, stopping }
    }

    /// With an app that plays `script` on each connection.
    pub async fn to<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::open(Some(app(script).await)).await
    }

    pub fn change(&self, change: impl FnOnce(&mut Preview)) {
        change(self.guests.preview.lock().unwrap().as_mut().unwrap());
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// Sends a request with this head (its `Host` and the empty line are added) and gives all that comes until the end.
    pub async fn ask(&self, head: &str) -> String {
        let mut stream = self.connect().await;
        let (line, rest) = head.split_once("\r\n").unwrap_or((head, ""));
        let rest = if rest.is_empty() { String::new() } else { format!("{rest}\r\n") };
        let text = format!("{line}\r\nHost: {}\r\nConnection: close\r\n{rest}\r\n", self.at);
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A server that plays `script` on each connection.
pub async fn app<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(stream));
        }
    });
    at
}

/// Reads a head from a connection.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Reads exactly so many bytes.
pub async fn exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}
