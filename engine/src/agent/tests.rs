//! The client against a mock of the agent and of the vmm's end of the socket.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use cove_protocol::frame;
use cove_protocol::guest::{self, Command, Entry, EntryKind, ErrorKind, Exec, Exit, ExitStatus, Input, Stream};
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::db::tests::sandbox;
use crate::framed::Framed;
use crate::sandbox::SandboxSpec;

/// What the mock does with the next operation.
type Script = Box<dyn FnOnce(Framed, Request) -> tokio::task::JoinHandle<Option<Framed>> + Send>;

/// A mock of one machine: it plays scripts, one an operation, and counts connections.
struct Mock {
    _folder: tempfile::TempDir,
    agent: Agent,
    record: watch::Sender<Sandbox>,
    scripts: Arc<Mutex<VecDeque<Script>>>,
    connections: Arc<std::sync::atomic::AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Mock {
    async fn start() -> Mock {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut running = sandbox(SandboxSpec::default());
        running.state = SandboxState::Running;
        let (record, receiver) = watch::channel(running);
        let scripts: Arc<Mutex<VecDeque<Script>>> = Arc::default();
        let connections: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let (of_server, count) = (Arc::clone(&scripts), Arc::clone(&connections));
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&of_server)));
            }
        });
        Mock { _folder: folder, agent: Agent::new(socket, receiver), record, scripts, connections, server }
    }

    /// Answers the next operation with `replies` at once, and goes on with the connection.
    fn replies(&self, replies: Vec<Reply>) {
        self.script(move |mut framed, _| {
            tokio::spawn(async move {
                for reply in replies {
                    framed.writer.write(&reply).await.ok()?;
                }
                Some(framed)
            })
        });
    }

    fn script(&self, script: impl FnOnce(Framed, Request) -> tokio::task::JoinHandle<Option<Framed>> + Send + 'static) {
        self.scripts.lock().unwrap().push_back(Box::new(script));
    }

    fn connections(&self) -> usize {
        self.connections.load(std::sync::atomic::Ordering::SeqCst)
    }

    async fn run(&self, exec: Exec) -> Vec<Result<ExecEvent, Error>> {
        let execution = self.agent.exec(exec, |_| {}).await.unwrap();
        // The way in stays open until the end, as with a real caller.
        let Execution { output, input: _input, .. } = execution;
        output.collect().await
    }
}

async fn serve(mut stream: UnixStream, scripts: Arc<Mutex<VecDeque<Script>>>) {
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
    assert_eq!(line, "CONNECT 1024\n");
    stream.write_all(b"OK 4711\n").await.unwrap();
    let mut framed = Framed::new(stream, &[]);
    while let Ok(Some(request)) = framed.reader.read::<Request>().await {
        let script = scripts.lock().unwrap().pop_front().expect("an operation without a script");
        match script(framed, request).await.unwrap() {
            Some(back) => framed = back,
            None => return,
        }
    }
}

/// A command, for tests that only need one.
pub(crate) fn exec() -> Exec {
    Exec { command: Command::Shell("x".into()), cwd: None, env: vec![], user: None, stdin: false, timeout_ms: None }
}

fn exited(code: u8) -> Reply {
    Reply::Exited(Exit { status: ExitStatus::Code(code), duration_us: 5 })
}

fn output(text: &str) -> Reply {
    Reply::Output { stream: Stream::Stdout, data: text.as_bytes().to_vec().into() }
}

fn entry(path: &str) -> Entry {
    Entry { path: path.into(), kind: EntryKind::File, size: 3, mode: 0o644, modified_us: 1 }
}

#[tokio::test]
async fn operations_one_after_the_other_share_one_connection() {
    let mock = Mock::start().await;
    for code in 0..5 {
        mock.replies(vec![Reply::Started { pid: 9 }, output("a"), output("b"), exited(code)]);
        let events = mock.run(exec()).await;
        assert_eq!(events.len(), 3);
        let last = events.into_iter().last().unwrap().unwrap();
        assert_eq!(last, ExecEvent::Exited(Exit { status: ExitStatus::Code(code), duration_us: 5 }));
    }
    mock.replies(vec![Reply::FileInfo(entry("/a"))]);
    assert_eq!(mock.agent.stat("/a").await.unwrap(), entry("/a"));
    mock.replies(vec![Reply::Error { kind: ErrorKind::NotFound, message: "There is no /b".into() }]);
    let error = mock.agent.stat("/b").await.unwrap_err();
    assert!(matches!(&error, Error::Guest { kind: ErrorKind::NotFound, message } if message == "There is no /b"));
    assert_eq!(mock.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_took_input_is_not_used_again() {
    let mock = Mock::start().await;
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            framed.writer.write(&Reply::Started { pid: 1 }).await.unwrap();
            assert_eq!(framed.reader.read::<Input>().await.unwrap(), Some(Input::Data(b"in".to_vec().into())));
            assert_eq!(framed.reader.read::<Input>().await.unwrap(), Some(Input::End));
            framed.writer.write(&exited(0)).await.unwrap();
            Some(framed)
        })
    });
    let Execution { output, input, pid } = mock.agent.exec(Exec { stdin: true, ..exec() }, |_| {}).await.unwrap();
    assert_eq!(pid, 1);
    assert!(input.data(Bytes::from_static(b"in")).await && input.end().await);
    assert_eq!(output.count().await, 1);
    mock.replies(vec![Reply::Done]);
    mock.agent.make_dir("/a").await.unwrap();
    assert_eq!(mock.connections(), 2);
}

