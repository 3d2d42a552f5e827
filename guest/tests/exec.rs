//! Commands, through the agent's real server and real processes.

mod harness;

use std::time::{Duration, Instant};

use cove_protocol::guest::{Command, ErrorKind, Exec, ExitStatus, Input, Reply, Request};
use harness::{Agent, argv, eventually, exec, state};

fn error(client: &mut harness::Client, exec: Exec) -> (ErrorKind, String) {
    match client.ask(&Request::Exec(Box::new(exec))) {
        Reply::Error { kind, message } => (kind, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn output_is_split_and_the_exit_code_is_the_commands() {
    let agent = Agent::start();
    let outcome = agent.sh("echo out; echo err >&2; exit 7");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.code()), ("out\n", "err\n", 7));
}

#[test]
fn a_program_is_found_in_the_requests_path_and_its_arguments_are_kept_apart() {
    let agent = Agent::start();
    let outcome = agent.connect().run(&argv(&["printf", "%s|", "a b", "", "ü\u{2028}", "$HOME"]));
    assert_eq!(outcome.stdout, "a b||ü\u{2028}|$HOME|");
    let (kind, message) =
        error(&mut agent.connect(), Exec { env: vec![("PATH".into(), "/nowhere".into())], ..argv(&["printf"]) });
    assert_eq!((kind, message.contains("printf")), (ErrorKind::NotFound, true), "{message}");
}

#[test]
fn death_by_signal_is_told_as_such() {
    let agent = Agent::start();
    assert_eq!(agent.sh("kill -9 $$").exit.status, ExitStatus::Signal(9));
    assert_eq!(agent.sh("kill -TERM $$").exit.status, ExitStatus::Signal(15));
}

#[test]
fn a_command_leads_a_session_of_its_own_without_the_agents_signal_mask() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let pid = client.start(&exec(
        "cut -d' ' -f1,5,6 /proc/self/stat; grep -E 'Sig(Blk|Ign)' /proc/self/status; ls -l /proc/self/fd | grep -cE 'anon_inode|socket'",
    ));
    let lines = client.finish().stdout;
    let mut lines = lines.lines();
    let ids: Vec<u32> = lines.next().unwrap().split(' ').map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids[1..], [pid, pid], "process group and session");
    for line in lines.by_ref().take(2) {
        let mask = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        let ours = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGCHLD - 1);
        assert_eq!(mask & ours, 0, "{line}");
    }
    // Neither its sockets nor its event queues; what the test's own parent left open may be there.
    assert_eq!(lines.next(), Some("0"));
}

#[test]
fn a_timeout_kills_the_whole_process_group() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let line = "sleep 1000 & echo $!; sleep 1000";
    let start = Instant::now();
    let outcome = client.run(&Exec { timeout_ms: Some(300), ..exec(line) });
    assert_eq!(outcome.exit.status, ExitStatus::TimedOut);
    assert!(outcome.exit.duration_us >= 300_000 && start.elapsed() < Duration::from_secs(10), "{outcome:?}");
    let child: u32 = outcome.stdout.trim().parse().unwrap();
    eventually("the child's end", || state(child).is_none());
}

#[test]
fn a_background_grandchild_that_holds_the_pipe_does_not_hold_the_call() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let start = Instant::now();
    let outcome = client.run(&exec("echo before; sleep 1000 & echo $!"));
    assert!(start.elapsed() < Duration::from_secs(5));
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((lines[0], lines.len()), ("before", 2));
    let grandchild: u32 = lines[1].parse().unwrap();
    assert!(state(grandchild).is_some_and(|state| "RS".contains(state)), "it goes on");
    // One that writes without end neither holds the call nor mixes into the next command's output.
    let outcome = client.run(&exec("yes & echo $! >&2"));
    let yes: u32 = outcome.stderr.trim().parse().unwrap();
    assert_eq!(client.run(&exec("echo clean")).stdout, "clean\n");
    // Its pipe is closed, so it dies of SIGPIPE and is taken away.
    eventually("the writer's end", || state(yes).is_none());
}

#[test]
fn ten_megabytes_reach_a_slow_reader_whole_and_in_bounded_memory() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let before = agent.memory().0;
    client.start(&exec("head -c 10000000 /dev/zero | tr '\\0' x; echo end >&2"));
    eventually("a full pipeline", || client.stream.peer_is_full());
    let outcome = client.finish();
    assert_eq!((outcome.stdout.len(), outcome.stderr.as_str(), outcome.code()), (10_000_000, "end\n", 0));
    let most = agent.memory().1;
    assert!(most < before + (3 << 20), "from {before} to {most} bytes");
}

