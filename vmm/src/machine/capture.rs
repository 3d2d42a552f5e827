//! A machine's snapshot: what is done while it runs, what while it stands still, and how it goes on when a step fails.
//!
//! ```text
//!  copy of the old memory │ pause │ changed memory, state, manifest │ new layers │ resume │ durable
//!                           └────────── the guest stands still ───────────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use cove_protocol::vmm::{DiskSpec, SnapshotFigures, SnapshotSpec};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Machine, REST_TIMEOUT, StuckError, lock};
use crate::arch::x86_64::state::{StateError, VmState, saved_msrs};
use crate::devices::virtio::block::LayerError;
use crate::devices::virtio::mmio::state::StateError as TransportError;
use crate::snapshot::state::MachineState;
use crate::snapshot::{Capture, WriteError, Written};

/// Why a machine could not be captured. It goes on as it was, unless the disk was lost.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The request names more or fewer disks than there are.
    #[error("disks must name all {here} disks or none, not {asked}")]
    Disks {
        /// The machine's.
        here: usize,
        /// The request's.
        asked: usize,
    },
    /// A vCPU does not stand still.
    #[error(transparent)]
    Stuck(#[from] StuckError),
    /// The folder cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// KVM does not tell a part of the state.
    #[error(transparent)]
    Kvm(#[from] StateError),
    /// A vCPU's thread does not answer.
    #[error("vCPU {0} does not tell its state")]
    Silent(usize),
    /// A device failed before.
    #[error(transparent)]
    Device(#[from] TransportError),
    /// The new layers cannot be used.
    #[error("disks[{disk}] cannot go on with the new layers")]
    Layers {
        /// Which.
        disk: usize,
        /// Why not.
        #[source]
        source: LayerError,
    },
}

impl CaptureError {
    /// The machine has no disk any more and must end.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Layers { source: LayerError::Lost(_), .. })
    }
}

impl Machine {
    /// Captures the machine as `spec` says.
    ///
    /// # Errors
    /// See [`CaptureError`]; the machine then goes on as before, and the folder holds no manifest.
    pub fn snapshot(&mut self, spec: &SnapshotSpec) -> Result<SnapshotFigures, CaptureError> {
        let begun = Instant::now();
        let here = self.parts.disks.len();
        if !spec.disks.is_empty() && spec.disks.len() != here {
            return Err(CaptureError::Disks { here, asked: spec.disks.len() });
        }
        let capture = Capture::begin(&spec.folder, self.memory_bytes(), self.parts.base.as_deref())?;
        let (was_paused, stopped) = (self.paused, Instant::now());
        self.pause()?;
        let captured = self.capture(capture, spec);
        let goes_on = if captured.is_ok() { spec.resume } else { !was_paused };
        if goes_on {
            self.resume();
        }
        let paused = if was_paused { Duration::ZERO } else { stopped.elapsed() };
        let (written, written_bytes) = captured?;
        if spec.durable
            && let Err(error) = written.make_durable()
        {
            written.discard();
            return Err(error.into());
        }
        Ok(SnapshotFigures {
            paused_us: paused.as_micros() as u64,
            total_us: begun.elapsed().as_micros() as u64,
            written_bytes,
            data_bytes: written.data_bytes()?,
        })
    }

    /// What is done while the machine stands still.
    fn capture(&mut self, capture: Capture, spec: &SnapshotSpec) -> Result<(Written, u64), CaptureError> {
        let written_bytes = capture.write_memory(&self.parts.memory)?;
        let written = capture.finish(&self.state()?, &self.parts.host.record)?;
        // Last, since a disk that goes on with new layers has left those that the snapshot is about.
        match self.change_layers(&spec.disks) {
            Ok(()) => Ok((written, written_bytes)),
            Err(error) => {
                written.discard();
                Err(error)
            }
        }
    }

    fn state(&self) -> Result<MachineState, CaptureError> {
        let parts = &self.parts;
        let msrs: Arc<[u32]> = saved_msrs(&parts.host.kvm)?.into();
        let save = |(id, vcpu): (usize, &crate::vcpu::VcpuHandle)| {
            vcpu.save(&msrs, REST_TIMEOUT)?.ok_or(CaptureError::Silent(id))
        };
        Ok(MachineState {
            memory_bytes: self.memory_bytes(),
            vcpus: parts.vcpus.iter().enumerate().map(save).collect::<Result<_, _>>()?,
            vm: VmState::save(&parts.vm)?,
            devices: parts.transports.iter().map(|transport| lock(transport).save()).collect::<Result<_, _>>()?,
            serial: lock(&parts.serial).state(),
        })
    }

    fn change_layers(&mut self, disks: &[DiskSpec]) -> Result<(), CaptureError> {
        let mut specs = disks.iter().enumerate();
        for transport in &self.parts.transports {
            let mut transport = lock(transport);
            let Some(block) = transport.device().and_then(|device| device.as_block()) else { continue };
            let Some((disk, spec)) = specs.next() else { break };
            block.disk().change(spec).map_err(|source| CaptureError::Layers { disk, source })?;
            self.parts.disks[disk] = spec.clone();
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.parts.memory.iter().map(|region| region.len()).sum()
    }
}
