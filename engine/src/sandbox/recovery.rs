//! Engine start: makes database, machines and files agree again, whatever happened to the server before.
//!
//! | the row says | its machine | what is done |
//! |---|---|---|
//! | creating | any | killed; files removed; `error` |
//! | running | alive, agent answers | running again |
//! | running | alive, agent silent | killed; `error` |
//! | running | gone | `error` |
//! | destroying | any | destroyed to the end |
//! | error | any | killed |
//!
//! Then what belongs to no row is removed: processes proven ours, directories with a sandbox's name.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;

use super::driver::{self, Beginning, Channels, Handle, chain};
use super::start::{self, Leftover};
use super::{Action, Sandbox, SandboxFilter, SandboxId, SandboxState};
use crate::agent::Agent;
use crate::db::{MachineRow, Outcome};
use crate::error::Error;
use crate::machine::Machine;
use crate::machine::process::{Process, vmm_processes};
use crate::shared::Shared;
use crate::template::store::blocking;

/// How long the agent of a machine that was found again may take to answer.
const HELLO_DEADLINE: Duration = Duration::from_secs(60);

/// Vmm processes by their control sockets.
type Processes = HashMap<PathBuf, Vec<MachineRow>>;

/// What to do with a sandbox that an earlier server left.
struct Recovered {
    handle: Handle,
    channels: Channels,
    beginning: Beginning,
}

/// Brings everything into agreement and starts the drivers.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), Error> {
    let sandboxes = shared.db.sandboxes(&SandboxFilter::default()).await?;
    for (id, kind) in shared.db.open_operations().await? {
        tracing::warn!(sandbox = %id, ?kind, "an earlier server did not end this");
    }
    let runtime = shared.config.paths.runtime.clone();
    let found = vmm_processes(&runtime).map_err(Error::file("list", "/proc"))?;
    let mut processes = Processes::new();
    for (identity, control) in found {
        processes.entry(control).or_default().push(identity);
    }
    let known: HashSet<SandboxId> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
    remove_orphans(shared, &known, &processes).await?;
    // The agents are asked all at once: each may take its time.
    let recovered = join_all(sandboxes.into_iter().map(|sandbox| recover_one(shared, sandbox, &processes))).await;
    for result in recovered {
        let Recovered { handle, channels, beginning } = result?;
        let id = handle.record.borrow().id.clone();
        shared.add(id, handle);
        driver::spawn(Arc::clone(shared), channels, beginning);
    }
    Ok(())
}

async fn recover_one(shared: &Arc<Shared>, sandbox: Sandbox, processes: &Processes) -> Result<Recovered, Error> {
    let id = sandbox.id.clone();
    let control = shared.config.paths.control_socket(&id);
    let noted = shared.db.machine(&id).await?;
    // A process that is not noted was started just before the server ended, in a create.
    let others = processes.get(&control).into_iter().flatten().filter(|identity| Some(**identity) != noted);
    for identity in others {
        kill(*identity, &control).await?;
    }
    let state = sandbox.state;
    match state {
        SandboxState::Running => find_again(shared, sandbox, noted, &control).await,
        SandboxState::Destroying => {
            kill_noted(noted, &control).await?;
            Ok(recovered(sandbox, |_| Beginning::Destroy))
        }
        SandboxState::Creating => {
            let reason = "the server ended while this sandbox was being created".to_owned();
            kill_noted(noted, &control).await?;
            fail(shared, sandbox, reason, Leftover::Logs, Outcome::Undone).await
        }
        SandboxState::Error | SandboxState::Destroyed => {
            kill_noted(noted, &control).await?;
            shared.db.delete_machine(&id).await?;
            Ok(recovered(sandbox, |_| Beginning::AtRest))
        }
        SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming | SandboxState::Snapshotting => {
            kill_noted(noted, &control).await?;
            let reason = format!("the server found this sandbox {state}, which it cannot continue");
            fail(shared, sandbox, reason, Leftover::DiskAndLogs, Outcome::Undone).await
        }
    }
}

