//! Admission: has this host room for one more sandbox?
//!
//! Sandboxes are thin: a machine takes memory as its guest touches it and disk as its guest writes. So what counts is
//! what the host really has left now, what a fresh machine really needs, and a reserve, not the nominal sizes.

use std::path::PathBuf;

/// What is short, how much is needed, how much there is, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Memory is short.
    #[error(
        "This host has {available_mib} MiB of memory available, of which {promised_mib} MiB are promised to sandboxes that \
         are starting; a new sandbox needs {needed_mib} MiB and {reserve_mib} MiB stay in reserve. Destroy a sandbox or \
         end other programs, then try again"
    )]
    Memory {
        /// What the host has available, in MiB.
        available_mib: u64,
        /// What sandboxes that are starting will still take, in MiB.
        promised_mib: u64,
        /// What the new sandbox needs, in MiB.
        needed_mib: u64,
        /// What is never given away, in MiB.
        reserve_mib: u64,
    },
    /// Disk is short.
    #[error(
        "The file system of {directory} has {available_mib} MiB free; a new sandbox needs {needed_mib} MiB and \
         {reserve_mib} MiB stay in reserve. Free some disk space or destroy a sandbox, then try again"
    )]
    Disk {
        /// The data directory.
        directory: PathBuf,
        /// What is free, in MiB.
        available_mib: u64,
        /// What the new sandbox needs, in MiB.
        needed_mib: u64,
        /// What is never given away, in MiB.
        reserve_mib: u64,
    },
    /// There are as many sandboxes as the configuration allows.
    #[error("There are {count} sandboxes, and {max} is the most this server keeps. Destroy one, then try again")]
    Count {
        /// How many there are.
        count: u64,
        /// The bound.
        max: u64,
    },
}
