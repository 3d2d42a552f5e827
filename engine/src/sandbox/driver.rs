//! The task that owns one sandbox: requests in, state changes out. It alone writes the sandbox's record.
//!
//! ```text
//!  API calls ──Request──►┌────────┐── record ──► everyone (watch)
//!  start's outcome ─────►│ driver │── live ────► exec, files, readiness (watch)
//!  machine's end ───────►│        │── rows ────► database, before and after each act
//!  session's end ───────►└────────┘── events ──► everyone
//! ```
//!
//! The driver asks the table in `state` before it acts. Commands and files do not pass through it: they take the agent
//! from [`Live`] and run at the same time.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::start::{self, Booted, Leftover, Made, StartError};
use super::{Action, BootPath, Sandbox, SandboxId, SandboxState};
use crate::agent::Agent;
use crate::db::{OperationKind, Outcome, TemplateVersion};
use crate::error::Error;
use crate::events::EventKind;
use crate::host::Tools;
use crate::machine::Machine;
use crate::shared::Shared;
use crate::template::store::blocking;

/// Requests that wait for a driver. It is only busy with a start or an end, so they do not pile up.
const REQUESTS_QUEUED_MAX: usize = 64;

/// How long a destroy may take: what the journal notes.
const DESTROY_DEADLINE: Duration = Duration::from_secs(60);

/// How long the removal of what a failed sandbox leaves may keep its failure from being told.
const TOLD_WITHIN: Duration = Duration::from_millis(500);

/// All that may be asked of a driver.
#[derive(Debug)]
pub(crate) enum Request {
    /// Remove the sandbox and all that is its. Legal always.
    Destroy(oneshot::Sender<Result<Sandbox, Error>>),
}

/// What runs of a sandbox now, for those who use it without asking the driver.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) progress: Progress,
    pub(crate) machine: Option<Arc<Machine>>,
    pub(crate) agent: Option<Agent>,
}

/// How far a start is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    #[default]
    Nothing,
    DiskMade,
    MachineStarted,
    AgentAnswered,
    Configured,
}

/// A driver as others see it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) record: watch::Receiver<Sandbox>,
    pub(crate) live: watch::Receiver<Live>,
}

/// Where a driver begins.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// Make the sandbox; the journal has it.
    Create { template: Box<TemplateVersion>, tools: Box<Tools> },
    /// Its machine runs and the agent answered.
    Running { machine: Arc<Machine>, agent: Agent },
    /// Nothing runs of it.
    AtRest,
    /// A destroy was begun before.
    Destroy,
}

/// What a driver waits for.
enum Input {
    Request(Request),
    Booted(Result<Booted, StartError>),
    MachineEnded(String),
    SessionEnded,
    ServerStops,
}

struct Driver {
    shared: Arc<Shared>,
    record: watch::Sender<Sandbox>,
    live: watch::Sender<Live>,
    requests: mpsc::Receiver<Request>,
    begun: Instant,
}

/// The channels of a sandbox that has no driver yet.
#[derive(Debug)]
pub(crate) struct Channels {
    record: watch::Sender<Sandbox>,
    live: watch::Sender<Live>,
    requests: mpsc::Receiver<Request>,
}

/// Makes a sandbox's channels.
pub(crate) fn channels(sandbox: Sandbox) -> (Handle, Channels) {
    let (request_sender, requests) = mpsc::channel(REQUESTS_QUEUED_MAX);
    let (record, record_receiver) = watch::channel(sandbox);
    let (live, live_receiver) = watch::channel(Live::default());
    let handle = Handle { requests: request_sender, record: record_receiver, live: live_receiver };
    (handle, Channels { record, live, requests })
}

/// Starts the task. The handle is already in the engine's list.
pub(crate) fn spawn(shared: Arc<Shared>, channels: Channels, beginning: Beginning) {
    let id = channels.record.borrow().id.clone();
    let span = tracing::info_span!("sandbox", sandbox = %id);
    let Channels { record, live, requests } = channels;
    let tasks = shared.tasks.clone();
    let driver = Driver { shared, record, live, requests, begun: Instant::now() };
    tasks.spawn(driver.run(beginning).instrument(span));
}

impl Driver {
    async fn run(mut self, beginning: Beginning) {
        match beginning {
            Beginning::Create { template, tools } => {
                if self.create(*template, *tools).await {
                    return;
                }
            }
            Beginning::Running { machine, agent } => {
                self.live.send_replace(Live {
                    progress: Progress::Configured,
                    machine: Some(machine),
                    agent: Some(agent),
                });
            }
            Beginning::AtRest => {}
            Beginning::Destroy => {
                if self.destroy_logged(None).await {
                    return;
                }
            }
        }
        loop {
            let gone = match self.next().await {
                Input::Request(Request::Destroy(reply)) => self.destroy_logged(Some(reply)).await,
                Input::SessionEnded => {
                    tracing::info!("session ended; the sandbox is not persistent");
                    self.destroy_logged(None).await
                }
                Input::MachineEnded(reason) => {
                    self.fail(reason).await;
                    false
                }
                Input::ServerStops => {
                    self.server_stops().await;
                    true
                }
                Input::Booted(_) => false,
            };
            if gone {
                return;
            }
        }
    }

