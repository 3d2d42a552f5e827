//! Cove's virtual machine monitor: one process, one machine.

pub mod devices;
