//! The Debian root as a tar archive, made by mmdebstrap.
//!
//! As root mmdebstrap works in a plain chroot, otherwise in a user namespace (package `uidmap`, /etc/subuid). Packages come
//! from where the host's own apt gets them, if that serves the suite; nothing of the host's setup stays in the image.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::StatVfsMountFlags;
use serde::{Deserialize, Serialize};

use super::cache::{Cache, Fingerprint};
use super::recipe::{self, RootfsRecipe};
use crate::setup;
use crate::step::{self, Step};

/// Raised when this file makes something else of the same inputs.
const VERSION: u32 = 1;

/// The host's apt settings that say how to reach an archive. Others are the image's own affair.
const APT_OPTIONS: [&str; 5] =
    ["Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv"];

/// A packed root.
pub struct Rootfs {
    /// The tar archive.
    pub archive: PathBuf,
    /// Hash of its inputs.
    pub hash: String,
    /// What is in it.
    pub contents: Contents,
}

/// What is in a packed root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// `/etc/debian_version`.
    pub debian_version: String,
    /// Installed packages, sorted by name.
    pub packages: Vec<Package>,
}

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Debian name.
    pub name: String,
    /// Debian version.
    pub version: String,
}

/// Build the root, unless the cache holds it. `fresh` asks for today's packages.
pub fn build(cache: &Cache, recipe: &RootfsRecipe, fresh: bool) -> Result<Rootfs> {
    let overlay = pack_overlay(cache, recipe.epoch)?;
    let hash =
        Fingerprint::new("rootfs", VERSION).text(&serde_json::to_string(recipe)?).bytes(&fs::read(&overlay)?).finish();
    let found = if fresh { None } else { cache.find("rootfs", &hash) };
    let dir = match found {
        Some(dir) => {
            step::reused("Root of the guest", &format!("Debian {}", recipe.suite));
            dir
        }
        None => {
            let step = Step::begin(
                format!("Make the guest's root with mmdebstrap (Debian {})", recipe.suite),
                &cache.log("rootfs"),
            )?;
            let dir = cache.make("rootfs", &hash, |out| {
                run_mmdebstrap(&step, cache, recipe, &overlay, out)?;
                let contents = read_contents(&out.join("rootfs.tar"))?;
                Ok(fs::write(out.join("contents.json"), serde_json::to_vec_pretty(&contents)?)?)
            })?;
            step.done("");
            dir
        }
    };
    let contents = serde_json::from_slice(&fs::read(dir.join("contents.json"))?)?;
    Ok(Rootfs { archive: dir.join("rootfs.tar"), hash, contents })
}

/// `guest/image/rootfs/` as an archive that is the same for the same files, whoever owns them in the checkout.
fn pack_overlay(cache: &Cache, epoch: u64) -> Result<PathBuf> {
    let archive = cache.scratch().join("overlay.tar");
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mode=u=rwX,go=rX",
        "--format=gnu",
    ]);
    tar.arg(format!("--mtime=@{epoch}"))
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(recipe::dir().join("rootfs"))
        .arg(".");
    step::output(&mut tar)?;
    Ok(archive)
}

