//! Resume and restore in place: a machine goes on from its image, or is booted from its disk when it cannot.
//!
//! ```text
//!  restore:  row: at the snapshot ─► restore.noted ─► old machine ends ─► restore.ended ┐
//!  resume:   machine made, standing still ─► row: image dropped ─► resume.dropped ◄─────┘
//!            ─► vCPUs run ─► agent configured ─► row: running
//! ```
//!
//! Once the vCPUs ran, the disk is ahead of the image: so the row lets go of the image before they run. A server that ends
//! before finds the sandbox paused; after, it finds its machine alive, or else boots from the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{OwnedRwLockReadGuard, watch};
use tokio::time::Instant;

use super::create::{Up, end_unfit, in_turn, turn, until_interrupted};
use super::end::Interrupt;
use super::{Driver, Live, Progress, chain, log_failure, session_ms};
use crate::agent::Agent;
use crate::db::{MachineStep, OperationKind, Outcome, SnapshotRow, Step};
use crate::error::Error;
use crate::events::EventKind;
use crate::fault;
use crate::host::Tools;
use crate::sandbox::start::{self, Leftover, Made, Memory, Plan, StartError};
use crate::sandbox::{Action, BootPath, Sandbox, SandboxState};
use crate::shared::Shared;
use crate::storage::{self, Holding, Layer, layers};
use crate::template::store::blocking;

/// How long a resume may take: what the journal notes.
const RESUME_DEADLINE: Duration = Duration::from_secs(900);

/// What a waking sandbox is made from, and how far it is.
struct Waking {
    tools: Tools,
    plan: Plan,
    top: Option<Layer>,
    memory: Option<Memory>,
    made: Made,
    /// The vCPUs may have run: the image, if there was one, is of no use any more.
    ran: bool,
    /// Nothing that its new layer lies on is replaced until its row is written.
    building: Option<OwnedRwLockReadGuard<()>>,
}

