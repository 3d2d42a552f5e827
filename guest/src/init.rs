//! What PID 1 does before it serves: mounts, device links, loopback, limits, and the root file system's size.
//!
//! No program runs. A step that fails is told on the console and boot goes on: a machine that answers and can say what
//! is wrong with it is worth more than one that stopped. Called once by `main`.

use std::{
    ffi::CStr,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, symlink},
    },
};

use rustix::{
    fs::{Mode, ext4_ioc_resize_fs},
    io::Errno,
    mount::{MountFlags, mount},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::{Resource, Rlimit, setpriority_process, setrlimit, umask},
};

use crate::memory;

/// Open files of a process, soft and hard: what Debian's own init gives. Programs that need more raise the soft one;
/// those that close every descriptor up to it would take long with a higher one.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The switch for anonymous memory that comes in 32 KiB pieces (admin-guide/mm/transhuge): a page fault costs more than
/// the clearing of eight pages, most of all where the guest's kernel is emulated.
const ANONYMOUS_PIECES: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-32kB/enabled";

/// How many blocks of inodes are read when one is wanted: ext4's own number, which the command line of some machines lowers
/// for the boot (kernel's admin-guide/ext4).
const INODE_READAHEAD: (&str, &str) = ("/sys/fs/ext4/vda/inode_readahead_blks", "32");

/// Bytes of freed memory the agent keeps, so that the next command does not fault them in again.
const KEPT_HEAP_BYTES: libc::c_int = 4 << 20;

/// The nice value of what is done after boot: the highest.
const PATIENCE: i32 = 19;

/// One mounted file system.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static CStr,
}

/// In this order: later ones lie in earlier ones.
const MOUNTS: [Mount; 7] = {
    const NOSUID: MountFlags = MountFlags::NOSUID;
    const DATA: MountFlags = NOSUID.union(MountFlags::NODEV);
    const PLAIN: MountFlags = DATA.union(MountFlags::NOEXEC);
    [
        Mount { kind: "proc", target: "/proc", flags: PLAIN, data: c"" },
        Mount { kind: "sysfs", target: "/sys", flags: PLAIN, data: c"" },
        Mount { kind: "devtmpfs", target: "/dev", flags: NOSUID, data: c"mode=755" },
        Mount {
            kind: "devpts",
            target: "/dev/pts",
            flags: NOSUID.union(MountFlags::NOEXEC),
            data: c"gid=5,mode=620,ptmxmode=666",
        },
        Mount { kind: "tmpfs", target: "/dev/shm", flags: DATA, data: c"mode=1777" },
        Mount { kind: "tmpfs", target: "/run", flags: DATA, data: c"mode=755" },
        Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: PLAIN, data: c"nsdelegate" },
    ]
};

/// Links every program expects in /dev.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Directories that must be there, with their permission bits.
const DIRECTORIES: [(&str, u32); 4] =
    [("/run/cove", 0o755), ("/run/lock", 0o1777), ("/tmp", 0o1777), ("/workspace", 0o755)];

/// Prepares the machine.
pub fn prepare() {
    umask(Mode::from_raw_mode(0o022));
    keep_heap();
    for Mount { kind, target, flags, data } in MOUNTS {
        let mounted = mount_at(kind, target, flags, data);
        report(&format!("mount {kind} on {target}"), mounted);
    }
    for (target, link) in DEVICE_LINKS {
        report(&format!("link {link}"), ignore(io::ErrorKind::AlreadyExists, symlink(target, link)));
    }
    for (path, mode) in DIRECTORIES {
        report(&format!("make {path}"), ignore(io::ErrorKind::AlreadyExists, make_directory(path, mode)));
    }
    let (current, maximum) = OPEN_FILES;
    let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
    report("limit open files", setrlimit(Resource::Nofile, limit).map_err(io::Error::from));
}

/// What may come after the agent said that it is ready, but before the first command.
pub fn prepare_for_commands() {
    report("bring up loopback", loopback_up());
    // A kernel without huge pages has no such switch.
    let pieces = fs::write(ANONYMOUS_PIECES, "always");
    report("let anonymous memory come in larger pieces", ignore(io::ErrorKind::NotFound, pieces));
}