#[tokio::test]
async fn a_dropped_command_closes_its_connection() {
    let mock = Mock::start().await;
    let (closed, told) = tokio::sync::oneshot::channel();
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            framed.writer.write(&Reply::Started { pid: 1 }).await.unwrap();
            let end = framed.reader.read::<Input>().await;
            closed.send(matches!(end, Ok(None))).unwrap();
            None
        })
    });
    let (ended, end) = tokio::sync::oneshot::channel();
    let execution = mock.agent.exec(exec(), |exit| ended.send(exit).unwrap()).await.unwrap();
    drop(execution);
    assert!(told.await.unwrap());
    assert_eq!(end.await.unwrap(), None);
}

#[tokio::test]
async fn a_command_without_standard_input_takes_none() {
    let mock = Mock::start().await;
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            framed.writer.write(&Reply::Started { pid: 1 }).await.unwrap();
            assert_eq!(framed.reader.read::<Input>().await.unwrap(), Some(Input::Signal(15)));
            framed.writer.write(&exited(0)).await.unwrap();
            None
        })
    });
    let Execution { output, input, .. } = mock.agent.exec(exec(), |_| {}).await.unwrap();
    assert!(!input.data(Bytes::from_static(b"in")).await && !input.end().await);
    assert!(input.signal(15).await);
    assert_eq!(output.count().await, 1);
}

#[tokio::test]
async fn output_waits_until_it_is_taken() {
    let mock = Mock::start().await;
    let (sent, all_sent) = tokio::sync::oneshot::channel();
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            framed.writer.write(&Reply::Started { pid: 1 }).await.unwrap();
            let chunk = vec![1; guest::CHUNK_BYTES_MAX];
            for _ in 0..200 {
                let reply = Reply::Output { stream: Stream::Stderr, data: chunk.clone().into() };
                framed.writer.write(&reply).await.unwrap();
            }
            // The other end waited long enough.
            let _ = sent.send(());
            framed.writer.write(&exited(0)).await.unwrap();
            Some(framed)
        })
    });
    let Execution { output, input: _input, .. } = mock.agent.exec(exec(), |_| {}).await.unwrap();
    let early = timeout(Duration::from_millis(200), all_sent).await;
    assert!(early.is_err(), "12 MiB were taken in without a reader");
    let bytes = output.fold(0, async |sum, event| match event.unwrap() {
        ExecEvent::Output { data, .. } => sum + data.len(),
        ExecEvent::Exited(_) => sum,
    });
    assert_eq!(bytes.await, 200 * guest::CHUNK_BYTES_MAX);
}

#[tokio::test]
async fn a_file_is_streamed_both_ways() {
    let mock = Mock::start().await;
    let data = |byte| Reply::Data(vec![byte; 10].into());
    mock.replies(vec![Reply::FileInfo(entry("/f")), data(1), data(2), Reply::Done]);
    let (found, stream) = mock.agent.read_file("/f").await.unwrap();
    let chunks: Vec<_> = stream.map(|chunk| chunk.unwrap()).collect().await;
    assert_eq!((found, chunks), (entry("/f"), vec![Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10])]));

    mock.script(|mut framed, request| {
        tokio::spawn(async move {
            assert_eq!(request, Request::WriteFile { path: "/f".into(), mode: 0o600 });
            let mut bytes = 0;
            while let Some(Input::Data(data)) = framed.reader.read::<Input>().await.unwrap() {
                assert!(data.len() <= guest::CHUNK_BYTES_MAX);
                bytes += data.len();
            }
            assert_eq!(bytes, 200_000);
            framed.writer.write(&Reply::Done).await.unwrap();
            Some(framed)
        })
    });
    let content = futures_util::stream::iter([Ok(Bytes::from(vec![0; 200_000]))]);
    assert_eq!(mock.agent.write_file("/f", 0o600, content).await.unwrap(), 200_000);
    assert_eq!(mock.connections(), 1);
}

