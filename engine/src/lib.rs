//! Sandboxes and their life. Being built.
#![forbid(unsafe_code)]

pub mod config;

pub mod error;

pub mod events;

pub mod sandbox;

pub mod template;

pub mod idempotency;

pub mod agent;

pub mod machine;

pub mod db;

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

pub use cove_protocol as protocol;
use cove_protocol::guest;
use cove_protocol::vmm::HostProbe;

pub use agent::{ExecEvent, ExecInput, ExecOutput, Execution, FileStream};
pub use config::{EngineConfig, EngineLimits};
pub use error::{BoxError, Error};
pub use events::{Event, EventKind};
pub use idempotency::{Answer, Claim, ClaimGuard, InFlight, Replay};
pub use sandbox::{External, Sandbox, SandboxFilter, SandboxId, SandboxSpec, SandboxState, Shape, Size};
pub use template::Template;

/// The engine: a cheap handle, clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    // Until the parts behind it exist no engine can be made.
    inner: Arc<Infallible>,
}

/// What may be asked for, and what this host grants.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// vCPUs.
    pub cpu_count: RangeInclusive<u32>,
    /// Memory in MiB.
    pub memory_mb: RangeInclusive<u32>,
    /// Disk in MiB.
    pub disk_size_mb: RangeInclusive<u32>,
    /// The shape when nothing is asked for.
    pub default_shape: Shape,
    /// Seconds of a session.
    pub timeout_sec: RangeInclusive<u32>,
    /// Its default.
    pub timeout_sec_default: u32,
    /// Seconds of inactivity, 0 = off.
    pub idle_timeout_sec: RangeInclusive<u32>,
    /// Most sandboxes that are not destroyed.
    pub sandboxes_max: u64,
    /// Most vCPUs that a machine is really granted here.
    pub cpu_granted_max: u32,
}

/// Is a sandbox command-ready, and how far is each part of it?
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// Commands can run.
    pub ready: bool,
    /// Where it is in its life.
    pub state: SandboxState,
    /// The contract's components (8.7) in its order, and whether each is ready.
    pub components: Vec<(&'static str, bool)>,
    /// Why it is in state `error`.
    pub last_error: Option<String>,
}

impl Engine {
    /// Opens the data directory, brings database and machines into agreement, and imports the built-in template.
    pub async fn start(_config: EngineConfig) -> Result<Engine, Error> {
        Err(Error::HostNotReady { problem: "The engine is being built".into() })
    }

    /// Takes no new work, ends what runs in the engine, leaves machines alive. Returns when nothing is left to write.
    pub async fn shutdown(&self) {
        match *self.inner {}
    }

    /// Says in the data directory's lock file on which port the server listens.
    pub fn announce_port(&self, _port: u16) -> Result<(), Error> {
        match *self.inner {}
    }

    /// What may be asked for.
    pub fn limits(&self) -> Limits {
        match *self.inner {}
    }

    /// What this host can do, as `vmm probe` said at start.
    pub fn host(&self) -> &HostProbe {
        match *self.inner {}
    }

    /// Makes a sandbox: checked, admitted, its record written; it boots in the background.
    pub async fn create(&self, _spec: SandboxSpec) -> Result<Sandbox, Error> {
        match *self.inner {}
    }

    /// The first record that is not in a transitional state, or the current one at the deadline.
    pub async fn wait_settled(&self, _id: &SandboxId, _deadline: Instant) -> Result<Sandbox, Error> {
        match *self.inner {}
    }

    /// The record of the sandbox with this id, destroyed ones too for 24 h.
    pub async fn get(&self, _id: &str) -> Result<Sandbox, Error> {
        match *self.inner {}
    }

    /// The live sandbox with this name.
    pub async fn by_name(&self, _name: &str) -> Result<Sandbox, Error> {
        match *self.inner {}
    }

    /// The sandboxes that match, oldest first.
    pub async fn list(&self, _filter: &SandboxFilter) -> Result<Vec<Sandbox>, Error> {
        match *self.inner {}
    }

    /// Removes a sandbox and all that is its. Idempotent; returns when it is gone.
    pub async fn destroy(&self, _id: &SandboxId) -> Result<Sandbox, Error> {
        match *self.inner {}
    }

    /// Starts a command; waits (bounded) while the sandbox is being made.
    pub async fn exec(&self, _id: &SandboxId, _exec: guest::Exec) -> Result<Execution, Error> {
        match *self.inner {}
    }

    /// What a file is, and its bytes.
    pub async fn read_file(&self, _id: &SandboxId, _path: &str) -> Result<(guest::Entry, FileStream), Error> {
        match *self.inner {}
    }

    /// Writes a file, all or nothing; returns how many bytes it has.
    pub async fn write_file<S>(&self, _id: &SandboxId, _path: &str, _mode: u32, _content: S) -> Result<u64, Error>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        match *self.inner {}
    }

    /// The entries below a directory, depth first.
    pub async fn list_dir(&self, _id: &SandboxId, _path: &str, _depth: u32) -> Result<Vec<guest::Entry>, Error> {
        match *self.inner {}
    }

    /// What is at a path; a symbolic link is not followed.
    pub async fn stat(&self, _id: &SandboxId, _path: &str) -> Result<guest::Entry, Error> {
        match *self.inner {}
    }

    /// Makes a directory and its parents.
    pub async fn make_dir(&self, _id: &SandboxId, _path: &str) -> Result<(), Error> {
        match *self.inner {}
    }

    /// Removes a file or directory.
    pub async fn remove(&self, _id: &SandboxId, _path: &str, _recursive: bool) -> Result<(), Error> {
        match *self.inner {}
    }

    /// Renames.
    pub async fn move_path(&self, _id: &SandboxId, _from: &str, _to: &str) -> Result<(), Error> {
        match *self.inner {}
    }

    /// How far a sandbox is.
    pub async fn readiness(&self, _id: &SandboxId) -> Result<Readiness, Error> {
        match *self.inner {}
    }

    /// The record now and at each change. Of a destroyed sandbox: its last record, and the channel is closed.
    pub async fn watch(&self, _id: &SandboxId) -> Result<watch::Receiver<Sandbox>, Error> {
        match *self.inner {}
    }

    /// Every event from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match *self.inner {}
    }

    /// The remembered events after the one with this id, and every event from then on.
    pub fn events_since(&self, _event_id: &str) -> (Vec<Event>, broadcast::Receiver<Event>) {
        match *self.inner {}
    }

    /// The newest bytes of a sandbox's console.
    pub async fn logs(&self, _id: &SandboxId, _bytes_max: u32) -> Result<Bytes, Error> {
        match *self.inner {}
    }

    /// Figures of a sandbox's machine.
    pub async fn stats(&self, _id: &SandboxId) -> Result<cove_protocol::vmm::Stats, Error> {
        match *self.inner {}
    }

    /// All templates.
    pub async fn templates(&self) -> Result<Vec<Template>, Error> {
        match *self.inner {}
    }

    /// The template with this id, slug or alias.
    pub async fn template(&self, _name: &str) -> Result<Template, Error> {
        match *self.inner {}
    }

    /// What an idempotency key means for a request. `scope` is method, path and key; `body_hash` any digest of the body.
    pub async fn claim(&self, _scope: &str, _body_hash: &str) -> Result<Claim, Error> {
        match *self.inner {}
    }
}
