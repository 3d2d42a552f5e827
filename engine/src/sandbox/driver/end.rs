//! How a sandbox fails, is destroyed, or is left by a server that stops.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Driver, Live, Reply, Request, answer, chain, log_failure, session_ms};
use crate::db::{MachineStep, OperationKind, Outcome, Step};
use crate::error::Error;
use crate::events::EventKind;
use crate::sandbox::start::{self, Leftover};
use crate::sandbox::{Action, Sandbox, SandboxState};
use crate::storage::{self, Holding};
use crate::template::store::blocking;

/// How long a destroy may take: what the journal notes.
const DESTROY_DEADLINE: Duration = Duration::from_secs(60);

/// How long the removal of what a failed sandbox leaves may keep its failure from being told.
const TOLD_WITHIN: Duration = Duration::from_millis(500);

/// What cuts a start short.
#[derive(Debug)]
pub(super) enum Interrupt {
    Destroy(Reply<Sandbox>),
    ServerStops,
}

impl Driver {
    /// A start was cut short, and what it made taken down as far as it has to be. True when the driver has nothing left to
    /// do.
    pub(super) async fn interrupted(&mut self, interrupt: Interrupt) -> bool {
        match interrupt {
            Interrupt::Destroy(reply) => self.destroy_logged(Some(reply)).await,
            Interrupt::ServerStops => true,
        }
    }

    /// The machine is no more; the disk and the logs stay until the sandbox is destroyed or restored.
    pub(super) async fn fail(&mut self, reason: String) {
        let holding = Holding { layer: self.holding.layer.clone(), image: None };
        self.fail_with(reason, Outcome::Failed, Leftover::DiskAndLogs, holding).await;
    }

    /// Moves to `error`. What is left of the sandbox is taken down first, so that whoever sees the error sees nothing else
    /// of it; but the error is told soon, whatever that takes, and before the disk has it: a server that ended in between
    /// would find the same again.
    pub(super) async fn fail_with(&mut self, reason: String, outcome: Outcome, leftover: Leftover, holding: Holding) {
        tracing::error!(reason, "sandbox failed");
        let taken_down = timeout(TOLD_WITHIN, self.take_down(leftover)).await;
        let (now, ran) = (OffsetDateTime::now_utc(), self.state() == SandboxState::Running);
        let changed = self.moved(Action::Failed, |record| {
            if ran {
                record.ran_ms += session_ms(record, now);
            }
            record.last_error = Some(reason.clone());
        });
        if let Some(changed) = changed {
            self.record.send_replace(changed.clone());
            let step = Step { end: Some(outcome), machine: Some(MachineStep::Delete), ..Step::default() };
            let noted = self.take_step(&changed, &holding, step).await;
            log_failure("the failure could not be noted", noted);
            self.tell(EventKind::Error { reason });
        }
        let taken_down = match taken_down {
            Ok(result) => result,
            Err(_) => self.take_down(leftover).await,
        };
        log_failure("the rest of the sandbox was not removed", taken_down);
        log_failure("what it held was not deleted", storage::sweep(&self.shared).await);
    }

    /// Ends the machine and removes its sockets, and what of its files is not to be left over. May be dropped and called
    /// again.
    ///
    /// The machine is killed, not asked to stop: it flushes its disks before it stops, and nobody will read them again.
    pub(super) async fn take_down(&mut self, leftover: Leftover) -> Result<(), Error> {
        let id = self.id();
        let machine = self.live.borrow().machine.clone();
        if let Some(machine) = machine {
            machine.kill().await.map_err(|source| Error::Machine { id: id.clone(), source })?;
        }
        self.let_go(leftover).await
    }

    /// The machine's process is gone: removes its sockets, and what of its files is not to be left over.
    pub(super) async fn let_go(&mut self, leftover: Leftover) -> Result<(), Error> {
        let (paths, id) = (self.shared.config.paths.clone(), self.id());
        blocking(move || start::remove_files(&paths, &id, leftover)).await?;
        self.live.send_replace(Live::default());
        self.chain.clear();
        Ok(())
    }

