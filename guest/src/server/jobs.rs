//! The server's side of jobs: their start, what is done to them, and the connections that read their output.

use std::{io, time::Instant};

use cove_protocol::guest::{CHUNK_BYTES_MAX, FollowJob, JobAction, Reply, StartJob};
use rustix::event::epoll;

use super::{
    Server,
    connection::{Connection, Work},
    turns::Turn,
};
use crate::{
    failure::Failure,
    jobs::{Follower, Job},
    launch::Launched,
    token::{ROOM_EVENTS, Token},
};

impl Server<'_> {
    pub(super) fn start_job(&mut self, start: StartJob) -> Result<Reply, Failure> {
        let started = Instant::now();
        let program = self.launcher.program(&start.exec, &self.environment)?;
        let pipes = self.watch.pipes().map_err(|error| Failure::io("Cannot make pipes".into(), &error));
        let (id, pipes) = pipes?;
        let launched = self.launcher.launch(&start.exec, &program, pipes)?;
        Ok(self.keep_job(Job::new(id, launched, start, started)))
    }

    /// Goes on with a job that a worker started.
    pub(super) fn adopt_job(&mut self, launched: Launched, start: StartJob, started: Instant) -> Reply {
        let id = self.watch.next_id();
        if let Err(error) = self.watch.output(id, &launched.stdout, &launched.stderr) {
            eprintln!("cove-agent: the output of a job cannot be watched: {error}");
        }
        let exit = self.claim(launched.pid);
        let pid = launched.pid;
        let reply = self.keep_job(Job::new(id, launched, start, started));
        if let Some(status) = exit {
            self.jobs.note_exit(pid, status, Instant::now());
        }
        reply
    }

    fn keep_job(&mut self, job: Job) -> Reply {
        let reply = Reply::Job(job.info());
        self.jobs.add(job);
        reply
    }

    pub(super) fn act_on_job(&mut self, pid: i32, action: JobAction) -> io::Result<Reply> {
        let info = match self.jobs.act(pid, action) {
            Ok(info) => info,
            Err(failure) => return Ok(failure.into()),
        };
        if let Some(command) = self.jobs.command(pid) {
            let stdin = Token::Stdin(command.id).data();
            if let Some(pipe) = command.pump_stdin() {
                epoll::add(&self.watch, pipe, stdin, ROOM_EVENTS)?;
            }
        }
        Ok(Reply::Job(info))
    }

    /// Takes what the jobs wrote, and wakes those who read it.
    pub(super) fn pump_jobs(&mut self) {
        if !self.jobs.is_due() {
            return;
        }
        for pid in self.jobs.pump(&mut self.buffer) {
            let pid = pid.as_raw_nonzero().get();
            let follows = |connection: &&mut Connection| matches!(&connection.work, Work::Follow(f) if f.pid == pid);
            self.connections.iter_mut().filter(follows).for_each(|connection| connection.due = true);
        }
    }

    /// Begins to read a job's output. The first reply is where that begins.
    pub(super) fn follow(&mut self, at: usize, FollowJob { pid, from, follow }: FollowJob) -> Reply {
        match self.jobs.get(pid) {
            Ok(job) => {
                let position = from.clamp(job.log.start(), job.log.end());
                self.connections[at].work = Work::Follow(Follower { pid, at: position, follow });
                Reply::Position { at: position }
            }
            Err(failure) => failure.into(),
        }
    }

    pub(super) fn step_follow(&mut self, at: usize) -> io::Result<Turn> {
        let connection = &mut self.connections[at];
        let has_room = connection.has_room();
        let Connection { transport, work, .. } = connection;
        let Work::Follow(follower) = work else { return Ok(Turn::Waits) };
        if !has_room {
            return Ok(Turn::Waits);
        }
        let reply = match self.jobs.get(follower.pid) {
            // It ended long ago and made room for others.
            Err(failure) => failure.into(),
            Ok(job) => match job.log.read(follower.at, CHUNK_BYTES_MAX) {
                Some((position, stream, bytes)) => {
                    if position != follower.at {
                        transport.queue(&Reply::Position { at: position }).map_err(io::Error::other)?;
                    }
                    follower.at = position + bytes.len() as u64;
                    let data = bytes.to_vec().into();
                    transport.queue(&Reply::Output { stream, data }).map_err(io::Error::other)?;
                    return Ok(Turn::GoesOn);
                }
                None if follower.follow && !job.is_ended() => return Ok(Turn::Waits),
                None => {
                    // What came and was overwritten in one go is a gap too.
                    if follower.at != job.log.end() {
                        let position = Reply::Position { at: job.log.end() };
                        transport.queue(&position).map_err(io::Error::other)?;
                    }
                    Reply::Job(job.info())
                }
            },
        };
        transport.queue(&reply).map_err(io::Error::other)?;
        *work = Work::Idle;
        Ok(Turn::GoesOn)
    }
}
