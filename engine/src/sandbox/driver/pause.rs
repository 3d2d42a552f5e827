//! Pause: memory and disk are saved, then the machine ends.
//!
//! ```text
//!  pause.begun ─► guest syncs ─► capture (stands still) ─► pause.captured ─► row ─► pause.noted ─► machine stops
//! ```
//!
//! Until the row says `paused` the machine can run on, and does so when anything fails.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use super::{Driver, log_failure, session_ms};
use crate::agent::Agent;
use crate::db::{MachineStep, OperationKind, Outcome, Step};
use crate::error::Error;
use crate::events::EventKind;
use crate::fault;
use crate::machine::{Machine, MachineError};
use crate::sandbox::start::Leftover;
use crate::sandbox::{Action, Sandbox, SandboxState, start};
use crate::storage::capture::{Capture, CaptureError, capture, check_room, discard};
use crate::storage::{Holding, ImageId};

/// How long a pause may take: what the journal notes.
const PAUSE_DEADLINE: Duration = Duration::from_secs(600);

/// How long the guest may take to write its dirty pages to the disk. Its memory is captured with them, so only a boot from
/// the disk alone would miss what is not written.
pub(super) const SYNC_DEADLINE: Duration = Duration::from_secs(30);

/// Why a pause failed.
enum Failed {
    Capture(CaptureError),
    Note(Error),
}

impl Driver {
    pub(super) async fn pause(&mut self) -> Result<Sandbox, Error> {
        const OPERATION: &str = "pausing it";
        if self.state() == SandboxState::Paused {
            return Ok(self.record.borrow().clone());
        }
        let changed = self.allowed(Action::PauseBegun, OPERATION, |_| {})?;
        let (Some((machine, agent)), Some(layer)) = (self.machine(), self.holding.layer.clone()) else {
            return Err(self.wrong_state(OPERATION));
        };
        check_room(&self.shared).map_err(|error| self.no_space_or("the pause", error))?;
        let image = ImageId::generate();
        let begin = Some((OperationKind::Pause, PAUSE_DEADLINE, json!({ "image": image })));
        let holding = self.holding.clone();
        if let Err(error) = self.take_step(&changed, &holding, Step { begin, ..Step::default() }).await {
            return Err(self.no_space_or("the pause", error));
        }
        fault::point("pause.begun", Some(&machine)).await;
        sync(&agent).await;
        agent.end("paused");
        let of = Capture {
            image,
            layer,
            vcpus: self.vcpus(),
            memory_mb: changed.shape.memory_mb,
            disk: None,
            resume: false,
            durable: true,
        };
        let image = match capture(&self.shared, &machine, of).await {
            Ok((image, _)) => image,
            Err(error) => return Err(self.pause_failed(&machine, &agent, Failed::Capture(error)).await),
        };
        fault::point("pause.captured", Some(&machine)).await;
        let now = OffsetDateTime::now_utc();
        let changed = self.allowed(Action::Saved, OPERATION, |record| {
            record.ran_ms += session_ms(record, now);
            record.paused_at = Some(now);
            record.extended_at = None;
        })?;
        let holding = Holding { layer: self.holding.layer.clone(), image: Some(image.id.clone()) };
        let step = Step {
            image: Some(&image),
            machine: Some(MachineStep::Delete),
            end: Some(Outcome::Done),
            ..Step::default()
        };
        if let Err(error) = self.shared.db.step(Step { sandbox: Some((&changed, &holding)), ..step }).await {
            discard(&self.shared, &image.id).await;
            return Err(self.pause_failed(&machine, &agent, Failed::Note(error.into())).await);
        }
        self.holding = holding;
        fault::point("pause.noted", Some(&machine)).await;
        log_failure("a paused machine was not ended", machine.stop().await);
        log_failure("a paused machine's sockets are left", self.let_go(Leftover::DiskAndLogs).await);
        // Told when nothing of the machine is left: who resumes it now finds its places free.
        self.record.send_replace(changed.clone());
        tracing::info!("sandbox paused");
        self.tell(EventKind::Paused);
        Ok(changed)
    }

    /// Lets the machine run on after a failed pause, and says why it failed.
    async fn pause_failed(&mut self, machine: &Arc<Machine>, agent: &Agent, failed: Failed) -> Error {
        let (no_space, error) = match failed {
            Failed::Capture(error) => {
                let id = self.id();
                let no_space = error.is_no_space();
                let error = match error {
                    CaptureError::Machine(source) => Error::Machine { id, source },
                    CaptureError::Begin(error) | CaptureError::Keep(error) => error,
                };
                (no_space, error)
            }
            Failed::Note(error) => (error.is_no_space(), error),
        };
        tracing::warn!(error = &error as &dyn std::error::Error, "the pause failed");
        match machine.resume().await {
            Ok(()) => {
                agent.go_on();
                // The guest's clock stood still with it.
                let record = self.record.borrow().clone();
                log_failure("the guest was not told the time", start::configure(agent, &record, false).await);
                if let Some(changed) = self.moved(Action::PauseUndone, |_| {}) {
                    let holding = self.holding.clone();
                    // On a full disk not even this is written; the record is shown all the same, and a server that ends
                    // now finds a machine that runs.
                    let step = Step { end: Some(Outcome::Failed), ..Step::default() };
                    log_failure("the failed pause could not be noted", self.take_step(&changed, &holding, step).await);
                    self.record.send_replace(changed);
                }
            }
            Err(MachineError::Exited(reason)) => self.paused_without_memory(reason).await,
            Err(source) => {
                self.fail(format!("it could not be paused, nor go on: {}", super::chain(&source))).await;
            }
        }
        if no_space { self.no_space("the pause", error) } else { error }
    }

    /// The machine died while it was being paused: its disk was synced, and it is booted from it when it is resumed.
    async fn paused_without_memory(&mut self, reason: String) {
        tracing::error!(reason, "the machine ended while it was being paused; its disk is kept");
        let now = OffsetDateTime::now_utc();
        let changed = self.moved(Action::Saved, |record| {
            record.ran_ms += session_ms(record, now);
            record.paused_at = Some(now);
            record.extended_at = None;
        });
        let Some(changed) = changed else { return };
        log_failure("a dead machine's sockets are left", self.take_down(Leftover::DiskAndLogs).await);
        let holding = Holding { layer: self.holding.layer.clone(), image: None };
        let step = Step { machine: Some(MachineStep::Delete), end: Some(Outcome::Failed), ..Step::default() };
        log_failure("the failed pause could not be noted", self.take_step(&changed, &holding, step).await);
        self.record.send_replace(changed);
        self.tell(EventKind::Paused);
    }

    /// The vCPUs that the machine really has.
    pub(super) fn vcpus(&self) -> u8 {
        let granted = self.record.borrow().cpu_granted.unwrap_or(1);
        u8::try_from(granted).unwrap_or(1)
    }

    pub(super) fn no_space(&self, operation: &'static str, error: Error) -> Error {
        Error::NoSpace { id: self.id(), operation, source: Box::new(error) }
    }

    pub(super) fn no_space_or(&self, operation: &'static str, error: Error) -> Error {
        if error.is_no_space() { self.no_space(operation, error) } else { error }
    }
}

/// Lets the guest write its dirty pages; a guest that does not is captured all the same.
pub(super) async fn sync(agent: &Agent) {
    if let Err(error) = agent.sync(SYNC_DEADLINE).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "the guest did not sync");
    }
}
