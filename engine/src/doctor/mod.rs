//! What this computer needs for Cove, checked one by one: ok, warning or error, and what to do.
//!
//! Works without a server and without KVM, changes nothing, and every check is bounded in time. Each check is a function
//! that gives one [`Check`]; the sub-modules group them by what they look at. `cove doctor` prints the report, the API
//! answers it, and the window shows it when it cannot start a server.

mod dirs;
mod host;
mod image;
mod kvm;

use serde::Serialize;

use crate::config::Places;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Cove works, but something is less than it could be.
    Warning,
    /// Cove cannot work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at; stable, for programs.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), advice: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, detail: detail.into(), advice: Some(advice.into()) }
    }

    fn error(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Error, detail: detail.into(), advice: Some(advice.into()) }
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// This program's version.
    pub version: &'static str,
    /// The worst of the checks.
    pub status: Status,
    /// In a fixed order.
    pub checks: Vec<Check>,
}

/// Looks at everything. `port` is one that a server is to listen on, for those who ask before there is one.
pub async fn report(places: Places, port: Option<u16>) -> Report {
    let mut checks = vec![host::versions(), host::user()];
    checks.extend(kvm::checks(places.kvm, places.vmm).await);
    checks.extend([host::memory(), host::umask(), host::open_files()]);
    checks.extend(dirs::checks(&places.data_dir, &places.runtime_dir));
    let guest_dir = places.guest_dir;
    // Files are read to their ends.
    let image = tokio::task::spawn_blocking(move || image::checks(guest_dir)).await;
    checks.extend(image.unwrap_or_else(|error| vec![Check::error("guest_image", error.to_string(), "try again")]));
    checks.extend(host::tools());
    checks.extend(port.map(host::port));
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    Report { version: env!("CARGO_PKG_VERSION"), status, checks }
}