    /// Destroys and answers whoever asked; true when the sandbox is gone, and with it the driver's work.
    pub(super) async fn destroy_logged(&mut self, reply: Option<Reply<Sandbox>>) -> bool {
        let result = self.destroy().await;
        if let Err(error) = &result {
            tracing::error!(error = error as &dyn std::error::Error, "destroy failed");
        }
        let gone = result.is_ok();
        if gone {
            self.retire(result.as_ref().ok());
        }
        if let Some(reply) = reply {
            answer(reply, result);
        }
        gone
    }

    async fn destroy(&mut self) -> Result<Sandbox, Error> {
        let now = OffsetDateTime::now_utc();
        let ran = self.state() == SandboxState::Running;
        // A record that says `destroying` is one that an earlier server left.
        let begun = self.moved(Action::DestroyBegun, |record| {
            if ran {
                record.ran_ms += session_ms(record, now);
            }
        });
        if let Some(changed) = begun {
            self.shared.db.begin_operation(&changed, OperationKind::Destroy, DESTROY_DEADLINE).await?;
            self.record.send_replace(changed);
        }
        let machine = self.live.borrow().machine.clone();
        crate::fault::point("destroy.begun", machine.as_deref()).await;
        if let Err(error) = self.take_down(Leftover::Nothing).await {
            let reason = format!("destroy failed: {}", chain(&error));
            if let Some(changed) = self.moved(Action::Failed, |record| record.last_error = Some(reason.clone())) {
                self.shared.db.end_operations(&changed, Outcome::Failed).await?;
                self.record.send_replace(changed);
                self.tell(EventKind::Error { reason });
            }
            return Err(error);
        }
        crate::fault::point("destroy.taken_down", None).await;
        let now = OffsetDateTime::now_utc();
        let gone = self.moved(Action::Gone, |record| {
            record.destroyed_at = Some(now);
            record.paused_at = None;
        });
        let Some(changed) = gone else { return Err(self.wrong_state("destroying it")) };
        self.shared.db.end_destroy(&changed).await?;
        self.holding = Holding::default();
        crate::fault::point("destroy.noted", None).await;
        log_failure("its layers were not deleted", storage::sweep(&self.shared).await);
        self.record.send_replace(changed.clone());
        self.tell(EventKind::Destroyed);
        tracing::info!("sandbox destroyed");
        Ok(changed)
    }

    /// The sandbox is gone: nobody finds this driver any more, and who already asked is answered.
    fn retire(&mut self, destroyed: Option<&Sandbox>) {
        self.shared.forget(&self.id());
        self.shared.previews.close_all(&self.id());
        self.requests.close();
        let queued = std::iter::from_fn(|| self.requests.try_recv().ok());
        let waiting: Vec<Request> = self.deferred.drain(..).chain(queued).collect();
        let gone = || Err(Error::SandboxDestroyed(self.id()));
        for request in waiting {
            match request {
                Request::Destroy(reply) => answer(reply, destroyed.cloned().map_or_else(gone, Ok)),
                Request::Pause(reply)
                | Request::Resume { reply, .. }
                | Request::Restore { reply, .. }
                | Request::Update { reply, .. } => answer(reply, gone()),
                Request::Snapshot { reply, .. } => answer(reply, Err(Error::SandboxDestroyed(self.id()))),
                Request::Point(reply) => answer(reply, Err(Error::SandboxDestroyed(self.id()))),
            }
        }
    }

    /// A persistent sandbox's machine lives on and is found again; another one's session ends with the server.
    pub(super) async fn server_stops(&mut self) {
        if self.state() == SandboxState::Running && !self.record.borrow().persistent {
            tracing::info!("the server stops; the sandbox is not persistent");
            self.destroy_logged(None).await;
        }
    }
}
