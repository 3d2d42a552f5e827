//! `cove exec`: one command in a sandbox. Output appears as the command writes it, and its exit code is ours.
//!
//! The words after `--` reach the program as they are; no shell sees them unless `--shell` asks for one. Ctrl-C closes
//! the stream, which makes the server end the command with its whole process group. Also used by `cove run`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::{Client, ConnectionArgs, ExecEvent, ExecRequest, ExecStream};

/// Most bytes of standard input: it travels in one request.
const STDIN_BYTES_MAX: u64 = 64 << 20;

/// The exit code when our reader went away, as if SIGPIPE had ended us.
const EXIT_BROKEN_PIPE: u8 = 128 + 13;

/// Arguments of `cove exec`.
#[derive(clap::Args)]
pub struct Args {
    /// The sandbox: its id, its name, or the unique beginning of its id
    sandbox: String,
    /// Leave it running in the background and print its process id: see `cove ps`
    #[arg(long, short = 'd', conflicts_with = "interactive")]
    detach: bool,
    /// A name for a command in the background
    #[arg(long, value_name = "NAME", requires = "detach")]
    name: Option<String>,
    #[command(flatten)]
    options: ExecOptions,
}

/// What `exec` and `run` share about a command.
#[derive(clap::Args)]
pub struct ExecOptions {
    /// Working directory [default: /workspace]
    #[arg(long, short = 'C', value_name = "DIR")]
    cwd: Option<String>,
    /// Environment of the command alone; KEY without a value takes it from here; may be repeated
    #[arg(long, short = 'e', value_name = "KEY=VALUE", value_parser = env_pair)]
    env: Vec<(String, String)>,
    /// Run as this user, by name or number [default: root]
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    /// Kill the command after this many seconds; the exit code is then 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Give it our standard input, read to its end first (at most 64 MiB); otherwise its input is empty
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Take the words as one line for bash
    #[arg(long, short = 's')]
    shell: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl ExecOptions {
    /// The request for the API. Reads standard input if it was asked for.
    pub fn request(&self) -> Result<ExecRequest> {
        let command = if self.shell { Value::from(self.command.join(" ")) } else { Value::from(self.command.clone()) };
        let env: BTreeMap<String, String> = self.env.iter().cloned().collect();
        let stdin_base64 = if self.interactive { Some(STANDARD.encode(read_stdin()?)) } else { None };
        Ok(ExecRequest {
            command,
            cwd: self.cwd.clone(),
            env,
            user: self.user.clone(),
            timeout: self.timeout,
            stdin_base64,
            output: "base64",
        })
    }
}

/// Runs `cove exec`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let request = args.options.request()?;
    let mut interrupts = Interrupts::new()?;
    let sandbox = client.resolve(&args.sandbox).await?;
    if args.detach {
        let mut body = serde_json::to_value(&request).context("The command cannot be written as JSON")?;
        body["name"] = args.name.into();
        println!("{}", client.start_process(&sandbox.id, &body).await?.pid);
        return Ok(0);
    }
    pass_through(&client, &sandbox.id, &request, &mut interrupts).await
}

/// SIGINT and SIGTERM, as the exit code they should lead to.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From now on these signals no longer end this process by themselves.
    pub fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("Cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the first one.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 128 + 2,
            _ = self.terminate.recv() => 128 + 15,
        }
    }
}

/// Runs the command, copies its output to ours, and gives the exit code: its own, or that of an interrupt.
pub async fn pass_through(client: &Client, id: &str, request: &ExecRequest, interrupts: &mut Interrupts) -> Result<u8> {
    let command = async {
        let mut stream = client.exec(id, request).await?;
        copy_output(&mut stream).await
    };
    tokio::select! {
        result = command => result,
        code = interrupts.next() => Ok(code),
    }
}

async fn copy_output(stream: &mut ExecStream) -> Result<u8> {
    loop {
        let written = match stream.next().await? {
            ExecEvent::Stdout(bytes) => write_now(io::stdout().lock(), &bytes),
            ExecEvent::Stderr(bytes) => write_now(io::stderr().lock(), &bytes),
            ExecEvent::Exit(code) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(EXIT_BROKEN_PIPE),
            Err(error) => return Err(error).context("Cannot write the command's output"),
        }
    }
}

fn write_now(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn read_stdin() -> Result<Vec<u8>> {
    if io::stdin().is_terminal() {
        eprintln!("cove: reading standard input; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes).context("Cannot read standard input")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        bail!("Standard input is larger than {} MiB; copy it in with `cove cp` instead", STDIN_BYTES_MAX >> 20);
    }
    Ok(bytes)
}

/// `KEY=VALUE`, or `KEY` for this process's own value of it.
pub fn env_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => (text, std::env::var(text).map_err(|_| format!("{text} is not set here; write {text}=VALUE"))?),
    };
    if key.is_empty() { Err("the name before '=' is empty".to_owned()) } else { Ok((key.to_owned(), value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_comes_as_a_pair_or_from_here() {
        assert_eq!(env_pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(env_pair("A="), Ok(("A".to_owned(), String::new())));
        assert!(env_pair("=x").is_err());
        assert_eq!(env_pair("PATH").unwrap().1, std::env::var("PATH").unwrap());
        assert!(env_pair("SURELY_NOT_SET_ANYWHERE").is_err());
    }
}