impl Driver {
    /// Wakes a paused sandbox. The outer error is what cut it short.
    pub(super) async fn resume(&mut self, env: BTreeMap<String, String>) -> Result<Result<Sandbox, Error>, Interrupt> {
        const OPERATION: &str = "resuming it";
        let begun = Instant::now();
        if self.state() == SandboxState::Running {
            return Ok(Ok(self.record.borrow().clone()));
        }
        // What never had a disk cannot be brought back.
        if self.state() == SandboxState::Error && self.holding.layer.is_none() {
            return Ok(Err(self.wrong_state(OPERATION)));
        }
        let changed = self.allowed(Action::ResumeBegun, OPERATION, |record| {
            record.env.extend(env);
            record.generation += 1;
        });
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => return Ok(Err(error)),
        };
        match self.waking(&changed).await {
            Ok(waking) => self.wake(changed, waking, begun).await,
            Err(error) => Ok(Err(self.no_space_or("the resume", error))),
        }
    }

    /// Goes back to a snapshot.
    pub(super) async fn restore(&mut self, row: SnapshotRow) -> Result<Result<Sandbox, Error>, Interrupt> {
        let begun = Instant::now();
        let changed = match self.go_back(row).await {
            Ok(changed) => changed,
            Err(error) => return Ok(Err(self.no_space_or("the restore", error))),
        };
        let result = match self.waking(&changed).await {
            Ok(waking) => self.wake(changed, waking, begun).await?,
            Err(error) => {
                self.stay_paused().await;
                Err(error)
            }
        };
        // The old top of its disk.
        self.shared.tasks.spawn(storage::sweep_logged(Arc::clone(&self.shared)));
        Ok(result)
    }

    /// Makes the sandbox one that is paused at a snapshot, and is being resumed.
    async fn go_back(&mut self, row: SnapshotRow) -> Result<Sandbox, Error> {
        let (now, ran) = (OffsetDateTime::now_utc(), self.state() == SandboxState::Running);
        self.shared.tools()?;
        let changed = self.allowed(Action::RestoreBegun, "restoring it", |record| {
            if ran {
                record.ran_ms += session_ms(record, now);
            }
            record.last_error = None;
            record.snapshot_id = Some(row.snapshot.id.clone());
            record.generation = record.generation.max(row.snapshot.generation) + 1;
        })?;
        // Kept until the sandbox's own row holds it.
        let gone = || Error::SnapshotNotFound(row.snapshot.id.to_string());
        let _kept = match &row.holding.image {
            Some(image) => Some(self.shared.memory(image).await?.ok_or_else(gone)?),
            None => None,
        };
        let begin = Some((OperationKind::Restore, RESUME_DEADLINE, json!({ "snapshot": row.snapshot.id })));
        let step = Step { machine: Some(MachineStep::Delete), begin, ..Step::default() };
        self.take_step(&changed, &row.holding, step).await?;
        let live = self.live.borrow().clone();
        fault::point("restore.noted", live.machine.as_deref()).await;
        if let Some(agent) = live.agent {
            agent.end("restored to a snapshot");
        }
        if let Err(error) = self.take_down(Leftover::DiskAndLogs).await {
            self.stay_paused().await;
            return Err(error);
        }
        fault::point("restore.ended", None).await;
        Ok(changed)
    }

    /// What the sandbox is woken from.
    async fn waking(&mut self, changed: &Sandbox) -> Result<Waking, Error> {
        let tools = self.shared.tools()?;
        self.shared.admit_resume(changed).await?;
        let building = Some(Arc::clone(&self.shared.chains).read_owned().await);
        self.held().await?;
        let (plan, top) = self.plan().await?;
        if let Some(own) = plan.chain.last() {
            self.shared.flattener.look(own, plan.chain.len());
        }
        let memory = match &self.holding.image {
            Some(image) => self.shared.memory(image).await?,
            None => None,
        };
        Ok(Waking { tools, plan, top, memory, made: Made::default(), ran: false, building })
    }

    async fn wake(
        &mut self,
        changed: Sandbox,
        mut waking: Waking,
        begun: Instant,
    ) -> Result<Result<Sandbox, Error>, Interrupt> {
        self.record.send_replace(changed.clone());
        let shared = Arc::clone(&self.shared);
        let agent = Agent::new(shared.config.paths.vsock_socket(&changed.id), self.record.subscribe());
        let outcome = {
            let _starting = shared.warm.starting();
            let work = bring_back(&shared, &mut waking, &changed, &self.live, &agent);
            until_interrupted(&mut self.requests, &mut self.deferred, &shared.stopping, work).await
        };
        self.live.send_modify(|live| live.machine = waking.made.machine.clone());
        if waking.ran {
            self.holding = Holding { layer: waking.plan.chain.last().cloned(), image: None };
        }
        match outcome {
            Ok(Ok(up)) => Ok(self.woken(up, begun, agent).await),
            Ok(Err(error)) => {
                let error = self.wake_failed(&waking, error).await;
                Ok(Err(error))
            }
            Err(Interrupt::ServerStops) => {
                // One that ran lives on, and is found again.
                if !waking.ran {
                    self.end_waking(&waking).await;
                    self.stay_paused().await;
                }
                Err(Interrupt::ServerStops)
            }
            Err(destroy) => Err(destroy),
        }
    }

    async fn woken(&mut self, up: Up, begun: Instant, agent: Agent) -> Result<Sandbox, Error> {
        let now = OffsetDateTime::now_utc();
        let boot_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let changed = self.allowed(Action::Woken, "resuming it", |record| {
            record.cpu_granted = Some(u32::from(up.vcpus));
            record.boot_ms = Some(boot_ms);
            record.boot_path = Some(up.path);
            record.started_at = Some(now);
            record.ready_at = record.ready_at.or(Some(now));
            record.paused_at = None;
            record.extended_at = None;
            record.last_error = None;
        })?;
        let machine = self.live.borrow().machine.as_ref().map(|machine| machine.identity());
        let holding = self.holding.clone();
        let step = Step {
            machine: machine.map(|row| MachineStep::Put(row, &up.chain)),
            end: Some(Outcome::Done),
            ..Step::default()
        };
        self.live.send_modify(|live| (live.progress, live.agent) = (Progress::Configured, Some(agent)));
        self.activity.touch();
        self.not_before = None;
        if let Err(error) = self.take_step(&changed, &holding, step).await {
            // The row says `resuming`, and a server that ends now finds the machine alive: it runs, so it is used.
            tracing::error!(error = &error as &dyn std::error::Error, "a resume could not be noted");
            self.record.send_replace(changed.clone());
        }
        self.chain = up.chain;
        tracing::info!(boot_ms, boot_path = up.path.as_str(), "sandbox resumed");
        if let Some(reason) = up.cold {
            self.tell(EventKind::ColdBoot { reason });
        }
        self.tell(EventKind::Resumed);
        // The image that it came from.
        self.shared.tasks.spawn(storage::sweep_logged(Arc::clone(&self.shared)));
        Ok(changed)
    }

    async fn wake_failed(&mut self, waking: &Waking, error: StartError) -> Error {
        tracing::error!(error = &error as &dyn std::error::Error, ran = waking.ran, "the resume failed");
        self.end_waking(waking).await;
        self.stay_paused().await;
        let (id, no_space) = (self.id(), error.is_no_space());
        let error = match error {
            StartError::Machine(source) => Error::Machine { id, source },
            StartError::Files(error) | StartError::Configure(error) => *error,
            StartError::Database(error) => error.into(),
            other => Error::ResumeFailed { id, source: Box::new(other) },
        };
        if no_space { self.no_space("the resume", error) } else { error }
    }

    /// Ends what a failed resume made; its layer, when no row names it.
    async fn end_waking(&mut self, waking: &Waking) {
        log_failure("a half-made machine is left", self.take_down(Leftover::DiskAndLogs).await);
        if let (Some(top), false) = (&waking.top, waking.ran) {
            let (paths, id) = (self.shared.config.paths.clone(), top.id.clone());
            log_failure("a half-made layer is left", blocking(move || layers::remove(&paths, &id)).await);
        }
    }

    /// A resume came to nothing: the sandbox is paused, as it is held now.
    async fn stay_paused(&mut self) {
        let now = OffsetDateTime::now_utc();
        let changed = self.moved(Action::ResumeUndone, |record| record.paused_at = record.paused_at.or(Some(now)));
        let Some(changed) = changed else { return };
        let holding = self.holding.clone();
        let step = Step { machine: Some(MachineStep::Delete), end: Some(Outcome::Failed), ..Step::default() };
        log_failure("a failed resume could not be noted", self.take_step(&changed, &holding, step).await);
        self.record.send_replace(changed);
    }
}

