//! The task that owns one sandbox: requests in, state changes out. It alone writes the sandbox's record.
//!
//! ```text
//!  API calls ──Request──►┌────────┐── record ──► everyone (watch)
//!  start's outcome ─────►│ driver │── live ────► exec, files, readiness (watch)
//!  machine's end ───────►│        │── rows ────► database, before and after each act
//!  session's end, idle ─►└────────┘── events ──► everyone
//! ```
//!
//! The driver asks the table in `state` before it acts, and does one thing at a time: who asks for more waits. Commands and
//! files do not pass through it: they take the agent from [`Live`] and run at the same time.

mod create;

mod pause;

mod resume;

mod snapshot;

mod session;

mod end;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::Instrument;

use super::start::Plan;
use super::{Action, Activity, Sandbox, SandboxId, SandboxState, SandboxUpdate};
use crate::agent::Agent;
use crate::db::{SnapshotRow, Step};
use crate::error::Error;
use crate::events::EventKind;
use crate::machine::Machine;
use crate::preview;
use crate::shared::Shared;
use crate::snapshot::{Snapshot, SnapshotSpec};
use crate::storage::{Holding, Layer, LayerId, layers};

pub(crate) use create::Create;
pub(crate) use snapshot::Point;

/// Requests that wait for a driver.
const REQUESTS_QUEUED_MAX: usize = 64;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// All that may be asked of a driver.
#[derive(Debug)]
pub(crate) enum Request {
    /// Remove the sandbox and all that is its. Legal always; cuts a start short.
    Destroy(Reply<Sandbox>),
    /// Save memory and disk and end the machine. Legal while running; a no-op while paused.
    Pause(Reply<Sandbox>),
    /// Go on, with this laid over the environment. Legal while paused; a no-op while running.
    Resume { env: BTreeMap<String, String>, reply: Reply<Sandbox> },
    /// Take a snapshot. Legal while running and while paused.
    Snapshot { spec: Box<SnapshotSpec>, reply: Reply<Snapshot> },
    /// Say from where a fork can go on. Legal while running and while paused.
    Point(Reply<Point>),
    /// Go back to a snapshot. Legal while running, while paused, and after a failure.
    Restore { row: Box<SnapshotRow>, reply: Reply<Sandbox> },
    /// Change what a caller may change, and start the session's clock anew with `extend`. Legal until destroyed.
    Update { update: Box<SandboxUpdate>, extend: bool, reply: Reply<Sandbox> },
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
    pub(crate) activity: Activity,
}

/// Where a driver begins.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// Make the sandbox; the journal has it.
    Create(Box<Create>),
    /// Its machine runs with these layers open, and the agent answered.
    Running { machine: Arc<Machine>, agent: Agent, chain: Vec<LayerId>, holding: Holding },
    /// Nothing runs of it.
    AtRest { holding: Holding },
    /// A destroy was begun before.
    Destroy,
}

/// What a driver waits for.
enum Input {
    Request(Request),
    MachineEnded(String),
    /// A timeout may be over, or a clock was set.
    Look,
    ServerStops,
}

struct Driver {
    shared: Arc<Shared>,
    record: watch::Sender<Sandbox>,
    live: watch::Sender<Live>,
    requests: mpsc::Receiver<Request>,
    /// What was asked while something else was done that could not wait.
    deferred: VecDeque<Request>,
    activity: Activity,
    /// What the rows say that it holds.
    holding: Holding,
    /// The layers that the machine has open, lowest first.
    chain: Vec<LayerId>,
    /// A pause at a timeout failed, and is not tried again before this.
    not_before: Option<Instant>,
}

/// The channels of a sandbox that has no driver yet.
#[derive(Debug)]
pub(crate) struct Channels {
    record: watch::Sender<Sandbox>,
    live: watch::Sender<Live>,
    requests: mpsc::Receiver<Request>,
    activity: Activity,
}

/// Makes a sandbox's channels.
pub(crate) fn channels(sandbox: Sandbox) -> (Handle, Channels) {
    let (request_sender, requests) = mpsc::channel(REQUESTS_QUEUED_MAX);
    let (record, record_receiver) = watch::channel(sandbox);
    let (live, live_receiver) = watch::channel(Live::default());
    let activity = Activity::new();
    let handle =
        Handle { requests: request_sender, record: record_receiver, live: live_receiver, activity: activity.clone() };
    (handle, Channels { record, live, requests, activity })
}

/// Starts the task. The handle is already in the engine's list.
pub(crate) fn spawn(shared: Arc<Shared>, channels: Channels, beginning: Beginning) {
    let id = channels.record.borrow().id.clone();
    let span = tracing::info_span!("sandbox", sandbox = %id);
    let Channels { record, live, requests, activity } = channels;
    let tasks = shared.tasks.clone();
    let watched =
        preview::watch::Watched { record: record.subscribe(), live: live.subscribe(), activity: activity.clone() };
    tasks.spawn(preview::watch::keep(Arc::clone(&shared), watched));
    let driver = Driver {
        shared,
        record,
        live,
        requests,
        deferred: VecDeque::new(),
        activity,
        holding: Holding::default(),
        chain: Vec::new(),
        not_before: None,
    };
    tasks.spawn(driver.run(beginning).instrument(span));
}

