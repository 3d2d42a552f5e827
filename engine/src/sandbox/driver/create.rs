//! The making of a sandbox: from a captured machine where there is one, else by a boot.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{SemaphorePermit, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::end::Interrupt;
use super::{Driver, Live, Progress, Request, chain};
use crate::agent::Agent;
use crate::db::{MachineStep, Outcome, Step, TemplateVersion};
use crate::events::EventKind;
use crate::host::Tools;
use crate::sandbox::start::{self, Leftover, Made, Memory, Plan, StartError};
use crate::sandbox::{Action, BootPath, Sandbox};
use crate::shared::Shared;
use crate::storage::{Holding, Layer, LayerId};
use crate::template::warm;
use crate::template::warm::pool::{self, Waiting};

/// Requests that wait while something is done that only a destroy cuts short. More are refused.
const DEFERRED_MAX: usize = 1024;

/// How long the agent may take for its configuration before others get their turn.
const CONFIGURED_WITHIN: Duration = Duration::from_secs(2);

/// What a sandbox is made from.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) template: TemplateVersion,
    pub(crate) tools: Tools,
    /// The layers that exist, lowest first.
    pub(crate) below: Vec<LayerId>,
    /// The sandbox's own layer: its row is written, its file is not made, unless a machine waits with it.
    pub(crate) top: Option<Layer>,
    /// A restored machine that only waits to go on.
    pub(crate) waiting: Option<Waiting>,
    /// The machine from which it goes on; without one it boots.
    pub(crate) memory: Option<Memory>,
    /// What it means to go on from there.
    pub(crate) path: BootPath,
    /// The right to capture the machine after a boot, for those that come after.
    pub(crate) ticket: Option<warm::Ticket>,
    /// When it was asked for.
    pub(crate) begun: Instant,
}

impl Create {
    /// From a template's image, so far.
    pub(crate) fn cold(template: TemplateVersion, tools: Tools, begun: Instant) -> Self {
        Self {
            template,
            tools,
            below: Vec::new(),
            top: None,
            waiting: None,
            memory: None,
            path: BootPath::Cold,
            ticket: None,
            begun,
        }
    }

    /// Ends the machine that waited for it.
    pub(crate) async fn give_up(self, shared: &Shared) {
        if let Some(waiting) = self.waiting {
            pool::end_all(shared, vec![waiting]).await;
        }
    }
}

/// A machine that is command-ready.
pub(super) struct Up {
    pub(super) vcpus: u8,
    pub(super) path: BootPath,
    pub(super) chain: Vec<LayerId>,
    /// Why it was booted, though it was to go on from a capture.
    pub(super) cold: Option<String>,
}

impl Driver {
    /// Makes the sandbox; true when the driver has nothing left to do.
    pub(super) async fn create(&mut self, mut create: Create) -> bool {
        self.tell(EventKind::Created);
        self.holding = Holding { layer: create.top.as_ref().map(|top| top.id.clone()), image: None };
        let (shared, sandbox) = (self.shared.clone(), self.record.borrow().clone());
        let starting = shared.warm.starting();
        let agent = Agent::new(shared.config.paths.vsock_socket(&sandbox.id), self.record.subscribe());
        let mut made = Made::default();
        let outcome = {
            let work = bring_up(&shared, &mut create, &sandbox, &self.live, &agent, &mut made);
            until_interrupted(&mut self.requests, &mut self.deferred, &shared.stopping, work).await
        };
        drop(starting);
        self.live.send_modify(|live| live.machine = made.machine);
        match outcome {
            Ok(Ok(up)) => self.booted(up, create.begun, agent).await,
            Ok(Err(error)) => self.start_failed(chain(&error)).await,
            Err(Interrupt::ServerStops) => {
                let reason = "the server was stopped while this sandbox was being created".to_owned();
                self.fail_with(reason, Outcome::Undone, Leftover::Logs, Holding::default()).await;
                return true;
            }
            Err(destroy) => return self.interrupted(destroy).await,
        }
        if let Some(ticket) = create.ticket.take() {
            ticket.prepare_later(&self.shared);
        }
        false
    }

    async fn booted(&mut self, up: Up, begun: Instant, agent: Agent) {
        let now = OffsetDateTime::now_utc();
        let boot_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let changed = self.moved(Action::Booted, |record| {
            record.cpu_granted = Some(u32::from(up.vcpus));
            record.boot_ms = Some(boot_ms);
            record.boot_path = Some(up.path);
            record.started_at = Some(now);
            record.ready_at = Some(now);
        });
        let Some(changed) = changed else { return };
        let machine = self.live.borrow().machine.as_ref().map(|machine| machine.identity());
        let holding = Holding { layer: up.chain.last().cloned(), image: None };
        let step = Step {
            machine: machine.map(|row| MachineStep::Put(row, &up.chain)),
            end: Some(Outcome::Done),
            ..Step::default()
        };
        self.live.send_modify(|live| (live.progress, live.agent) = (Progress::Configured, Some(agent)));
        self.activity.touch();
        match self.take_step(&changed, &holding, step).await {
            Ok(()) => {
                tracing::info!(boot_ms, boot_path = up.path.as_str(), "sandbox ready");
                self.chain = up.chain;
                if let Some(reason) = up.cold {
                    self.tell(EventKind::ColdBoot { reason });
                }
                self.tell(EventKind::Started);
                self.tell(EventKind::Ready);
            }
            Err(error) => self.start_failed(format!("its start could not be noted: {}", chain(&error))).await,
        }
    }

