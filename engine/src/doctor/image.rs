//! The guest image: kernels, root image, agent, as the manifest describes them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Check;

/// How the image is made.
const ADVICE: &str = "build it with `cargo xtask guest`, or name its directory with --guest-dir or COVE_GUEST_DIR";

/// `manifest.json`, as far as it is checked.
#[derive(Deserialize)]
struct Manifest {
    hash: String,
    kernels: Vec<Item>,
    root: Item,
    agent: Agent,
    debian_version: String,
}

/// One file of the image.
#[derive(Deserialize)]
struct Item {
    file: String,
    bytes: u64,
    /// Checked where the manifest has it.
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct Agent {
    protocol_version: u32,
}

/// The checks of this module.
pub fn checks(dir: Result<PathBuf, String>) -> Vec<Check> {
    let dir = match dir {
        Ok(dir) => dir,
        Err(problem) => return vec![Check::error("guest_image", problem, ADVICE)],
    };
    match load(&dir) {
        Ok(manifest) => vec![files(&dir, &manifest), agent(&manifest)],
        Err(problem) => vec![Check::error("guest_image", problem, ADVICE)],
    }
}

fn load(dir: &Path) -> Result<Manifest, String> {
    let path = dir.join("manifest.json");
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{} is not understood: {error}", path.display()))
}

fn files(dir: &Path, manifest: &Manifest) -> Check {
    let problems: Vec<String> =
        manifest.kernels.iter().chain([&manifest.root]).filter_map(|item| problem(dir, item)).collect();
    if problems.is_empty() {
        let kernels: Vec<&str> = manifest.kernels.iter().map(|kernel| kernel.file.as_str()).collect();
        let short: String = manifest.hash.chars().take(12).collect();
        let detail =
            format!("{} (Debian {}, {}, {short})", dir.display(), manifest.debian_version, kernels.join(" and "));
        Check::ok("guest_image", detail)
    } else {
        Check::error("guest_image", problems.join("; "), ADVICE)
    }
}

fn agent(manifest: &Manifest) -> Check {
    let (theirs, ours) = (manifest.agent.protocol_version, cove_protocol::VERSION);
    let detail = format!("the agent speaks protocol version {theirs}, this program {ours}");
    if theirs == ours {
        Check::ok("agent", detail)
    } else {
        Check::error("agent", detail, "build the guest image anew: `cargo xtask guest`")
    }
}

fn problem(dir: &Path, item: &Item) -> Option<String> {
    let path = dir.join(&item.file);
    let shown = path.display();
    match fs::metadata(&path) {
        Err(error) => return Some(format!("{shown}: {error}")),
        Ok(found) if found.len() != item.bytes => {
            return Some(format!("{shown} has {} bytes, not {}", found.len(), item.bytes));
        }
        Ok(_) => {}
    }
    let wanted = item.sha256.as_ref()?;
    match sha256(&path) {
        Ok(found) if found == *wanted => None,
        Ok(_) => Some(format!("{shown} is not the file that was built: its SHA-256 differs")),
        Err(error) => Some(format!("{shown}: {error}")),
    }
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn image(dir: &Path, bytes: u64, sha256: &str, version: u32) {
        fs::write(dir.join("vmlinux"), "kernel").unwrap();
        fs::write(dir.join("root.ext4"), "root").unwrap();
        let manifest = serde_json::json!({
            "hash": "abc", "debian_version": "12",
            "kernels": [{ "file": "vmlinux", "bytes": bytes, "sha256": sha256 }],
            "root": { "file": "root.ext4", "bytes": 4 }, "agent": { "protocol_version": version },
        });
        fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    }

    fn statuses(dir: &Path) -> Vec<Status> {
        checks(Ok(dir.to_path_buf())).iter().map(|check| check.status).collect()
    }

    #[test]
    fn a_whole_image_is_fine_and_every_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = "0".repeat(64);
        assert_eq!(statuses(dir.path()), [Status::Error]);
        fs::write(dir.path().join("vmlinux"), "kernel").unwrap();
        let right = sha256(&dir.path().join("vmlinux")).unwrap();
        image(dir.path(), 6, &right, cove_protocol::VERSION);
        assert_eq!(statuses(dir.path()), [Status::Ok, Status::Ok]);
        image(dir.path(), 7, &right, cove_protocol::VERSION);
        assert_eq!(statuses(dir.path()), [Status::Error, Status::Ok]);
        image(dir.path(), 6, &wrong, cove_protocol::VERSION + 1);
        assert_eq!(statuses(dir.path()), [Status::Error, Status::Error]);
    }
}
