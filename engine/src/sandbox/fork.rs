//! A fork: a new sandbox that goes on from a snapshot, or from another sandbox as it is now.

use tokio::time::Instant;

use super::admission::Wish;
use super::driver::{self, Beginning, Create, Point, Request};
use super::{BootPath, Sandbox, SandboxId, SandboxSpec, SandboxState};
use crate::Engine;
use crate::error::Error;
use crate::snapshot::{ForkSource, ForkSpec, Snapshot, SnapshotId};
use crate::storage::{Layer, LayerId, layers};
use time::OffsetDateTime;

/// See [`Engine::fork`].
pub(crate) async fn fork(engine: &Engine, source: &ForkSource, fork: ForkSpec) -> Result<Sandbox, Error> {
    fork_as(engine, SandboxId::generate(), source, fork).await
}

/// A fork with a given, fresh id.
pub(crate) async fn fork_as(
    engine: &Engine,
    id: SandboxId,
    source: &ForkSource,
    fork: ForkSpec,
) -> Result<Sandbox, Error> {
    let begun = Instant::now();
    let shared = &engine.shared;
    let tools = shared.tools()?;
    // What is wrong with the request is said before anything is captured for it.
    let (spec, snapshot) = match source {
        ForkSource::Sandbox(id) => {
            let record = engine.wait_made(id).await?;
            (over_sandbox(&fork, &record), None)
        }
        ForkSource::Snapshot(id) => {
            let row = engine.snapshot_row(id.as_str()).await?;
            (over_snapshot(&fork, &row.snapshot), Some(row))
        }
    };
    let (point, from) = match (source, snapshot) {
        (ForkSource::Sandbox(id), _) => {
            check(&spec, &engine.template(spec.template.as_deref().unwrap_or_default()).await?)?;
            let point = engine.ask(id, Request::Point).await?;
            let from = point.record.snapshot_id.clone();
            (point, from)
        }
        (ForkSource::Snapshot(_), Some(row)) => {
            let from = Some(row.snapshot.id.clone());
            (engine.point_of(row).await?, from)
        }
        (ForkSource::Snapshot(id), None) => return Err(Error::SnapshotNotFound(id.to_string())),
    };
    let _building = shared.chains.read().await;
    let mut point = point;
    if let Some(memory) = &point.memory
        && let Some(image) = shared.db.image(&memory.image.id).await?
    {
        // Its layer may have been replaced since by one that holds the same.
        point.chain = layers::ids(&shared.db.chain(&image.layer).await?);
    }
    let mut sandbox = child(spec, &point, from)?;
    sandbox.id = id;
    let top = Layer {
        id: LayerId::generate(),
        parent: point.chain.last().cloned(),
        template_id: point.template.template.id.clone(),
        template_version: point.template.template.version.clone(),
        disk_bytes: u64::from(sandbox.shape.disk_size_mb) << 20,
        frozen: false,
    };
    let wish = if point.memory.is_some() { Wish::Restore } else { Wish::Boot };
    let channels = shared.admit(&sandbox, &point.template, &top, wish).await?;
    tracing::info!(sandbox = %sandbox.id, source = %point.record.id, snapshot = ?sandbox.snapshot_id, "forking");
    shared.flattener.look(&top.id, point.chain.len() + 1);
    let mut create = Create::cold(point.template, tools, begun);
    (create.below, create.memory, create.path) = (point.chain, point.memory, BootPath::Snapshot);
    create.top = Some(top);
    driver::spawn(std::sync::Arc::clone(shared), channels, Beginning::Create(Box::new(create)));
    Ok(sandbox)
}

impl Engine {
    /// The point at which a snapshot was taken.
    async fn point_of(&self, row: crate::db::SnapshotRow) -> Result<Point, Error> {
        let db = &self.shared.db;
        let gone = || Error::SnapshotNotFound(row.snapshot.id.to_string());
        let template = db.template_version(&row.snapshot.template_id, &row.template_version).await?.ok_or_else(gone)?;
        let memory = match &row.holding.image {
            Some(image) => Some(self.shared.memory(image).await?.ok_or_else(gone)?),
            None => None,
        };
        let chain = match &row.holding.layer {
            Some(layer) => layers::ids(&db.chain(layer).await?),
            None => Vec::new(),
        };
        if chain.is_empty() {
            return Err(gone());
        }
        let record = of_snapshot(&row.snapshot, &template.template)?;
        Ok(Point { record, template, chain, memory })
    }
}