    /// Takes a start back and says why.
    async fn start_failed(&mut self, reason: String) {
        self.fail_with(reason, Outcome::Failed, Leftover::Logs, Holding::default()).await;
    }
}

async fn bring_up(
    shared: &Shared,
    create: &mut Create,
    sandbox: &Sandbox,
    live: &watch::Sender<Live>,
    agent: &Agent,
    made: &mut Made,
) -> Result<Up, StartError> {
    let progress = |at| start::progress(live, at);
    let mut chain = create.below.clone();
    chain.extend(create.top.iter().map(|top| top.id.clone()));
    if let Some(waiting) = create.waiting.take() {
        made.machine = Some(Arc::clone(&waiting.machine));
        live.send_modify(|live| live.machine = made.machine.clone());
        waiting.machine.resume().await.map_err(StartError::Machine)?;
        progress(Progress::AgentAnswered);
        start::configure(agent, sandbox, true).await?;
        return Ok(Up { vcpus: waiting.vcpus, path: create.path, chain, cold: None });
    }
    let base = create.template.template.root.clone();
    let mut plan = Plan { id: sandbox.id.clone(), shape: sandbox.shape, base, chain };
    let mut cold = None;
    if let Some(memory) = &create.memory {
        let own = turn(&shared.restores).await?;
        match start::restore(shared, &create.tools, &plan, create.top.as_ref(), &memory.image, true, made).await {
            Ok(vcpus) => {
                live.send_modify(|live| live.machine = made.machine.clone());
                progress(Progress::AgentAnswered);
                in_turn(own, start::configure(agent, sandbox, true)).await?;
                return Ok(Up { vcpus, path: create.path, chain: plan.chain, cold: None });
            }
            Err(error) if error.is_unfit_capture() => {
                let reason = super::chain(&error);
                tracing::warn!(reason, "the captured machine cannot be restored here: a boot from the disk follows");
                warm::forget(shared, &memory.image.id).await;
                end_unfit(shared, &plan, made).await?;
                cold = Some(reason);
            }
            Err(error) => return Err(error),
        }
    }
    if let (Some(top), None) = (&create.top, &cold) {
        start::make_layer(shared, &create.tools, top).await?;
    }
    progress(Progress::DiskMade);
    // Boots are work for the host's CPUs: one after the other is ready sooner than all at once.
    let _turn = turn(&shared.boots).await?;
    let vcpus = start::boot(shared, &create.tools, &plan, &progress, made).await?;
    live.send_modify(|live| live.machine = made.machine.clone());
    if let (Some(ticket), Some(machine)) = (&mut create.ticket, &made.machine) {
        ticket.capture(shared, &create.tools, machine, &mut plan, vcpus).await?;
    }
    start::configure(agent, sandbox, true).await?;
    Ok(Up { vcpus, path: BootPath::Cold, chain: plan.chain, cold })
}

/// Waits for a turn to start a machine.
pub(super) async fn turn(turns: &tokio::sync::Semaphore) -> Result<SemaphorePermit<'_>, StartError> {
    let turn = timeout(start::TURN_DEADLINE, turns.acquire()).await.map_err(|_| StartError::Turn)?;
    // The semaphores are never closed.
    turn.map_err(|_| StartError::Turn)
}

/// `work` in its turn, which is over when the work takes too long: what a guest makes of it must not hold up others.
pub(super) async fn in_turn<T>(own: SemaphorePermit<'_>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = timeout(CONFIGURED_WITHIN, &mut work).await {
        return done;
    }
    drop(own);
    work.await
}

/// Ends the process that refused to restore a machine, and clears its places for the next one.
pub(super) async fn end_unfit(shared: &Shared, plan: &Plan, made: &mut Made) -> Result<(), StartError> {
    if let Some(machine) = made.machine.take() {
        machine.kill().await.map_err(StartError::Machine)?;
    }
    let sockets = shared.config.paths.sockets(&plan.id);
    start::remove_dir(&sockets).map_err(|error| StartError::Files(Box::new(error)))
}

/// `work`, unless a destroy or the server's end comes first; other requests wait until it is done.
pub(super) async fn until_interrupted<T>(
    requests: &mut mpsc::Receiver<Request>,
    deferred: &mut VecDeque<Request>,
    stopping: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, Interrupt> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return Ok(outcome),
            Some(request) = requests.recv() => match request {
                Request::Destroy(reply) => return Err(Interrupt::Destroy(reply)),
                other if deferred.len() < DEFERRED_MAX => deferred.push_back(other),
                // Its caller learns that nobody answers.
                other => drop(other),
            },
            () = stopping.cancelled() => return Err(Interrupt::ServerStops),
        }
    }
}
