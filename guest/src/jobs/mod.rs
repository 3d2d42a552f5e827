//! The jobs of a machine: commands that belong to no connection.
//!
//! ```text
//!   started ──► running ── its leader ended ──► draining ── all it wrote is kept ──► ended (the last ENDED_MAX stay)
//!                  └─ Stop: SIGTERM, later SIGKILL
//! ```
//!
//! Here and not in the engine, so that they outlive the server, and a restore of the machine brings them back. A job never
//! waits for a reader: its newest output is kept ([`log`]), and who is too late is told what is missing. Their standard
//! input stays open unless somebody closes it. Called by `server::jobs`.

mod log;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cove_protocol::guest::{
    ErrorKind, Exit, ExitStatus, Input, JOB_NAME_BYTES_MAX, JOB_OUTPUT_BYTES_MAX, JobAction, JobInfo, StartJob,
};
use rustix::process::Pid;

pub use self::log::Log;

use crate::{
    command::{RunningCommand, STDIN_BYTES_MAX},
    failure::Failure,
    launch::Launched,
    process::signal_group,
};

/// Jobs that may run at one time.
pub const RUNNING_MAX: usize = 64;

/// Ended ones that are kept.
const ENDED_MAX: usize = 32;

/// Bytes of output that are kept of an ended one.
const ENDED_OUTPUT_BYTES_MAX: usize = 256 << 10;

/// Signal numbers that may be sent.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// Chunks of output taken from one job before the others get their turn.
const STEPS_PER_TURN: usize = 8;

/// Longest command in a description, in characters.
const COMMAND_CHARS_MAX: usize = 500;

/// One job.
#[derive(Debug)]
pub struct Job {
    /// Its process id, which names it.
    pub pid: Pid,
    name: Option<String>,
    text: String,
    started_us: u64,
    /// While it runs, and until all that it wrote is kept.
    command: Option<RunningCommand>,
    exit: Option<Exit>,
    /// When SIGKILL follows.
    kill_at: Option<Instant>,
    /// What it wrote.
    pub log: Log,
    /// Its pipes may hold something.
    due: bool,
}

impl Job {
    /// A job that was just started.
    pub fn new(id: u64, launched: Launched, start: StartJob, at: Instant) -> Self {
        Self {
            pid: launched.pid,
            text: start.exec.command.text(COMMAND_CHARS_MAX),
            name: start.name,
            started_us: now_us(),
            command: Some(RunningCommand::new(id, launched, &start.exec, at)),
            exit: None,
            kill_at: None,
            log: Log::new(JOB_OUTPUT_BYTES_MAX),
            due: true,
        }
    }

    /// All that it wrote is kept, and it is over.
    pub fn is_ended(&self) -> bool {
        self.exit.is_some()
    }

    /// How it is.
    pub fn info(&self) -> JobInfo {
        JobInfo {
            pid: self.pid.as_raw_nonzero().get(),
            name: self.name.clone(),
            command: self.text.clone(),
            started_us: self.started_us,
            exit: self.exit,
            output_from: self.log.start(),
            output_to: self.log.end(),
            stdin_open: self.command.as_ref().is_some_and(RunningCommand::has_stdin),
        }
    }

    /// Moves output into the log, a bounded amount. True when there is more.
    fn pump(&mut self, buffer: &mut [u8]) -> bool {
        let Some(command) = &mut self.command else { return false };
        let mut moved = true;
        for _ in 0..STEPS_PER_TURN {
            // The log takes everything.
            moved = command.pump_output(&mut self.log, buffer).unwrap_or(false);
            if !moved {
                break;
            }
        }
        if let Some(exit) = command.finished() {
            self.exit = Some(exit);
            self.command = None;
            self.kill_at = None;
            self.log.limit(ENDED_OUTPUT_BYTES_MAX);
            return false;
        }
        moved
    }
}

/// All of them, in the order of their start.
#[derive(Debug, Default)]
pub struct Jobs {
    jobs: Vec<Job>,
}

impl Jobs {
    /// Refuses what cannot be started.
    ///
    /// # Errors
    /// Names the field, or says that there are too many.
    pub fn check(&self, start: &StartJob) -> Result<(), Failure> {
        if start.name.as_ref().is_some_and(|name| name.len() > JOB_NAME_BYTES_MAX) {
            return Err(Failure::request(format!("name: it is longer than {JOB_NAME_BYTES_MAX} bytes")));
        }
        let running = self.jobs.iter().filter(|job| !job.is_ended()).count();
        if running >= RUNNING_MAX {
            let message = format!("{running} background processes run, which is the most at one time; stop one first");
            return Err(Failure { kind: ErrorKind::Busy, message });
        }
        Ok(())
    }

