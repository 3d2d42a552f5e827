//! The root file system: an ext4 image of the packed root, and the agent put into a copy of it.
//!
//! The image without the agent is cached on its own. The agent changes often, and putting it into a copy takes a second.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::StatVfsMountFlags;

use super::cache::{Cache, Fingerprint};
use super::recipe::DiskRecipe;
use super::rootfs::Rootfs;
use crate::setup;
use crate::step::{self, Step};

/// Raised when this file makes something else of the same inputs.
const VERSION: u32 = 1;

/// Where the agent lies in the guest; the kernel's command line names it as init.
pub const AGENT_PATH: &str = "/usr/sbin/cove-agent";

const BLOCK_BYTES: u64 = 4096;

/// An image without the agent.
pub struct Base {
    /// The raw ext4 image.
    pub image: PathBuf,
    /// Hash of its inputs.
    pub hash: String,
}

/// Make the image without the agent, unless the cache holds it. `fresh` makes it anew.
pub fn build_base(cache: &Cache, disk: &DiskRecipe, rootfs: &Rootfs, epoch: u64, fresh: bool) -> Result<Base> {
    let hash = Fingerprint::new("base", VERSION)
        .text(&rootfs.hash)
        .text(&serde_json::to_string(disk)?)
        .text(&epoch.to_string())
        .finish();
    let found = if fresh { None } else { cache.find("base", &hash) };
    let dir = match found {
        Some(dir) => {
            step::reused("File system of the guest", &format!("{} MiB", disk.size_mib));
            dir
        }
        None => {
            let step =
                Step::begin(format!("Make the guest's file system (ext4, {} MiB)", disk.size_mib), &cache.log("base"))?;
            let dir = cache.make("base", &hash, |out| {
                let image = out.join("root.ext4");
                fill(&step, cache, disk, rootfs, epoch, &image)?;
                check(&step, &image)?;
                let free_mib = free_bytes(&image)? >> 20;
                ensure!(
                    free_mib >= disk.free_mib_min,
                    "the root image has {free_mib} MiB free and should have {}: fewer packages, or a larger disk.size_mib",
                    disk.free_mib_min
                );
                Ok(())
            })?;
            step.done(&format!("{} MiB allocated", allocated_bytes(&dir.join("root.ext4"))? >> 20));
            dir
        }
    };
    Ok(Base { image: dir.join("root.ext4"), hash })
}

/// Unpack the root, without device nodes (the guest's kernel makes them), and let mke2fs copy it. Without root, fakeroot keeps owners and modes in between.
fn fill(step: &Step, cache: &Cache, disk: &DiskRecipe, rootfs: &Rootfs, epoch: u64, image: &Path) -> Result<()> {
    let workbench = cache.workbench("root", StatVfsMountFlags::empty())?;
    let tree = workbench.path();
    let blocks = disk.size_mib * (1 << 20) / BLOCK_BYTES;
    let script = r#"tar --extract --numeric-owner --preserve-permissions --same-owner --exclude='./dev/*' --file "$1" --directory "$2"; shift 2; exec mke2fs "$@""#;

    let mut command = if setup::is_root()? { Command::new("sh") } else { Command::new("fakeroot") };
    if !setup::is_root()? {
        command.args(["--", "sh"]);
    }
    command.args(["-e", "-c", script, "sh"]).arg(&rootfs.archive).arg(tree);
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-I", "256", "-b"]).arg(BLOCK_BYTES.to_string());
    command.arg("-O").arg(format!("none,{}", disk.features.join(",")));
    command.arg("-E").arg(format!(
        "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed={},resize={}",
        disk.uuid,
        disk.grow_gib_max * (1 << 30) / BLOCK_BYTES
    ));
    command.arg("-J").arg(format!("size={}", disk.journal_mib)).arg("-i").arg(disk.bytes_per_inode.to_string());
    command.arg("-L").arg(&disk.label).arg("-U").arg(&disk.uuid).arg("-d").arg(tree).arg(image).arg(blocks.to_string());
    reproducible(&mut command, epoch);
    step.run(&mut command)?;
    // The zeroed inode tables and journal need no space on the host.
    step.run(Command::new("fallocate").arg("--dig-holes").arg(image))
}

/// e2fsprogs writes this time instead of the clock's, and takes no settings from the host.
fn reproducible(command: &mut Command, epoch: u64) {
    command.env("E2FSPROGS_FAKE_TIME", epoch.to_string()).env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.env("MKE2FS_CONFIG", "/dev/null").env("PATH", search_path());
}

/// The PATH with the administrator's programs, which a user on Debian has not.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A full check that may change nothing.
fn check(step: &Step, image: &Path) -> Result<()> {
    step.run(Command::new("e2fsck").args(["-f", "-n"]).arg(image).env("PATH", search_path()))
}

fn free_bytes(image: &Path) -> Result<u64> {
    let text = step::output(Command::new("dumpe2fs").arg("-h").arg(image).env("PATH", search_path()))?;
    let blocks =
        text.lines().find_map(|line| line.strip_prefix("Free blocks:")).context("dumpe2fs names no free blocks")?;
    Ok(blocks.trim().parse::<u64>()? * BLOCK_BYTES)
}

/// What a sparse file takes on the host.
pub fn allocated_bytes(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// Copy the image to `image` and put the agent into it.
pub fn install_agent(step: &Step, base: &Base, agent: &Path, epoch: u64, image: &Path) -> Result<()> {
    step.run(Command::new("cp").args(["--sparse=always", "--reflink=auto", "--"]).arg(&base.image).arg(image))?;
    let commands = image.with_extension("debugfs");
    // `-f` goes on after a failed line and exits 0; what counts is that the file reads back as it is.
    let script = format!(
        "write {} {AGENT_PATH}\nset_inode_field {AGENT_PATH} mode 0100755\nset_inode_field {AGENT_PATH} uid 0\n\
         set_inode_field {AGENT_PATH} gid 0\n",
        agent.display()
    );
    fs::write(&commands, script)?;
    let mut debugfs = Command::new("debugfs");
    debugfs.arg("-w").arg("-f").arg(&commands).arg(image);
    reproducible(&mut debugfs, epoch);
    step.run(&mut debugfs)?;
    fs::remove_file(&commands)?;

    let copy = image.with_extension("agent");
    let mut dump = Command::new("debugfs");
    dump.arg("-R").arg(format!("dump {AGENT_PATH} {}", copy.display())).arg(image).env("PATH", search_path());
    step.run(&mut dump)?;
    ensure!(fs::read(&copy)? == fs::read(agent)?, "the agent in {} is not the one put there", image.display());
    fs::remove_file(&copy)?;
    check(step, image)?;
    // Sandboxes' disks lean on these bytes: they are on disk before the image has its name.
    Ok(File::open(image)?.sync_all()?)
}
