//! Jobs, through the agent's real server and real processes.

mod harness;

use cove_protocol::guest::{
    ErrorKind, Exec, ExitStatus, FollowJob, JobAction, JobInfo, Reply, Request, StartJob, Stream,
};
use harness::{Agent, Client, eventually, exec, state};

fn start(client: &mut Client, exec: Exec) -> JobInfo {
    let request =
        Request::StartJob(Box::new(StartJob { exec: Exec { stdin: true, ..exec }, name: Some("job".into()) }));
    job(client.ask(&request))
}

fn job(reply: Reply) -> JobInfo {
    match reply {
        Reply::Job(job) => job,
        other => panic!("{other:?}"),
    }
}

fn act(client: &mut Client, pid: i32, action: JobAction) -> JobInfo {
    job(client.ask(&Request::Job { pid, action }))
}

/// Positions, the text of each stream, and the job at the end.
fn follow(client: &mut Client, pid: i32, from: u64, follow: bool) -> (Vec<u64>, String, String, JobInfo) {
    client.send(&Request::FollowJob(FollowJob { pid, from, follow }));
    let (mut positions, mut out, mut err) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match client.reply().expect("a reply") {
            Reply::Position { at } => positions.push(at),
            Reply::Output { stream: Stream::Stdout, data } => out.extend_from_slice(&data),
            Reply::Output { stream: Stream::Stderr, data } => err.extend_from_slice(&data),
            Reply::Job(job) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (positions, text(&out), text(&err), job);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_job_outlives_its_connection_and_its_end_is_kept() {
    let agent = Agent::start();
    let started = start(&mut agent.connect(), exec("echo out; echo err >&2; read line; echo got $line; exit 3"));
    assert_eq!((started.name.as_deref(), started.exit, started.stdin_open), (Some("job"), None, true));
    assert!(started.started_us > 1_600_000_000_000_000 && started.command.starts_with("echo out"));
    let mut client = agent.connect();
    act(&mut client, started.pid, JobAction::Write(b"it\n".to_vec().into()));
    let (positions, out, err, ended) = follow(&mut agent.connect(), started.pid, 0, true);
    assert_eq!((positions, out.as_str(), err.as_str()), (vec![0], "out\ngot it\n", "err\n"));
    assert_eq!(ended.exit.unwrap().status, ExitStatus::Code(3));
    assert_eq!((ended.output_from, ended.output_to, ended.stdin_open), (0, 15, false));
    // The connection is of use for more, and the end is kept.
    let again = act(&mut client, started.pid, JobAction::Describe);
    assert_eq!(again.exit, ended.exit);
    // The order of the two streams is only that in which they were read.
    let (_, out, err, _) = follow(&mut client, started.pid, 8, false);
    assert_eq!(out.len() + err.len(), 7);
    assert_eq!(agent.zombies(), 0);
}

#[test]
fn reading_without_following_ends_with_what_there_is() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let pid = start(&mut client, exec("echo now; sleep 1000")).pid;
    eventually("its output", || act(&mut client, pid, JobAction::Describe).output_to == 4);
    let (_, out, _, job) = follow(&mut client, pid, 0, false);
    assert_eq!((out.as_str(), job.exit), ("now\n", None));
    act(&mut client, pid, JobAction::Signal(libc::SIGKILL));
}

#[test]
fn what_is_overwritten_is_told() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let before = agent.memory().0;
    let pid = start(&mut client, exec("head -c 30000000 /dev/zero | tr '\\0' x")).pid;
    let (_, _, _, ended) = follow(&mut client, pid, u64::MAX, true);
    assert_eq!((ended.output_to, ended.exit.unwrap().status), (30_000_000, ExitStatus::Code(0)));
    assert!(ended.output_from >= 29_000_000, "{ended:?}");
    let (positions, out, _, _) = follow(&mut client, pid, 5, true);
    assert_eq!(positions, [ended.output_from]);
    assert_eq!(out.len() as u64, ended.output_to - ended.output_from);
    assert!(agent.memory().1 < before + (6 << 20), "the output is bounded");
}

