//! What a snapshot keeps of the device. Untrusted until it is a [`CheckedState`].
//!
//! Streams are not kept: their host ends are of a process that is gone. After a restore the guest gets a transport
//! reset (virtio 1.2, 5.10.6.7.2) and closes its ends.

use serde::{Deserialize, Serialize};

use super::VsockError;
use super::device::check_guest_cid;
use super::streams::HOST_PORTS;

/// The saved form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u32,
    /// The port of the host's next call: an old one might still be taken at the guest's end.
    pub next_port: u32,
}

/// A saved form that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedState(VsockState);

impl TryFrom<VsockState> for CheckedState {
    type Error = VsockError;

    fn try_from(state: VsockState) -> Result<Self, VsockError> {
        check_guest_cid(state.guest_cid)?;
        if !HOST_PORTS.contains(&state.next_port) {
            return Err(VsockError::SavedPort(state.next_port));
        }
        Ok(Self(state))
    }
}

impl CheckedState {
    /// The guest's context id.
    pub fn guest_cid(&self) -> u32 {
        self.0.guest_cid
    }

    /// The port of the host's next call.
    pub fn next_port(&self) -> u32 {
        self.0.next_port
    }
}
