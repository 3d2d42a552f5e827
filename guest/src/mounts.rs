//! Whether a file system is mounted on which a process start could hang.
//!
//! A command is started in the loop, which waits until the new process runs its program. On the machine's own disk that is
//! short; on a FUSE mount whose daemon hangs it can be for ever. So while such a mount exists commands are started by a
//! worker instead. The kernel tells when mounts change (proc_pid_mounts(5)).

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

/// The agent's own view of the mounts.
const TABLE: &str = "/proc/self/mounts";

/// Most bytes of the table that are looked at; with more, starts go to workers too.
const TABLE_BYTES_MAX: usize = 256 << 10;

/// File systems that wait for someone else's answer: a user's daemon, another machine, the host.
const WAITING: [&str; 7] = ["fuse", "nfs", "cifs", "smb3", "9p", "ceph", "virtiofs"];

/// What is mounted.
#[derive(Debug)]
pub struct Mounts {
    table: File,
    may_hang: bool,
}

impl Mounts {
    /// Looks for the first time.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn open() -> io::Result<Self> {
        let mut mounts = Self { table: File::open(TABLE)?, may_hang: true };
        mounts.refresh();
        Ok(mounts)
    }

    /// Looks again. Call it when the descriptor reports an exceptional condition.
    pub fn refresh(&mut self) {
        self.may_hang = self.read().is_none_or(|table| may_hang(&table));
    }

    /// True while a process start could wait for what may never come.
    pub fn may_hang(&self) -> bool {
        self.may_hang
    }

    /// The table, or `None` when it cannot be read whole.
    fn read(&self) -> Option<String> {
        let (mut table, mut end) = (vec![0; 4096], 0);
        while table.len() <= TABLE_BYTES_MAX {
            match self.table.read_at(table.get_mut(end..)?, end as u64).ok()? {
                0 => {
                    table.truncate(end);
                    return Some(String::from_utf8_lossy(&table).into_owned());
                }
                count => end += count,
            }
            if end == table.len() {
                table.resize(2 * end, 0);
            }
        }
        None
    }
}

impl AsFd for Mounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

/// Whether one of these lines names a file system that waits (fstab(5): device, place, type, options).
fn may_hang(table: &str) -> bool {
    let kinds = table.lines().filter_map(|line| line.split(' ').nth(2));
    // Subtypes follow a dot (fuse.sshfs), versions and relatives the name (nfs4, fuseblk); fusectl has no files that wait.
    kinds.filter(|kind| *kind != "fusectl").any(|kind| WAITING.iter().any(|waiting| kind.starts_with(waiting)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_that_wait_for_someone_count() {
        let own = "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\nfusectl /sys/fs/fuse fusectl rw 0 0\nt /nfs tmpfs rw 0 0\n";
        assert!(!may_hang(own) && !may_hang(""));
        for kind in ["fuse", "fuse.sshfs", "fuseblk", "nfs4", "9p", "virtiofs"] {
            assert!(may_hang(&format!("{own}x /mnt {kind} rw 0 0\n")), "{kind}");
        }
    }
}