    /// Takes one in.
    pub fn add(&mut self, job: Job) {
        // The kernel gave its number to a new process, so the old one is no more.
        self.jobs.retain(|old| old.pid != job.pid);
        let ended = self.jobs.iter().filter(|job| job.is_ended()).count();
        let mut surplus = ended.saturating_sub(ENDED_MAX);
        self.jobs.retain(|job| {
            let goes = surplus > 0 && job.is_ended();
            surplus -= usize::from(goes);
            !goes
        });
        self.jobs.push(job);
    }

    /// All of them.
    pub fn infos(&self) -> Vec<JobInfo> {
        self.jobs.iter().map(Job::info).collect()
    }

    /// The one with this process id.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&mut self, pid: i32) -> Result<&mut Job, Failure> {
        let named = |job: &&mut Job| job.pid.as_raw_nonzero().get() == pid;
        self.jobs.iter_mut().find(named).ok_or_else(|| Failure {
            kind: ErrorKind::NotFound,
            message: format!("There is no background process {pid}"),
        })
    }

    /// Does something with one of them.
    ///
    /// # Errors
    /// There is none with this process id, or the action makes no sense.
    pub fn act(&mut self, pid: i32, action: JobAction) -> Result<JobInfo, Failure> {
        let job = self.get(pid)?;
        match (action, &mut job.command) {
            (JobAction::Signal(signal), _) if !SIGNALS.contains(&signal) => {
                return Err(Failure::request(format!("signal: {signal} is no signal's number")));
            }
            (JobAction::Signal(signal), Some(command)) => command.take(Input::Signal(signal)),
            (JobAction::Stop { grace_ms }, Some(command)) if !command.has_exited() => {
                let _ = signal_group(job.pid, libc::SIGTERM);
                let kill_at = Instant::now() + Duration::from_millis(u64::from(grace_ms));
                job.kill_at = Some(job.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
            }
            (JobAction::Write(bytes), Some(command)) if command.has_stdin() => {
                if command.stdin_waiting() + bytes.len() > STDIN_BYTES_MAX {
                    let message = format!("The background process {pid} does not read what it was sent before");
                    return Err(Failure { kind: ErrorKind::Busy, message });
                }
                command.take(Input::Data(bytes));
            }
            (JobAction::Write(_), _) => {
                let message = format!("stdin: the background process {pid} takes no input any more");
                return Err(Failure::request(message));
            }
            (JobAction::CloseStdin, Some(command)) => command.take(Input::End),
            (JobAction::Describe | JobAction::CloseStdin | JobAction::Signal(_) | JobAction::Stop { .. }, _) => {}
        }
        Ok(job.info())
    }

    /// The command with this id among the server's events. It has something to do.
    pub fn note(&mut self, id: u64) -> Option<&mut RunningCommand> {
        self.jobs.iter_mut().find_map(|job| {
            let command = job.command.as_mut().filter(|command| command.id == id)?;
            job.due = true;
            Some(command)
        })
    }

    /// The command of a job, for its standard input.
    pub fn command(&mut self, pid: i32) -> Option<&mut RunningCommand> {
        self.get(pid).ok()?.command.as_mut()
    }

    /// The reaper took a process. True when it was a job's.
    pub fn note_exit(&mut self, pid: Pid, status: ExitStatus, now: Instant) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| job.pid == pid && job.command.is_some()) else { return false };
        job.command.iter_mut().for_each(|command| command.note_exit(status, now));
        job.due = true;
        true
    }

    /// True while some job has output that was not taken yet.
    pub fn is_due(&self) -> bool {
        self.jobs.iter().any(|job| job.due)
    }

    /// Takes output, some of each job that has any. Gives the process ids of those with something new.
    pub fn pump(&mut self, buffer: &mut [u8]) -> Vec<Pid> {
        let due = self.jobs.iter_mut().filter(|job| job.due);
        let pumped = due.map(|job| {
            job.due = job.pump(buffer);
            job.pid
        });
        pumped.collect()
    }

    /// The first time that runs out.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines =
            self.jobs.iter().flat_map(|job| [job.command.as_ref().and_then(RunningCommand::deadline), job.kill_at]);
        deadlines.flatten().min()
    }

    /// Ends those whose time has run out.
    pub fn check_deadlines(&mut self, now: Instant) {
        for job in &mut self.jobs {
            let Some(command) = &mut job.command else { continue };
            command.check_deadline(now);
            if job.kill_at.is_some_and(|at| at <= now) {
                job.kill_at = None;
                command.kill();
            }
        }
    }
}

/// The guest's wall clock.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// A connection that reads a job's output.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    /// Which job.
    pub pid: i32,
    /// The cursor of the next byte.
    pub at: u64,
    /// To the job's end, and not only to what there is.
    pub follow: bool,
}
