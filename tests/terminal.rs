//! Terminals: full-screen programs, coming back to the same screen, slow readers, and `cove shell`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::harness::{Shared, TestHost, TestSandbox, exclusive, full, parallel, resident_kib, small, until};

/// Patience for a guest's program to draw.
const PATIENCE: Duration = Duration::from_secs(90);

/// Memory that a slow reader may cost the server.
const SLOW_READER_KIB_MAX: u64 = 64 << 10;

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "terminal::a_full_screen_program_is_resized_and_comes_back_as_it_was", full_screen),
        parallel(shared, "terminal::a_session_goes_on_through_pause_and_resume", through_pause),
        exclusive(shared, "terminal::all_output_reaches_a_slow_reader_in_bounded_memory", slow_reader),
        parallel(shared, "terminal::cove_shell_is_a_terminal", shell),
    ]
}

/// A client that looks at a terminal.
struct View {
    socket: WebSocket<TcpStream>,
    seen: Vec<u8>,
}

impl View {
    fn attach(host: &TestHost, sandbox: &TestSandbox, session: &str) -> Result<Self> {
        let api = host.api();
        let address = api.origin.strip_prefix("http://").context("no http address")?;
        let path = sandbox.path(&format!("/terminal/stream?session={session}"));
        let mut request = format!("ws://{address}/api/v1{path}").into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {}", api.token).parse()?);
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (socket, _) =
            tungstenite::client(request, stream).map_err(|error| anyhow::anyhow!("no terminal: {error}"))?;
        Ok(Self { socket, seen: Vec::new() })
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.socket.send(Message::Binary(text.as_bytes().to_vec().into()))?)
    }

    /// Output, or the close frame's code and reason.
    fn next(&mut self) -> Result<Result<Vec<u8>, (u16, String)>> {
        loop {
            match self.socket.read()? {
                Message::Binary(bytes) => return Ok(Ok(bytes.to_vec())),
                Message::Close(Some(frame)) => return Ok(Err((frame.code.into(), frame.reason.to_string()))),
                Message::Close(None) => bail!("closed without a word"),
                _ => {}
            }
        }
    }

    fn until(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            match self.next().with_context(|| format!("before {text:?}: {:?}", String::from_utf8_lossy(&self.seen)))? {
                Ok(bytes) => self.seen.extend_from_slice(&bytes),
                Err(close) => bail!("{close:?} before {text:?}"),
            }
        }
    }
}

fn open(sandbox: &TestSandbox, body: &Value) -> Result<String> {
    let record = sandbox.post("/terminal", body)?;
    record["session_id"].as_str().map(str::to_owned).with_context(|| format!("no session: {record}"))
}