async fn bring_back(
    shared: &Shared,
    waking: &mut Waking,
    changed: &Sandbox,
    live: &watch::Sender<Live>,
    agent: &Agent,
) -> Result<Up, StartError> {
    let progress = |at| start::progress(live, at);
    let mut cold = None;
    match waking.memory.clone() {
        Some(memory) => {
            let own = turn(&shared.restores).await?;
            let Waking { tools, plan, top, made, .. } = &mut *waking;
            match start::restore(shared, tools, plan, top.as_ref(), &memory.image, false, made).await {
                Ok(vcpus) => {
                    run(shared, waking, changed).await?;
                    live.send_modify(|live| live.machine = waking.made.machine.clone());
                    progress(Progress::AgentAnswered);
                    in_turn(own, start::configure(agent, changed, false)).await?;
                    let chain = waking.plan.chain.clone();
                    return Ok(Up { vcpus, path: BootPath::Snapshot, chain, cold: None });
                }
                Err(error) if error.is_unfit_capture() => {
                    end_unfit(shared, &waking.plan, &mut waking.made).await?;
                    cold = Some(chain(&error));
                }
                Err(error) => return Err(error),
            }
        }
        None => {
            if let Some(top) = &waking.top {
                start::make_layer(shared, &waking.tools, top).await?;
            }
            cold = cold.or_else(|| Some("its memory was not saved".to_owned()));
        }
    }
    progress(Progress::DiskMade);
    tracing::warn!(reason = cold, "the sandbox is booted from its disk");
    let _turn = turn(&shared.boots).await?;
    drop_image(shared, waking, changed, false).await?;
    let Waking { tools, plan, made, .. } = &mut *waking;
    let vcpus = start::boot(shared, tools, plan, &progress, made).await?;
    live.send_modify(|live| live.machine = waking.made.machine.clone());
    start::configure(agent, changed, false).await?;
    Ok(Up { vcpus, path: BootPath::Cold, chain: waking.plan.chain.clone(), cold })
}

/// Lets a restored machine run, after the row let go of its image.
async fn run(shared: &Shared, waking: &mut Waking, changed: &Sandbox) -> Result<(), StartError> {
    fault::point("resume.restored", waking.made.machine.as_deref()).await;
    drop_image(shared, waking, changed, true).await?;
    fault::point("resume.dropped", waking.made.machine.as_deref()).await;
    match &waking.made.machine {
        Some(machine) => machine.resume().await.map_err(StartError::Machine),
        None => Ok(()),
    }
}

/// Writes that the sandbox is being resumed and holds its disk only; with `noted`, also its machine.
async fn drop_image(shared: &Shared, waking: &mut Waking, changed: &Sandbox, noted: bool) -> Result<(), StartError> {
    let holding = Holding { layer: waking.plan.chain.last().cloned(), image: None };
    let machine = waking.made.machine.as_ref().filter(|_| noted).map(|machine| machine.identity());
    let step = Step {
        layers: waking.top.iter().collect(),
        sandbox: Some((changed, &holding)),
        machine: Some(machine.map_or(MachineStep::Delete, |row| MachineStep::Put(row, &waking.plan.chain))),
        begin: Some((OperationKind::Resume, RESUME_DEADLINE, Value::Null)),
        ..Step::default()
    };
    shared.db.step(step).await.map_err(StartError::Database)?;
    waking.ran = true;
    waking.building = None;
    Ok(())
}