/// Whether a socket's receive queue has stopped growing.
trait Full {
    fn peer_is_full(&self) -> bool;
}

impl Full for std::os::unix::net::UnixStream {
    fn peer_is_full(&self) -> bool {
        rustix::io::ioctl_fionread(self).unwrap() > 64 << 10
    }
}

#[test]
fn standard_input_is_null_unless_asked_for() {
    let agent = Agent::start();
    assert_eq!(agent.sh("cat; readlink /proc/self/fd/0").stdout, "/dev/null\n");
}

#[test]
fn standard_input_takes_megabytes_through_a_slow_command_and_ends() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let mut other = client.stream.try_clone().map(|stream| harness::Client { stream }).unwrap();
    client.start(&Exec { stdin: true, ..exec("sleep 0.3; wc -c; echo after") });
    let writer = std::thread::spawn(move || {
        (0..64).for_each(|_| other.data(&[b'x'; 50_000]));
        other.input(&Input::End);
    });
    assert_eq!(client.finish().stdout, "3200000\nafter\n");
    writer.join().unwrap();
    assert!(agent.memory().1 < 16 << 20, "{:?}", agent.memory());
}

#[test]
fn a_command_that_does_not_read_its_input_still_ends() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.start(&Exec { stdin: true, ..exec("exec <&-; echo closed") });
    client.data(&[b'x'; 100]);
    assert_eq!(client.finish().stdout, "closed\n");
}

#[test]
fn signals_reach_the_process_group() {
    let agent = Agent::start();
    let mut client = agent.connect();
    // A signal just before `read` begins to wait would only be seen after it.
    let line = "trap 'echo caught; exit 3' INT; echo set; until read -t 0.5 line; do :; done";
    client.start(&Exec { stdin: true, ..exec(line) });
    assert!(matches!(client.reply(), Some(Reply::Output { .. })));
    client.input(&Input::Signal(0));
    client.input(&Input::Signal(1000));
    client.input(&Input::Signal(2));
    let outcome = client.finish();
    assert_eq!((outcome.stdout.as_str(), outcome.code()), ("caught\n", 3));
}

#[test]
fn the_environment_is_defaults_under_the_sandboxs_under_the_requests() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let configure = cove_protocol::guest::Configure {
        hostname: "box".into(),
        env: vec![("A".into(), "sandbox".into()), ("B".into(), "sandbox ü".into())],
        ..Default::default()
    };
    assert_eq!(client.ask(&Request::Configure(configure)), Reply::Done);
    let request = Exec { env: vec![("A".into(), "request".into())], ..exec("echo $A,$B,$HOME,$USER; echo $PATH") };
    let outcome = client.run(&request);
    let path = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(outcome.stdout, format!("request,sandbox ü,/root,root\n{path}\n"));
}

#[test]
fn wrong_fields_are_named() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let cases = [
        (Exec { cwd: Some("/no/such".into()), ..exec("true") }, ErrorKind::NotFound, "cwd"),
        (Exec { cwd: Some("/etc/passwd".into()), ..exec("true") }, ErrorKind::InvalidPath, "cwd"),
        (Exec { cwd: Some("relative".into()), ..exec("true") }, ErrorKind::InvalidPath, "cwd"),
        (Exec { user: Some("nobody-here".into()), ..exec("true") }, ErrorKind::InvalidRequest, "user"),
        (Exec { env: vec![("A=B".into(), "".into())], ..exec("true") }, ErrorKind::InvalidRequest, "env"),
        (argv(&[]), ErrorKind::InvalidRequest, "command"),
        (argv(&[""]), ErrorKind::InvalidRequest, "command"),
        (argv(&["a\0b"]), ErrorKind::InvalidRequest, "command"),
        (argv(&["/etc/passwd"]), ErrorKind::Permission, "command"),
        (argv(&["/no/such"]), ErrorKind::NotFound, "command"),
        (argv(&["/"]), ErrorKind::Permission, "command"),
        (Exec { command: Command::Shell("x".repeat(300_000)), ..exec("") }, ErrorKind::InvalidRequest, "command"),
    ];
    for (exec, kind, field) in cases {
        let (got, message) = error(&mut client, exec);
        assert!(got == kind && message.contains(field), "{got:?} {message}");
    }
    assert_eq!(client.run(&exec("echo alive")).stdout, "alive\n", "the connection goes on");
}

