//! Terminal sessions, through the agent's real server, real pseudo-terminals and shells.

mod harness;

use std::time::{Duration, Instant};

use cove_protocol::guest::{
    AttachTerminal, ErrorKind, ExitStatus, Input, OpenTerminal, Reply, Request, TerminalInfo, WindowSize,
};
use harness::{Agent, Client, eventually};

fn open(client: &mut Client, command: &[&str]) -> TerminalInfo {
    let open = OpenTerminal {
        command: command.iter().map(|word| word.to_string()).collect(),
        cwd: Some("/".into()),
        env: vec![("PS1".into(), "$ ".into())],
        ..OpenTerminal::default()
    };
    match client.ask(&Request::OpenTerminal(Box::new(open))) {
        Reply::Terminal(terminal) => terminal,
        other => panic!("{other:?}"),
    }
}

const SHELL: [&str; 3] = ["bash", "--norc", "-i"];

fn attach(agent: &Agent, session: u64) -> View {
    let mut client = agent.connect();
    match client.ask(&Request::AttachTerminal(AttachTerminal { session: Some(session), size: None })) {
        Reply::Terminal(info) => assert_eq!(info.session, session),
        other => panic!("{other:?}"),
    }
    View { client, seen: Vec::new() }
}

/// A client that looks at a session.
struct View {
    client: Client,
    seen: Vec<u8>,
}

impl View {
    fn type_in(&mut self, text: &str) {
        self.client.data(text.as_bytes());
    }

