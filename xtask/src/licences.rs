//! Every crate that is built into Cove has a licence that we accept. The list is `deny.toml`, in cargo-deny's form, so
//! that tool can be used too; this check needs nothing installed and no network.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step;
use crate::workspace;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Checks the licence of every package in the lock file that this platform builds.
pub fn run() -> Result<()> {
    let text = fs::read_to_string(workspace::root().join("deny.toml")).context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("deny.toml")?;
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root());
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata: Metadata = serde_json::from_str(&step::output(&mut command)?).context("cargo metadata's answer")?;
    let refused: Vec<String> = metadata
        .packages
        .iter()
        .filter(|package| !accepted(package.license.as_deref().unwrap_or_default(), &deny.licenses.allow))
        .map(|package| {
            format!("{} {}: {}", package.name, package.version, package.license.as_deref().unwrap_or("none"))
        })
        .collect();
    if refused.is_empty() {
        Ok(())
    } else {
        bail!("licences that deny.toml does not allow:\n- {}", refused.join("\n- "))
    }
}

/// Whether an SPDX expression can be met with allowed licences: one arm of each `OR`, every arm of an `AND`.
fn accepted(expression: &str, allowed: &BTreeSet<String>) -> bool {
    // The old form "MIT/Apache-2.0" means OR. Parentheses bind tighter, AND binds tighter than OR (SPDX 2.3, annex D).
    let tokens = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = tokens.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(tokens: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(tokens, allowed);
    while let Some((&"OR", rest)) = tokens.split_first() {
        *tokens = rest;
        met |= all_of(tokens, allowed);
    }
    met
}

fn all_of(tokens: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(tokens, allowed);
    while let Some((&"AND", rest)) = tokens.split_first() {
        *tokens = rest;
        met &= one(tokens, allowed);
    }
    met
}

fn one(tokens: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let Some((first, rest)) = tokens.split_first() else { return false };
    *tokens = rest;
    if *first == "(" {
        let met = any_of(tokens, allowed);
        if let Some((&")", rest)) = tokens.split_first() {
            *tokens = rest;
        }
        return met;
    }
    let mut name = (*first).to_owned();
    if let [with @ "WITH", exception, rest @ ..] = tokens {
        name = format!("{name} {with} {exception}");
        *tokens = rest;
    }
    allowed.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_by_one_arm_of_or_and_all_arms_of_and() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
        let allowed = allowed.into_iter().map(str::to_owned).collect();
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
            ("(GPL-2.0 OR GPL-3.0) AND MIT", false),
            ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
            ("", false),
            ("MIT MIT", false),
        ] {
            assert_eq!(accepted(expression, &allowed), met, "{expression}");
        }
    }
}
