//! The guest kernels: `tinyconfig` of the Debian source package, our fragments over it, and a patch where the recipe says so.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::StatVfsMountFlags;

use super::cache::{Cache, Fingerprint, Workbench, remove_all};
use super::kconfig;
use super::recipe::{self, KernelRecipe, KernelVariant};
use crate::step::{self, Step};

/// Raised when this file makes something else of the same inputs.
const VERSION: u32 = 1;

/// The source's directory on the workbench.
const TREE: &str = "linux";

/// The source's top Kconfig file, and the place in it before every other definition.
const KCONFIG: (&str, &str) = ("Kconfig", "source \"scripts/Kconfig.include\"\n");

/// Large parts of the source that no configuration of ours reads.
const UNUSED: [&str; 3] = ["*/arch/*/boot/dts", "*/drivers/gpu/drm/amd/include/asic_reg", "*/tools/testing"];

/// A built kernel: `vmlinux` (ELF, without debug information), `System.map`, `config`, `release`.
pub struct Kernel {
    /// File name in the guest directory.
    pub name: String,
    /// Where it lies in the cache.
    pub dir: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
}

/// Build all variants that the cache does not hold.
pub fn build_all(cache: &Cache, recipe: &KernelRecipe, epoch: u64) -> Result<Vec<Kernel>> {
    let source = Source::find(cache, recipe)?;
    recipe.variants.iter().map(|variant| build(cache, &source, variant, epoch)).collect()
}

/// The kernel source, unpacked when the first variant needs it; removed with this value.
struct Source<'a> {
    cache: &'a Cache,
    recipe: &'a KernelRecipe,
    version: String,
    unpacked: OnceCell<Workbench>,
}

impl<'a> Source<'a> {
    fn find(cache: &'a Cache, recipe: &'a KernelRecipe) -> Result<Source<'a>> {
        ensure!(
            recipe.archive.exists(),
            "{} is missing: install the package {} (`cargo xtask setup --group build`)",
            recipe.archive.display(),
            recipe.package
        );
        let version =
            step::output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", &recipe.package]))
                .with_context(|| format!("cannot tell the version of {}", recipe.package))?;
        Ok(Source { cache, recipe, version, unpacked: OnceCell::new() })
    }

    /// Where it is unpacked; objects go beside it.
    fn workbench(&self, log: &Path) -> Result<&Path> {
        if let Some(workbench) = self.unpacked.get() {
            return Ok(workbench.path());
        }
        let step = Step::begin(format!("Unpack {} {}", self.recipe.package, self.version), log)?;
        let workbench = self.cache.workbench("kernel", StatVfsMountFlags::NOEXEC)?;
        let tree = workbench.path().join(TREE);
        fs::create_dir_all(&tree)?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1"]).arg("--file").arg(&self.recipe.archive);
        tar.args(UNUSED.map(|pattern| format!("--exclude={pattern}"))).arg("--directory").arg(&tree);
        step.run(&mut tar)?;
        step.done("");
        Ok(self.unpacked.get_or_init(|| workbench).path())
    }
}

fn build(cache: &Cache, source: &Source<'_>, variant: &KernelVariant, epoch: u64) -> Result<Kernel> {
    let fragments = read_fragments(variant)?;
    let mut fingerprint =
        Fingerprint::new("kernel", VERSION).text(&source.version).text(&compiler()?).text(&epoch.to_string());
    for fragment in &fragments {
        fingerprint = fingerprint.text(fragment);
    }
    let patch = variant.patch.as_ref().map(|name| recipe::dir().join(name));
    if let Some(patch) = &patch {
        fingerprint = fingerprint.text(&read(patch)?);
    }
    if let Some(tick_hz) = variant.tick_hz {
        fingerprint = fingerprint.text(&format!("tick_hz {tick_hz}"));
    }
    let hash = fingerprint.finish();
    let dir = match cache.find("kernel", &hash) {
        Some(dir) => {
            step::reused(&format!("Kernel {}", variant.name), &read(&dir.join("release"))?);
            dir
        }
        None => {
            let log = cache.log(&format!("kernel-{}", variant.name));
            let workbench = source.workbench(&log)?;
            let step = Step::begin(format!("Build kernel {} (several minutes)", variant.name), &log)?;
            let (tree, work) = (workbench.join(TREE), workbench.join(&variant.name));
            let dir = cache.make("kernel", &hash, |out| {
                let _patched = patch.as_deref().map(|patch| Patched::apply(&step, &tree, patch)).transpose()?;
                fs::create_dir_all(&work)?;
                let kconfig = variant.tick_hz.map(|tick_hz| with_tick(&tree, &work, tick_hz)).transpose()?;
                let make = Make { step: &step, tree: &tree, work: &work, kconfig, epoch };
                make.configure(&fragments)?;
                make.kernel(out)
            })?;
            remove_all(&work)?;
            step.done(&read(&dir.join("release"))?);
            dir
        }
    };
    let release = read(&dir.join("release"))?;
    Ok(Kernel { name: variant.name.clone(), dir, release })
}

