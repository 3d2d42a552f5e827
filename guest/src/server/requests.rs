//! What each request begins.

use std::io;

use cove_protocol::guest::{Configure, Reply, Request};

use super::{Server, commands::started_reply, turns::Turn};
use crate::{
    environment,
    failure::Failure,
    workers::{Task, Wanted},
};

impl Server<'_> {
    pub(super) fn begin(&mut self, at: usize, request: Request) -> io::Result<Turn> {
        let reply = match request {
            Request::Hello => self.host.hello(),
            Request::Configure(configure) => match self.configure(configure) {
                Ok(()) => Reply::Done,
                Err(failure) => failure.into(),
            },
            Request::SetClock { clock_us } => match self.host.set_clock(clock_us) {
                Ok(()) => Reply::Done,
                Err(failure) => failure.into(),
            },
            Request::Exec(exec) if self.mounts.may_hang() => return Ok(self.lend(Wanted::Command(exec))),
            Request::Exec(exec) => self.start(at, &exec).map_or_else(Reply::from, started_reply),
            Request::Connect { port } => match self.connect(at, port) {
                Ok(()) => return Ok(Turn::GoesOn),
                Err(failure) => failure.into(),
            },
            Request::Listeners => return Ok(Turn::Lends(Task::Listeners)),
            Request::StartJob(start) => match self.jobs.check(&start) {
                Ok(()) if self.mounts.may_hang() => return Ok(self.lend(Wanted::Job(start))),
                Ok(()) => self.start_job(*start).unwrap_or_else(Reply::from),
                Err(failure) => failure.into(),
            },
            Request::ListJobs => Reply::Jobs(self.jobs.infos()),
            Request::Job { pid, action } => self.act_on_job(pid, action)?,
            Request::FollowJob(follow) => self.follow(at, follow),
            Request::OpenTerminal(open) => match self.terminals.check(&open) {
                Ok(()) if self.mounts.may_hang() => return Ok(self.lend(Wanted::Terminal(open))),
                Ok(()) => self.open_terminal(&open).unwrap_or_else(Reply::from),
                Err(failure) => failure.into(),
            },
            Request::ListTerminals => Reply::Terminals(self.terminal_infos()),
            Request::CloseTerminal { session } => self.close_terminal(session),
            Request::AttachTerminal(attach) => self.attach_terminal(at, attach),
            Request::Sync => return Ok(Turn::Lends(Task::Sync { may_hang: self.mounts.may_hang() })),
            Request::Prepare => return Ok(Turn::Lends(Task::Prepare)),
            request => return Ok(Turn::Lends(Task::File(request))),
        };
        self.connections[at].transport.queue(&reply).map_err(io::Error::other)?;
        Ok(Turn::GoesOn)
    }

    /// A worker starts it, since that may hang.
    fn lend(&self, wanted: Wanted) -> Turn {
        Turn::Lends(Task::Start(wanted, self.environment.clone()))
    }

    fn configure(&mut self, configure: Configure) -> Result<(), Failure> {
        configure.env.iter().try_for_each(|(name, value)| environment::check(name, value))?;
        self.host.configure(&configure)?;
        self.environment = configure.env;
        Ok(())
    }
}
