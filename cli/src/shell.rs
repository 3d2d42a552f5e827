//! `cove shell`: a terminal in a sandbox, on this one.
//!
//! Ours is in raw mode while we look: what is typed goes there as it is, and what comes back is written here. It is put
//! back on every way out, also by a signal or a panic ([`RawMode`]). Ctrl-P Ctrl-Q detaches: the session goes on, and
//! `--session` comes back to its screen.

mod raw;

use std::io::{self, IsTerminal, Read, Write};
use std::thread;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use self::raw::{RawMode, window_size};
use crate::client::{Client, ConnectionArgs, TerminalRequest, TerminalSession, TerminalSocket};
use crate::exec::env_pair;
use crate::text::{age, printable, table};

/// Bytes of typed input taken at once.
const INPUT_BYTES: usize = 4096;

/// Pieces of input that wait for the server.
const INPUTS_QUEUED_MAX: usize = 4;

/// Ctrl-P, then Ctrl-Q.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Ctrl-D: what ends the input of a program on a terminal.
const END_OF_INPUT: u8 = 0x04;

/// What a program that goes on without us may have left on: the other screen, a region, a hidden cursor, modes of mice, pastes
/// and keys. Ends at the bottom, below what it drew.
const LEAVE: &str = "\x1b[?1047l\x1b[r\x1b[?25h\x1b[?1000;1002;1003;1004;1006;2004l\x1b[?1l\x1b>\x1b[m\x1b[999;1H\r\n";

/// How output begins that draws a whole screen anew; what ours shows is scrolled away first, not lost.
const REPLAY: &[u8] = b"\x1b[?1049l\x1b[!p";

/// Arguments of `cove shell`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// Come back to this session
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["list", "close", "cwd", "env", "user", "command"])]
    session: Option<String>,
    /// List the open sessions
    #[arg(long, short = 'l', conflicts_with_all = ["close", "cwd", "env", "user", "command"])]
    list: bool,
    /// End this session
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["cwd", "env", "user", "command"])]
    close: Option<String>,
    /// Working directory [default: /workspace]
    #[arg(long, short = 'C', value_name = "DIR")]
    cwd: Option<String>,
    /// Environment; KEY without a value takes it from here; may be repeated
    #[arg(long, short = 'e', value_name = "KEY=VALUE", value_parser = env_pair)]
    env: Vec<(String, String)>,
    /// Run as this user, by name or number [default: root]
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    /// A program and its arguments, after `--` [default: the user's login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `cove shell`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let sandbox = client.resolve(&args.sandbox).await?;
    if args.list {
        print!("{}", listing(&client.terminals(&sandbox.id).await?));
        return Ok(0);
    }
    if let Some(session) = &args.close {
        client.close_terminal(&sandbox.id, session).await?;
        return Ok(0);
    }
    let size = window_size().unwrap_or((80, 24));
    let session = match args.session {
        Some(session) => session,
        None => {
            let Args { cwd, env, user, command, .. } = args;
            let (cols, rows) = size;
            let request = TerminalRequest { cols, rows, shell: command, cwd, env: env.into_iter().collect(), user };
            client.open_terminal(&sandbox.id, &request).await?.session_id
        }
    };
    let socket = client.attach_terminal(&sandbox.id, &session, size).await?;
    let raw = RawMode::begin().context("Cannot set the terminal to raw mode")?;
    let outcome = carry(socket, size.1).await;
    if !matches!(outcome, Ok(Outcome::Ended(_))) && io::stdout().is_terminal() {
        write_now(LEAVE.as_bytes())?;
    }
    drop(raw);
    match outcome? {
        Outcome::Ended(code) => Ok(code),
        Outcome::Detached => {
            eprintln!("[detached: `cove shell {} --session {session}` comes back]", args.sandbox);
            Ok(0)
        }
        Outcome::Stopped(why) => {
            eprintln!("[{}: `cove shell {} --session {session}` comes back]", printable(&why), args.sandbox);
            Ok(1)
        }
        Outcome::Signal(code) => Ok(code),
    }
}

/// How looking at a session came to an end.
enum Outcome {
    /// Its shell ended with this exit code.
    Ended(u8),
    /// The user left.
    Detached,
    /// The sandbox or the server stopped, and the session goes on.
    Stopped(String),
    /// A signal ended us.
    Signal(u8),
}

