//! House rules that no compiler checks: headers, sizes, where `unsafe` may stand, who may depend on whom.
//!
//! The rules are those of CONTRIBUTING.md. A new exception is a change to a table in this file, so a reviewer sees it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step;
use crate::workspace;

/// Files that may hold `unsafe`, each because it speaks to the kernel or the CPU where no safe wrapper exists.
const UNSAFE_FILES: &[&str] = &[
    "guest/src/entropy.rs",
    "guest/src/init.rs",
    "guest/src/process.rs",
    "guest/src/reaper.rs",
    "guest/src/vsock.rs",
    "vmm/src/arch/x86_64/state.rs",
    "vmm/src/jail.rs",
    "vmm/src/memory/mod.rs",
    "vmm/src/memory/own.rs",
    "vmm/src/signal.rs",
    "vmm/src/vcpu.rs",
];

/// A file longer than this, its tests left out, must be split.
const FILE_LINES_MAX: usize = 800;

/// A function longer than this does not fit a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions allowed above [`FUNCTION_LINES_MAX`] all together: this number only goes down.
const LONG_FUNCTIONS_MAX: usize = 0;

/// What a crate of ours may use of ours. What is not listed is forbidden.
const MAY_USE: &[(&str, &[&str])] = &[
    ("cove-protocol", &[]),
    ("cove-agent", &["cove-protocol"]),
    ("cove-vmm", &["cove-protocol"]),
    ("cove-engine", &["cove-protocol"]),
    ("cove-api", &["cove-engine", "cove-protocol"]),
    ("cove-cli", &["cove-api", "cove-engine", "cove-protocol"]),
    ("cove-desktop", &["cove-api", "cove-engine"]),
    ("cove-tests", &["cove-protocol"]),
    ("xtask", &["cove-protocol"]),
];

/// Crates from outside that one of ours must never use: (ours, theirs).
const NEVER: &[(&str, &str)] = &[
    ("cove-agent", "tokio"),
    ("cove-vmm", "tokio"),
    ("cove-vmm", "sqlx"),
    ("cove-engine", "axum"),
    ("cove-engine", "tauri"),
    ("cove-api", "sqlx"),
    ("cove-api", "tauri"),
    ("cove-cli", "sqlx"),
    ("cove-cli", "tauri"),
    ("cove-desktop", "sqlx"),
];

/// Checks every rule and reports every violation.
pub fn run() -> Result<()> {
    let mut problems = dependency_problems()?;
    let mut long_functions = Vec::new();
    for path in rust_files()? {
        let text = fs::read_to_string(workspace::root().join(&path)).with_context(|| format!("cannot read {path}"))?;
        problems.extend(file_problems(&path, &text));
        long_functions.extend(long_functions_in(&path, &text));
    }
    if long_functions.len() > LONG_FUNCTIONS_MAX {
        problems.push(format!(
            "{} functions are longer than {FUNCTION_LINES_MAX} lines; {LONG_FUNCTIONS_MAX} are allowed:\n  {}",
            long_functions.len(),
            long_functions.join("\n  ")
        ));
    }
    if problems.is_empty() { Ok(()) } else { bail!("house rules are broken:\n- {}", problems.join("\n- ")) }
}

/// The Rust files that git knows or would add, relative to the root.
fn rust_files() -> Result<Vec<String>> {
    let mut command = Command::new("git");
    command.current_dir(workspace::root()).args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]);
    let listed = step::output(&mut command)?;
    let exists = |path: &&str| workspace::root().join(path).is_file();
    Ok(listed.lines().filter(exists).map(str::to_owned).collect())
}

fn file_problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if !text.starts_with("//!") {
        problems.push(format!("{path} does not begin with a `//!` header that says what it is"));
    }
    let lines = code_lines(text);
    if lines > FILE_LINES_MAX {
        problems.push(format!("{path} has {lines} lines without its tests; {FILE_LINES_MAX} is the most"));
    }
    if has_unsafe(text) && !UNSAFE_FILES.contains(&path) {
        problems.push(format!("{path} holds `unsafe` and is not on the list in xtask/src/tidy.rs"));
    }
    problems
}

/// Lines before the first test module.
fn code_lines(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

fn has_unsafe(text: &str) -> bool {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    // The keyword as code: followed by what it makes unsafe, so that a word in a sentence does not count.
    let keyword = "unsafe";
    let forms = ["{", "fn ", "impl ", "extern ", "trait "].map(|form| format!("{keyword} {form}"));
    text.lines().filter(code).any(|line| forms.iter().any(|form| line.contains(form)))
}

/// Functions above the limit, as `path:line name (n lines)`. Formatted code closes a function at its own indentation.
fn long_functions_in(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate().take(code_lines(text)) {
        let Some(name) = function_name(line) else { continue };
        // A trait's method without a body has no closing brace of its own.
        if lines[start..].iter().find(|line| line.ends_with(['{', '}', ';'])).is_some_and(|line| line.ends_with(';')) {
            continue;
        }
        let indentation = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indentation));
        let Some(length) = lines[start..].iter().position(|line| *line == closing) else { continue };
        if length + 1 > FUNCTION_LINES_MAX {
            found.push(format!("{path}:{} {name} ({} lines)", start + 1, length + 1));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|word| {
        matches!(*word, "pub" | "pub(crate)" | "pub(super)" | "async" | "const" | "unsafe" | "extern" | "\"C\"")
    });
    (words.next()? == "fn").then(|| words.next())?.and_then(|name| name.split(['(', '<']).next())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

fn dependency_problems() -> Result<Vec<String>> {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let metadata: Metadata = serde_json::from_str(&step::output(&mut command)?).context("cargo metadata's answer")?;
    let may_use: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let Some(allowed) = may_use.get(package.name.as_str()) else {
            problems.push(format!("{} is not in the table of xtask/src/tidy.rs", package.manifest_path.display()));
            continue;
        };
        // Tests and build scripts may use more: the rule is about what runs at a user's.
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind.is_none()) {
            let ours = may_use.contains_key(dependency.name.as_str());
            let never = NEVER.contains(&(package.name.as_str(), dependency.name.as_str()));
            if (ours && !allowed.contains(&dependency.name.as_str())) || never {
                problems.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_as_long_as_from_its_name_to_its_closing_brace() {
        let body = "    let a = {\n        1\n    };\n".repeat(30);
        let text = format!("//! x\npub fn long<T>(a: T) {{\n{body}}}\n\nfn short() {{\n    ()\n}}\n");
        assert_eq!(long_functions_in("a.rs", &text), ["a.rs:2 long (92 lines)"]);
    }

    #[test]
    fn unsafe_in_comments_and_names_does_not_count() {
        let keyword = "unsafe";
        assert!(!has_unsafe(&format!("// {keyword} {{ }}\n#![forbid({keyword}_code)]\n")));
        assert!(has_unsafe(&format!("    let x = {keyword} {{ y() }};\n")));
    }

    #[test]
    fn a_file_needs_a_header_and_tests_do_not_count() {
        let text = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "//\n".repeat(900));
        assert_eq!(file_problems("a.rs", &text).len(), 1);
    }
}