fn full_screen(shared: &Shared) -> Result<()> {
    let (host, sandbox) = (shared.host()?, shared.sandbox()?);
    let session = open(&sandbox, &json!({ "cols": 80, "rows": 24, "shell": ["top", "-d", "600"] }))?;
    let mut view = View::attach(&host, &sandbox, &session)?;
    view.until("PID")?;
    view.socket.send(Message::Text(r#"{"type":"resize","cols":100,"rows":30}"#.into()))?;
    // It draws anew for the new size, and its heading fills the width.
    view.until("PID")?;
    view.until("cove-agent")?;
    view.socket.close(None)?;
    drop(view);
    let sessions = host.api().get(&sandbox.path("/terminal"))?.data()?;
    let ours = sessions.as_array().into_iter().flatten().find(|s| s["session_id"] == session.as_str());
    ensure!(ours.is_some_and(|s| s["cols"] == 100 && s["rows"] == 30), "{sessions}");
    // Two who come later see the same screen, without the program doing anything once it has drawn all of it.
    let mut screens = [String::new(), String::new()];
    let same = until("two see the same screen", PATIENCE, || {
        for screen in &mut screens {
            *screen = replayed(&host, &sandbox, &session)?;
        }
        Ok(screens[0] == screens[1])
    });
    same.with_context(|| format!("the screens: {screens:?}"))?;
    let mut view = View::attach(&host, &sandbox, &session)?;
    view.until("PID")?;
    view.send("q")?;
    loop {
        if let Err(close) = view.next()? {
            ensure!(close == (1000, r#"{"exit_code":0}"#.to_owned()), "{close:?}");
            return Ok(());
        }
    }
}

/// What a client that comes now is shown below the heading: one message, which ends with the cursor's place.
fn replayed(host: &TestHost, sandbox: &TestSandbox, session: &str) -> Result<String> {
    let mut view = View::attach(host, sandbox, session)?;
    view.until("PID")?;
    view.until("cove-agent")?;
    view.socket.close(None)?;
    Ok(String::from_utf8_lossy(&view.seen).into_owned())
}

fn through_pause(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    let session = open(&sandbox, &json!({}))?;
    let mut view = View::attach(&host, &sandbox, &session)?;
    view.send("X=kept; echo b''efore\n")?;
    view.until("before\r\n")?;
    let process = sandbox.post("/processes", &json!({ "command": "read line; echo got $line" }))?;
    ensure!(sandbox.post("/pause", &json!({}))?["state"] == "paused");
    loop {
        if let Err((code, reason)) = view.next()? {
            ensure!(code == 1012 && reason.contains("paused"), "{code} {reason}");
            break;
        }
    }
    // Looking at it wakes the sandbox, and shows what was there.
    let mut view = View::attach(&host, &sandbox, &session)?;
    view.until("before")?;
    view.send("echo $X\n")?;
    view.until("kept\r\n")?;
    let path = format!("/processes/{}", process["pid"]);
    sandbox.post(&format!("{path}/stdin"), &json!({ "data": "it\n", "end": true }))?;
    until("the process ends", PATIENCE, || Ok(host.api().get(&sandbox.path(&path))?.data()?["exit_code"] == 0))?;
    let logs = host.api().get(&sandbox.path(&format!("{path}/logs")))?.data()?;
    ensure!(logs == "got it\n", "{logs}");
    sandbox.destroy()
}

fn slow_reader(shared: &Shared) -> Result<()> {
    let (host, sandbox) = (shared.host()?, shared.sandbox()?);
    let bytes: usize = full(50_000_000, 2_000_000);
    // Numbered lines, so that a lost or doubled piece shows.
    let line = format!("read go; stty -opost; seq 1 99999999 | head -c {bytes}");
    let session = open(&sandbox, &json!({ "shell": ["bash", "-c", line] }))?;
    let mut view = View::attach(&host, &sandbox, &session)?;
    let (idle, _) = resident_kib(host.server_pid()?)?;
    view.send("\n")?;
    view.until("\n")?;
    let began = Instant::now();
    let (mut got, mut number, mut most) = (view.seen.len(), Numbers::default(), idle);
    number.feed(&std::mem::take(&mut view.seen))?;
    // At first it does not read at all, then in small steps.
    until("everything waits", PATIENCE, || Ok(began.elapsed() > Duration::from_secs(5)))?;
    while got < bytes {
        match view.next()? {
            Ok(data) => {
                got += data.len();
                number.feed(&data)?;
                most = most.max(resident_kib(host.server_pid()?)?.0);
            }
            Err(close) => bail!("{close:?} after {got} bytes"),
        }
    }
    ensure!(got == bytes, "{got} bytes instead of {bytes}");
    ensure!(most - idle < SLOW_READER_KIB_MAX, "the server went from {idle} to {most} KiB");
    eprintln!("terminal: {bytes} bytes in {:.1} s, server {idle} -> {most} KiB", began.elapsed().as_secs_f64());
    ensure!(matches!(view.next()?, Err((1000, _))), "no end");
    Ok(())
}

/// Checks that lines of numbers come in order.
#[derive(Default)]
struct Numbers {
    expected: u64,
    line: Vec<u8>,
}

impl Numbers {
    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            self.expected += 1;
            let text = String::from_utf8(std::mem::take(&mut self.line))?;
            ensure!(text.trim() == self.expected.to_string(), "{text:?} instead of {}", self.expected);
        }
        Ok(())
    }
}

/// `cove shell` in a terminal of its own, as a user has it.
struct Typist {
    writer: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    child: Box<dyn portable_pty::Child + Send + Sync>,
    master: Box<dyn portable_pty::MasterPty + Send>,
}

impl Typist {
    fn start(host: &TestHost, words: &[&str]) -> Result<Self> {
        let pair = native_pty_system().openpty(PtySize { rows: 30, cols: 100, pixel_width: 0, pixel_height: 0 })?;
        let std_command = host.cove(words);
        let mut command = CommandBuilder::new(std_command.get_program());
        command.args(std_command.get_args());
        for (name, value) in std_command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            }
        }
        let child = pair.slave.spawn_command(command)?;
        let mut reader = pair.master.try_clone_reader()?;
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { writer: pair.master.take_writer()?, output, seen: Vec::new(), child, master: pair.master })
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.writer.write_all(text.as_bytes())?;
        Ok(self.writer.flush()?)
    }

    fn until(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let more = self.output.recv_timeout(PATIENCE);
            self.seen
                .extend(more.with_context(|| format!("before {text:?}: {:?}", String::from_utf8_lossy(&self.seen)))?);
        }
    }

    fn end(mut self) -> Result<u32> {
        let mut code = None;
        until("the end of cove shell", PATIENCE, || {
            code = self.child.try_wait()?.map(|status| status.exit_code());
            Ok(code.is_some())
        })?;
        code.context("it has no exit code")
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = self.child.kill();
    }
}

