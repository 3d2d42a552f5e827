//! Snapshots and the points from which forks go on: the disk's top is frozen, and memory captured if a machine runs.
//!
//! ```text
//!  running:  row: a new top on the old one ─► snapshot.begun ─► guest syncs ─► capture, and on with the new top
//!            ─► snapshot.captured ─► row: snapshot, running ─► snapshot.noted
//!  paused:   row: top frozen, image shared
//! ```

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use super::pause::sync;
use super::{Driver, log_failure};
use crate::db::{MachineStep, OperationKind, Outcome, SnapshotRow, Step, TemplateVersion};
use crate::error::Error;
use crate::events::EventKind;
use crate::fault;
use crate::sandbox::start::Memory;
use crate::sandbox::{Action, Sandbox, SandboxState};
use crate::snapshot::retention::Retention;
use crate::snapshot::{Snapshot, SnapshotId, SnapshotSpec};
use crate::storage::capture::{Capture, CaptureError, capture, check_room, discard};
use crate::storage::{self, Holding, Image, ImageId, Layer, LayerId, Share, layers};

/// How long a snapshot may take: what the journal notes.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(600);

/// From where a fork goes on.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// The source as it was.
    pub(crate) record: Sandbox,
    pub(crate) template: TemplateVersion,
    /// The layers, all frozen, lowest first.
    pub(crate) chain: Vec<LayerId>,
    pub(crate) memory: Option<Memory>,
}

/// What a capture of the running machine is for.
enum Purpose {
    Snapshot { id: SnapshotId, spec: SnapshotSpec, template_version: String },
    Fork,
}

impl Driver {
    pub(super) async fn snapshot(&mut self, spec: SnapshotSpec) -> Result<Snapshot, Error> {
        const OPERATION: &str = "taking a snapshot of it";
        let (_, template_version) = self.shared.db.template_of(&self.id()).await?;
        let id = SnapshotId::generate();
        let row = match self.state() {
            SandboxState::Paused => {
                let holding = self.held().await?;
                let row = self.row(id, spec, template_version, holding.clone(), None);
                let mut changed = self.record.borrow().clone();
                changed.snapshot_id = Some(row.snapshot.id.clone());
                let step = Step { freeze: holding.layer.as_ref(), snapshot: Some(&row), ..Step::default() };
                let taken = self.take_step(&changed, &holding, step).await;
                taken.map_err(|error| self.no_space_or("the snapshot", error))?;
                row
            }
            SandboxState::Running => {
                let purpose = Purpose::Snapshot { id, spec, template_version };
                match self.capture_running(purpose, OPERATION).await? {
                    (_, Some(row)) => row,
                    (_, None) => return Err(self.wrong_state(OPERATION)),
                }
            }
            _ => return Err(self.wrong_state(OPERATION)),
        };
        tracing::info!(snapshot = %row.snapshot.id, paused_us = row.snapshot.paused_us, "snapshot taken");
        self.tell(EventKind::SnapshotReady { snapshot_id: row.snapshot.id.to_string() });
        Ok(row.snapshot)
    }

    /// From where a fork can go on.
    pub(super) async fn point(&mut self) -> Result<Point, Error> {
        const OPERATION: &str = "forking it";
        let record = self.record.borrow().clone();
        let db = self.shared.db.clone();
        let (template_id, version) = db.template_of(&record.id).await?;
        let template = db.template_version(&template_id, &version).await?;
        let template = template.ok_or(Error::TemplateNotFound(template_id))?;
        if self.state() == SandboxState::Paused {
            self.held().await?;
        }
        let Some(layer) = self.holding.layer.clone() else { return Err(self.wrong_state(OPERATION)) };
        let memory = match self.state() {
            SandboxState::Running => {
                let (memory, _) = self.capture_running(Purpose::Fork, OPERATION).await?;
                Some(memory)
            }
            SandboxState::Paused => {
                let holding = self.holding.clone();
                self.take_step(&record, &holding, Step { freeze: Some(&layer), ..Step::default() }).await?;
                match &holding.image {
                    Some(image) => self.shared.memory(image).await?,
                    None => None,
                }
            }
            _ => return Err(self.wrong_state(OPERATION)),
        };
        let chain = layers::ids(&db.chain(&layer).await?);
        Ok(Point { record, template, chain, memory })
    }

