//! Connections: what strangers may send, how many there may be, and the end.

mod harness;

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use cove_protocol::{
    frame,
    guest::{Configure, ErrorKind, Reply, Request},
};
use harness::{Agent, eventually, exec};

#[test]
fn hello_says_who_answers() {
    let agent = Agent::start();
    let Reply::Hello { version, boot_us, kernel } = agent.connect().ask(&Request::Hello) else { panic!() };
    assert_eq!(version, cove_protocol::VERSION);
    assert!(boot_us > 0 && !kernel.is_empty());
}

#[test]
fn a_hostile_peer_loses_its_connection_and_nobody_elses() {
    let agent = Agent::start();
    let mut good = agent.connect();
    let too_large = (frame::FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec();
    let unknown = [vec![1, 0, 0, 0], vec![200]].concat();
    let trailing = [vec![2, 0, 0, 0], vec![0, 0]].concat();
    let lying = [vec![9, 0, 0, 0], vec![3, 255, 255, 255, 255, 15, 1, 1, 1]].concat();
    for bytes in [too_large, unknown, trailing, lying, vec![0; 100]] {
        let mut bad = agent.connect();
        bad.stream.write_all(&bytes).unwrap();
        assert_eq!(bad.stream.read(&mut [0; 100]).unwrap_or(0), 0, "closed: {bytes:?}");
    }
    let mut bad = agent.connect();
    bad.start(&exec("sleep 1000"));
    bad.stream.write_all(&[1, 0, 0, 0, 99]).unwrap();
    assert!(bad.reply().is_none());
    eventually("the command's end", || agent.children().is_empty());
    assert_eq!(good.run(&exec("echo fine")).stdout, "fine\n");
}

#[test]
fn a_frame_may_come_in_pieces_and_many_at_once() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let hello = frame::encode(&Request::Hello).unwrap();
    for byte in &hello {
        client.stream.write_all(&[*byte]).unwrap();
    }
    assert!(matches!(client.reply(), Some(Reply::Hello { .. })));
    let stat = frame::encode(&Request::Stat { path: "/".into() }).unwrap();
    client.stream.write_all(&[hello.clone(), stat, hello].concat()).unwrap();
    assert!(matches!(client.reply(), Some(Reply::Hello { .. })));
    assert!(matches!(client.reply(), Some(Reply::FileInfo(_))));
    assert!(matches!(client.reply(), Some(Reply::Hello { .. })));
}

#[test]
fn a_peer_that_asks_and_never_listens_costs_bounded_memory() {
    let agent = Agent::start();
    let client = agent.connect();
    client.stream.set_nonblocking(true).unwrap();
    let hellos = frame::encode(&Request::Hello).unwrap().repeat(10_000);
    let mut sent = 0;
    eventually("a peer that is not read any more", || match (&client.stream).write(&hellos) {
        Ok(count) => {
            sent += count;
            false
        }
        Err(_) => true,
    });
    assert_eq!(agent.sh("echo on").stdout, "on\n");
    assert!(agent.memory().1 < 16 << 20, "{sent} bytes sent, {:?}", agent.memory());
}

#[test]
fn connections_have_a_maximum_and_come_back() {
    let agent = Agent::start();
    let clients: Vec<_> = (0..192).map(|_| agent.connect()).collect();
    let mut more = agent.connect();
    assert!(more.reply().is_none(), "the 193rd is closed");
    drop(clients);
    // The agent learns of the closed ones in the same queue as of the new one.
    assert_eq!(agent.sh("echo again").stdout, "again\n");
}

#[test]
fn a_bad_configuration_names_its_field_and_changes_nothing() {
    let agent = Agent::start();
    let mut client = agent.connect();
    for (hostname, name, field) in [("", "A", "hostname"), ("a b", "A", "hostname"), ("box", "A=", "env")] {
        let configure =
            Configure { hostname: hostname.into(), env: vec![(name.into(), "1".into())], ..Default::default() };
        match client.ask(&Request::Configure(configure)) {
            Reply::Error { kind: ErrorKind::InvalidRequest, message } => assert!(message.contains(field), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.run(&exec("echo ${A-unset}")).stdout, "unset\n");
}

#[test]
fn a_half_closed_peer_is_gone() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.start(&exec("sleep 1000"));
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.reply().is_none());
    eventually("the command's end", || agent.children().is_empty());
}

#[test]
fn power_off_is_answered() {
    let agent = Agent::start();
    assert_eq!(agent.connect().ask(&Request::PowerOff), Reply::Done);
}

#[test]
fn a_clock_is_set_between_other_requests() {
    let agent = Agent::start();
    let mut client = agent.connect();
    assert_eq!(client.ask(&Request::SetClock { clock_us: 1 }), Reply::Done);
    assert_eq!(client.run(&exec("echo on")).stdout, "on\n");
}

#[test]
fn a_prepared_machine_and_its_disk_are_told_of() {
    let agent = Agent::start();
    let mut client = agent.connect();
    assert_eq!(client.ask(&Request::Prepare), Reply::Done);
    assert_eq!(client.ask(&Request::Sync), Reply::Done);
}