#[tokio::test]
async fn a_refused_file_stops_its_upload_and_a_broken_upload_closes_its_connection() {
    let mock = Mock::start().await;
    mock.replies(vec![Reply::Error { kind: ErrorKind::NoSpace, message: "No space".into() }]);
    let endless = futures_util::stream::repeat_with(|| Ok(Bytes::from(vec![0; 1000])));
    let error = mock.agent.write_file("/f", 0o600, endless).await.unwrap_err();
    assert!(matches!(error, Error::Guest { kind: ErrorKind::NoSpace, .. }), "{error}");

    let (closed, told) = tokio::sync::oneshot::channel();
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            while let Ok(Some(input)) = framed.reader.read::<Input>().await {
                assert_ne!(input, Input::End);
            }
            closed.send(()).unwrap();
            None
        })
    });
    let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"x")), Err("the client went away".into())]);
    let error = mock.agent.write_file("/f", 0o600, broken).await.unwrap_err();
    assert!(matches!(error, Error::Upload { .. }), "{error}");
    told.await.unwrap();
}

#[tokio::test]
async fn a_listing_has_an_end() {
    let mock = Mock::start().await;
    mock.replies(vec![Reply::Entries(vec![entry("/a")]), Reply::Entries(vec![entry("/b")]), Reply::Done]);
    assert_eq!(mock.agent.list("/", 1).await.unwrap(), [entry("/a"), entry("/b")]);
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            let many = Reply::Entries(vec![entry("/x"); 256]);
            while framed.writer.write(&many).await.is_ok() {}
            None
        })
    });
    let error = mock.agent.list("/", 1).await.unwrap_err();
    assert!(matches!(error, Error::Agent { source: AgentError::TooManyEntries { .. }, .. }), "{error}");
}

#[tokio::test]
async fn replies_that_do_not_fit_are_errors() {
    let mock = Mock::start().await;
    mock.replies(vec![exited(0)]);
    let error = mock.agent.exec(exec(), |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Agent { source: AgentError::Unexpected { .. }, .. }), "{error}");
    mock.replies(vec![Reply::Started { pid: 1 }, Reply::Done]);
    let events = mock.run(exec()).await;
    assert!(matches!(&events[..], [Err(Error::Agent { source: AgentError::Unexpected { reply: "done", .. }, .. })]));
    // Bytes after the final reply: the connection is not used again.
    mock.replies(vec![Reply::Done, Reply::Done]);
    mock.agent.make_dir("/a").await.unwrap();
    let before = mock.connections();
    tokio::task::yield_now().await;
    timeout(Duration::from_millis(50), std::future::pending::<()>()).await.unwrap_err();
    mock.replies(vec![Reply::Done]);
    mock.agent.make_dir("/a").await.unwrap();
    assert_eq!(mock.connections(), before + 1);
    // A length that no frame may have.
    mock.script(|framed, _| {
        tokio::spawn(async move {
            let mut stream = framed.writer.into_stream();
            stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
            None
        })
    });
    let error = mock.agent.make_dir("/a").await.unwrap_err();
    assert!(matches!(error, Error::Agent { source: AgentError::Frame { .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_broken_connection_is_explained_by_the_end_of_the_machine() {
    let mock = Mock::start().await;
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            framed.writer.write(&Reply::Started { pid: 1 }).await.unwrap();
            None
        })
    });
    let Execution { mut output, input: _input, .. } = mock.agent.exec(exec(), |_| {}).await.unwrap();
    mock.record.send_modify(|record| {
        record.state = SandboxState::Error;
        record.last_error = Some("it burned".into());
    });
    let error = output.next().await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::SandboxFailed { reason, .. } if reason == "it burned"), "{error}");
    mock.record.send_modify(|record| record.state = SandboxState::Destroying);
    mock.server.abort();
    mock.scripts.lock().unwrap().push_back(Box::new(|_, _| tokio::spawn(async { None })));
    let error = mock.agent.make_dir("/a").await.unwrap_err();
    assert!(matches!(error, Error::SandboxDestroyed(_)), "{error}");
}

#[tokio::test]
async fn a_silent_agent_does_not_hold_a_call_for_ever() {
    let mock = Mock::start().await;
    mock.script(|framed, _| {
        tokio::spawn(async move {
            // Both halves: one alone would close the other.
            let mut both = framed;
            let _ = both.reader.read::<Input>().await;
            drop(both);
            None
        })
    });
    let error = mock.agent.hello(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, AgentError::Deadline { request: "hello", .. }), "{error}");
}