    /// Captures the running machine, which goes on with a new top.
    async fn capture_running(
        &mut self,
        purpose: Purpose,
        operation: &'static str,
    ) -> Result<(Memory, Option<SnapshotRow>), Error> {
        let what = match purpose {
            Purpose::Snapshot { .. } => "the snapshot",
            Purpose::Fork => "the fork",
        };
        let before = self.holding.clone();
        let changed = self.allowed(Action::SnapshotBegun, operation, |_| {})?;
        let (Some((machine, agent)), Some(old)) = (self.machine(), before.layer.clone()) else {
            return Err(self.wrong_state(operation));
        };
        check_room(&self.shared).map_err(|error| self.no_space_or(what, error))?;
        let (chain, top) = self.next_chain(&old).await?;
        let image_id = ImageId::generate();
        let pin = self.shared.pins.pin(&image_id);
        let tools = self.shared.tools()?;
        if let Err(error) = layers::create(&tools.vmm, &self.shared.config.paths, &top.id, top.disk_bytes).await {
            let error = Error::Disk { id: self.id(), source: error };
            return Err(self.no_space_or(what, error));
        }
        let holding = Holding { layer: Some(top.id.clone()), image: None };
        let detail = json!({ "image": image_id, "old": old, "new": top.id });
        let begin = Some((OperationKind::Snapshot, SNAPSHOT_DEADLINE, detail));
        let step = Step { layers: vec![&top], freeze: Some(&old), begin, ..Step::default() };
        if let Err(error) = self.take_step(&changed, &holding, step).await {
            log_failure("an unused layer is left", layers::remove(&self.shared.config.paths, &top.id));
            return Err(self.no_space_or(what, error));
        }
        fault::point("snapshot.begun", Some(&machine)).await;
        if matches!(purpose, Purpose::Snapshot { .. }) {
            sync(&agent).await;
        }
        let base = self.plan().await?.0.base;
        let of = Capture {
            image: image_id,
            layer: old.clone(),
            vcpus: self.vcpus(),
            memory_mb: changed.shape.memory_mb,
            disk: Some(layers::disk(&self.shared.config.paths, &base, &chain)),
            resume: true,
            durable: matches!(purpose, Purpose::Snapshot { .. }),
        };
        let (image, figures) = match capture(&self.shared, &machine, of).await {
            Ok(captured) => captured,
            Err(error) => return Err(self.capture_failed(error, before, chain, what).await),
        };
        fault::point("snapshot.captured", Some(&machine)).await;
        self.shared.flattener.look(&top.id, chain.len());
        self.chain = chain;
        let row = match purpose {
            Purpose::Snapshot { id, spec, template_version } => {
                let holding = Holding { layer: Some(old), image: Some(image.id.clone()) };
                Some(self.row(id, spec, template_version, holding, Some(figures.paused_us)))
            }
            Purpose::Fork => None,
        };
        self.note_captured(&image, row.as_ref(), what).await?;
        fault::point("snapshot.noted", Some(&machine)).await;
        Ok((Memory { image, _pin: pin }, row))
    }

    /// Writes what was captured, and that the machine runs on.
    async fn note_captured(
        &mut self,
        image: &Image,
        row: Option<&SnapshotRow>,
        what: &'static str,
    ) -> Result<(), Error> {
        let changed = self.allowed(Action::SnapshotDoneRunning, "capturing it", |record| {
            if let Some(row) = row {
                record.snapshot_id = Some(row.snapshot.id.clone());
            }
        })?;
        let (holding, chain) = (self.holding.clone(), self.chain.clone());
        let step = Step {
            image: Some(image),
            snapshot: row,
            machine: Some(MachineStep::Chain(&chain)),
            end: Some(Outcome::Done),
            ..Step::default()
        };
        if let Err(error) = self.take_step(&changed, &holding, step).await {
            // The machine runs with its new top, and the row of before already says so.
            discard(&self.shared, &image.id).await;
            self.run_on(Step { machine: Some(MachineStep::Chain(&chain)), ..Step::default() }).await;
            return Err(self.no_space_or(what, error));
        }
        Ok(())
    }

