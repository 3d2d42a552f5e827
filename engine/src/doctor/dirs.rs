//! Cove's directories: where data goes, whether it can be written, how much room there is, who holds it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, access, statvfs};
use rustix::process::getuid;

use super::Check;
use crate::local;

/// Room below which nothing can be made, in MiB: the server's own reserve.
const DISK_LEAST_MIB: u64 = 1024;

/// Room for a handful of working sandboxes, in MiB.
const DISK_GOOD_MIB: u64 = 10 * 1024;

/// The checks of this module.
pub fn checks(data_dir: &Path, runtime_dir: &Path) -> Vec<Check> {
    vec![own("data_dir", data_dir), own("runtime_dir", runtime_dir), disk(data_dir), lock(data_dir)]
}

/// A directory that must be this user's alone.
fn own(name: &'static str, dir: &Path) -> Check {
    let shown = dir.display();
    match fs::symlink_metadata(dir) {
        Ok(found) if !found.is_dir() => Check::error(name, format!("{shown} is not a directory"), "move it away"),
        Ok(found) if found.uid() != getuid().as_raw() => {
            let detail = format!("{shown} belongs to user {}", found.uid());
            Check::error(name, detail, "name a directory of your own: COVE_DATA_DIR, COVE_RUNTIME_DIR")
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let detail = format!("{shown} is open to others (mode {:04o})", found.permissions().mode() & 0o7777);
            Check::error(name, detail, format!("`chmod 0700 {shown}`"))
        }
        Ok(_) => writable(dir, name, &format!("{shown}")),
        Err(_) => writable(existing(dir), name, &format!("{shown} will be made at the start")),
    }
}

fn writable(dir: &Path, name: &'static str, fine: &str) -> Check {
    match access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Check::ok(name, fine),
        Err(error) => {
            let advice = "make it writable for you, or name another one";
            Check::error(name, format!("{} cannot be written: {error}", dir.display()), advice)
        }
    }
}

fn disk(dir: &Path) -> Check {
    let at = existing(dir);
    let free_mib = match statvfs(at) {
        Ok(found) => (found.f_bavail * found.f_frsize) >> 20,
        Err(error) => {
            let detail = format!("the room at {} cannot be told: {error}", at.display());
            return Check::warning("disk", detail, "look at `df`");
        }
    };
    let detail = format!("{:.1} GiB free at {}", free_mib as f64 / 1024.0, at.display());
    if free_mib < DISK_LEAST_MIB {
        Check::error("disk", detail, "free some space, or give --data-dir a larger file system")
    } else if free_mib < DISK_GOOD_MIB {
        Check::warning("disk", detail, "disks of sandboxes grow as they are written: 10 GiB or more is comfortable")
    } else {
        Check::ok("disk", detail)
    }
}

fn lock(dir: &Path) -> Check {
    match local::server(dir) {
        Some(server) => {
            let place = server.port.map_or_else(|| "no port yet".to_owned(), |port| format!("http://127.0.0.1:{port}"));
            Check::ok(
                "server",
                format!("process {} holds the data directory since {}: {place}", server.pid, server.since),
            )
        }
        None => Check::ok("server", "none is running here"),
    }
}

/// The nearest directory above that exists.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"))
}
