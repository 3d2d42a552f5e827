//! Commands whose stream a restore of the machine broke: nobody hears them any more, and they go on.

mod harness;

use std::fs;

use cove_protocol::guest::Exec;
use harness::{Agent, eventually, exec, state};

/// Starts a line and breaks its stream: what it said is left unread.
fn start_and_break(agent: &Agent, exec: &Exec) -> u32 {
    let mut client = agent.connect();
    let pid = client.start(exec);
    eventually("something to leave unread", || rustix::io::ioctl_fionread(&client.stream).unwrap() > 0);
    pid
}

#[test]
fn a_command_goes_on_and_its_output_does_not_block_it() {
    let agent = Agent::start_with_resets();
    let mark = agent.path("mark");
    let line = format!(
        "echo before; read -t 0.2 < <(sleep 9); head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2; echo $? > {mark}"
    );
    let pid = start_and_break(&agent, &exec(&line));
    eventually("its end", || fs::read_to_string(&mark).is_ok_and(|text| text == "0\n") && state(pid).is_none());
    assert_eq!(agent.zombies(), 0);
    assert_eq!(agent.sh("echo next").stdout, "next\n");
}

#[test]
fn its_standard_input_stays_open_and_its_time_still_runs_out() {
    let agent = Agent::start_with_resets();
    let descriptors = agent.descriptors();
    let pid = start_and_break(&agent, &Exec { stdin: true, timeout_ms: Some(300), ..exec("echo before; cat") });
    assert_eq!(agent.sh("true").code(), 0);
    assert_eq!(state(pid), Some('S'), "not at the end of its input");
    eventually("its time's end", || state(pid).is_none());
    eventually("its pipes' end", || agent.descriptors() <= descriptors + 4);
}

#[test]
fn a_peer_that_closes_still_cancels() {
    let agent = Agent::start_with_resets();
    let mut client = agent.connect();
    let pid = client.start(&exec("sleep 60; echo"));
    drop(client);
    eventually("the end of a cancelled command", || state(pid).is_none());
}
