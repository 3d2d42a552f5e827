//! Engine start: makes database, machines and files agree again, whatever happened to the server before.
//!
//! | the row says | its machine | what is done |
//! |---|---|---|
//! | creating | any | killed; files removed; `error` |
//! | running | alive, agent answers | running again |
//! | running | alive, agent silent | killed; `error` |
//! | running | gone | `error`; its disk is kept |
//! | pausing | alive, agent answers | the pause is undone: running |
//! | pausing | gone, or silent | paused: with its memory if it was captured to the end |
//! | paused | any | killed; paused |
//! | resuming, image held | any | killed; paused: its vCPUs never ran |
//! | resuming, image let go | alive, agent answers | running |
//! | resuming, image let go | gone, or silent | paused without memory: the next resume boots its disk |
//! | snapshotting | alive, agent answers | running, with the top that it really has; no snapshot |
//! | snapshotting | gone, or silent | `error`; its disk, with what was written to either top, is kept |
//! | destroying | any | destroyed to the end |
//! | error | any | killed |
//!
//! Then what belongs to no row is removed: processes proven ours, directories with a sandbox's name, layers and images.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use time::OffsetDateTime;

use super::driver::{self, Beginning, Channels, Handle, chain};
use super::start::{self, Leftover};
use super::{Action, BootPath, Sandbox, SandboxFilter, SandboxId, SandboxState};
use crate::agent::Agent;
use crate::db::{MachineRow, MachineStep, Outcome, Step};
use crate::error::Error;
use crate::machine::Machine;
use crate::machine::process::{Process, vmm_processes};
use crate::shared::Shared;
use crate::storage::{Holding, Image, ImageId, LayerId, images};
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
    let mut details = HashMap::new();
    for operation in shared.db.open_operations().await? {
        tracing::warn!(sandbox = %operation.sandbox, kind = ?operation.kind, "an earlier server did not end this");
        details.insert(operation.sandbox, operation.detail);
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
    let recovered = join_all(sandboxes.into_iter().map(|sandbox| {
        let detail = details.get(&sandbox.id).cloned().unwrap_or_default();
        recover_one(shared, sandbox, detail, &processes)
    }))
    .await;
    for result in recovered {
        let Recovered { handle, channels, beginning } = result?;
        let id = handle.record.borrow().id.clone();
        shared.add(id, handle);
        driver::spawn(Arc::clone(shared), channels, beginning);
    }
    Ok(())
}

/// One sandbox with what the database knows of its machine and its open operation.
struct Left<'a> {
    shared: &'a Arc<Shared>,
    sandbox: Sandbox,
    holding: Holding,
    noted: Option<(MachineRow, Vec<LayerId>)>,
    detail: Value,
    control: PathBuf,
}

async fn recover_one(
    shared: &Arc<Shared>,
    sandbox: Sandbox,
    detail: Value,
    processes: &Processes,
) -> Result<Recovered, Error> {
    let control = shared.config.paths.control_socket(&sandbox.id);
    let noted = shared.db.machine(&sandbox.id).await?;
    let known = noted.as_ref().map(|(row, _)| *row);
    // A process that is not noted was started just before the server ended.
    let others = processes.get(&control).into_iter().flatten().filter(|identity| Some(**identity) != known);
    for identity in others {
        kill(*identity, &control).await?;
    }
    let holding = shared.db.holding(&sandbox.id).await?;
    let left = Left { shared, sandbox, holding, noted, detail, control };
    match left.sandbox.state {
        SandboxState::Creating => left.undo_create().await,
        SandboxState::Running => left.find_running().await,
        SandboxState::Pausing => left.settle_pause().await,
        SandboxState::Resuming => left.settle_resume().await,
        SandboxState::Snapshotting => left.settle_snapshot().await,
        SandboxState::Paused | SandboxState::Error | SandboxState::Destroyed => left.at_rest().await,
        SandboxState::Destroying => {
            left.kill().await?;
            Ok(recovered(left.sandbox, |_| Beginning::Destroy))
        }
    }
}