    /// Takes a capture back: the machine goes on as it was.
    async fn capture_failed(
        &mut self,
        error: CaptureError,
        before: Holding,
        chain: Vec<LayerId>,
        what: &'static str,
    ) -> Error {
        tracing::warn!(error = &error as &dyn std::error::Error, "the capture failed");
        let no_space = error.is_no_space();
        let goes_on_with_new = match &error {
            CaptureError::Keep(_) => true,
            CaptureError::Begin(_) => false,
            CaptureError::Machine(_) => match self.has_top(chain.last()).await {
                Some(has_new) => has_new,
                None => {
                    // It is dead, which the driver's next look finds. Its disk holds what was written to either top.
                    self.run_on(Step::default()).await;
                    return self.of_capture(error);
                }
            },
        };
        if goes_on_with_new {
            self.chain = chain.clone();
            self.run_on(Step { machine: Some(MachineStep::Chain(&chain)), ..Step::default() }).await;
        } else {
            self.holding = before.clone();
            self.run_on(Step { thaw: before.layer.as_ref(), ..Step::default() }).await;
        }
        let error = self.of_capture(error);
        log_failure("an unused layer is left", storage::sweep(&self.shared).await);
        if no_space { self.no_space(what, error) } else { error }
    }

    /// Whether the machine's disk has this top; `None` when it is dead, as it then is made to be if it does not say.
    async fn has_top(&self, top: Option<&LayerId>) -> Option<bool> {
        let (machine, _) = self.machine()?;
        match machine.stats().await {
            Ok(stats) => Some(top.is_some_and(|top| stats.tops.contains(&self.shared.config.paths.layer(top)))),
            Err(_) => {
                log_failure("a machine that does not answer was not ended", machine.kill().await);
                None
            }
        }
    }

    fn of_capture(&self, error: CaptureError) -> Error {
        match error {
            CaptureError::Machine(source) => Error::Machine { id: self.id(), source },
            CaptureError::Begin(error) | CaptureError::Keep(error) => error,
        }
    }

    /// Shows, and writes if it can be written, that the machine runs on with what it holds.
    async fn run_on(&mut self, step: Step<'_>) {
        let Some(changed) = self.moved(Action::SnapshotDoneRunning, |_| {}) else { return };
        let holding = self.holding.clone();
        let noted = self.take_step(&changed, &holding, Step { end: Some(Outcome::Failed), ..step }).await;
        log_failure("a failed capture could not be noted", noted);
        self.record.send_replace(changed);
    }

    /// The machine's chain with a new top on it, and the new top's row.
    async fn next_chain(&self, old: &LayerId) -> Result<(Vec<LayerId>, Layer), Error> {
        let (template_id, template_version) = self.shared.db.template_of(&self.id()).await?;
        let top = Layer {
            id: LayerId::generate(),
            parent: Some(old.clone()),
            template_id,
            template_version,
            disk_bytes: u64::from(self.record.borrow().shape.disk_size_mb) << 20,
            frozen: false,
        };
        let mut chain = self.chain.clone();
        chain.push(top.id.clone());
        Ok((chain, top))
    }

    fn row(
        &self,
        id: SnapshotId,
        spec: SnapshotSpec,
        template_version: String,
        holding: Holding,
        paused_us: Option<u64>,
    ) -> SnapshotRow {
        let record = self.record.borrow().clone();
        let now = OffsetDateTime::now_utc();
        let expires_at = Retention::of(&record.metadata).expires_at(spec.expiration_sec, now);
        let snapshot = Snapshot {
            id,
            sandbox_id: record.id,
            sandbox_name: record.name,
            parent_id: record.snapshot_id,
            name: spec.name,
            comment: spec.comment,
            metadata: spec.metadata,
            template_id: record.template_id,
            size: record.size,
            shape: record.shape,
            env: record.env,
            has_memory: holding.image.is_some(),
            share: Share::default(),
            generation: record.generation,
            paused_us,
            created_at: now,
            updated_at: now,
            expires_at,
        };
        SnapshotRow { snapshot, template_version, holding }
    }
}