/// What is wrong with a fork's own fields.
fn check(spec: &SandboxSpec, template: &crate::template::Template) -> Result<(), Error> {
    spec.clone().check(template, OffsetDateTime::now_utc()).map(|_| ())
}

/// A record with what a snapshot knows of its sandbox.
fn of_snapshot(snapshot: &Snapshot, template: &crate::template::Template) -> Result<Sandbox, Error> {
    let mut record = over_snapshot(&ForkSpec::default(), snapshot).check(template, snapshot.created_at)?;
    record.id = snapshot.sandbox_id.clone();
    record.state = SandboxState::Paused;
    record.generation = snapshot.generation;
    record.snapshot_id = Some(snapshot.id.clone());
    Ok(record)
}

fn over_snapshot(fork: &ForkSpec, snapshot: &Snapshot) -> SandboxSpec {
    let base = SandboxSpec {
        template: Some(snapshot.template_id.clone()),
        cpu_count: Some(snapshot.shape.cpu_count),
        memory_mb: Some(snapshot.shape.memory_mb),
        disk_size_mb: Some(snapshot.shape.disk_size_mb),
        env: snapshot.env.clone(),
        ..SandboxSpec::default()
    };
    over(fork, base)
}

fn over_sandbox(fork: &ForkSpec, source: &Sandbox) -> SandboxSpec {
    let base = SandboxSpec {
        template: Some(source.template_id.clone()),
        cpu_count: Some(source.shape.cpu_count),
        memory_mb: Some(source.shape.memory_mb),
        disk_size_mb: Some(source.shape.disk_size_mb),
        timeout_sec: Some(source.timeout_sec),
        idle_timeout_sec: Some(source.idle_timeout_sec),
        always_on: Some(source.always_on),
        persistent: Some(source.persistent),
        env: source.env.clone(),
        metadata: source.metadata.clone(),
        tags: source.tags.clone(),
        external: source.external.clone(),
        ..SandboxSpec::default()
    };
    over(fork, base)
}

/// `fork` laid over `base`.
fn over(fork: &ForkSpec, base: SandboxSpec) -> SandboxSpec {
    let fork = fork.clone();
    let mut spec = base;
    if fork.no_env {
        spec.env.clear();
    }
    spec.env.extend(fork.env);
    // What the source's metadata says of persistence gives way to what is asked for here.
    if fork.persistent.is_some() {
        spec.metadata.remove("miosa_persistent");
    }
    spec.metadata.extend(fork.metadata);
    (spec.name, spec.slug) = (fork.name, fork.slug);
    spec.tags = fork.tags.unwrap_or(spec.tags);
    spec.timeout_sec = fork.timeout_sec.or(spec.timeout_sec);
    spec.idle_timeout_sec = fork.idle_timeout_sec.or(spec.idle_timeout_sec);
    spec.always_on = fork.always_on.or(spec.always_on);
    let policy = spec.metadata.get("miosa_persistent").and_then(serde_json::Value::as_bool);
    spec.persistent = fork.persistent.or(policy).or(spec.persistent);
    spec.external.workspace_id = fork.external.workspace_id.or(spec.external.workspace_id);
    spec.external.user_id = fork.external.user_id.or(spec.external.user_id);
    spec.external.project_id = fork.external.project_id.or(spec.external.project_id);
    spec
}

/// The new sandbox's record.
fn child(spec: SandboxSpec, point: &Point, from: Option<SnapshotId>) -> Result<Sandbox, Error> {
    let mut sandbox = spec.check(&point.template.template, OffsetDateTime::now_utc())?;
    sandbox.size = point.record.size;
    sandbox.forked_from = Some(point.record.id.clone());
    sandbox.snapshot_id = from;
    sandbox.generation = point.record.generation + 1;
    Ok(sandbox)
}