/// Passes input and output on until one of them ends.
async fn carry(socket: TerminalSocket, rows: u16) -> Result<Outcome> {
    let mut resized = signal(SignalKind::window_change()).context("Cannot listen for signals")?;
    let mut terminated = signal(SignalKind::terminate()).context("Cannot listen for signals")?;
    let mut hung_up = signal(SignalKind::hangup()).context("Cannot listen for signals")?;
    let mut inputs = read_input();
    let (mut sink, mut stream) = socket.split();
    let mut detach = Detach::default();
    let mut open = true;
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    if bytes.starts_with(REPLAY) {
                        write_now("\r\n".repeat(usize::from(rows)).as_bytes())?;
                    }
                    write_now(&bytes)?;
                }
                Some(Ok(Message::Text(text))) => write_now(text.as_bytes())?,
                Some(Ok(Message::Close(frame))) => return end(frame),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("The connection to the terminal broke"),
                None => bail!("The server closed the terminal without a word"),
            },
            input = inputs.recv(), if open => {
                let Some(bytes) = input else {
                    open = false;
                    continue;
                };
                let (bytes, leaves) = detach.filter(&bytes);
                if !bytes.is_empty() {
                    let sent = sink.send(Message::Binary(bytes.into())).await;
                    sent.context("The connection to the terminal broke")?;
                }
                if leaves {
                    let _ = sink.close().await;
                    return Ok(Outcome::Detached);
                }
            }
            _ = resized.recv() => if let Some((cols, rows)) = window_size() {
                let text = format!(r#"{{"type":"resize","cols":{cols},"rows":{rows}}}"#);
                sink.send(Message::Text(text.into())).await.context("The connection to the terminal broke")?;
            },
            _ = terminated.recv() => return Ok(Outcome::Signal(128 + 15)),
            _ = hung_up.recv() => return Ok(Outcome::Signal(128 + 1)),
        }
    }
}

/// What the close frame says.
fn end(frame: Option<CloseFrame>) -> Result<Outcome> {
    #[derive(Deserialize)]
    struct Exit {
        exit_code: i32,
    }
    let Some(CloseFrame { code, reason }) = frame else { bail!("The server closed the terminal without a word") };
    match u16::from(code) {
        1000 => {
            let exit: Exit = serde_json::from_str(&reason).context("The server does not say how the shell ended")?;
            Ok(Outcome::Ended(u8::try_from(exit.exit_code).unwrap_or(u8::MAX)))
        }
        1012 => Ok(Outcome::Stopped(reason.to_string())),
        _ => bail!("The terminal failed: {}", printable(&reason)),
    }
}

/// Typed input, read by a thread of its own: a read of a terminal cannot be taken back, and a thread ends with us.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, inputs) = mpsc::channel(INPUTS_QUEUED_MAX);
    thread::spawn(move || {
        let mut input = io::stdin();
        let mut buffer = [0; INPUT_BYTES];
        loop {
            match input.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    // A file or a pipe that ends: its reader shall see an end too.
                    if !input.is_terminal() {
                        let _ = sender.blocking_send(vec![END_OF_INPUT]);
                    }
                    return;
                }
            }
        }
    });
    inputs
}

/// Looks for the keys that detach.
#[derive(Default)]
struct Detach {
    /// The first of them was typed last, and is held back.
    begun: bool,
}

impl Detach {
    /// What goes to the sandbox, and whether the user leaves.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.begun) {
                if byte == DETACH[1] {
                    return (passed, true);
                }
                passed.push(DETACH[0]);
            }
            if byte == DETACH[0] {
                self.begun = true;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

fn write_now(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("Cannot write to the terminal")
}

fn listing(sessions: &[TerminalSession]) -> String {
    let now = time::OffsetDateTime::now_utc();
    let header = ["SESSION", "COMMAND", "SIZE", "CLIENTS", "AGE"].map(str::to_owned);
    let rows = sessions.iter().map(|session| {
        let size = format!("{}x{}", session.cols, session.rows);
        let opened = session.opened_at.as_deref().map_or_else(|| "?".to_owned(), |at| age(at, now));
        [session.session_id.clone(), printable(&session.command), size, session.clients.to_string(), opened]
    });
    table(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_keys_in_a_row_detach() {
        let mut detach = Detach::default();
        assert_eq!(detach.filter(b"a\x10b"), (b"a\x10b".to_vec(), false));
        assert_eq!(detach.filter(b"c\x10"), (b"c".to_vec(), false));
        assert_eq!(detach.filter(b"\x10"), (b"\x10".to_vec(), false));
        assert_eq!(detach.filter(b"d"), (b"\x10d".to_vec(), false));
        assert_eq!(detach.filter(b"\x11e\x10\x11f"), (b"\x11e".to_vec(), true));
        let mut detach = Detach::default();
        assert!(!detach.filter(b"\x10").1 && detach.filter(b"\x11").1);
    }

    #[test]
    fn the_close_frame_says_how_it_ended() {
        let frame = |code: u16, reason: &'static str| Some(CloseFrame { code: code.into(), reason: reason.into() });
        assert!(matches!(end(frame(1000, r#"{"exit_code":7}"#)), Ok(Outcome::Ended(7))));
        assert!(matches!(end(frame(1012, "paused")), Ok(Outcome::Stopped(why)) if why == "paused"));
        assert!(end(frame(1011, "broken")).is_err() && end(None).is_err());
    }
}
