//! The pool: restored machines that stand still and wait for a create, which then needs no process and no restore.
//!
//! Each has its own layer, sockets and a reserved sandbox id; no row knows of it, so that what a server leaves of it is
//! removed as an orphan at the next start. All are of the kind that was asked for last, at first the default one.

use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;

use super::{Kind, build, ensure, find};
use crate::error::Error;
use crate::machine::Machine;
use crate::sandbox::start::{self, Made, Plan, StartError};
use crate::sandbox::{SandboxId, SandboxSpec};
use crate::shared::Shared;
use crate::storage::{Layer, LayerId};
use crate::template::store;

/// The waiting machines of one engine.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<Kind>,
    waiting: Vec<Waiting>,
}

/// A machine that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: SandboxId,
    pub(crate) machine: Arc<Machine>,
    pub(crate) vcpus: u8,
    /// Its own layer, which has a file and no row.
    pub(crate) top: Layer,
    pub(crate) below: Vec<LayerId>,
    key: String,
}

impl Pool {
    /// Takes a waiting machine of a kind, which is the kind that is wanted from now on.
    pub(crate) fn claim(&self, kind: &Kind) -> Option<Waiting> {
        let mut state = self.state();
        state.wanted = Some(kind.clone());
        let at = state.waiting.iter().position(|waiting| waiting.key == kind.key && !waiting.machine.has_ended());
        let claimed = at.map(|at| state.waiting.swap_remove(at));
        drop(state);
        self.changed.notify_one();
        claimed
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is of no use: of another kind, or dead.
    fn take_useless(&self, key: &str) -> Vec<Waiting> {
        let mut state = self.state();
        let (useful, useless) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition(|waiting| waiting.key == key && !waiting.machine.has_ended());
        state.waiting = useful;
        useless
    }
}

/// Keeps the pool full until the engine stops, and then ends what waits.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let pool = &shared.warm.pool;
    loop {
        let filled = tokio::select! {
            filled = fill(&shared) => filled,
            () = shared.stopping.cancelled() => break,
        };
        if let Err(error) = filled {
            tracing::warn!(error = &error as &dyn std::error::Error, "the pool of waiting machines was not filled");
        }
        tokio::select! {
            () = pool.changed.notified() => {}
            () = shared.stopping.cancelled() => break,
        }
    }
    let waiting = std::mem::take(&mut pool.state().waiting);
    end_all(&shared, waiting).await;
}

async fn fill(shared: &Arc<Shared>) -> Result<(), Error> {
    loop {
        build::quiet(shared).await?;
        let wanted = shared.warm.pool.state().wanted.clone();
        let kind = match wanted {
            Some(kind) => kind,
            None => default_kind(shared).await?,
        };
        end_all(shared, shared.warm.pool.take_useless(&kind.key)).await;
        if shared.warm.pool.state().waiting.len() >= shared.config.warm_pool {
            return Ok(());
        }
        ensure(shared, kind.clone()).await?;
        let waiting = make(shared, &kind).await?;
        let mut state = shared.warm.pool.state();
        state.wanted = state.wanted.take().or(Some(kind));
        state.waiting.push(waiting);
    }
}

async fn default_kind(shared: &Arc<Shared>) -> Result<Kind, Error> {
    let not_found = || Error::TemplateNotFound(store::BUILT_IN.to_owned());
    let template = store::find(&shared.db, store::BUILT_IN).await?.ok_or_else(not_found)?;
    let sandbox = SandboxSpec::default().check(&template.template, OffsetDateTime::now_utc())?;
    Ok(Kind::of(shared, &template, sandbox.shape))
}

/// Restores a machine that waits.
async fn make(shared: &Shared, kind: &Kind) -> Result<Waiting, Error> {
    let failed = |source: StartError| Error::WarmFailed { source: Box::new(source) };
    let tools = shared.tools()?;
    let gone = || Error::TemplateNotFound(kind.template.template.id.clone());
    let (memory, below) = find(shared, kind).await?.ok_or_else(gone)?;
    let (id, top) = (SandboxId::generate(), kind.new_layer(below.last().cloned()));
    let mut chain = below.clone();
    chain.push(top.id.clone());
    let base = kind.template.template.root.clone();
    let plan = Plan { id: id.clone(), shape: kind.shape, base, chain };
    let mut made = Made::default();
    let restored = start::restore(shared, &tools, &plan, Some(&top), &memory.image, false, &mut made).await;
    match (restored, made.machine.clone()) {
        (Ok(vcpus), Some(machine)) => Ok(Waiting { id, machine, vcpus, top, below, key: kind.key.clone() }),
        (Ok(_), None) => Err(Error::ShuttingDown),
        (Err(error), _) => {
            build::clean_up(shared, &id, made, Some(top)).await;
            Err(failed(error))
        }
    }
}

/// Ends machines that wait, and removes what is theirs.
pub(crate) async fn end_all(shared: &Shared, all: Vec<Waiting>) {
    for waiting in all {
        let made = Made { machine: Some(waiting.machine) };
        build::clean_up(shared, &waiting.id, made, Some(waiting.top)).await;
    }
}