/// What can wait until the agent serves: much memory and a large disk take a while. Whatever else wants to run goes first.
pub fn finish() {
    let readahead = fs::write(INODE_READAHEAD.0, INODE_READAHEAD.1);
    report("read inodes ahead", ignore(io::ErrorKind::NotFound, readahead));
    report("be patient", setpriority_process(None, PATIENCE).map_err(io::Error::from));
    report("add memory", memory::add_rest());
    report("grow the root file system", grow_root());
}

/// Tells the console about a step that failed.
fn report(step: &str, result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("cove-agent: cannot {step}: {error}");
    }
}

fn ignore(kind: io::ErrorKind, result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == kind { Ok(()) } else { Err(error) })
}

fn mount_at(kind: &str, target: &str, flags: MountFlags, data: &CStr) -> io::Result<()> {
    match mount(kind, target, kind, flags, Some(data)) {
        // The kernel mounts /dev itself where it is configured to.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(Errno::NOENT) => {
            make_directory(target, 0o755)?;
            Ok(mount(kind, target, kind, flags, Some(data))?)
        }
        Err(error) => Err(error.into()),
    }
}

fn make_directory(path: &str, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    // Past the umask, where the mode has bits it takes away.
    if mode & 0o022 != 0 {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
    } else {
        Ok(())
    }
}

/// `lo` up; the kernel gives it its addresses.
fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data for which all zeros is a value. SIOCSIFFLAGS reads its name, which ends with a zero
    // since only two bytes of it are set, and its flags, and keeps no pointer.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the allocator keep what it has and share one heap among threads: giving pages back and taking them again is a
/// page fault each, the dearest thing there is on a host that emulates the guest's kernel.
fn keep_heap() {
    // SAFETY: `mallopt` sets numbers inside the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_HEAP_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_HEAP_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Bytes at the start of a disk that hold the ext4 superblock.
const SUPERBLOCK: (u64, usize) = (1024, 1024);

/// `s_magic` of ext2, ext3 and ext4.
const EXT4_MAGIC: u16 = 0xef53;

/// Grows the root file system to its disk, if that is larger. The image is small and a sandbox's disk as large as was
/// asked for.
fn grow_root() -> io::Result<()> {
    let root = File::open("/")?;
    let Ok(disk) = File::open("/dev/vda") else { return Ok(()) };
    if disk.metadata()?.rdev() != root.metadata()?.dev() {
        return Ok(());
    }
    let mut superblock = [0; SUPERBLOCK.1];
    disk.read_exact_at(&mut superblock, SUPERBLOCK.0)?;
    let Some((blocks, block_bytes)) = ext4_size(&superblock) else { return Ok(()) };
    let disk_blocks = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0))? / block_bytes;
    if disk_blocks > blocks { Ok(ext4_ioc_resize_fs(&root, disk_blocks)?) } else { Ok(()) }
}

/// Blocks of an ext4 file system and bytes of one, from its superblock; `None` if it is not one.
fn ext4_size(superblock: &[u8; SUPERBLOCK.1]) -> Option<(u64, u64)> {
    let word = |at: usize| superblock.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let magic = u16::from_le_bytes(*superblock.get(0x38..0x3a)?.first_chunk()?);
    // The upper half counts only with the 64bit feature (s_feature_incompat 0x80).
    let high = if word(0x60)? & 0x80 != 0 { word(0x150)? } else { 0 };
    let shift = word(0x18)?;
    (magic == EXT4_MAGIC && shift <= 6).then_some((u64::from(high) << 32 | u64::from(word(0x4)?), 1024 << shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_an_ext4_superblock_and_from_nothing_else() {
        let mut superblock = [0; SUPERBLOCK.1];
        assert_eq!(ext4_size(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&EXT4_MAGIC.to_le_bytes());
        superblock[0x4..0x8].copy_from_slice(&5000u32.to_le_bytes());
        superblock[0x18] = 2;
        superblock[0x150] = 1;
        assert_eq!(ext4_size(&superblock), Some((5000, 4096)));
        superblock[0x60] = 0x80;
        assert_eq!(ext4_size(&superblock), Some(((1 << 32) + 5000, 4096)));
    }
}