    /// Reads until `text` was seen, and forgets all up to it.
    fn until(&mut self, text: &str) {
        loop {
            let at = self.seen.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = at {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.client.reply().expect("a reply") {
                Reply::Output { data, .. } => self.seen.extend_from_slice(&data),
                other => panic!("{other:?} before {text:?}; seen {:?}", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    /// Reads to the end: how much came, and how it ended.
    fn rest(&mut self) -> (usize, ExitStatus) {
        let mut bytes = self.seen.len();
        loop {
            match self.client.reply().expect("a reply") {
                Reply::Output { data, .. } => bytes += data.len(),
                Reply::Exited(exit) => return (bytes, exit.status),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn sessions(agent: &Agent) -> Vec<TerminalInfo> {
    match agent.connect().ask(&Request::ListTerminals) {
        Reply::Terminals(terminals) => terminals,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shell_has_a_terminal_with_job_control() {
    let agent = Agent::start();
    let session = open(&mut agent.connect(), &SHELL);
    let mut view = attach(&agent, session.session);
    view.type_in("tty; echo $TERM $(stty size); ps -o tpgid= -p $$\n");
    view.until("/dev/pts/");
    view.until("xterm-256color 24 80");
    // What is typed before a program runs is the shell's, so each is waited for, by its state.
    let runs = |name: &str, states: &str| {
        let listed =
            std::process::Command::new("ps").args(["-o", "stat=,comm=", "--ppid", &session.pid.to_string()]).output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        listed.lines().any(|line| line.ends_with(name) && line.trim_start().starts_with(|state| states.contains(state)))
    };
    // Ctrl-C ends what runs and not the shell.
    view.type_in("sleep 1000\n");
    eventually("the sleep", || runs("sleep", "S"));
    view.type_in("\x03");
    view.until("^C");
    view.type_in("echo code $?\n");
    view.until("code 130");
    // Ctrl-Z and fg.
    view.type_in("cat\n");
    eventually("the cat", || runs("cat", "S"));
    view.type_in("\x1a");
    view.until("Stopped");
    assert!(runs("cat", "T"));
    view.type_in("fg\n");
    eventually("the cat again", || runs("cat", "S"));
    view.type_in("hello\n");
    view.until("hello\r\nhello");
    // Ctrl-D ends its input, and then the shell's.
    view.type_in("\x04");
    eventually("no cat", || !runs("cat", "ST"));
    view.type_in("exit 5\n");
    assert_eq!(view.rest().1, ExitStatus::Code(5));
    eventually("no session", || sessions(&agent).is_empty());
    assert_eq!(agent.zombies(), 0);
}

#[test]
fn ctrl_d_ends_a_shell_and_the_connection_is_idle_again() {
    let agent = Agent::start();
    let session = open(&mut agent.connect(), &SHELL);
    let mut view = attach(&agent, session.session);
    // The blank behind it is not drawn where the prompt was there before us.
    view.until("$");
    view.type_in("\x04");
    assert_eq!(view.rest().1, ExitStatus::Code(0));
    assert_eq!(view.client.run(&harness::exec("echo again")).stdout, "again\n");
}

#[test]
fn a_session_outlives_its_clients_who_come_back_to_its_screen() {
    let agent = Agent::start();
    let session = open(&mut agent.connect(), &SHELL);
    let mut first = attach(&agent, session.session);
    first.type_in("printf '\\e[?1049h\\e[2J\\e[5;7Hfull screen\\e[?25l'; cat\n");
    first.until("full screen\x1b[?25l");
    drop(first);
    eventually("no client", || sessions(&agent).iter().all(|session| session.clients == 0));
    let mut second = attach(&agent, session.session);
    // The alternate screen is entered, and the text is at its place.
    second.until("\x1b[?1049h");
    second.until("\x1b[5;1H      full screen");
    second.until("\x1b[?25l");
    assert_eq!(sessions(&agent)[0].clients, 1);
}

#[test]
fn a_resize_reaches_the_program_and_both_clients_see_it() {
    let agent = Agent::start();
    let line = "trap 'echo size $(stty size)' WINCH; echo up; while :; do sleep 0.1; done";
    let session = open(&mut agent.connect(), &["sh", "-c", line]);
    let (mut one, mut other) = (attach(&agent, session.session), attach(&agent, session.session));
    one.until("up");
    one.client.input(&Input::Resize(WindowSize { columns: 100, rows: 30 }));
    one.until("size 30 100");
    other.until("size 30 100");
    assert_eq!(sessions(&agent)[0].size, WindowSize { columns: 100, rows: 30 });
    // What is not possible is ignored.
    one.client.input(&Input::Resize(WindowSize { columns: 0, rows: 30 }));
    one.type_in("typed");
    one.until("typed");
    assert_eq!(sessions(&agent)[0].size.columns, 100);
}

#[test]
fn ten_megabytes_reach_a_slow_client_whole_and_in_bounded_memory() {
    let agent = Agent::start();
    let before = agent.memory().0;
    let session =
        open(&mut agent.connect(), &["sh", "-c", "read x; stty -opost; head -c 10000000 /dev/zero | tr '\\0' x"]);
    let mut view = attach(&agent, session.session);
    view.type_in("\n");
    // While nobody reads, everything waits.
    eventually("a full pipeline", || rustix::io::ioctl_fionread(&view.client.stream).unwrap() > 64 << 10);
    let (bytes, status) = view.rest();
    assert_eq!(status, ExitStatus::Code(0));
    // The echo of the newline is in it too.
    assert!((10_000_000..10_000_100).contains(&bytes), "{bytes}");
    assert!(agent.memory().1 < before + (4 << 20), "{} {}", before, agent.memory().1);
}

#[test]
fn a_client_that_takes_nothing_holds_up_others_only_for_a_while() {
    let agent = Agent::start();
    let session = open(
        &mut agent.connect(),
        &["sh", "-c", "read x; stty -opost; head -c 4000000 /dev/zero | tr '\\0' x; read x"],
    );
    let stuck = attach(&agent, session.session);
    let mut view = attach(&agent, session.session);
    let begun = Instant::now();
    view.type_in("\n");
    let mut bytes = 0;
    while bytes < 4_000_000 {
        match view.client.reply().expect("a reply") {
            Reply::Output { data, .. } => bytes += data.len(),
            other => panic!("{other:?}"),
        }
    }
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    // The one that was stuck gets the screen anew, and what comes after.
    let mut stuck = stuck;
    view.type_in("\n");
    stuck.until("\x1b[2J");
    assert_eq!(stuck.rest().1, ExitStatus::Code(0));
}

#[test]
fn closing_hangs_up_and_wrong_requests_are_refused() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let session = open(&mut client, &SHELL);
    let mut view = attach(&agent, session.session);
    // The blank behind it is not drawn where the prompt was there before us.
    view.until("$");
    assert_eq!(client.ask(&Request::CloseTerminal { session: session.session }), Reply::Done);
    // A shell that is just about to read its line may miss the hang-up; then it is killed.
    view.rest();
    let kind = |reply: Reply| match reply {
        Reply::Error { kind, message } => (kind, message),
        other => panic!("{other:?}"),
    };
    let none = Request::AttachTerminal(AttachTerminal { session: None, size: None });
    assert_eq!(kind(client.ask(&none)).0, ErrorKind::NotFound);
    assert_eq!(kind(client.ask(&Request::CloseTerminal { session: 99 })).0, ErrorKind::NotFound);
    for size in [WindowSize { columns: 0, rows: 5 }, WindowSize { columns: 5, rows: 60_000 }] {
        let open = OpenTerminal { size, ..OpenTerminal::default() };
        assert_eq!(kind(client.ask(&Request::OpenTerminal(Box::new(open)))).0, ErrorKind::InvalidRequest);
    }
    let missing =
        OpenTerminal { command: vec!["no-such-shell".into()], cwd: Some("/".into()), ..OpenTerminal::default() };
    let (missing, message) = kind(client.ask(&Request::OpenTerminal(Box::new(missing))));
    assert_eq!((missing, message.contains("no-such-shell")), (ErrorKind::NotFound, true), "{message}");
    for _ in 0..16 {
        open(&mut client, &["cat"]);
    }
    let more = OpenTerminal { cwd: Some("/".into()), ..OpenTerminal::default() };
    assert_eq!(kind(client.ask(&Request::OpenTerminal(Box::new(more)))).0, ErrorKind::Busy);
}
