//! `cargo xtask guest`: the directory that `cove` boots its sandboxes from.
//!
//! ```text
//!  linux-source + fragments ─► kernel/<hash>/ ──────────────────────────┐
//!  Debian + guest/image ─► rootfs/<hash>/ ─► base/<hash>/ ─► + agent ───┴─► image/<hash>/
//! ```
//!
//! `image/<hash>/` holds `vmlinux`, `vmlinux-up`, `root.ext4` and `manifest.json`. Every arrow is cached by the hash of its
//! inputs ([`cache`]).

mod cache;
mod image;
mod kconfig;
mod kernel;
mod recipe;
mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use self::cache::{Cache, Fingerprint};
use self::kernel::Kernel;
use self::recipe::Recipe;
use self::rootfs::{Package, Rootfs};
use crate::step::{self, Step};
use crate::workspace;

/// Raised when this file makes something else of the same inputs.
const VERSION: u32 = 1;

/// Results kept in the cache, newest first. Each change of the agent makes an image; a data directory that hard-links its
/// `root.ext4` loses nothing when it goes.
const KEPT: [(&str, usize); 4] = [("image", 3), ("base", 2), ("rootfs", 2), ("kernel", 6)];

/// The agent runs where no library is, and without relocation it starts in fewer page faults.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Its profile in the workspace's Cargo.toml: small, stripped, without unwinding.
const AGENT_PROFILE: &str = "agent";
const AGENT_RUSTFLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Arguments of `cargo xtask guest`.
#[derive(clap::Args)]
pub struct Args {
    /// Make the Debian root anew with today's packages, though the recipe is the same.
    #[arg(long)]
    fresh: bool,
}

/// `manifest.json` in the guest directory.
#[derive(Serialize)]
struct Manifest<'a> {
    /// Hash of all inputs; the directory's name.
    hash: &'a str,
    kernels: Vec<KernelEntry<'a>>,
    agent: AgentEntry,
    debian_version: &'a str,
    root: RootEntry,
    packages: &'a [Package],
}

#[derive(Serialize)]
struct KernelEntry<'a> {
    file: &'a str,
    release: &'a str,
    bytes: u64,
    sha256: String,
}

#[derive(Serialize)]
struct AgentEntry {
    path: &'static str,
    sha256: String,
    /// `cove_protocol::VERSION` that it was built with.
    protocol_version: u32,
    bytes: u64,
}

#[derive(Serialize)]
struct RootEntry {
    file: &'static str,
    bytes: u64,
    /// What the sparse file takes on the host.
    allocated_bytes: u64,
}

/// Run the task; the guest directory is printed.
pub fn run(args: &Args) -> Result<()> {
    println!("{}", ensure(args.fresh)?.display());
    Ok(())
}

/// Make the guest directory, as far as it is not there, and return its path.
pub fn ensure(fresh: bool) -> Result<PathBuf> {
    let recipe = Recipe::load()?;
    let agent = build_agent()?;
    let cache = Cache::open()?;
    // The short steps first: their mistakes show before the kernel's minutes.
    let rootfs = rootfs::build(&cache, &recipe.rootfs, fresh)?;
    let base = image::build_base(&cache, &recipe.disk, &rootfs, recipe.rootfs.epoch, fresh)?;
    let kernels = kernel::build_all(&cache, &recipe.kernel, recipe.rootfs.epoch)?;

    let agent_bytes = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let mut fingerprint = Fingerprint::new("image", VERSION).text(&base.hash).bytes(&agent_bytes);
    for kernel in &kernels {
        fingerprint = fingerprint.text(&kernel.name).text(&kernel.dir.display().to_string());
    }
    let hash = fingerprint.finish();
    let found = if fresh { None } else { cache.find("image", &hash) };
    if let Some(dir) = found {
        step::reused("Guest", &dir.display().to_string());
        return Ok(dir);
    }
    let step = Step::begin("Put the agent into the guest", &cache.log("image"))?;
    let dir = cache.make("image", &hash, |out| {
        for kernel in &kernels {
            link_or_copy(&kernel.dir.join("vmlinux"), &out.join(&kernel.name))?;
        }
        image::install_agent(&step, &base, &agent, recipe.rootfs.epoch, &out.join("root.ext4"))?;
        let manifest = manifest(&hash, &kernels, &agent_bytes, &rootfs, out)?;
        Ok(fs::write(out.join("manifest.json"), manifest)?)
    })?;
    for (kind, keep) in KEPT {
        cache.prune(kind, keep)?;
    }
    step.done(&dir.display().to_string());
    Ok(dir)
}

/// Build the agent for the guest; returns the binary's path.
fn build_agent() -> Result<PathBuf> {
    let target = workspace::target_dir();
    let step = Step::begin("Build the agent (static)", &target.join("xtask/agent.log"))?;
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .args(["build", "--package", "cove-agent", "--profile", AGENT_PROFILE, "--target", AGENT_TARGET])
        .current_dir(workspace::root());
    cargo.env("RUSTFLAGS", AGENT_RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    step.run(&mut cargo)?;
    let agent = target.join(AGENT_TARGET).join(AGENT_PROFILE).join("cove-agent");
    step.done(&format!("{} KiB", fs::metadata(&agent)?.len() >> 10));
    Ok(agent)
}

fn sha256(bytes: &[u8]) -> String {
    cache::hex(&Sha256::digest(bytes))
}

/// A hard link, or a copy where there can be none.
fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

fn manifest(hash: &str, kernels: &[Kernel], agent: &[u8], rootfs: &Rootfs, dir: &Path) -> Result<Vec<u8>> {
    let root = dir.join("root.ext4");
    let kernels = kernels.iter().map(|kernel| {
        let vmlinux = fs::read(dir.join(&kernel.name))?;
        let sha256 = sha256(&vmlinux);
        Ok(KernelEntry { file: &kernel.name, release: &kernel.release, bytes: vmlinux.len() as u64, sha256 })
    });
    let manifest = Manifest {
        hash,
        kernels: kernels.collect::<Result<_>>()?,
        agent: AgentEntry {
            path: image::AGENT_PATH,
            sha256: sha256(agent),
            protocol_version: cove_protocol::VERSION,
            bytes: agent.len() as u64,
        },
        debian_version: &rootfs.contents.debian_version,
        root: RootEntry {
            file: "root.ext4",
            bytes: fs::metadata(&root)?.len(),
            allocated_bytes: image::allocated_bytes(&root)?,
        },
        packages: &rootfs.contents.packages,
    };
    Ok(serde_json::to_vec_pretty(&manifest)?)
}
