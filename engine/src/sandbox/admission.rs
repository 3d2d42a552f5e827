//! Admission: has this host room for one more sandbox?
//!
//! Sandboxes are thin: a machine takes memory as its guest touches it and disk as its guest writes. So what counts is
//! what the host really has left now, what a fresh machine really needs, and a reserve, not the nominal sizes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::EngineLimits;
use crate::error::Error;

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

/// What a sandbox wants room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A machine that boots.
    Boot,
    /// A new machine that goes on from a capture, and shares what it only reads.
    Restore,
    /// A paused one that goes on: it is counted already, and what it has on the disk is there.
    Resume,
}

/// Memory that a restored machine takes before its guest does much, in MiB.
const RESTORED_MEMORY_MIB: u64 = 64;

/// What the host has, and what is promised of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// `MemAvailable` of /proc/meminfo, or less where a control group limits us; in MiB.
    pub(crate) memory_available_mib: u64,
    /// Free for us on the data directory's file system, in MiB.
    pub(crate) disk_available_mib: u64,
    /// Sandboxes that are not destroyed.
    pub(crate) live: u64,
    /// Sandboxes that are starting: what they need is not taken yet.
    pub(crate) starting: u64,
}

impl Room {
    /// Looks.
    pub(crate) fn look(data_dir: &Path, live: u64, starting: u64) -> Result<Self, Error> {
        let path = Path::new("/proc/meminfo");
        let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let malformed = || Error::file("understand", path)(io::ErrorKind::InvalidData.into());
        let host_mib = memory_available_mib(&text).ok_or_else(malformed)?;
        let memory_available_mib = control_group_available_mib().map_or(host_mib, |mib| mib.min(host_mib));
        let disk = rustix::fs::statvfs(data_dir).map_err(|errno| Error::file("look at", data_dir)(errno.into()))?;
        let disk_available_mib = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
        Ok(Self { memory_available_mib, disk_available_mib, live, starting })
    }

    /// Says whether one more sandbox with `memory_mib` of memory fits.
    pub(crate) fn admit(
        &self,
        limits: &EngineLimits,
        data_dir: &Path,
        memory_mib: u32,
        wish: Wish,
    ) -> Result<(), AdmissionError> {
        if wish != Wish::Resume && self.live >= limits.sandboxes_max {
            return Err(AdmissionError::Count { count: self.live, max: limits.sandboxes_max });
        }
        let fresh_mib = if wish == Wish::Boot { u64::MAX } else { RESTORED_MEMORY_MIB };
        let needed_mib = limits.machine_memory_mib.min(u64::from(memory_mib)).min(fresh_mib);
        let promised_mib = self.starting * limits.machine_memory_mib;
        if self.memory_available_mib < needed_mib + promised_mib + limits.memory_reserve_mib {
            return Err(AdmissionError::Memory {
                available_mib: self.memory_available_mib,
                promised_mib,
                needed_mib,
                reserve_mib: limits.memory_reserve_mib,
            });
        }
        if wish == Wish::Resume {
            return Ok(());
        }
        let needed_mib = if wish == Wish::Boot { limits.machine_disk_mib * (1 + self.starting) } else { 0 };
        if self.disk_available_mib < needed_mib + limits.disk_reserve_mib {
            return Err(AdmissionError::Disk {
                directory: data_dir.into(),
                available_mib: self.disk_available_mib,
                needed_mib,
                reserve_mib: limits.disk_reserve_mib,
            });
        }
        Ok(())
    }
}

fn memory_available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// What the memory limit of our control group and of those above it leaves (cgroup v2, `memory.max`); machines live in
/// the same group. `None` without a limit.
fn control_group_available_mib() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let groups = Path::new(own).ancestors().map(|group| root.join(group));
    groups.filter_map(|group| group_available_mib(&group)).min()
}

fn group_available_mib(group: &Path) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number: no limit.
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    // The page cache that the kernel gives back first.
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(room: Room) -> Result<(), AdmissionError> {
        room.admit(&EngineLimits::default(), Path::new("/data"), 512, Wish::Boot)
    }

    const PLENTY: Room = Room { memory_available_mib: 1 << 20, disk_available_mib: 1 << 20, live: 0, starting: 0 };

    #[test]
    fn what_is_short_is_said_with_figures_and_what_to_do() {
        assert_eq!(admit(PLENTY), Ok(()));
        let error = admit(Room { memory_available_mib: 700, ..PLENTY }).unwrap_err().to_string();
        for part in ["700 MiB of memory available", "needs 256 MiB", "512 MiB stay in reserve", "Destroy a sandbox"] {
            assert!(error.contains(part), "{error}");
        }
        let error = admit(Room { disk_available_mib: 1000, ..PLENTY }).unwrap_err().to_string();
        assert!(error.contains("/data has 1000 MiB free"), "{error}");
        let error = admit(Room { live: 256, ..PLENTY }).unwrap_err().to_string();
        assert!(error.contains("256 sandboxes"), "{error}");
    }

    #[test]
    fn sandboxes_that_are_starting_have_their_memory_promised() {
        assert!(admit(Room { memory_available_mib: 1300, starting: 2, ..PLENTY }).is_ok());
        assert!(admit(Room { memory_available_mib: 1200, starting: 2, ..PLENTY }).is_err());
    }

    #[test]
    fn what_goes_on_needs_less_than_what_begins() {
        let limits = EngineLimits::default();
        let admit = |room: Room, wish| room.admit(&limits, Path::new("/data"), 4096, wish).is_ok();
        let tight = Room { memory_available_mib: 600, ..PLENTY };
        assert!(!admit(tight, Wish::Boot) && admit(tight, Wish::Restore) && admit(tight, Wish::Resume));
        let full = Room { disk_available_mib: 100, live: limits.sandboxes_max, ..PLENTY };
        assert!(!admit(full, Wish::Boot) && !admit(full, Wish::Restore) && admit(full, Wish::Resume));
    }

    #[test]
    fn a_control_group_with_a_limit_has_less() {
        let group = tempfile::tempdir().unwrap();
        assert_eq!(group_available_mib(group.path()), None);
        let write = |file: &str, text: &str| fs::write(group.path().join(file), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "104857600\n");
        assert_eq!(group_available_mib(group.path()), None);
        write("memory.max", "1073741824\n");
        write("memory.stat", "anon 1\ninactive_file 52428800\n");
        assert_eq!(group_available_mib(group.path()), Some(1024 - 100 + 50));
        write("memory.max", "1048576\n");
        assert_eq!(group_available_mib(group.path()), Some(0));
    }

    #[test]
    fn this_host_has_memory_and_disk() {
        let room = Room::look(Path::new("/"), 0, 0).unwrap();
        assert!(room.memory_available_mib > 0, "{room:?}");
        assert_eq!(memory_available_mib("MemFree: 1 kB\nMemAvailable:   2048 kB\n"), Some(2));
        assert_eq!(memory_available_mib("MemFree: 1 kB\n"), None);
    }
}