#[test]
fn stop_is_polite_first_and_signals_reach_the_group() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let polite = start(&mut client, exec("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done")).pid;
    eventually("its trap", || act(&mut client, polite, JobAction::Describe).output_to > 0);
    act(&mut client, polite, JobAction::Stop { grace_ms: 20_000 });
    let (_, out, _, ended) = follow(&mut client, polite, 0, true);
    assert_eq!((out.as_str(), ended.exit.unwrap().status), ("up\nbye\n", ExitStatus::Code(7)));

    let stubborn = start(&mut client, exec("trap '' TERM; echo up; while :; do sleep 0.05; done")).pid;
    eventually("its trap", || act(&mut client, stubborn, JobAction::Describe).output_to > 0);
    act(&mut client, stubborn, JobAction::Stop { grace_ms: 300 });
    let (_, _, _, ended) = follow(&mut client, stubborn, 0, true);
    assert_eq!(ended.exit.unwrap().status, ExitStatus::Signal(libc::SIGKILL));

    let pid = start(&mut client, exec("sleep 1000 & echo $!; wait")).pid;
    eventually("its child", || act(&mut client, pid, JobAction::Describe).output_to > 0);
    act(&mut client, pid, JobAction::Signal(libc::SIGCONT));
    act(&mut client, pid, JobAction::Signal(libc::SIGKILL));
    let (_, out, _, _) = follow(&mut client, pid, 0, true);
    let child: u32 = out.trim().parse().unwrap();
    eventually("the child's end", || state(child).is_none());
}

#[test]
fn wrong_requests_are_refused_with_a_reason() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let kind = |reply: Reply| match reply {
        Reply::Error { kind, .. } => kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(client.ask(&Request::Job { pid: 1, action: JobAction::Describe })), ErrorKind::NotFound);
    let follow = Request::FollowJob(FollowJob { pid: -5, from: 0, follow: true });
    assert_eq!(kind(client.ask(&follow)), ErrorKind::NotFound);
    let pid = start(&mut client, exec("sleep 1000")).pid;
    for action in [JobAction::Signal(0), JobAction::Signal(-9), JobAction::Signal(65)] {
        assert_eq!(kind(client.ask(&Request::Job { pid, action })), ErrorKind::InvalidRequest);
    }
    // It reads nothing: the pipe's 64 KiB and what the agent holds, then no more.
    let chunk = || JobAction::Write(vec![b'x'; 60_000].into());
    let refused =
        (0..10).map(|_| client.ask(&Request::Job { pid, action: chunk() })).find(|r| matches!(r, Reply::Error { .. }));
    assert_eq!(kind(refused.expect("a bound")), ErrorKind::Busy);
    act(&mut client, pid, JobAction::Signal(libc::SIGKILL));
    eventually("its end", || act(&mut client, pid, JobAction::Describe).exit.is_some());
    assert_eq!(kind(client.ask(&Request::Job { pid, action: chunk() })), ErrorKind::InvalidRequest);
    let name = Some("x".repeat(1000));
    let long = Request::StartJob(Box::new(StartJob { exec: exec("true"), name }));
    assert_eq!(kind(client.ask(&long)), ErrorKind::InvalidRequest);
}

#[test]
fn so_many_run_and_so_many_ended_ones_are_kept() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let descriptors = agent.descriptors();
    for _ in 0..40 {
        let pid = start(&mut client, exec("true")).pid;
        follow(&mut client, pid, 0, true);
    }
    let Reply::Jobs(jobs) = client.ask(&Request::ListJobs) else { panic!() };
    assert!((32..=33).contains(&jobs.len()), "{}", jobs.len());
    assert!(agent.descriptors() <= descriptors + 6, "ended jobs keep no descriptors");
    let running: Vec<i32> = (0..64).map(|_| start(&mut client, exec("exec sleep 1000")).pid).collect();
    let one_more = Request::StartJob(Box::new(StartJob { exec: exec("true"), name: None }));
    assert!(matches!(client.ask(&one_more), Reply::Error { kind: ErrorKind::Busy, .. }));
    for pid in running {
        act(&mut client, pid, JobAction::Signal(libc::SIGKILL));
    }
}
