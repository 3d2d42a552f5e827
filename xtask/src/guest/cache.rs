//! Results kept by the hash of their inputs, under `<cache>/guest/<kind>/<hash>/`.
//!
//! A result is built in a temporary directory beside its place and renamed into it, so that what is there is whole. A lock
//! file keeps two builds apart. All of it may be deleted at any time.
//!
//! What consists of very many small files is made in memory where there is room ([`Cache::workbench`]): on a disk that is
//! mounted with `discard`, removing a kernel's source tree took minutes.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::fs::{StatVfsMountFlags, statvfs};
use sha2::{Digest, Sha256};

use crate::workspace;

/// A file system in memory.
const MEMORY_DISK: &str = "/dev/shm";

/// What the memory disk must have free, and what the machine must have left then.
const WORKBENCH_BYTES: u64 = 3 << 30;
const MEMORY_LEFT_BYTES: u64 = 3 << 30;

/// Hash of a result's inputs.
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Begin with the kind of result and the version of the code that makes it.
    pub fn new(kind: &str, version: u32) -> Fingerprint {
        Fingerprint(Sha256::new()).text(kind).text(&version.to_string())
    }

    /// Add a text, set off from its neighbours by its length.
    pub fn text(self, text: &str) -> Fingerprint {
        self.bytes(text.as_bytes())
    }

    /// Add bytes, set off from their neighbours by their length.
    pub fn bytes(mut self, bytes: &[u8]) -> Fingerprint {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The name of the result's directory: 96 bits as hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.0.finalize()[..12])
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The cache, locked against other builds while this value lives.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Open and lock it; waits for another build to end. Leftovers of a build that was killed are removed.
    pub fn open() -> Result<Cache> {
        Self::open_at(&workspace::cache_dir()?.join("guest"))
    }

    fn open_at(root: &Path) -> Result<Cache> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        let path = root.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("  ... another build of the guest holds {}: waiting for it", path.display());
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", path.display())),
        }
        let cache = Cache { root: root.to_path_buf(), _lock: lock };
        remove_all(&cache.scratch())?;
        remove_all(&cache.memory_scratch())?;
        fs::create_dir_all(cache.scratch())?;
        Ok(cache)
    }

    /// A directory for what is being made; gone at the next [`Cache::open`] at the latest.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// An empty directory for very many small files; gone when the value is dropped, or at the next [`Cache::open`]. It
    /// is in memory unless there is too little of it or the file system there has one of the mount flags `unfit`.
    pub fn workbench(&self, name: &str, unfit: StatVfsMountFlags) -> Result<Workbench> {
        let path = if has_room_in_memory(unfit) { self.memory_scratch() } else { self.scratch() }.join(name);
        remove_all(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Workbench(path))
    }

    /// One place for each cache, so that the lock of the cache covers it.
    fn memory_scratch(&self) -> PathBuf {
        let hash = Fingerprint::new("workbench", 1).text(&self.root.display().to_string()).finish();
        Path::new(MEMORY_DISK).join(format!("cove-guest-{hash}"))
    }

    /// Where the log of a step goes. Logs outlive a failed build.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    /// The result's directory, if it is there.
    pub fn find(&self, kind: &str, hash: &str) -> Option<PathBuf> {
        let path = self.place(kind, hash);
        path.is_dir().then_some(path)
    }

    /// Make a result: `build` fills an empty directory, which is then put in place. A result already there is replaced.
    pub fn make(&self, kind: &str, hash: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let temporary = self.scratch().join(format!("{kind}-{hash}"));
        remove_all(&temporary)?;
        fs::create_dir_all(&temporary)?;
        build(&temporary)?;
        let place = self.place(kind, hash);
        remove_all(&place)?;
        fs::create_dir_all(place.parent().unwrap_or(&self.root))?;
        fs::rename(&temporary, &place).with_context(|| format!("cannot put {} in place", place.display()))?;
        Ok(place)
    }

    /// Remove all but the newest `keep` results of a kind.
    pub fn prune(&self, kind: &str, keep: usize) -> Result<()> {
        let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.root.join(kind)).into_iter().flatten() {
            let entry = entry?;
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
        found.sort();
        for (_, path) in found.iter().take(found.len().saturating_sub(keep)) {
            remove_all(path)?;
        }
        Ok(())
    }

    fn place(&self, kind: &str, hash: &str) -> PathBuf {
        self.root.join(kind).join(hash)
    }
}

/// See [`Cache::workbench`].
pub struct Workbench(PathBuf);

impl Workbench {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Workbench {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            eprintln!("warning: {error:#}");
        }
        // The directory around it stays while another workbench is in it; what removes an empty one is not missed.
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

fn has_room_in_memory(unfit: StatVfsMountFlags) -> bool {
    let usable = statvfs(MEMORY_DISK).ok().filter(|disk| !disk.f_flag.intersects(unfit));
    let disk_bytes = usable.map_or(0, |disk| disk.f_bavail * disk.f_frsize);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    disk_bytes >= WORKBENCH_BYTES && available_bytes(&meminfo) >= WORKBENCH_BYTES + MEMORY_LEFT_BYTES
}

/// `MemAvailable` of /proc/meminfo; 0 where it is not told.
fn available_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Remove a directory tree; one that is not there is fine.
pub fn remove_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_knows_where_one_input_ends() {
        let of = |a: &str, b: &str| Fingerprint::new("kind", 1).text(a).text(b).finish();
        assert_eq!(of("ab", "c"), of("ab", "c"));
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_ne!(Fingerprint::new("kind", 1).finish(), Fingerprint::new("kind", 2).finish());
    }

    #[test]
    fn a_result_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(dir.path()).unwrap();
        let failed = cache.make("thing", "1", |path| {
            fs::write(path.join("half"), "x")?;
            anyhow::bail!("power cut")
        });
        assert!(failed.is_err());
        assert_eq!(cache.find("thing", "1"), None);
        let made = cache.make("thing", "1", |path| Ok(fs::write(path.join("whole"), "x")?)).unwrap();
        assert_eq!(cache.find("thing", "1"), Some(made.clone()));
        assert!(made.join("whole").exists() && !made.join("half").exists());
    }

    #[test]
    fn a_workbench_goes_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(dir.path()).unwrap();
        let workbench = cache.workbench("name", StatVfsMountFlags::empty()).unwrap();
        let path = workbench.path().to_path_buf();
        fs::write(path.join("file"), "x").unwrap();
        drop(workbench);
        assert!(!path.exists() && !cache.memory_scratch().exists());
    }

    #[test]
    fn the_memory_left_is_read_from_meminfo() {
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:   3 kB\n"), 3 << 10);
        assert_eq!(available_bytes(""), 0);
    }

    #[test]
    fn pruning_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(dir.path()).unwrap();
        for (age, hash) in [(30, "old"), (20, "middle"), (10, "new")] {
            let made = cache.make("thing", hash, |_| Ok(())).unwrap();
            let time = SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(made).unwrap().set_modified(time).unwrap();
        }
        cache.prune("thing", 2).unwrap();
        assert_eq!(cache.find("thing", "old"), None);
        assert!(cache.find("thing", "middle").is_some() && cache.find("thing", "new").is_some());
    }
}