    /// What happens next to a sandbox that is not being made.
    async fn next(&mut self) -> Input {
        let machine = self.live.borrow().machine.clone();
        let session_end = self.session_end();
        tokio::select! {
            Some(request) = self.requests.recv() => Input::Request(request),
            reason = ended(machine.as_deref()) => Input::MachineEnded(reason),
            () = until(session_end) => Input::SessionEnded,
            () = self.shared.stopping.cancelled() => Input::ServerStops,
        }
    }

    /// When a sandbox that is not persistent has to go. A persistent one runs on until it can be paused.
    fn session_end(&self) -> Option<Instant> {
        let record = self.record.borrow();
        if record.persistent {
            return None;
        }
        let remaining = record.timeout_remaining_ms(OffsetDateTime::now_utc())?;
        Some(Instant::now() + Duration::from_millis(remaining))
    }

    /// Makes the sandbox; true when the driver has nothing left to do.
    async fn create(&mut self, template: TemplateVersion, tools: Tools) -> bool {
        self.tell(EventKind::Created);
        let shared = Arc::clone(&self.shared);
        let sandbox = self.record.borrow().clone();
        let mut made = Made::default();
        let input = {
            let boot =
                start::cold_boot(&shared, &tools, &sandbox, &template, &self.live, self.record.subscribe(), &mut made);
            tokio::select! {
                outcome = boot => Input::Booted(outcome),
                Some(request) = self.requests.recv() => Input::Request(request),
                () = shared.stopping.cancelled() => Input::ServerStops,
            }
        };
        self.live.send_modify(|live| live.machine = made.machine);
        match input {
            Input::Booted(Ok(booted)) => self.booted(&booted).await,
            Input::Booted(Err(error)) => self.start_failed(chain(&error)).await,
            Input::Request(Request::Destroy(reply)) => return self.destroy_logged(Some(reply)).await,
            Input::ServerStops => {
                let reason = "the server was stopped while this sandbox was being created".to_owned();
                self.fail_with(reason, Outcome::Undone, Leftover::Logs).await;
                return true;
            }
            Input::MachineEnded(_) | Input::SessionEnded => {}
        }
        false
    }

    async fn booted(&mut self, booted: &Booted) {
        let now = OffsetDateTime::now_utc();
        let boot_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let changed = self.moved(Action::Booted, |record| {
            record.cpu_granted = Some(u32::from(booted.vcpus));
            record.boot_ms = Some(boot_ms);
            record.boot_path = Some(BootPath::Cold);
            record.started_at = Some(now);
            record.ready_at = Some(now);
        });
        let Some(changed) = changed else { return };
        match self.shared.db.end_operations(&changed, Outcome::Done).await {
            Ok(()) => {
                tracing::info!(boot_ms, "sandbox ready");
                self.record.send_replace(changed);
                self.tell(EventKind::Started);
                self.tell(EventKind::Ready);
            }
            Err(error) => self.start_failed(format!("its start could not be noted: {}", chain(&error))).await,
        }
    }

    /// Takes a start back and says why.
    async fn start_failed(&mut self, reason: String) {
        self.fail_with(reason, Outcome::Failed, Leftover::Logs).await;
    }

    /// The machine is no more; the disk and the logs stay until the sandbox is destroyed.
    async fn fail(&mut self, reason: String) {
        self.fail_with(reason, Outcome::Failed, Leftover::DiskAndLogs).await;
    }

    /// Moves to `error`. What is left of the sandbox is taken down first, so that whoever sees the error sees nothing else
    /// of it; but the error is told soon, whatever that takes, and before the disk has it: a server that ended in between
    /// would find the same again.
    async fn fail_with(&mut self, reason: String, outcome: Outcome, leftover: Leftover) {
        tracing::error!(reason, "sandbox failed");
        let taken_down = timeout(TOLD_WITHIN, self.take_down(leftover)).await;
        if let Some(changed) = self.moved(Action::Failed, |record| record.last_error = Some(reason.clone())) {
            self.record.send_replace(changed.clone());
            let noted = self.shared.db.end_operations(&changed, outcome).await;
            log_failure("the failure could not be noted", noted);
            self.tell(EventKind::Error { reason });
        }
        let taken_down = match taken_down {
            Ok(result) => result,
            Err(_) => self.take_down(leftover).await,
        };
        match taken_down {
            Ok(()) => log_failure("the machine's row is left", self.shared.db.delete_machine(&self.id()).await),
            error => log_failure("the rest of the sandbox was not removed", error),
        }
    }