fn shell(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    // Of our own, so that its sessions are ours.
    let sandbox = host.sandbox(&small())?;
    let id = sandbox.id.clone();
    let mut typist = Typist::start(&host, &["shell", "-e", "A=b c", &id])?;
    typist.send("stty size; echo $A; tty\n")?;
    typist.until("30 100\r\nb c\r\n/dev/pts/")?;
    typist.master.resize(PtySize { rows: 20, cols: 90, pixel_width: 0, pixel_height: 0 })?;
    typist.send("stty size; echo mark''ed\n")?;
    typist.until("20 90\r\nmarked\r\n")?;
    // Leave, and come back to what was there.
    typist.send("\x10\x11")?;
    typist.until("--session ")?;
    typist.until(" comes back")?;
    ensure!(typist.end()? == 0);
    let list = host.run_cove(&["shell", "--list", &id])?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let session = list.lines().last().and_then(|line| line.split_whitespace().next()).context("no session")?.to_owned();
    let mut typist = Typist::start(&host, &["shell", &id, "--session", &session])?;
    typist.until("marked")?;
    typist.send("\x03")?;
    // What is typed while the shell acts on an interrupt is thrown away: first comes its next prompt.
    typist.until("^C")?;
    typist.until("# ")?;
    typist.send("exit 9\n")?;
    ensure!(typist.end()? == 9);
    // A program instead of a shell, and a session that is ended from outside.
    let mut typist = Typist::start(&host, &["shell", &id, "--", "cat"])?;
    typist.send("hello\n")?;
    typist.until("hello\r\nhello")?;
    let list = host.run_cove(&["shell", "--list", &id])?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let session = list.lines().find(|line| line.contains("cat")).and_then(|line| line.split_whitespace().next());
    ensure!(host.run_cove(&["shell", "--close", session.context("no session")?, &id])?.status.success());
    ensure!(typist.end()? == 129, "SIGHUP ends it");
    // Background processes.
    let pid = host.run_cove(&["exec", "-d", "--name", "bg", "-s", &id, "--", "echo up; exec sleep 8181"])?;
    let pid = String::from_utf8_lossy(&pid.stdout).trim().to_owned();
    let shown = || -> Result<String> { Ok(String::from_utf8_lossy(&host.run_cove(&["ps", &id])?.stdout).into_owned()) };
    ensure!(shown()?.lines().any(|line| line.contains(&pid) && line.contains("bg") && line.contains("running")));
    until("its output", PATIENCE, || Ok(host.run_cove(&["logs", &id, "-p", &pid])?.stdout == b"up\n"))?;
    ensure!(host.run_cove(&["kill", &id, &pid])?.status.success());
    ensure!(shown()?.lines().any(|line| line.contains(&pid) && line.contains("exited (143)")));
    sandbox.destroy()
}
