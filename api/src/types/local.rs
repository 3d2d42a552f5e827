//! What the contract's cloud has and one computer has in its own way: runtimes, the product catalogue, SSH, devices, the
//! gate of `miosa-mcp`.

use cove_engine::protocol::guest::{Entry, EntryKind};
use cove_engine::{Limits, Sandbox};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::exec::ExecCommand;

/// How sandboxes are run (contract X55).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RuntimeRecord {
    /// `standard`.
    pub id: &'static str,
    /// What create takes as `runtime_profile`.
    pub runtime_profile: &'static str,
    /// For people.
    pub label: &'static str,
    /// For people.
    pub description: &'static str,
    /// Used when nobody says.
    pub default: bool,
    /// It can be used now.
    pub available: bool,
    /// Why not, and what to do.
    pub unavailable_reason: Option<String>,
    /// What sandboxes can do in it.
    pub capabilities: RuntimeCapabilities,
}

/// See [`RuntimeRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RuntimeCapabilities {
    /// A browser can be driven.
    pub browser: bool,
    /// Programs inside reach other computers.
    pub network_egress: bool,
    /// Sandboxes outlive their session.
    pub persistence: bool,
    /// Memory is kept while one stands still.
    pub pause: bool,
    /// Graphics processors.
    pub gpu: bool,
    /// The largest that may be asked for.
    pub max_shape: MaxShape,
}

/// The largest shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the create body")]
pub struct MaxShape {
    pub cpu_count: u32,
    pub memory_mb: u32,
    pub disk_size_mb: u32,
}

impl RuntimeRecord {
    /// This server's own machines.
    pub fn standard(limits: &Limits, problem: Option<&str>) -> Self {
        Self {
            id: "standard",
            runtime_profile: "standard",
            label: "microVM",
            description: "A virtual machine of its own on this computer, with KVM",
            default: true,
            available: problem.is_none(),
            unavailable_reason: problem.map(str::to_owned),
            capabilities: RuntimeCapabilities {
                browser: false,
                network_egress: false,
                persistence: true,
                pause: true,
                gpu: false,
                max_shape: MaxShape {
                    cpu_count: *limits.cpu_count.end(),
                    memory_mb: *limits.memory_mb.end(),
                    disk_size_mb: *limits.disk_size_mb.end(),
                },
            },
        }
    }
}

/// The product catalogue (contract X56).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Catalogue {
    /// Every template.
    pub templates: Vec<Product>,
}

/// A template in the catalogue.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({"id": "miosa-sandbox", "product": "sandbox", "name": "MIOSA sandbox", "default_size": "small",
    "sdk_name": "miosa-sandbox", "cli_name": "miosa-sandbox", "sizes": [{"size": "xs", "state": "ready"}]}))]
pub struct Product {
    /// Its id.
    pub id: String,
    /// `sandbox`.
    pub product: &'static str,
    /// For people.
    pub name: String,
    /// The size when nobody says.
    pub default_size: &'static str,
    /// What create takes.
    pub sdk_name: String,
    /// The same.
    pub cli_name: String,
    /// Each size, and whether it can be made.
    pub sizes: Vec<ProductSize>,
}

/// A size of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProductSize {
    /// Its name.
    pub size: &'static str,
    /// `ready`, or `unavailable` where the host runs no machines.
    pub state: &'static str,
}

/// How to reach a sandbox by SSH (contract X38).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"host": "sbx_4k2p", "user": "root", "port": 22,
    "tunnel_url": "ws://127.0.0.1:7333/api/v1/sandboxes/sbx_4k2p/ssh-tunnel", "sshd_running": false, "certificates": {}}))]
pub struct SshInfo {
    /// The sandbox's id, which a ProxyCommand passes on.
    pub host: String,
    /// Whose account.
    pub user: &'static str,
    /// In the guest.
    pub port: u16,
    /// A WebSocket of bytes to that port.
    pub tunnel_url: String,
    /// Something listens there. Templates bring no SSH server; `openssh-server` in the sandbox is one.
    pub sshd_running: bool,
    /// None: this server signs no keys; install one instead.
    #[schema(value_type = Object)]
    pub certificates: Value,
}

/// A key to let in (contract X40).
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here"}))]
pub struct SshKeyBody {
    /// One line of `authorized_keys`.
    pub public_key: String,
}

/// A key that is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SshKeyInstalled {
    /// It is.
    pub installed: bool,
    /// For whom.
    pub user: &'static str,
    /// In which file.
    pub path: &'static str,
}

/// Nothing is connected here (contract X50).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConnectorBinding {
    /// Its id.
    pub id: String,
}

/// What a device can do (contract X113): a sandbox, in the words of the devices facade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"id": "sbx_4k2p", "type": "sandbox", "exec": true, "files": true, "expose": true, "pause": true,
    "stop": true, "resume": true, "extend": true, "browser": false}))]
#[allow(missing_docs, reason = "each is a call of the facade")]
pub struct DeviceCapabilities {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub exec: bool,
    pub files: bool,
    pub expose: bool,
    pub pause: bool,
    pub stop: bool,
    pub resume: bool,
    pub extend: bool,
    pub browser: bool,
}

impl From<Sandbox> for DeviceCapabilities {
    fn from(sandbox: Sandbox) -> Self {
        Self {
            id: sandbox.id.to_string(),
            kind: "sandbox",
            exec: true,
            files: true,
            expose: true,
            pause: true,
            stop: true,
            resume: true,
            extend: true,
            browser: false,
        }
    }
}

/// A command of the devices facade (contract X114).
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"command": ["ls", "-l"], "timeout_ms": 30000}))]
pub struct DeviceExecBody {
    /// A shell line, or a program and its arguments.
    pub command: ExecCommand,
    /// Milliseconds; no limit when absent.
    pub timeout_ms: Option<f64>,
    /// Where it runs.
    pub cwd: Option<String>,
    /// Over the sandbox's own environment.
    pub env: Option<std::collections::BTreeMap<String, String>>,
}

/// A file to write (contract X117).
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/workspace/a.txt", "content": "hello\n"}))]
pub struct DeviceWriteBody {
    /// Absolute path.
    pub path: String,
    /// Text.
    pub content: Option<String>,
    /// The same for bytes that are not text.
    pub content_base64: Option<String>,
}

/// A file with its bytes (contract X116).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"path": "/workspace/a.txt", "content": "aGVsbG8K", "encoding": "base64", "size": 6}))]
pub struct DeviceFile {
    /// Which.
    pub path: String,
    /// Base64.
    pub content: String,
    /// `base64`.
    pub encoding: &'static str,
    /// In bytes.
    pub size: usize,
}

/// Whether an entry is one that can be read.
pub fn is_file(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::File)
}

/// Something that may be asked for (contract X124).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"name": "sandbox.exec", "fingerprint": "local"}))]
pub struct ActionCapability {
    /// A tool's name with dots.
    pub name: String,
    /// Of its definition; all of ours are this server's own.
    pub fingerprint: &'static str,
}

/// May this be done (contract X125)?
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"capability": {"name": "sandbox.exec"}}))]
pub struct AuthorizeBody {
    /// What.
    pub capability: AuthorizedCapability,
}

/// See [`AuthorizeBody`].
#[derive(Debug, Deserialize, ToSchema)]
pub struct AuthorizedCapability {
    /// Its name.
    pub name: String,
}

/// The answer: whoever has the token may do everything; a capability that is not in the catalogue is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"decision": "allow", "reason": null}))]
pub struct Decision {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// Why not.
    pub reason: Option<String>,
}
