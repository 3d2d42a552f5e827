//! A shell that waited for its line against one that was started for it: nobody must be able to tell them apart.
//!
//! Needs Debian's `bash-static` (`cargo xtask setup --group test`). Where the test lacks the right to move a process's
//! arguments (CAP_SYS_RESOURCE), which the agent has in a machine, they are not compared as the kernel shows them.

mod harness;

use std::{collections::BTreeSet, fs};

use cove_protocol::guest::{Command, Exec, ExitStatus, Reply, Request};
use harness::{Agent, Outcome, argv, eventually, exec, state};

/// What a shell can tell of itself. `$$` is masked afterwards, since it differs between any two processes.
const TELL_TALES: [&str; 28] = [
    "env | sort",
    "echo \"$0|$-|$#|$*|$BASH_EXECUTION_STRING|$SHLVL|$PWD|$OLDPWD|$BASH|$BASH_ARGV0|$PPID|$UID|$EUID|${GROUPS[*]}\"",
    "echo $$ $BASHPID; [ $$ = $BASHPID ] && echo same",
    "shopt; shopt -o; trap; umask; ulimit -aS; ulimit -aH",
    "declare -p | grep -vE '(BASHPID|EPOCH|RANDOM|SRANDOM|SECONDS|BASH_ARGV|LINENO|PIPESTATUS)'",
    "tr '\\0' '|' < /proc/$$/cmdline; tr '\\0' '\\n' < /proc/$$/environ; cat /proc/$$/comm",
    "readlink /proc/$$/exe /proc/$$/cwd /proc/$$/root",
    "cat /proc/$$/oom_score_adj /proc/$$/cgroup /proc/$$/limits /proc/$$/coredump_filter /proc/$$/personality",
    "grep -E '^(Umask|Tgid|NSpid|PPid|TracerPid|Uid|Gid|FDSize|Groups|Threads|Sig[PBIC]|Shd|Cap|NoNew|Seccomp|Cpus_a)' /proc/$$/status",
    "set -- $(cat /proc/$$/stat); echo $1 $2 $4 $5 $6 $7 $8 ${18} ${19} ${20} ${41}",
    // Without a pipeline of its own, whose ends the shell would hold for a moment.
    "for f in /proc/$$/fd/*; do t=other; [ -p $f ] && t=pipe; [ -c $f ] && t=device; echo ${f##*/} $t; done",
    "od -An -v -w16 -tu8 /proc/$$/auxv | awk '{ print $1 }'",
    "ls -d /proc/$$/task/*; cat /proc/$$/timers /proc/$$/sessionid 2>/dev/null",
    "read line; echo \"$?|$line\"; cat; [ -t 0 ] || echo no terminal",
    "exit 7",
    "kill -TERM $$; sleep 9",
    "exec true",
    "exec -a other sh -c 'echo $0; exit 3'",
    "(exit 4); echo $?; false || echo no; ! true; echo $?",
    "cat <<END\nhere $((6 * 7)) \u{2028} ü\nEND",
    "(read; echo late) < /dev/null & echo now; wait; echo $?",
    "cd /nowhere; echo $?; nowhere-program; echo $?",
    "if then",
    "echo out; echo err >&2; printf '\\0\\377'",
    "head -c 1000000 /dev/zero | tr '\\0' x | sha256sum",
    "set -x; A=1; f() { local b=2; echo $A$b \"$@\"; }; f a 'b c'",
    "ulimit -n 100; ulimit -n; umask 077; umask; nice",
    "bash -c 'echo $0 $SHLVL $PPID' | cut -d' ' -f1,2; printf '%s\\n' ${BASH_VERSINFO[@]}",
];

/// The shell that waits, once it does.
fn waiting(agent: &Agent) -> u32 {
    assert_eq!(agent.connect().ask(&Request::Prepare), Reply::Done);
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    agent.children().into_iter().find(|pid| name(pid).starts_with("bash (waiting)")).expect("a waiting shell")
}

fn may_move_arguments() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE)
}

/// The line's outcome and who ran it.
fn run(agent: &Agent, exec: &Exec) -> (u32, Outcome) {
    let mut client = agent.connect();
    let pid = client.start(exec);
    (pid, client.finish())
}