/// A sandbox that ran: its machine may still.
async fn find_again(
    shared: &Arc<Shared>,
    sandbox: Sandbox,
    noted: Option<MachineRow>,
    control: &Path,
) -> Result<Recovered, Error> {
    let id = sandbox.id.clone();
    let files = start::machine_files(&shared.config.paths, &id);
    let machine = match noted {
        Some(identity) => Machine::attach(identity, files).map_err(Error::file("look at the process of", control))?,
        None => None,
    };
    let Some(machine) = machine else {
        let reason = "its machine ended while no server watched it".to_owned();
        return fail(shared, sandbox, reason, Leftover::DiskAndLogs, Outcome::Failed).await;
    };
    let (_, record) = watch::channel(sandbox.clone());
    let probe = Agent::new(shared.config.paths.vsock_socket(&id), record);
    let answered = async {
        machine.listen_for_the_end().await.map_err(|error| chain(&error))?;
        probe.hello(HELLO_DEADLINE).await.map_err(|error| chain(&error))
    };
    if let Err(why) = answered.await {
        kill_noted(noted, control).await?;
        let reason = format!("its machine was found again but not its agent: {why}");
        return fail(shared, sandbox, reason, Leftover::DiskAndLogs, Outcome::Failed).await;
    }
    tracing::info!(sandbox = %id, "found again");
    let socket = shared.config.paths.vsock_socket(&id);
    Ok(recovered(sandbox, |handle| Beginning::Running {
        machine: Arc::new(machine),
        agent: Agent::new(socket, handle.record.clone()),
    }))
}

/// Writes that a sandbox failed, and removes what it does not need any more.
async fn fail(
    shared: &Arc<Shared>,
    mut sandbox: Sandbox,
    reason: String,
    leftover: Leftover,
    outcome: Outcome,
) -> Result<Recovered, Error> {
    tracing::warn!(sandbox = %sandbox.id, reason, "sandbox failed");
    let (paths, id) = (shared.config.paths.clone(), sandbox.id.clone());
    blocking(move || start::remove_files(&paths, &id, leftover)).await?;
    sandbox.state = sandbox.state.after(Action::Failed).unwrap_or(SandboxState::Error);
    sandbox.last_error = Some(reason);
    shared.db.end_operations(&sandbox, outcome).await?;
    shared.db.delete_machine(&sandbox.id).await?;
    Ok(recovered(sandbox, |_| Beginning::AtRest))
}

fn recovered(sandbox: Sandbox, beginning: impl FnOnce(&Handle) -> Beginning) -> Recovered {
    let (handle, channels) = driver::channels(sandbox);
    let beginning = beginning(&handle);
    Recovered { handle, channels, beginning }
}

async fn kill_noted(noted: Option<MachineRow>, control: &Path) -> Result<(), Error> {
    match noted {
        Some(identity) => kill(identity, control).await,
        None => Ok(()),
    }
}

/// Kills a process if it is proven ours, and waits until it is gone.
async fn kill(identity: MachineRow, control: &Path) -> Result<(), Error> {
    let process = Process::attach(identity, control).map_err(Error::file("look at the process of", control))?;
    if let Some(process) = process {
        tracing::warn!(pid = identity.pid, control = %control.display(), "a vmm process is killed");
        process.kill();
        process.ended().await;
    }
    Ok(())
}

/// Ends processes and removes directories that belong to no sandbox.
async fn remove_orphans(shared: &Arc<Shared>, known: &HashSet<SandboxId>, processes: &Processes) -> Result<(), Error> {
    let paths = shared.config.paths.clone();
    let sockets: HashSet<PathBuf> = known.iter().map(|id| paths.control_socket(id)).collect();
    for (control, identities) in processes.iter().filter(|(control, _)| !sockets.contains(*control)) {
        for identity in identities {
            kill(*identity, control).await?;
        }
    }
    let known = known.clone();
    blocking(move || {
        for parent in [paths.sandboxes(), paths.runtime] {
            for dir in orphan_dirs(&parent, &known)? {
                tracing::warn!(path = %dir.display(), "a directory without a sandbox is removed");
                start::remove_dir(&dir)?;
            }
        }
        Ok(())
    })
    .await
}

/// The directories in `parent` that are named like a sandbox that is not known. Other names are not ours to touch.
fn orphan_dirs(parent: &Path, known: &HashSet<SandboxId>) -> Result<Vec<PathBuf>, Error> {
    let mut orphans = Vec::new();
    for entry in fs::read_dir(parent).map_err(Error::file("list", parent))? {
        let entry = entry.map_err(Error::file("list", parent))?;
        let id = entry.file_name().to_str().and_then(SandboxId::parse);
        if id.is_some_and(|id| !known.contains(&id)) {
            orphans.push(entry.path());
        }
    }
    Ok(orphans)
}

#[cfg(test)]
mod tests;
