//! One step of an operation in one transaction: all that changes together, or nothing.

use std::time::Duration;

use serde_json::Value;

use super::operations::{self, OperationKind, Outcome};
use super::snapshots::{self, SnapshotRow};
use super::{Db, DbError, MachineRow, layers, query, sandboxes};
use crate::sandbox::Sandbox;
use crate::storage::{Holding, Image, Layer, LayerId};

/// What changes. Absent parts stay as they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step<'a> {
    /// New rows, each before those that lie on it.
    pub(crate) layers: Vec<&'a Layer>,
    /// Nobody writes to this layer any more.
    pub(crate) freeze: Option<&'a LayerId>,
    /// Its machine goes on writing to this layer after all.
    pub(crate) thaw: Option<&'a LayerId>,
    /// A new row.
    pub(crate) image: Option<&'a Image>,
    /// The sandbox's state and what it holds.
    pub(crate) sandbox: Option<(&'a Sandbox, &'a Holding)>,
    /// A new row.
    pub(crate) snapshot: Option<&'a SnapshotRow>,
    /// The sandbox's machine.
    pub(crate) machine: Option<MachineStep<'a>>,
    /// How what is open in the journal ended.
    pub(crate) end: Option<Outcome>,
    /// What begins.
    pub(crate) begin: Option<(OperationKind, Duration, Value)>,
}

/// What becomes of a machine's row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MachineStep<'a> {
    /// It runs, with these layers open, lowest first.
    Put(MachineRow, &'a [LayerId]),
    /// It goes on with these layers.
    Chain(&'a [LayerId]),
    /// It is no more.
    Delete,
}

impl Db {
    /// Takes a step.
    pub(crate) async fn step(&self, step: Step<'_>) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        for layer in step.layers {
            layers::insert(&mut transaction, layer).await?;
        }
        if let Some(layer) = step.freeze {
            layers::freeze(&mut transaction, layer).await?;
        }
        if let Some(layer) = step.thaw {
            layers::thaw(&mut transaction, layer).await?;
        }
        if let Some(image) = step.image {
            layers::insert_image(&mut transaction, image).await?;
        }
        if let Some(row) = step.snapshot {
            snapshots::insert(&mut transaction, row).await?;
        }
        if let Some((sandbox, holding)) = step.sandbox {
            sandboxes::update(&mut transaction, sandbox).await?;
            sandboxes::hold(&mut transaction, &sandbox.id, holding).await?;
            match step.machine {
                Some(MachineStep::Put(machine, chain)) => {
                    sandboxes::put_machine(&mut transaction, &sandbox.id, machine, chain).await?;
                }
                Some(MachineStep::Chain(chain)) => {
                    sandboxes::set_chain(&mut transaction, &sandbox.id, chain).await?;
                }
                Some(MachineStep::Delete) => sandboxes::forget_machine(&mut transaction, &sandbox.id).await?,
                None => {}
            }
            if let Some(outcome) = step.end {
                operations::close_open(&mut transaction, &sandbox.id, outcome).await?;
            }
            if let Some((kind, deadline, detail)) = step.begin {
                operations::close_open(&mut transaction, &sandbox.id, Outcome::Undone).await?;
                operations::insert(&mut transaction, &sandbox.id, kind, deadline, &detail).await?;
            }
        }
        transaction.commit().await.map_err(query("commit a step of an operation"))
    }
}
