//! The server's side of streams to ports.

use std::io;

use rustix::event::epoll;

use super::{
    Server,
    connection::{Connection, Work},
    turns::Turn,
};
use crate::{
    failure::Failure,
    relay::{Relay, Step},
    token::{RELAY_EVENTS, Token},
};

impl Server<'_> {
    pub(super) fn connect(&mut self, at: usize, port: u16) -> Result<(), Failure> {
        let relay = Box::new(Relay::connect(port)?);
        let connection = &mut self.connections[at];
        epoll::add(&self.watch, &*relay, Token::Relay(connection.id).data(), RELAY_EVENTS)
            .map_err(|error| Failure::io("Cannot watch a socket".into(), &error.into()))?;
        connection.work = Work::Relay(relay);
        Ok(())
    }

    pub(super) fn step_relay(&mut self, at: usize) -> io::Result<Turn> {
        let Connection { id, transport, work, .. } = &mut self.connections[at];
        let Work::Relay(relay) = work else { return Ok(Turn::Waits) };
        match relay.step(transport, &mut self.buffer)? {
            Step::Waits => return Ok(Turn::Waits),
            Step::GoesOn => {}
            Step::Reconnects => epoll::add(&self.watch, &**relay, Token::Relay(*id).data(), RELAY_EVENTS)?,
            Step::Ends(reply) => {
                transport.queue(&reply).map_err(io::Error::other)?;
                *work = Work::Idle;
            }
        }
        Ok(Turn::GoesOn)
    }
}