/// What can be compared: the process's own number is no part of it.
fn told(pid: u32, outcome: &Outcome) -> (String, String, ExitStatus) {
    let number = pid.to_string();
    // As a word of its own: the digits may also be part of another number.
    let mask = |text: &str| {
        let mut masked = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(&number) {
            let (before, after) = (&rest[..at], &rest[at + number.len()..]);
            let part = before.ends_with(|letter: char| letter.is_ascii_digit())
                || after.starts_with(|letter: char| letter.is_ascii_digit());
            masked.push_str(before);
            masked.push_str(if part { &number } else { "PID" });
            rest = after;
        }
        masked + rest
    };
    (mask(&outcome.stdout), mask(&outcome.stderr), outcome.exit.status)
}

/// Runs `exec` in the waiting shell and in one of its own, and compares.
fn compare(agent: &Agent, exec: &Exec) {
    let shell = waiting(agent);
    let (pid, ours) = run(agent, exec);
    assert_eq!(pid, shell, "the waiting shell ran {exec:?}");
    // Without it the same program is started for the line.
    let shell = waiting(agent);
    rustix::process::kill_process(rustix::process::Pid::from_raw(shell as i32).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    eventually("its end", || state(shell).is_none());
    let (other, theirs) = run(agent, exec);
    assert_ne!(other, shell);
    assert_eq!(told(pid, &ours), told(other, &theirs), "{exec:?}");
}

#[test]
fn a_shell_that_waited_is_as_one_that_was_started() {
    let agent = Agent::start_with_fast_shell();
    for line in TELL_TALES.into_iter().filter(|line| may_move_arguments() || !line.contains("cmdline")) {
        compare(&agent, &exec(line));
    }
}

#[test]
fn environment_and_directory_are_the_requests() {
    let agent = Agent::start_with_fast_shell();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let folder = agent.path("with space ü");
    fs::create_dir(&folder).unwrap();
    for cwd in ["/", "/proc/self", &folder] {
        let env = vec![pair("PATH", "/bin"), pair("EMPTY", ""), pair("A", "a b\n\u{2028}"), pair("HOME", "/nowhere")];
        compare(&agent, &Exec { cwd: Some(cwd.into()), env, ..exec("pwd; echo $PWD; env | sort; echo ~") });
    }
}

#[test]
fn a_request_that_it_cannot_be_leaves_the_shell_waiting() {
    let agent = Agent::start_with_fast_shell();
    let shell = waiting(&agent);
    let large = vec![("LARGE".to_owned(), "x".repeat(20_000))];
    let others = [
        Exec { env: large, ..exec("echo ${#LARGE}") },
        Exec { user: Some("nobody".into()), ..exec("echo $USER") },
        Exec { command: Command::Argv(vec!["echo".into(), "2".into()]), ..exec("") },
    ];
    for exec in &others {
        assert_ne!(run(&agent, exec).0, shell, "{exec:?}");
    }
    let mut client = agent.connect();
    assert_ne!(client.start(&Exec { stdin: true, ..exec("cat") }), shell);
    client.data(b"read");
    client.input(&cove_protocol::guest::Input::End);
    assert_eq!(client.finish().stdout, "read");
    for cwd in ["/nowhere", "/etc/passwd"] {
        let request = Request::Exec(Box::new(Exec { cwd: Some(cwd.into()), ..exec("pwd") }));
        match agent.connect().ask(&request) {
            Reply::Error { message, .. } => assert!(message.starts_with("cwd: "), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(run(&agent, &exec("echo 2")).0, shell);
}

#[test]
fn its_end_is_a_commands_end() {
    let agent = Agent::start_with_fast_shell();
    let shell = waiting(&agent);
    let (pid, outcome) = run(&agent, &Exec { timeout_ms: Some(50), ..exec("sleep 60 & wait") });
    assert_eq!((pid, outcome.exit.status), (shell, ExitStatus::TimedOut));

    let shell = waiting(&agent);
    let mut client = agent.connect();
    assert_eq!(client.start(&exec("sleep 60; echo")), shell);
    drop(client);
    eventually("the end of a cancelled command", || state(shell).is_none());
}

#[test]
fn each_is_used_once_and_prepared_before_it_is_asked_for() {
    let agent = Agent::start_with_fast_shell();
    assert_eq!(agent.connect().ask(&Request::Prepare), Reply::Done);
    let descriptors = agent.descriptors();
    let mut used = BTreeSet::new();
    for _ in 0..20 {
        let shell = waiting(&agent);
        assert!(used.insert(run(&agent, &exec("echo $$")).0), "{shell} ran twice");
        assert_eq!(run(&agent, &argv(&["true"])).1.code(), 0);
    }
    waiting(&agent);
    eventually("as many descriptors as before", || agent.descriptors() <= descriptors + 1);
    assert_eq!(agent.children().len(), 1);
}
