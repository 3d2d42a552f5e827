//! The unmodified Python SDK from PyPI against the server: one test per file of `sdk/`, run by pytest.
//!
//! The SDK is installed once into a virtual environment in the cache folder, named by the hash of its requirements.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::fs::{FlockOperation, flock};

use crate::harness::{Shared, parallel};

/// What is installed, with exact versions.
const REQUIREMENTS: &str = include_str!("sdk/requirements.txt");

/// Held while the environment is made.
static INSTALLING: Mutex<()> = Mutex::new(());

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "sdk::lifecycle", |shared| pytest(shared, "test_lifecycle.py")),
        parallel(shared, "sdk::exec", |shared| pytest(shared, "test_exec.py")),
        parallel(shared, "sdk::stream", |shared| pytest(shared, "test_stream.py")),
        parallel(shared, "sdk::processes", |shared| pytest(shared, "test_processes.py")),
        parallel(shared, "sdk::terminal", |shared| pytest(shared, "test_terminal.py")),
        parallel(shared, "sdk::files", |shared| pytest(shared, "test_files.py")),
        parallel(shared, "sdk::observing_trees", |shared| pytest(shared, "test_tree.py")),
        parallel(shared, "sdk::observing", |shared| pytest(shared, "test_observe.py")),
        parallel(shared, "sdk::observing_asynchronous", |shared| pytest(shared, "test_observe_async.py")),
        parallel(shared, "sdk::previews", |shared| pytest(shared, "test_previews.py")),
        parallel(shared, "sdk::code", |shared| pytest(shared, "test_code.py")),
        parallel(shared, "sdk::batches", |shared| pytest(shared, "test_batches.py")),
        parallel(shared, "sdk::local", |shared| pytest(shared, "test_local.py")),
        parallel(shared, "sdk::errors", |shared| pytest(shared, "test_errors.py")),
        parallel(shared, "sdk::life", |shared| pytest(shared, "test_life.py")),
        parallel(shared, "sdk::snapshots", |shared| pytest(shared, "test_snapshots.py")),
        parallel(shared, "sdk::fused_run", |shared| pytest(shared, "test_run.py")),
        parallel(shared, "sdk::life_asynchronous", |shared| pytest(shared, "test_life_async.py")),
        parallel(shared, "sdk::asynchronous", |shared| pytest(shared, "test_async.py")),
    ]
}

fn pytest(shared: &Shared, file: &str) -> Result<()> {
    let api = shared.host()?.api();
    let sandbox = shared.sandbox()?;
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk");
    let mut command = Command::new(environment()?.join("bin/python"));
    command.args(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=5", "--tb=short", file]);
    command.current_dir(suite).env("MIOSA_BASE_URL", api.base_url()).env("MIOSA_API_KEY", &api.token);
    command.env("COVE_TEST_SANDBOX", &sandbox.id).env("PYTHONDONTWRITEBYTECODE", "1").env("NO_PROXY", "*");
    let output = command.output().context("Cannot run pytest")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The virtual environment with the SDK; made when it is not there.
fn environment() -> Result<PathBuf> {
    let _one_thread = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut hasher = DefaultHasher::new();
    REQUIREMENTS.hash(&mut hasher);
    let dir = cache_dir()?.join(format!("test-sdk-{:016x}", hasher.finish()));
    let done = dir.join("complete");
    fs::create_dir_all(&dir)?;
    // Another run of the tests may be at it.
    let lock = fs::File::create(dir.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if !done.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir.join("venv")))?;
        let requirements = dir.join("requirements.txt");
        fs::write(&requirements, REQUIREMENTS)?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new(dir.join("venv/bin/python")).args(pip).arg(&requirements))?;
        fs::write(&done, "")?;
    }
    Ok(dir.join("venv"))
}

/// Where what tests download is kept.
pub fn cache_dir() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Ok(base.or_else(home).context("Neither XDG_CACHE_HOME nor HOME is set")?.join("cove"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("Cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