#[test]
fn a_user_gets_its_ids_groups_and_home() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let agent = Agent::start();
    let outcome = agent.connect().run(&Exec { user: Some("daemon".into()), ..exec("id -u; id -g; echo $HOME $USER") });
    assert_eq!(outcome.stdout, "1\n1\n/usr/sbin daemon\n");
    let outcome = agent.connect().run(&Exec { user: Some("4242".into()), ..exec("id -u; id -G") });
    assert_eq!(outcome.stdout, "4242\n4242\n");
}

#[test]
fn a_connection_carries_one_command_after_another() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.run(&exec("true"));
    let descriptors = agent.descriptors();
    for number in 0..100 {
        assert_eq!(client.run(&argv(&["echo", &number.to_string()])).stdout, format!("{number}\n"));
    }
    // Give or take the pipes that are made ahead and closed when nobody waits.
    assert!(agent.descriptors() <= descriptors + 8 && agent.zombies() == 0, "{} descriptors", agent.descriptors());
}

#[test]
fn commands_run_beside_each_other() {
    let agent = Agent::start();
    let mut slow = agent.connect();
    slow.start(&Exec { stdin: true, ..exec("read line; echo got $line") });
    assert_eq!(agent.sh("echo quick").stdout, "quick\n");
    slow.data(b"word\n");
    assert_eq!(slow.finish().stdout, "got word\n");
}

#[test]
fn closing_the_connection_kills_the_command_and_its_group() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let leader = client.start(&exec("sleep 1000 & echo $!; wait"));
    let Some(Reply::Output { data, .. }) = client.reply() else { panic!("no output") };
    let child: u32 = String::from_utf8(data.into_vec()).unwrap().trim().parse().unwrap();
    drop(client);
    eventually("the group's end", || state(leader).is_none() && state(child).is_none());
}

#[test]
fn closing_the_connection_kills_a_command_whose_output_and_input_are_stuck() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let leader = client.start(&Exec { stdin: true, ..exec("yes") });
    eventually("a full pipeline", || client.stream.peer_is_full());
    (0..4).for_each(|_| client.data(&[0; 65536]));
    drop(client);
    eventually("the command's end", || state(leader).is_none());
}

#[test]
fn orphans_are_taken_away() {
    let agent = Agent::start();
    let outcome = agent.sh("(setsid sh -c 'sleep 0.1; exit 3' & ) ; (sleep 0.05 &) ; true");
    assert_eq!(outcome.code(), 0);
    eventually("no children", || agent.children().is_empty());
}

#[test]
fn a_shell_line_may_hold_a_heredoc_and_any_character() {
    let agent = Agent::start();
    let outcome = agent.sh("cat <<'EOF'\nline $HOME \u{2028} 日本\nEOF\necho \"a'b\"");
    assert_eq!(outcome.stdout, "line $HOME \u{2028} 日本\na'b\n");
    assert_eq!(agent.sh("no-such-program-here").code(), 127, "the shell's own code");
}

/// A FUSE mount whose daemon never answers, until it is dropped.
struct StuckMount {
    folder: String,
    daemon: Option<std::fs::File>,
}

impl StuckMount {
    fn at(folder: String) -> Option<Self> {
        use std::os::fd::AsRawFd as _;
        std::fs::create_dir(&folder).unwrap();
        let daemon = std::fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", daemon.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("stuck", folder.as_str(), "fuse", flags, Some(options.as_c_str())).ok()?;
        Some(Self { folder, daemon: Some(daemon) })
    }
}

impl Drop for StuckMount {
    fn drop(&mut self) {
        self.daemon = None;
        let _ = rustix::mount::unmount(self.folder.as_str(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_stuck_mount_stops_only_the_command_that_starts_there() {
    let agent = Agent::start();
    assert_eq!(agent.sh("echo before").stdout, "before\n");
    let Some(mut mount) = StuckMount::at(agent.path("stuck")) else { return };
    let mut stuck = agent.connect();
    stuck.send(&Request::Exec(Box::new(Exec { cwd: Some(mount.folder.clone()), ..exec("echo there") })));
    for number in 0..20 {
        assert_eq!(agent.sh(&format!("echo {number}; exit 3")).stdout, format!("{number}\n"));
    }
    let outcome = agent.connect().run(&Exec { stdin: true, timeout_ms: Some(200), ..exec("cat") });
    assert_eq!(outcome.exit.status, ExitStatus::TimedOut);
    assert_eq!(error(&mut agent.connect(), argv(&["/no/such"])).0, ErrorKind::NotFound);
    mount.daemon = None;
    assert!(matches!(stuck.reply(), Some(Reply::Error { .. })), "the kernel gave the mount up");
    drop(mount);
    assert_eq!(agent.sh("echo after").stdout, "after\n");
    eventually("no children", || agent.children().is_empty());
}
