//! Tests as trials of the runner: which host they use, whether they run alone, and what is shown when they fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use libtest_mimic::{Failed, Trial};

use super::{TestHost, TestSandbox, small};
use crate::disks;

/// Tests that take longer are told of, since the whole run has a budget.
const SLOW: Duration = Duration::from_secs(10);

/// Tests that measure hold this alone.
static PROCESSOR: RwLock<()> = RwLock::new(());

/// What tests share: a server and a sandbox in it, each made when the first test asks.
#[derive(Default)]
pub struct Shared {
    /// A data directory with a warm template, in which nothing runs.
    seed: OnceLock<Result<Arc<TestHost>, String>>,
    host: OnceLock<Result<Arc<TestHost>, String>>,
    sandbox: Mutex<Option<String>>,
}

impl Shared {
    /// The shared server.
    pub fn host(&self) -> Result<Arc<TestHost>> {
        let start = || self.own_host().map(Arc::new).map_err(|error| format!("{error:#}"));
        self.host.get_or_init(start).clone().map_err(|error| anyhow!("The shared server failed: {error}"))
    }

    /// A server of the caller's own, whose template is warm for [`small`].
    pub fn own_host(&self) -> Result<TestHost> {
        self.own_host_with(&[])
    }

    /// As [`Shared::own_host`], with more in its environment.
    pub fn own_host_with(&self, env: &[(&str, &str)]) -> Result<TestHost> {
        let make = || make_seed().map(Arc::new).map_err(|error| format!("{error:#}"));
        let seed = self.seed.get_or_init(make).clone();
        let seed = seed.map_err(|error| anyhow!("The template could not be made warm: {error}"))?;
        TestHost::start_from(Some(&seed.data_dir()), env)
    }

    /// The shared sandbox: for commands and files that disturb nobody.
    pub fn sandbox(&self) -> Result<TestSandbox> {
        let host = self.host()?;
        let mut id = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = &*id {
            return Ok(TestSandbox::existing(host.api(), id));
        }
        let mut wanted = small();
        wanted["name"] = "shared".into();
        wanted["tags"] = serde_json::json!(["shared", "e2e"]);
        let sandbox = host.sandbox(&wanted).context("The shared sandbox cannot be made")?;
        *id = Some(sandbox.id.clone());
        Ok(sandbox)
    }

    /// After the last test: the disks are whole, and nothing is left behind. After a failure only cleans up.
    pub fn finish(&self, failed: bool) -> Result<()> {
        if let Some(Ok(seed)) = self.seed.get() {
            seed.end();
        }
        let Some(Ok(host)) = self.host.get() else { return Ok(()) };
        let outcome = if failed { Ok(()) } else { disks::are_whole(host).and_then(|()| host.finish()) };
        let outcome = outcome.map_err(|error| anyhow!("{error:#}\n{}", host.report()));
        host.end();
        outcome
    }
}

/// Boots the one template of a test run; all sandboxes but those of the tests of booting are restored from it.
fn make_seed() -> Result<TestHost> {
    let host = TestHost::start()?;
    let warm = host.api().post("/sandbox-templates/miosa-sandbox/warm", &small()).and_then(|answer| answer.data());
    let stopped = warm.and_then(|_| host.stop_server());
    match stopped {
        Ok(()) => Ok(host),
        Err(error) => {
            let error = anyhow!("{error:#}\n{}", host.report());
            host.end();
            Err(error)
        }
    }
}

/// A test that may run beside others.
pub fn parallel(shared: &Arc<Shared>, name: &str, test: fn(&Shared) -> Result<()>) -> Trial {
    let (shared, name) = (Arc::clone(shared), name.to_owned());
    Trial::test(name.clone(), move || {
        let _beside = PROCESSOR.read().unwrap_or_else(PoisonError::into_inner);
        attempt(&shared, &name, test)
    })
}

/// A test that runs alone, because it measures.
pub fn exclusive(shared: &Arc<Shared>, name: &str, test: fn(&Shared) -> Result<()>) -> Trial {
    let (shared, name) = (Arc::clone(shared), name.to_owned());
    Trial::test(name.clone(), move || {
        let _alone = PROCESSOR.write().unwrap_or_else(PoisonError::into_inner);
        attempt(&shared, &name, test)
    })
}

fn attempt(shared: &Shared, name: &str, test: fn(&Shared) -> Result<()>) -> Result<(), Failed> {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| test(shared)));
    if began.elapsed() > SLOW {
        eprintln!("  {name} took {} s", began.elapsed().as_secs());
    }
    let error = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
        }
    };
    // A test with a host of its own has reported on that.
    let shared = shared.host.get().filter(|_| !error.contains("--- requests"));
    let report = shared.and_then(|host| host.as_ref().ok()).map(|host| host.report());
    Err(Failed::from(format!("{error}\n{}", report.unwrap_or_default())))
}
