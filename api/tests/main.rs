//! The API over a real TCP port and a real engine, on a host without KVM: all that needs no machine.
//!
//! What needs a machine is in the workspace's `tests/`.

mod harness;

mod access;
mod bodies;
mod events;
mod hostile;
mod idempotency;
mod openapi;
mod previews;
mod routing;
mod sandboxes;
mod snapshots;
mod stopping;
