//! Scratch machines: nobody's, made to be captured with everything in its memory that the first command would need.

use std::sync::Arc;
use std::time::Duration;

use super::{Ticket, evict};
use cove_protocol::guest::ErrorKind;

use crate::agent::{Agent, Language};
use crate::db::WarmRow;
use crate::error::Error;
use crate::fault;
use crate::machine::Machine;
use crate::sandbox::SandboxId;
use crate::sandbox::start::{self, Leftover, Made, Plan, StartError};
use crate::shared::Shared;
use crate::storage::capture::{Capture, CaptureError, capture};
use crate::storage::{Image, ImageId, Layer, layers};
use crate::template::store::blocking;

/// How long an agent may take to prepare its machine; where the guest's kernel is emulated that is minutes.
const PREPARE_DEADLINE: Duration = Duration::from_secs(1800);

/// How long its interpreter may take to be ready.
const CODE_DEADLINE: Duration = Duration::from_secs(300);

/// How long it may take to write its dirty pages.
const SYNC_DEADLINE: Duration = Duration::from_secs(120);

/// For whom a machine is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Someone waits for it.
    Awaited,
    /// Nobody yet: what runs in sandboxes goes first.
    Yielding,
}

/// Makes the prepared machine of a ticket's kind: from the one captured after its boot, or from a boot.
pub(super) async fn prepare(shared: &Arc<Shared>, ticket: &Ticket, pace: Pace) -> Result<(), Error> {
    let _one_at_a_time = tokio::select! {
        one = shared.warm.one.lock() => one,
        () = shared.stopping.cancelled() => return Err(Error::ShuttingDown),
    };
    quiet(shared).await?;
    let id = SandboxId::generate();
    tracing::info!(key = ticket.kind.key, scratch = %id, "preparing a warm template");
    let mut made = Made::default();
    let mut top = None;
    let result = tokio::select! {
        result = scratch(shared, ticket, pace, &id, &mut top, &mut made) => result,
        () = shared.stopping.cancelled() => Err(Error::ShuttingDown),
    };
    clean_up(shared, &id, made, top.filter(|_| result.is_err())).await;
    let image = result?;
    tracing::info!(key = ticket.kind.key, %image, "warm template prepared");
    evict(shared).await
}

/// Waits until no sandbox is starting.
pub(super) async fn quiet(shared: &Shared) -> Result<(), Error> {
    let mut starts = shared.warm.starts.subscribe();
    tokio::select! {
        // The sender lives as long as the engine.
        _ = starts.wait_for(|count| *count == 0) => Ok(()),
        () = shared.stopping.cancelled() => Err(Error::ShuttingDown),
    }
}

async fn scratch(
    shared: &Shared,
    ticket: &Ticket,
    pace: Pace,
    id: &SandboxId,
    made_top: &mut Option<Layer>,
    made: &mut Made,
) -> Result<ImageId, Error> {
    let failed = |source: StartError| Error::WarmFailed { source: Box::new(source) };
    let tools = shared.tools()?;
    let kind = &ticket.kind;
    let basic = match shared.db.warm(&kind.key).await? {
        Some(WarmRow { image, .. }) => shared.memory(&image).await?,
        None => None,
    };
    let below = match &basic {
        Some(memory) => layers::ids(&shared.db.chain(&memory.image.layer).await?),
        None => Vec::new(),
    };
    let top = ticket.kind.new_layer(below.last().cloned());
    start::make_layer(shared, &tools, &top).await.map_err(failed)?;
    *made_top = Some(top.clone());
    let mut chain = below;
    chain.push(top.id.clone());
    let base = kind.template.template.root.clone();
    let plan = Plan { id: id.clone(), shape: kind.shape, base, chain };
    let vcpus = match &basic {
        Some(memory) => start::restore(shared, &tools, &plan, None, &memory.image, true, made).await.map_err(failed)?,
        None => start::boot(shared, &tools, &plan, &|_| {}, made).await.map_err(failed)?,
    };
    let Some(machine) = made.machine.clone() else { return Err(Error::ShuttingDown) };
    if pace == Pace::Yielding {
        // Commands run in sandboxes meanwhile; only starts make it stand still.
        machine.yield_to_others();
    }
    let agent = Agent::alone(shared.config.paths.vsock_socket(id), id.clone());
    while_quiet(shared, &machine, agent.prepare(PREPARE_DEADLINE)).await?;
    if let Err(error) = while_quiet(shared, &machine, warm_code(&agent)).await {
        tracing::warn!(%error, key = kind.key, "the template's machine has no interpreter that waits");
    }
    while_quiet(shared, &machine, agent.sync(SYNC_DEADLINE)).await?;
    let of = Capture {
        image: ImageId::generate(),
        layer: top.id.clone(),
        vcpus,
        memory_mb: kind.shape.memory_mb,
        disk: None,
        resume: false,
        durable: true,
    };
    let (image, _) = capture(shared, &machine, of).await.map_err(|error| match error {
        CaptureError::Machine(source) => failed(StartError::Machine(source)),
        CaptureError::Begin(error) | CaptureError::Keep(error) => error,
    })?;
    fault::point("warm.captured", Some(&machine)).await;
    note(shared, ticket, &machine, &image, &top).await?;
    Ok(image.id)
}

/// An interpreter waits in the captured machine, so that the first run of code does not pay its start. A template need not
/// have any.
async fn warm_code(agent: &Agent) -> Result<(), Error> {
    match agent.warm_interpreters(Language::Python, CODE_DEADLINE).await {
        Err(Error::Guest { kind: ErrorKind::NotFound, .. }) => Ok(()),
        other => other,
    }
}

/// The machine ends before others may use its disk: then it is whole, and unlocked.
async fn note(shared: &Shared, ticket: &Ticket, machine: &Machine, image: &Image, top: &Layer) -> Result<(), Error> {
    let failed = |source| Error::WarmFailed { source: Box::new(StartError::Machine(source)) };
    machine.stop().await.map_err(failed)?;
    let row = ticket.row(shared, image.id.clone(), true);
    let noted = shared.db.put_warm(&row, image, &[top]).await;
    if noted.is_err() {
        crate::storage::capture::discard(shared, &image.id).await;
    }
    fault::point("warm.noted", None).await;
    Ok(noted?)
}

/// `work` inside a scratch machine, which stands still while sandboxes are starting.
async fn while_quiet<T>(
    shared: &Shared,
    machine: &Machine,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let failed = |source| Error::WarmFailed { source: Box::new(StartError::Machine(source)) };
    let mut starts = shared.warm.starts.subscribe();
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = starts.wait_for(|count| *count > 0) => {}
        }
        machine.pause().await.map_err(failed)?;
        // The sender lives as long as the engine.
        let _ = starts.wait_for(|count| *count == 0).await;
        machine.resume().await.map_err(failed)?;
    }
}

/// Ends a scratch machine and removes its files; `unused` is a layer that no row names.
pub(super) async fn clean_up(shared: &Shared, id: &SandboxId, made: Made, unused: Option<Layer>) {
    let cleaned = async {
        if let Some(machine) = made.machine {
            machine.kill().await.map_err(|source| Error::Machine { id: id.clone(), source })?;
        }
        let (paths, id) = (shared.config.paths.clone(), id.clone());
        blocking(move || {
            start::remove_files(&paths, &id, Leftover::Nothing)?;
            unused.iter().try_for_each(|layer| layers::remove(&paths, &layer.id))
        })
        .await
    };
    if let Err(error) = cleaned.await {
        tracing::error!(error = &error as &dyn std::error::Error, "a scratch machine was not removed");
    }
}
