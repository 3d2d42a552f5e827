//! The `vmm` binary with real KVM and small guests.

mod boot;
mod harness;
mod snapshot;