#[tokio::test]
async fn an_agent_that_answers_others_is_waited_for() {
    const WITHIN: Duration = Duration::from_secs(2);
    let mock = Mock::start().await;
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    mock.script(|mut framed, _| {
        tokio::spawn(async move {
            released.await.ok()?;
            framed.writer.write(&Reply::Done).await.ok()?;
            Some(framed)
        })
    });
    let slow = tokio::spawn({
        let agent = mock.agent.clone();
        async move { agent.sync(WITHIN).await }
    });
    let began = tokio::time::Instant::now();
    while began.elapsed() < WITHIN + WITHIN / 2 {
        tokio::time::sleep_until(tokio::time::Instant::now() + WITHIN / 20).await;
        mock.replies(vec![Reply::Done]);
        mock.agent.make_dir("/a").await.unwrap();
    }
    release.send(()).unwrap();
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn another_version_is_refused() {
    let mock = Mock::start().await;
    mock.replies(vec![Reply::Hello { version: 999, boot_us: 1, kernel: String::new() }]);
    let error = mock.agent.hello(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, AgentError::Version { agent: 999, .. }), "{error}");
}

#[tokio::test]
async fn the_ready_socket_takes_one_report_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock.sock");
    let socket = ReadySocket::listen(&vsock).unwrap();
    let path = folder.path().join("vsock.sock_1025");
    let caller = async {
        drop(UnixStream::connect(&path).await.unwrap());
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let hello = Reply::Hello { version: cove_protocol::VERSION, boot_us: 42, kernel: "6.12".into() };
        stream.write_all(&frame::encode(&hello).unwrap()).await.unwrap();
    };
    let (report, ()) = tokio::join!(socket.wait(), caller);
    assert_eq!(report.unwrap().boot_us, 42);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stream_to_a_port_carries_both_directions_and_their_ends() {
    use tokio::io::AsyncReadExt;
    let mock = Mock::start().await;
    mock.script(|mut framed, request| {
        assert_eq!(request, Request::Connect { port: 3000 });
        tokio::spawn(async move {
            framed.writer.write(&Reply::Connected).await.ok()?;
            let mut heard = Vec::new();
            loop {
                match framed.reader.read().await.ok()?? {
                    Input::Data(data) => heard.extend_from_slice(&data),
                    Input::End => break,
                    Input::Signal(_) | Input::Resize(_) => return None,
                }
            }
            framed.writer.write(&Reply::Data(heard.into())).await.ok()?;
            framed.writer.write(&Reply::End).await.ok()?;
            framed.writer.write(&Reply::Done).await.ok()?;
            Some(framed)
        })
    });
    let mut stream = mock.agent.connect(3000).await.unwrap();
    // More than one chunk, and no more than one frame, in which the mock answers.
    let said = vec![7; 3 * guest::CHUNK_BYTES_MAX + 1];
    stream.write_all(&said).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, said);
}

#[tokio::test]
async fn a_stream_that_the_program_breaks_ends_with_an_error_and_one_that_is_refused_says_so() {
    use tokio::io::AsyncReadExt;
    let mock = Mock::start().await;
    let broken = || Reply::Error { kind: ErrorKind::Io, message: "broken".into() };
    mock.replies(vec![Reply::Connected, Reply::Data(b"half".to_vec().into()), broken()]);
    let mut stream = mock.agent.connect(1).await.unwrap();
    let mut heard = Vec::new();
    let error = stream.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!((heard.as_slice(), error.kind()), (&b"half"[..], io::ErrorKind::ConnectionReset));
    mock.replies(vec![Reply::Error { kind: ErrorKind::Refused, message: "Nothing listens on port 2".into() }]);
    let error = mock.agent.connect(2).await.unwrap_err();
    assert!(matches!(error, Error::Guest { kind: ErrorKind::Refused, .. }), "{error}");
}

#[tokio::test]
async fn a_stream_that_is_dropped_after_its_end_is_ended_and_one_before_is_cut_off() {
    for ends in [true, false] {
        let mock = Mock::start().await;
        let (heard, hears) = tokio::sync::oneshot::channel();
        mock.script(move |mut framed, _| {
            tokio::spawn(async move {
                framed.writer.write(&Reply::Connected).await.ok()?;
                let first = framed.reader.read::<Input>().await.ok().flatten();
                let second = framed.reader.read::<Input>().await.ok().flatten();
                heard.send((first, second)).unwrap();
                for reply in [Reply::Data(b"unheard".to_vec().into()), Reply::End, Reply::Done] {
                    framed.writer.write(&reply).await.ok()?;
                }
                Some(framed)
            })
        });
        let mut stream = mock.agent.connect(1).await.unwrap();
        stream.write_all(b"last").await.unwrap();
        if ends {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        let (first, second) = hears.await.unwrap();
        if ends {
            assert_eq!((first, second), (Some(Input::Data(b"last".to_vec().into())), Some(Input::End)));
        } else {
            assert_eq!(second, None);
        }
    }
}
