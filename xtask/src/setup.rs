//! `cargo xtask setup`: the system packages and the UI's packages that a fresh machine needs.
//!
//! Packages come by apt, as root or through sudo; what is installed is skipped. The lists are in `xtask/packages.toml`.

use std::collections::BTreeSet;
use std::env;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step::{self, Step};
use crate::workspace;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Only these groups of packages: build, desktop, test. All of them by default.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Say what is missing and install nothing; fails when something is.
    #[arg(long)]
    check: bool,
}

/// `xtask/packages.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Packages {
    group: Vec<Group>,
    program: Vec<Program>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    purpose: String,
    packages: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    name: String,
    package: String,
}

impl Packages {
    fn load() -> Result<Packages> {
        toml::from_str(include_str!("../packages.toml")).context("xtask/packages.toml is wrong")
    }

    /// The groups asked for, or all when none is named.
    fn chosen(&self, names: &[String]) -> Result<Vec<&Group>> {
        if let Some(name) = names.iter().find(|name| !self.group.iter().any(|group| group.name == **name)) {
            let known: Vec<&str> = self.group.iter().map(|group| group.name.as_str()).collect();
            bail!("--group: `{name}` is not one of {}", known.join(", "));
        }
        Ok(self.group.iter().filter(|group| names.is_empty() || names.contains(&group.name)).collect())
    }
}

/// Run the task.
pub fn run(args: &Args) -> Result<()> {
    let packages = Packages::load()?;
    if !on_path("apt-get") {
        bail!(
            "setup installs Debian packages with apt-get, which is not here; install what stands in xtask/packages.toml by other means"
        );
    }
    let mut missing = BTreeSet::new();
    for group in packages.chosen(&args.groups)? {
        let lacking = not_installed(&group.packages)?;
        eprintln!("   {} ({}): {}", group.name, group.purpose, summary(&lacking));
        missing.extend(lacking);
    }
    missing.extend(
        packages.program.iter().filter(|program| !on_path(&program.name)).map(|program| program.package.clone()),
    );
    if args.check && !missing.is_empty() {
        bail!("missing packages: {}", join(&missing));
    }
    if !missing.is_empty() {
        install(&missing)?;
    }
    if !args.check {
        install_npm_packages()?;
    }
    Ok(())
}

fn summary(lacking: &[String]) -> String {
    if lacking.is_empty() { "all installed".to_owned() } else { format!("missing {}", lacking.join(" ")) }
}

fn join(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Those of `packages` that dpkg does not call installed.
fn not_installed(packages: &[String]) -> Result<Vec<String>> {
    // dpkg-query fails when it knows none of a name, and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(packages)
        .output()
        .context("cannot start dpkg-query")?;
    Ok(lacking(packages, &String::from_utf8_lossy(&output.stdout)))
}

/// Those of `packages` without a line `<name> installed` in dpkg-query's answer.
fn lacking(packages: &[String], statuses: &str) -> Vec<String> {
    let installed: BTreeSet<&str> = statuses
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, status)| *status == "installed")
        .map(|(name, _)| name)
        .collect();
    packages.iter().filter(|name| !installed.contains(name.as_str())).cloned().collect()
}

fn install(missing: &BTreeSet<String>) -> Result<()> {
    let by_hand = format!("apt-get update && apt-get install -y --no-install-recommends {}", join(missing));
    let mut prefix: Vec<&str> = Vec::new();
    if !is_root()? {
        if !on_path("sudo") || !(std::io::stdin().is_terminal() || sudo_asks_nothing()) {
            bail!("these packages are missing and installing them needs root; run as root:\n  {by_hand}");
        }
        prefix.push("sudo");
    }
    // `env` rather than our environment, because sudo clears it.
    prefix.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    if prefix[0] == "sudo" && !Command::new("sudo").arg("--validate").status()?.success() {
        bail!("sudo refused; run as root:\n  {by_hand}");
    }
    let step =
        Step::begin(format!("Install {} packages", missing.len()), &workspace::target_dir().join("xtask/apt.log"))?;
    step.run(Command::new(prefix[0]).args(&prefix[1..]).arg("update"))?;
    step.run(
        Command::new(prefix[0]).args(&prefix[1..]).args(["install", "--yes", "--no-install-recommends"]).args(missing),
    )?;
    step.done(&join(missing));
    Ok(())
}

fn sudo_asks_nothing() -> bool {
    step::output(Command::new("sudo").args(["--non-interactive", "true"])).is_ok()
}

/// The UI's packages, exactly as the lock file names them; nothing when they are there already.
pub fn install_npm_packages() -> Result<()> {
    let root = workspace::root();
    let changed = |path: &str| std::fs::metadata(root.join(path)).and_then(|file| file.modified());
    // npm writes the second file at the end of an install.
    if let (Ok(wanted), Ok(installed)) = (changed("package-lock.json"), changed("node_modules/.package-lock.json"))
        && wanted <= installed
    {
        return Ok(());
    }
    let step = Step::begin("Install the UI's packages", &workspace::target_dir().join("xtask/npm-ci.log"))?;
    step.run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&root))?;
    step.done("");
    Ok(())
}

/// Whether this process is root's.
pub fn is_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}

/// Whether a program of that name is on the PATH.
pub fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // The administrator's programs are not on a user's PATH on Debian.
    let admin = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(admin).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_read_and_an_unknown_group_is_named() {
        let packages = Packages::load().unwrap();
        assert_eq!(packages.chosen(&[]).unwrap().len(), packages.group.len());
        let error = packages.chosen(&["biuld".to_owned()]).err().unwrap();
        assert!(error.to_string().contains("`biuld` is not one of build, desktop, test"), "{error}");
    }

    #[test]
    fn only_what_is_installed_counts_as_installed() {
        let packages = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(lacking(&packages, "a installed\nb config-files\n"), ["b", "c"]);
    }
}