/// The source with a patch, until this is dropped: the variants share one tree.
struct Patched<'a> {
    step: &'a Step,
    tree: &'a Path,
    patch: &'a Path,
}

impl<'a> Patched<'a> {
    fn apply(step: &'a Step, tree: &'a Path, patch: &'a Path) -> Result<Self> {
        step.run(&mut Self::command(tree, patch, "--forward"))?;
        Ok(Self { step, tree, patch })
    }

    /// Exact: a patch that no longer fits its source is not to be guessed at.
    fn command(tree: &Path, patch: &Path, direction: &str) -> Command {
        let mut command = Command::new("patch");
        command.args(["--batch", "--strip=1", "--fuzz=0", direction]).arg("--directory").arg(tree);
        command.arg("--input").arg(patch);
        command
    }
}

impl Drop for Patched<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.step.run(&mut Self::command(self.tree, self.patch, "--reverse")) {
            eprintln!("{error:#}");
        }
    }
}

/// A top Kconfig file beside the source's own that defines the tick's frequency first: the first default that holds wins,
/// so it needs no change of the source.
fn with_tick(tree: &Path, work: &Path, tick_hz: u32) -> Result<PathBuf> {
    let (name, place) = KCONFIG;
    let top = read(&tree.join(name))?;
    ensure!(top.contains(place), "{name} of the kernel source has no line {place:?}");
    let path = work.join("Kconfig.tick");
    fs::write(&path, top.replacen(place, &format!("{place}\nconfig HZ\n\tint\n\tdefault {tick_hz}\n"), 1))?;
    Ok(path)
}

fn read_fragments(variant: &KernelVariant) -> Result<Vec<String>> {
    variant.fragments.iter().map(|name| read(&recipe::dir().join(name))).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn compiler() -> Result<String> {
    step::output(Command::new("gcc").args(["-dumpfullversion", "-dumpmachine"]))
}

/// One kernel build, out of the source tree.
struct Make<'a> {
    step: &'a Step,
    tree: &'a Path,
    work: &'a Path,
    /// In place of the source's top Kconfig file.
    kconfig: Option<PathBuf>,
    epoch: u64,
}

impl Make<'_> {
    fn configure(&self, fragments: &[String]) -> Result<()> {
        self.run(&["tinyconfig"])?;
        // Kconfig lets a later line win, so merging is appending.
        let path = self.work.join(".config");
        let mut config = read(&path)?;
        for fragment in fragments {
            config.push('\n');
            config.push_str(fragment);
        }
        fs::write(&path, config)?;
        self.run(&["olddefconfig"])?;
        let unmet = kconfig::unmet(&kconfig::asked(fragments.iter().map(String::as_str)), &read(&path)?);
        if !unmet.is_empty() {
            bail!("the kernel's config does not hold what guest/image asks for:\n  {}", unmet.join("\n  "));
        }
        Ok(())
    }

    fn kernel(&self, out: &Path) -> Result<()> {
        let jobs = format!("-j{}", available_parallelism().map_or(1, usize::from));
        self.run(&[&jobs, "vmlinux"])?;
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(out.join("vmlinux")).arg(self.work.join("vmlinux"));
        self.step.run(&mut strip)?;
        fs::copy(self.work.join("System.map"), out.join("System.map"))?;
        fs::copy(self.work.join(".config"), out.join("config"))?;
        fs::write(out.join("release"), read(&self.work.join("include/config/kernel.release"))?.trim())?;
        Ok(())
    }

    /// Who, where and when are fixed: the kernel shows them to every guest, and the same inputs shall give the same bytes.
    fn run(&self, targets: &[&str]) -> Result<()> {
        let mut make = Command::new("make");
        make.arg("-C").arg(self.tree).arg(format!("O={}", self.work.display())).args(targets);
        make.env("KBUILD_BUILD_USER", "cove").env("KBUILD_BUILD_HOST", "cove");
        make.env("KBUILD_BUILD_TIMESTAMP", format!("@{}", self.epoch)).env("LC_ALL", "C");
        if let Some(kconfig) = &self.kconfig {
            make.env("KBUILD_KCONFIG", kconfig);
        }
        self.step.run(&mut make)
    }
}