impl Left<'_> {
    async fn undo_create(self) -> Result<Recovered, Error> {
        self.kill().await?;
        let reason = "the server ended while this sandbox was being created".to_owned();
        self.fail(reason, Leftover::Logs, Outcome::Undone, Holding::default()).await
    }

    async fn at_rest(self) -> Result<Recovered, Error> {
        self.kill().await?;
        self.remove_sockets().await?;
        let step = Step { machine: Some(MachineStep::Delete), end: Some(Outcome::Undone), ..Step::default() };
        self.shared.db.step(Step { sandbox: Some((&self.sandbox, &self.holding)), ..step }).await?;
        Ok(recovered(self.sandbox, |_| Beginning::AtRest { holding: self.holding }))
    }

    async fn find_running(self) -> Result<Recovered, Error> {
        let found = self.find().await?;
        match found {
            Found::Alive(machine) => {
                tracing::info!(sandbox = %self.sandbox.id, "found again");
                let chain = self.noted_chain();
                Ok(self.running(machine, chain))
            }
            found => {
                let holding = Holding { layer: self.holding.layer.clone(), image: None };
                self.fail(found.why(), Leftover::DiskAndLogs, Outcome::Failed, holding).await
            }
        }
    }

    /// The machine runs on if it can: its image, if there is one, is then behind its disk.
    async fn settle_pause(mut self) -> Result<Recovered, Error> {
        if let Found::Alive(machine) = self.find_going().await? {
            self.sandbox.state = self.after(Action::PauseUndone);
            let (holding, chain) = (self.holding.clone(), self.noted_chain());
            self.note(&holding, Step { end: Some(Outcome::Undone), ..Step::default() }).await?;
            return Ok(self.running(machine, chain));
        }
        let image = match self.detail_id("image", ImageId::parse) {
            Some(id) => self.adopt(id).await?,
            None => None,
        };
        let outcome = if image.is_some() { Outcome::Done } else { Outcome::Failed };
        self.rest_paused(Action::Saved, image, outcome).await
    }

    async fn settle_resume(mut self) -> Result<Recovered, Error> {
        if self.holding.image.is_none()
            && let Found::Alive(machine) = self.find_going().await?
        {
            let now = OffsetDateTime::now_utc();
            self.sandbox.state = self.after(Action::Woken);
            self.sandbox.boot_path = Some(BootPath::Snapshot);
            (self.sandbox.started_at, self.sandbox.paused_at) = (Some(now), None);
            let (holding, chain) = (self.holding.clone(), self.noted_chain());
            self.note(&holding, Step { end: Some(Outcome::Done), ..Step::default() }).await?;
            return Ok(self.running(machine, chain));
        }
        self.kill().await?;
        self.rest_paused(Action::ResumeUndone, None, Outcome::Undone).await
    }

    async fn settle_snapshot(mut self) -> Result<Recovered, Error> {
        let found = self.find_going().await?;
        let Found::Alive(machine) = found else {
            let holding = self.holding.clone();
            return self.fail(found.why(), Leftover::DiskAndLogs, Outcome::Failed, holding).await;
        };
        // The vmm itself says with which top it goes on.
        let stats = machine.stats().await.map_err(|source| Error::Machine { id: self.sandbox.id.clone(), source })?;
        let new = self.detail_id("new", LayerId::parse);
        let new = new.filter(|new| stats.tops.contains(&self.shared.config.paths.layer(new)));
        let mut chain = self.noted_chain();
        let top = match new {
            Some(new) => {
                chain.push(new.clone());
                Some(new)
            }
            None => self.detail_id("old", LayerId::parse),
        };
        self.sandbox.state = self.after(Action::SnapshotDoneRunning);
        let holding = Holding { layer: top.or(self.holding.layer.clone()), image: None };
        let step = Step { machine: Some(MachineStep::Chain(&chain)), end: Some(Outcome::Undone), ..Step::default() };
        self.note(&holding, step).await?;
        self.holding = holding;
        Ok(self.running(machine, chain))
    }

    /// The sandbox is paused; `image` is a new one, whose row is to be written.
    async fn rest_paused(mut self, action: Action, image: Option<Image>, outcome: Outcome) -> Result<Recovered, Error> {
        self.remove_sockets().await?;
        self.sandbox.state = self.after(action);
        self.sandbox.paused_at = self.sandbox.paused_at.or(Some(OffsetDateTime::now_utc()));
        let held = image.as_ref().map(|image| image.id.clone()).or(self.holding.image.clone());
        let holding = Holding { layer: self.holding.layer.clone(), image: held };
        let step =
            Step { image: image.as_ref(), machine: Some(MachineStep::Delete), end: Some(outcome), ..Step::default() };
        self.note(&holding, step).await?;
        tracing::info!(sandbox = %self.sandbox.id, memory = holding.image.is_some(), "paused");
        Ok(recovered(self.sandbox, |_| Beginning::AtRest { holding }))
    }

    /// The image that a pause captured to its end, ready for its row.
    async fn adopt(&self, id: ImageId) -> Result<Option<Image>, Error> {
        let Some(layer) = self.holding.layer.clone() else { return Ok(None) };
        let (paths, image) = (self.shared.config.paths.clone(), id.clone());
        let kept = blocking(move || {
            let captured = images::is_captured(&paths, &image);
            if captured { images::keep(&paths, &image).map(|()| true) } else { Ok(false) }
        });
        if !kept.await? {
            return Ok(None);
        }
        Ok(Some(Image {
            id,
            layer,
            fingerprint: self.shared.host.probe.fingerprint.clone(),
            vcpus: u8::try_from(self.sandbox.cpu_granted.unwrap_or(1)).unwrap_or(1),
            memory_mb: self.sandbox.shape.memory_mb,
            bytes: images::bytes(&self.shared.config.paths, &self.detail_id("image", ImageId::parse)),
            created_at: OffsetDateTime::now_utc(),
        }))
    }

    /// As [`Left::find`], of a machine that may stand still: it goes on, and is told the time.
    async fn find_going(&self) -> Result<Found, Error> {
        let Some(machine) = self.attach()? else { return Ok(Found::Gone) };
        let going = async {
            machine.resume().await.map_err(|error| chain(&error))?;
            machine.listen_for_the_end().await.map_err(|error| chain(&error))?;
            let agent = self.agent();
            agent.hello(HELLO_DEADLINE).await.map_err(|error| chain(&error))?;
            start::configure(&agent, &self.sandbox, false).await.map_err(|error| chain(&error))
        };
        match going.await {
            Ok(()) => Ok(Found::Alive(machine)),
            Err(why) => {
                self.kill().await?;
                Ok(Found::Silent(why))
            }
        }
    }

    /// The machine that is noted, if it lives and its agent answers. One that does not is killed.
    async fn find(&self) -> Result<Found, Error> {
        let Some(machine) = self.attach()? else { return Ok(Found::Gone) };
        let answered = async {
            machine.listen_for_the_end().await.map_err(|error| chain(&error))?;
            self.agent().hello(HELLO_DEADLINE).await.map_err(|error| chain(&error))
        };
        match answered.await {
            Ok(()) => Ok(Found::Alive(machine)),
            Err(why) => {
                self.kill().await?;
                Ok(Found::Silent(why))
            }
        }
    }

    fn attach(&self) -> Result<Option<Machine>, Error> {
        let files = start::machine_files(&self.shared.config.paths, &self.sandbox.id);
        let Some((identity, _)) = self.noted else { return Ok(None) };
        Machine::attach(identity, files).map_err(Error::file("look at the process of", &self.control))
    }

    fn agent(&self) -> Agent {
        Agent::alone(self.shared.config.paths.vsock_socket(&self.sandbox.id), self.sandbox.id.clone())
    }

    async fn kill(&self) -> Result<(), Error> {
        match self.noted {
            Some((identity, _)) => kill(identity, &self.control).await,
            None => Ok(()),
        }
    }

    async fn remove_sockets(&self) -> Result<(), Error> {
        let (paths, id) = (self.shared.config.paths.clone(), self.sandbox.id.clone());
        blocking(move || start::remove_files(&paths, &id, Leftover::DiskAndLogs)).await
    }

    async fn note(&self, holding: &Holding, step: Step<'_>) -> Result<(), Error> {
        Ok(self.shared.db.step(Step { sandbox: Some((&self.sandbox, holding)), ..step }).await?)
    }

    fn running(self, machine: Machine, chain: Vec<LayerId>) -> Recovered {
        let (socket, holding) = (self.shared.config.paths.vsock_socket(&self.sandbox.id), self.holding);
        recovered(self.sandbox, |handle| Beginning::Running {
            machine: Arc::new(machine),
            agent: Agent::new(socket, handle.record.clone()),
            chain,
            holding,
        })
    }

    fn noted_chain(&self) -> Vec<LayerId> {
        self.noted.as_ref().map(|(_, chain)| chain.clone()).unwrap_or_default()
    }

    /// An id that the open operation noted.
    fn detail_id<T>(&self, key: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.detail.get(key).and_then(Value::as_str).and_then(parse)
    }

    fn after(&self, action: Action) -> SandboxState {
        self.sandbox.state.after(action).unwrap_or(SandboxState::Error)
    }

    /// Writes that the sandbox failed, and removes what it does not need any more.
    async fn fail(
        mut self,
        reason: String,
        leftover: Leftover,
        outcome: Outcome,
        holding: Holding,
    ) -> Result<Recovered, Error> {
        tracing::warn!(sandbox = %self.sandbox.id, reason, "sandbox failed");
        let (paths, id) = (self.shared.config.paths.clone(), self.sandbox.id.clone());
        blocking(move || start::remove_files(&paths, &id, leftover)).await?;
        self.sandbox.state = self.after(Action::Failed);
        self.sandbox.last_error = Some(reason);
        let step = Step { machine: Some(MachineStep::Delete), end: Some(outcome), ..Step::default() };
        self.note(&holding, step).await?;
        Ok(recovered(self.sandbox, |_| Beginning::AtRest { holding }))
    }
}

/// What became of a machine.
enum Found {
    Alive(Machine),
    /// It lived, but its agent did not answer; it was killed.
    Silent(String),
    Gone,
}

impl Found {
    fn why(&self) -> String {
        match self {
            Found::Silent(why) => format!("its machine was found again but not its agent: {why}"),
            _ => "its machine ended while no server watched it".to_owned(),
        }
    }
}

fn recovered(sandbox: Sandbox, beginning: impl FnOnce(&Handle) -> Beginning) -> Recovered {
    let (handle, channels) = driver::channels(sandbox);
    let beginning = beginning(&handle);
    Recovered { handle, channels, beginning }
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
pub(crate) mod tests;

#[cfg(test)]
mod fault_tests;