    /// Ends the machine and removes its sockets, and what of its files is not to be left over. May be dropped and called
    /// again.
    ///
    /// The machine is killed, not asked to stop: it flushes its disks before it stops, and nobody will read them again.
    async fn take_down(&mut self, leftover: Leftover) -> Result<(), Error> {
        let id = self.id();
        let machine = self.live.borrow().machine.clone();
        if let Some(machine) = machine {
            machine.kill().await.map_err(|source| Error::Machine { id: id.clone(), source })?;
        }
        let paths = self.shared.config.paths.clone();
        blocking(move || start::remove_files(&paths, &id, leftover)).await?;
        self.live.send_replace(Live::default());
        Ok(())
    }

    /// Destroys and answers whoever asked; true when the sandbox is gone, and with it the driver's work.
    async fn destroy_logged(&mut self, reply: Option<oneshot::Sender<Result<Sandbox, Error>>>) -> bool {
        let result = self.destroy().await;
        if let Err(error) = &result {
            tracing::error!(error = error as &dyn std::error::Error, "destroy failed");
        }
        let gone = result.is_ok();
        if gone {
            self.retire(result.as_ref().ok());
        }
        if let Some(reply) = reply {
            // Whoever asked may have gone away.
            let _ = reply.send(result);
        }
        gone
    }

    async fn destroy(&mut self) -> Result<Sandbox, Error> {
        // A record that says `destroying` is one that an earlier server left.
        if let Some(changed) = self.moved(Action::DestroyBegun, |_| {}) {
            self.shared.db.begin_operation(&changed, OperationKind::Destroy, DESTROY_DEADLINE).await?;
            self.record.send_replace(changed);
        }
        if let Err(error) = self.take_down(Leftover::Nothing).await {
            let reason = format!("destroy failed: {}", chain(&error));
            if let Some(changed) = self.moved(Action::Failed, |record| record.last_error = Some(reason.clone())) {
                self.shared.db.end_operations(&changed, Outcome::Failed).await?;
                self.record.send_replace(changed);
                self.tell(EventKind::Error { reason });
            }
            return Err(error);
        }
        let now = OffsetDateTime::now_utc();
        let Some(changed) = self.moved(Action::Gone, |record| record.destroyed_at = Some(now)) else {
            let (id, state) = (self.id(), self.record.borrow().state);
            return Err(Error::WrongState { id, state, operation: "destroying it" });
        };
        self.shared.db.end_destroy(&changed).await?;
        self.record.send_replace(changed.clone());
        self.tell(EventKind::Destroyed);
        tracing::info!("sandbox destroyed");
        Ok(changed)
    }

    /// The sandbox is gone: nobody finds this driver any more, and who already asked is answered.
    fn retire(&mut self, destroyed: Option<&Sandbox>) {
        self.shared.forget(&self.id());
        self.requests.close();
        while let Ok(Request::Destroy(reply)) = self.requests.try_recv() {
            if let Some(record) = destroyed {
                let _ = reply.send(Ok(record.clone()));
            }
        }
    }

    /// A persistent sandbox's machine lives on and is found again; another one's session ends with the server.
    async fn server_stops(&mut self) {
        let running = self.record.borrow().state == SandboxState::Running;
        if running && !self.record.borrow().persistent {
            tracing::info!("the server stops; the sandbox is not persistent");
            self.destroy_logged(None).await;
        }
    }

    /// The record after `action`, changed by `change`; `None`, and an error in the log, when the table forbids it.
    fn moved(&self, action: Action, change: impl FnOnce(&mut Sandbox)) -> Option<Sandbox> {
        let mut record = self.record.borrow().clone();
        match record.state.after(action) {
            Some(state) => {
                tracing::debug!(from = %record.state, to = %state, ?action, "state");
                record.state = state;
                change(&mut record);
                Some(record)
            }
            None => {
                tracing::debug!(state = %record.state, ?action, "the lifecycle does not allow this action here");
                None
            }
        }
    }

    fn id(&self) -> SandboxId {
        self.record.borrow().id.clone()
    }

    fn tell(&self, kind: EventKind) {
        self.shared.events.tell(&self.id(), kind);
    }
}

async fn ended(machine: Option<&Machine>) -> String {
    match machine {
        Some(machine) => machine.ended().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What cannot be told to anyone else.
fn log_failure<E: std::error::Error + 'static>(what: &'static str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(error = &error as &dyn std::error::Error, "{what}");
    }
}

/// An error and its causes as one text, for a record that people read.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
pub(crate) mod tests;
