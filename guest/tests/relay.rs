//! Streams to TCP ports of the guest: both directions, half-closes, resets, and who listens.

mod harness;

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, Shutdown, TcpListener, TcpStream},
    thread,
};

use cove_protocol::{
    frame,
    guest::{ErrorKind, Input, Reply, Request},
};
use harness::{Agent, Client, eventually};

/// More than all buffers on the way together.
const LARGE: usize = 8 << 20;

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn connect(agent: &Agent, port: u16) -> Client {
    let mut client = agent.connect();
    assert_eq!(client.ask(&Request::Connect { port }), Reply::Connected);
    client
}

fn stream(agent: &Agent) -> (Client, TcpStream) {
    let (listener, port) = listener();
    let client = connect(agent, port);
    (client, listener.accept().unwrap().0)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Replies up to one that is not data, with the data.
fn drain(client: &mut Client) -> (Vec<u8>, Reply) {
    let mut all = Vec::new();
    loop {
        match client.reply().unwrap() {
            Reply::Data(data) => all.extend_from_slice(&data),
            other => return (all, other),
        }
    }
}

#[test]
fn bytes_go_both_ways_whole_and_each_direction_ends_by_itself() {
    let agent = Agent::start();
    let (mut client, mut program) = stream(&agent);
    let mut sending = client.stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        for chunk in bytes(LARGE).chunks(60_000) {
            frame::write(&mut sending, &Input::Data(chunk.to_vec().into())).unwrap();
        }
        frame::write(&mut sending, &Input::End).unwrap();
    });
    // It answers only when it has heard all: the direction back is open after the first one's end.
    let echo = thread::spawn(move || {
        let mut heard = Vec::new();
        program.read_to_end(&mut heard).unwrap();
        program.write_all(&heard).unwrap();
    });
    let (back, last) = drain(&mut client);
    assert!(back == bytes(LARGE));
    assert_eq!(last, Reply::End);
    assert_eq!(client.reply(), Some(Reply::Done));
    writer.join().unwrap();
    echo.join().unwrap();
    // The connection may carry the next operation.
    assert!(matches!(client.ask(&Request::Hello), Reply::Hello { .. }));
}

#[test]
fn a_program_that_ends_first_still_hears_the_rest() {
    let agent = Agent::start();
    let (mut client, mut program) = stream(&agent);
    program.write_all(b"bye").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&mut client), (b"bye".to_vec(), Reply::End));
    client.input(&Input::Data(b"and you".to_vec().into()));
    client.input(&Input::End);
    let mut heard = Vec::new();
    program.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"and you");
    assert_eq!(client.reply(), Some(Reply::Done));
}

#[test]
fn nobody_listens_and_no_such_port() {
    let agent = Agent::start();
    let (listener, port) = listener();
    drop(listener);
    let mut client = agent.connect();
    for (port, kind) in [(port, ErrorKind::Refused), (0, ErrorKind::InvalidRequest)] {
        let Reply::Error { kind: found, .. } = client.ask(&Request::Connect { port }) else { panic!() };
        assert_eq!(found, kind);
    }
    assert!(matches!(client.ask(&Request::Hello), Reply::Hello { .. }));
}

#[test]
fn a_program_on_ipv6_alone_is_reached() {
    let agent = Agent::start();
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    let mut client = connect(&agent, listener.local_addr().unwrap().port());
    listener.accept().unwrap().0.write_all(b"six").unwrap();
    assert_eq!(drain(&mut client).0, b"six");
}

#[test]
fn a_reset_is_told_from_an_end_in_both_directions() {
    let agent = Agent::start();
    let (mut client, program) = stream(&agent);
    // Closed with unread bytes: the kernel resets.
    client.input(&Input::Data(b"unread".to_vec().into()));
    eventually("the bytes", || program.peek(&mut [0; 10]).is_ok_and(|count| count == 6));
    drop(program);
    assert!(matches!(client.reply(), Some(Reply::Error { kind: ErrorKind::Io, .. })));

    let (client, mut program) = stream(&agent);
    drop(client);
    let error = program.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_peer_that_reads_nothing_stops_the_program_and_nobody_else() {
    let agent = Agent::start();
    let (mut client, mut program) = stream(&agent);
    let sent = thread::spawn(move || program.write_all(&bytes(LARGE)).and_then(|()| program.shutdown(Shutdown::Write)));
    let mut other = agent.connect();
    assert!(matches!(other.ask(&Request::Hello), Reply::Hello { .. }));
    thread::park_timeout(std::time::Duration::from_millis(300));
    assert!(!sent.is_finished(), "all was taken, though nobody reads it");
    assert!(agent.memory().0 < 16 << 20, "it is not kept in the agent");
    assert!(drain(&mut client).0 == bytes(LARGE));
    sent.join().unwrap().unwrap();
}

#[test]
fn what_no_stream_can_take_ends_the_connection() {
    let agent = Agent::start();
    let (mut client, _program) = stream(&agent);
    client.input(&Input::End);
    client.input(&Input::Data(b"after the end".to_vec().into()));
    assert_eq!(client.stream.read(&mut [0; 10]).unwrap_or(0), 0);
    assert!(matches!(agent.connect().ask(&Request::Hello), Reply::Hello { .. }));
}

#[test]
fn listeners_are_told_with_their_process() {
    let agent = Agent::start();
    let (_listener, port) = listener();
    let Reply::Listeners(found) = agent.connect().ask(&Request::Listeners) else { panic!() };
    let ours = found.iter().find(|listener| listener.port == port).unwrap();
    assert_eq!(ours.pid, Some(std::process::id() as i32));
    assert!(ours.address.is_loopback());
}