fn run_mmdebstrap(step: &Step, cache: &Cache, recipe: &RootfsRecipe, overlay: &Path, out: &Path) -> Result<()> {
    let sources = out.join("sources.list");
    let options = out.join("apt.conf");
    fs::write(&sources, host_sources(recipe)?.join("\n") + "\n")?;
    fs::write(&options, host_apt_options()? + "Acquire::Languages \"none\";\n")?;

    let mut command = Command::new("mmdebstrap");
    command.arg("--variant=minbase").arg(if setup::is_root()? { "--mode=root" } else { "--mode=unshare" });
    command.arg("--format=tar").arg(format!("--include={}", recipe.packages.join(",")));
    command.arg(format!("--components={}", recipe.components.join(",")));
    command.arg(format!("--aptopt={}", options.display()));
    command.args(recipe.exclude.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")));
    command.args(recipe.include.iter().map(|pattern| format!("--dpkgopt=path-include={pattern}")));
    for shell_command in &recipe.commands {
        command.arg(format!("--customize-hook={}", in_root(shell_command, recipe.epoch)));
    }
    // Last, because apt's own files in the root are replaced too.
    command.arg(format!("--customize-hook=tar-in {} /", quoted(&overlay.display().to_string())));
    command.arg(&recipe.suite).arg(out.join("rootfs.tar")).arg(&sources);
    // A root needs devices, set-user-id programs, and programs at all.
    let unfit = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC;
    let workbench = cache.workbench("mmdebstrap", unfit)?;
    command.env("TMPDIR", workbench.path()).env("SOURCE_DATE_EPOCH", recipe.epoch.to_string()).env("LC_ALL", "C.UTF-8");
    step.run(&mut command)?;
    fs::remove_file(sources)?;
    Ok(fs::remove_file(options)?)
}

/// A hook that runs a shell command in the new root. Without SOURCE_DATE_EPOCH, which makes Python compile to the kind of
/// file that is checked by hashing the source at each start.
fn in_root(shell_command: &str, epoch: u64) -> String {
    format!("chroot \"$1\" env -u SOURCE_DATE_EPOCH EPOCH={epoch} /bin/sh -ec {}", quoted(shell_command))
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `sources.list` lines for the suite: the host's own, or the recipe's public ones.
fn host_sources(recipe: &RootfsRecipe) -> Result<Vec<String>> {
    let format = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)";
    let targets = Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output();
    let listed = targets.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let lines = sources_for(recipe, &listed);
    Ok(if lines.is_empty() { recipe.mirrors.clone() } else { lines })
}

/// The `deb` lines of Debian's own archives for the suite, its updates and its security fixes, out of apt's list of index
/// files. Empty unless the suite itself is among them.
fn sources_for(recipe: &RootfsRecipe, listed: &str) -> Vec<String> {
    let suites = ["", "-updates", "-security"].map(|part| format!("{}{part}", recipe.suite));
    let mut lines = BTreeSet::new();
    let mut whole = false;
    for line in listed.lines() {
        let &[origin, uri, release, codename, component] = line.split(' ').collect::<Vec<_>>().as_slice() else {
            continue;
        };
        let wanted =
            suites.iter().any(|suite| suite == codename) && recipe.components.iter().any(|name| name == component);
        if origin == "Debian" && wanted {
            whole |= codename == recipe.suite;
            lines.insert(format!("deb {uri} {release} {component}"));
        }
    }
    if whole { lines.into_iter().collect() } else { Vec::new() }
}

/// The host's settings for reaching its archives (a proxy, say).
fn host_apt_options() -> Result<String> {
    let dump = step::output(Command::new("apt-config").arg("dump")).context("cannot read apt's settings")?;
    Ok(dump
        .lines()
        .filter(|line| APT_OPTIONS.iter().any(|prefix| line.starts_with(prefix)))
        .map(|line| format!("{line}\n"))
        .collect())
}

fn read_contents(archive: &Path) -> Result<Contents> {
    let member = |path: &str| {
        step::output(Command::new("tar").arg("--extract").arg("--to-stdout").arg("--file").arg(archive).arg(path))
    };
    Ok(Contents {
        debian_version: member("./etc/debian_version")?,
        packages: installed(&member("./var/lib/dpkg/status")?),
    })
}

/// The installed packages of a dpkg status file.
fn installed(status: &str) -> Vec<Package> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter(|paragraph| field(paragraph, "Status:").is_some_and(|status| status.ends_with(" installed")))
        .filter_map(|paragraph| {
            Some(Package { name: field(paragraph, "Package:")?, version: field(paragraph, "Version:")? })
        })
        .collect();
    packages.sort();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::recipe::Recipe;

    #[test]
    fn the_hosts_archives_are_used_when_they_serve_the_suite() {
        let recipe = Recipe::load().unwrap().rootfs;
        let listed = "Debian http://near/debian/ bookworm bookworm main\n\
                      Debian http://near/debian/ stable-updates bookworm-updates main\n\
                      Debian http://near/debian/ trixie trixie main\n\
                      Node http://node/ nodistro nodistro main\n";
        let near = ["deb http://near/debian/ bookworm main", "deb http://near/debian/ stable-updates main"];
        assert_eq!(sources_for(&recipe, listed), near);
        assert!(sources_for(&recipe, "Debian http://near/ trixie trixie main\n").is_empty());
    }

    #[test]
    fn only_installed_packages_count() {
        let status = "Package: b\nStatus: install ok installed\nVersion: 2\n\nPackage: gone\nStatus: deinstall ok config-files\n\
                      Version: 1\n\nPackage: a\nStatus: install ok installed\nDescription: x\n .\nVersion: 1:1-1\n";
        let names: Vec<String> =
            installed(status).into_iter().map(|package| package.name + " " + &package.version).collect();
        assert_eq!(names, ["a 1:1-1", "b 2"]);
    }

    #[test]
    fn a_command_reaches_the_shell_as_it_is() {
        let text = "it's; $X";
        assert_eq!(
            step::output(Command::new("sh").args(["-c", &format!("printf %s {}", quoted(text))])).unwrap(),
            text
        );
    }
}