impl Driver {
    async fn run(mut self, beginning: Beginning) {
        let gone = match beginning {
            Beginning::Create(create) => self.create(*create).await,
            Beginning::Running { machine, agent, chain, holding } => {
                (self.chain, self.holding) = (chain, holding);
                let live = Live { progress: Progress::Configured, machine: Some(machine), agent: Some(agent) };
                self.live.send_replace(live);
                false
            }
            Beginning::AtRest { holding } => {
                self.holding = holding;
                false
            }
            Beginning::Destroy => self.destroy_logged(None).await,
        };
        if gone {
            return;
        }
        loop {
            let gone = match self.next().await {
                Input::Request(request) => self.act(request).await,
                Input::Look => self.look_at_clocks().await,
                Input::MachineEnded(reason) => {
                    self.fail(reason).await;
                    false
                }
                Input::ServerStops => {
                    self.server_stops().await;
                    true
                }
            };
            if gone {
                return;
            }
        }
    }

    /// Does what was asked; true when the sandbox is gone, and with it the driver's work.
    async fn act(&mut self, request: Request) -> bool {
        match request {
            Request::Destroy(reply) => return self.destroy_logged(Some(reply)).await,
            Request::Pause(reply) => answer(reply, self.pause().await),
            Request::Resume { env, reply } => match self.resume(env).await {
                Ok(result) => answer(reply, result),
                Err(interrupt) => return self.interrupted(interrupt).await,
            },
            Request::Restore { row, reply } => match self.restore(*row).await {
                Ok(result) => answer(reply, result),
                Err(interrupt) => return self.interrupted(interrupt).await,
            },
            Request::Snapshot { spec, reply } => answer(reply, self.snapshot(*spec).await),
            Request::Point(reply) => answer(reply, self.point().await),
            Request::Update { update, extend, reply } => answer(reply, self.update(*update, extend).await),
        }
        false
    }

    /// What happens next to a sandbox with which nothing is done.
    async fn next(&mut self) -> Input {
        if let Some(request) = self.deferred.pop_front() {
            return Input::Request(request);
        }
        let machine = self.live.borrow().machine.clone();
        let clock = self.next_look();
        tokio::select! {
            Some(request) = self.requests.recv() => Input::Request(request),
            reason = ended(machine.as_deref()) => Input::MachineEnded(reason),
            () = until(clock) => Input::Look,
            () = self.activity.ended() => Input::Look,
            () = self.shared.stopping.cancelled() => Input::ServerStops,
        }
    }

    /// What a machine for this sandbox is made of: its layers, and a new one on top when the highest is frozen. The new
    /// one's row is to be written by the caller.
    async fn plan(&self) -> Result<(Plan, Option<Layer>), Error> {
        let record = self.record.borrow().clone();
        let db = &self.shared.db;
        let (template_id, template_version) = db.template_of(&record.id).await?;
        let template = db.template_version(&template_id, &template_version).await?;
        let base: PathBuf = template.map(|version| version.template.root).unwrap_or_default();
        let rows = match &self.holding.layer {
            Some(layer) => db.chain(layer).await?,
            None => Vec::new(),
        };
        let mut chain = layers::ids(&rows);
        let own = rows.last().is_some_and(|top| !top.frozen);
        let top = (!own).then(|| Layer {
            id: LayerId::generate(),
            parent: chain.last().cloned(),
            template_id,
            template_version,
            disk_bytes: u64::from(record.shape.disk_size_mb) << 20,
            frozen: false,
        });
        chain.extend(top.iter().map(|layer| layer.id.clone()));
        Ok((Plan { id: record.id, shape: record.shape, base, chain }, top))
    }

    /// What it holds by its row: a frozen layer may have been replaced by one that holds the same.
    async fn held(&mut self) -> Result<Holding, Error> {
        self.holding = self.shared.db.holding(&self.id()).await?;
        Ok(self.holding.clone())
    }

    /// Writes a step that moves the sandbox, and then shows it. `step` is given the record and what it holds.
    async fn take_step<'a>(&mut self, changed: &'a Sandbox, holding: &'a Holding, step: Step<'a>) -> Result<(), Error> {
        self.shared.db.step(Step { sandbox: Some((changed, holding)), ..step }).await?;
        self.holding = holding.clone();
        self.record.send_replace(changed.clone());
        Ok(())
    }

    /// The record after `action`, changed by `change`; `None`, and a line in the log, when the table forbids it.
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

    /// As [`Driver::moved`], with an error for the caller.
    fn allowed(
        &self,
        action: Action,
        operation: &'static str,
        change: impl FnOnce(&mut Sandbox),
    ) -> Result<Sandbox, Error> {
        self.moved(action, change).ok_or_else(|| self.wrong_state(operation))
    }

    fn wrong_state(&self, operation: &'static str) -> Error {
        let record = self.record.borrow();
        let id = record.id.clone();
        match record.state {
            SandboxState::Error => Error::SandboxFailed { id, reason: record.last_error.clone().unwrap_or_default() },
            SandboxState::Destroying | SandboxState::Destroyed => Error::SandboxDestroyed(id),
            state => Error::WrongState { id, state, operation },
        }
    }

    fn machine(&self) -> Option<(Arc<Machine>, Agent)> {
        let live = self.live.borrow();
        Some((live.machine.clone()?, live.agent.clone()?))
    }

    fn id(&self) -> SandboxId {
        self.record.borrow().id.clone()
    }

    fn state(&self) -> SandboxState {
        self.record.borrow().state
    }

    fn tell(&self, kind: EventKind) {
        self.shared.events.tell(&self.id(), kind);
    }
}

/// Whoever asked may have gone away.
fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    let _ = reply.send(result);
}

/// Milliseconds of a session that ends now.
fn session_ms(record: &Sandbox, now: OffsetDateTime) -> u64 {
    let ran = record.started_at.map_or(time::Duration::ZERO, |began| now - began);
    u64::try_from(ran.whole_milliseconds()).unwrap_or(0)
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

#[cfg(test)]
pub(crate) mod life_tests;
