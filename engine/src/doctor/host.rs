//! The computer itself: versions, user, memory, umask, open files, tools, the port.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use rustix::process::{Resource, getrlimit, getuid};

use super::Check;

/// Memory that the smallest machine and its vmm need beside the reserve, in MiB.
const MEMORY_LEAST_MIB: u64 = 1024;

/// Memory that the default machine needs, in MiB.
const MEMORY_DEFAULT_MIB: u64 = 4096;

/// Open files a server with many sandboxes needs.
const OPEN_FILES_LEAST: u64 = 4096;

/// Programs that are not needed to run sandboxes, and what each is good for.
const TOOLS: [(&str, &str, &str); 2] = [
    ("qemu-img", "qemu-utils", "checks disk images by hand and in tests"),
    ("mke2fs", "e2fsprogs", "builds guest images"),
];

pub fn versions() -> Check {
    let system = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let detail = format!(
        "cove {}, {} {} on {}",
        env!("CARGO_PKG_VERSION"),
        text(system.sysname()),
        text(system.release()),
        text(system.machine())
    );
    if system.machine().to_bytes() == b"x86_64" {
        Check::ok("versions", detail)
    } else {
        Check::error("versions", detail, "Cove's machines need an x86-64 processor")
    }
}

pub fn user() -> Check {
    let uid = getuid();
    if uid.is_root() {
        let advice = "Cove needs no root rights: run it as a user who may open the KVM device";
        Check::warning("user", "running as root", advice)
    } else {
        Check::ok("user", format!("user {}", uid.as_raw()))
    }
}

pub fn memory() -> Check {
    let Some(available_mib) = meminfo_mib("MemAvailable:") else {
        return Check::warning("memory", "the kernel does not say how much is free", "look into /proc/meminfo");
    };
    let total = meminfo_mib("MemTotal:").map_or_else(String::new, |total| format!(" of {total} MiB"));
    let detail = format!("{available_mib} MiB{total} available");
    if available_mib < MEMORY_LEAST_MIB {
        Check::error(
            "memory",
            detail,
            format!("the smallest machine needs about {MEMORY_LEAST_MIB} MiB: end other programs"),
        )
    } else if available_mib < MEMORY_DEFAULT_MIB {
        Check::warning(
            "memory",
            detail,
            "the default machine may use 4 GiB: ask for --memory 512, or end other programs",
        )
    } else {
        Check::ok("memory", detail)
    }
}

pub fn umask() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:")).map(str::trim);
    match mask.and_then(|mask| u32::from_str_radix(mask, 8).ok()) {
        Some(mask) if mask & 0o022 != 0o022 => {
            let advice = "others could write into files you make: use `umask 022` or stricter";
            Check::warning("umask", format!("{mask:04o}"), advice)
        }
        Some(mask) => Check::ok("umask", format!("{mask:04o}")),
        None => Check::warning("umask", "the kernel does not say", "look into /proc/self/status"),
    }
}

pub fn open_files() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let text = limit.maximum.map_or_else(|| "unlimited".to_owned(), |most| most.to_string());
    match limit.maximum {
        Some(most) if most < OPEN_FILES_LEAST => {
            let advice = format!("raise it to {OPEN_FILES_LEAST} or more (`ulimit -Hn`, /etc/security/limits.conf)");
            Check::warning("open_files", format!("at most {text}"), advice)
        }
        _ => Check::ok("open_files", format!("at most {text}")),
    }
}

pub fn tools() -> Vec<Check> {
    TOOLS
        .into_iter()
        .map(|(tool, package, purpose)| match find_program(tool) {
            Some(path) => Check::ok(tool, path),
            None => {
                Check::warning(tool, format!("not found; it {purpose}"), format!("optional: apt-get install {package}"))
            }
        })
        .collect()
}

/// Whether a server could listen there.
pub fn port(port: u16) -> Check {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Check::ok("port", format!("{port} is free")),
        Err(error) => {
            let advice =
                "fine if that is a running `cove serve`; otherwise give `cove serve --port` another one, or 0 for any";
            Check::warning("port", format!("{port} cannot be used: {error}"), advice)
        }
    }
}

/// A program in PATH, or where system programs lie when PATH does not name that.
fn find_program(name: &str) -> Option<String> {
    let path = env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').filter(|dir| !dir.is_empty()).chain(["/usr/sbin", "/sbin"]);
    dirs.map(|dir| Path::new(dir).join(name)).find(|path| path.is_file()).map(|path| path.display().to_string())
}

fn meminfo_mib(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib / 1024)
}
