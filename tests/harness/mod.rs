//! What tests stand on: a real server ([`TestHost`]), sandboxes in it ([`TestSandbox`]), and the proof that nothing is
//! left behind.

mod api;
mod driver;
mod host;
mod processes;
mod raw;
mod runner;
mod sandbox;
mod window;

pub use api::Answer;
pub use api::Api;
pub use host::{TestHost, all_files, resident_kib};
pub use processes::{clean_up_on_signals, signal};
pub use raw::{RawAnswer, raw_request};
pub use runner::{Shared, exclusive, parallel};
pub use sandbox::TestSandbox;
pub use window::TestWindow;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// A small machine of one vCPU.
pub fn small() -> Value {
    json!({ "cpu_count": 1, "memory_mb": 512, "disk_size_mb": 4096, "timeout_sec": 3600 })
}

/// The full count of something long, where `COVE_SOAK` is set (`cargo xtask soak`), and a short one otherwise.
pub fn full<N>(count: N, short: N) -> N {
    if std::env::var_os("COVE_SOAK").is_some() { count } else { short }
}

/// Looks at `condition` until it holds. Only for what tells nobody when it changes, such as the list of processes.
pub fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let began = Instant::now();
    loop {
        if condition()? {
            return Ok(began.elapsed());
        }
        if began.elapsed() > patience {
            bail!("After {} ms still not: {what}", patience.as_millis());
        }
        #[allow(clippy::disallowed_methods, reason = "processes and files of others tell nobody when they change")]
        std::thread::sleep(Duration::from_millis(10));
    }
}
