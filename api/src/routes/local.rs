//! Routes of the contract's cloud that have a meaning of their own on one computer: runtimes, the product catalogue, SSH,
//! connectors, devices (sandboxes under another name), and the gate of `miosa-mcp`. What has none is in `elsewhere.rs`.

use ::base64::Engine as _;
use ::base64::prelude::BASE64_STANDARD;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use cove_engine::Size;
use futures_util::{StreamExt, TryFutureExt, stream};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{exec, sandbox_id};
use crate::Api;
use crate::base64::decoded;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody, Query};
use crate::heartbeat::{self, Unmistakable};
use crate::types::{
    ActionCapability, AuthorizeBody, Catalogue, ConnectorBinding, Data, Decision, DeviceCapabilities, DeviceExecBody,
    DeviceFile, DeviceWriteBody, ExecBody, ExecData, FileEntry, Product, ProductSize, RuntimeRecord, SshInfo,
    SshKeyBody, SshKeyInstalled, Written, is_file,
};

/// Where keys are let in.
const AUTHORIZED_KEYS: &str = "/root/.ssh/authorized_keys";

/// The guest's SSH server.
const SSH_PORT: u16 = 22;

/// Longest public key.
const KEY_BYTES_MAX: usize = 16 << 10;

/// Largest file that is answered inside JSON.
const READ_BYTES_MAX: usize = 64 << 20;

/// What `miosa-mcp` may ask for here; see contract section 13 for how names are made.
const CAPABILITIES: [&str; 34] = [
    "sandbox.create",
    "sandbox.list",
    "sandbox.get",
    "sandbox.destroy",
    "sandbox.pause",
    "sandbox.resume",
    "sandbox.exec",
    "sandbox.python",
    "sandbox.write.file",
    "sandbox.upload",
    "sandbox.read.file",
    "sandbox.list.files",
    "sandbox.snapshot.create",
    "sandbox.snapshot.list",
    "sandbox.snapshot.restore",
    "sandbox.logs",
    "sandbox.expose",
    "sandbox.template.list",
    "sandbox.template.create",
    "sandbox.template.get",
    "sandbox.template.builds",
    "product.template.list",
    "product.template.get",
    "product.template.readiness",
    "egress.secrets.list",
    "egress.network.allow",
    "egress.network.deny",
    "egress.network.lockdown",
    "egress.network.observe",
    "egress.network.suggestions",
    "egress.network.list.policies",
    "egress.network.list.rules",
    "egress.audit.query",
    "egress.audit.get",
];

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(list_runtimes))
        .routes(routes!(get_catalogue))
        .routes(routes!(get_ssh_info))
        .routes(routes!(install_ssh_key))
        .routes(routes!(list_connectors))
        .routes(routes!(get_device_capabilities))
        .routes(routes!(exec_on_device))
        .routes(routes!(list_device_files))
        .routes(routes!(read_device_file))
        .routes(routes!(write_device_file))
        .routes(routes!(list_actions))
        .routes(routes!(authorize_action))
}

/// How sandboxes are run here: in one way.
#[utoipa::path(get, path = "/sandboxes/runtimes", tag = "system", responses((status = 200, body = Data<Vec<RuntimeRecord>>)))]
pub async fn list_runtimes(State(api): State<Api>) -> Json<Data<Vec<RuntimeRecord>>> {
    let runtime = RuntimeRecord::standard(&api.engine.limits(), api.engine.host_problem());
    Json(Data { data: vec![runtime] })
}

/// Templates as a catalogue of products.
#[utoipa::path(get, path = "/templates", tag = "templates", responses((status = 200, body = Data<Catalogue>)))]
pub async fn get_catalogue(State(api): State<Api>) -> Result<Json<Data<Catalogue>>, ApiError> {
    let state = if api.engine.host_problem().is_none() { "ready" } else { "unavailable" };
    let product = |template: cove_engine::Template| Product {
        product: "sandbox",
        name: template.name,
        default_size: Size::Small.as_str(),
        sdk_name: template.id.clone(),
        cli_name: template.id.clone(),
        id: template.id,
        sizes: Size::ALL.map(|size| ProductSize { size: size.as_str(), state }).into(),
    };
    let templates = api.engine.templates().await?.into_iter().map(product).collect();
    Ok(Json(Data { data: Catalogue { templates } }))
}

/// How to reach the sandbox by SSH, and whether something there answers. It is neither resumed nor kept awake.
#[utoipa::path(get, path = "/sandboxes/{id}/ssh-info", tag = "ssh", params(("id" = String, Path)),
    responses((status = 200, body = Data<SshInfo>)))]
pub async fn get_ssh_info(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Json<Data<SshInfo>>, ApiError> {
    let id = sandbox_id(&id)?;
    let sshd_running = api.engine.listeners(&id).await?.iter().any(|listener| listener.port == SSH_PORT);
    // It was checked to be one of our own names.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let tunnel_url = format!("ws://{host}/api/v1/sandboxes/{id}/ssh-tunnel");
    let host = id.to_string();
    Ok(Json(Data {
        data: SshInfo { host, user: "root", port: SSH_PORT, tunnel_url, sshd_running, certificates: json!({}) },
    }))
}

/// Lets a key in: adds it to root's `authorized_keys`, once.
#[utoipa::path(post, path = "/sandboxes/{id}/ssh-keys", tag = "ssh", params(("id" = String, Path)),
    request_body = SshKeyBody, responses((status = 200, body = Data<SshKeyInstalled>)))]
pub async fn install_ssh_key(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<SshKeyBody>,
) -> Result<Json<Data<SshKeyInstalled>>, ApiError> {
    let id = sandbox_id(&id)?;
    let key = checked_key(&body.public_key)?;
    let known = match read_file(&api, &id, AUTHORIZED_KEYS).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.status() == StatusCode::NOT_FOUND && error.code() == "NOT_FOUND" => String::new(),
        Err(error) => return Err(error),
    };
    if !known.lines().any(|line| line.trim() == key) {
        let newline = if known.is_empty() || known.ends_with('\n') { "" } else { "\n" };
        let text = Bytes::from(format!("{known}{newline}{key}\n"));
        api.engine.write_file(&id, AUTHORIZED_KEYS, 0o600, stream::iter([Ok(text)])).await?;
    }
    Ok(Json(Data { data: SshKeyInstalled { installed: true, user: "root", path: AUTHORIZED_KEYS } }))
}

fn checked_key(text: &str) -> Result<&str, ApiError> {
    let key = text.trim();
    let kinds = ["ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-", "sk-ssh-ed25519@", "sk-ecdsa-sha2-"];
    let fine =
        kinds.iter().any(|kind| key.starts_with(kind)) && key.split(' ').nth(1).is_some_and(|data| data.len() > 16);
    if !fine || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
        let message = "public_key must be one line as in a .pub file: its kind, its data, and a comment";
        return Err(ApiError::invalid("public_key", message));
    }
    Ok(key)
}

/// Connectors that are attached: none, since this server has no connections to services elsewhere.
#[utoipa::path(get, path = "/sandboxes/{id}/connectors", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<ConnectorBinding>>)))]
pub async fn list_connectors(
    State(api): State<Api>,
    Id(id): Id,
) -> Result<Json<Data<Vec<ConnectorBinding>>>, ApiError> {
    api.engine.get(&id).await?;
    Ok(Json(Data { data: Vec::new() }))
}

/// What a device can do. A device is a sandbox: `/devices` and `/devices/{id}` with `pause`, `stop`, `resume`, `extend` and
/// `expose` are the same as those of `/sandboxes`.
#[utoipa::path(get, path = "/devices/{id}/capabilities", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = Data<DeviceCapabilities>)))]
pub async fn get_device_capabilities(
    State(api): State<Api>,
    Id(id): Id,
) -> Result<Json<Data<DeviceCapabilities>>, ApiError> {
    Ok(Json(Data { data: api.engine.get(&id).await?.into() }))
}

/// As exec, with milliseconds.
#[utoipa::path(post, path = "/devices/{id}/exec", tag = "devices", params(("id" = String, Path)),
    request_body = DeviceExecBody, responses((status = 200, body = ExecData)))]
pub async fn exec_on_device(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<DeviceExecBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let DeviceExecBody { command, timeout_ms, cwd, env } = body;
    let timeout = timeout_ms.map(|milliseconds| milliseconds / 1000.0);
    let whole = ExecBody { command, cwd, env, timeout, user: None, stdin: None, stdin_base64: None, output: None };
    let (exec, stdin) = whole.into_exec()?;
    Ok(heartbeat::answer(StatusCode::OK, exec::run(api.engine, id, exec, stdin)).await)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DevicePathQuery {
    /// Absolute path; `/workspace` when absent.
    path: Option<String>,
}

/// The entries of a directory.
#[utoipa::path(get, path = "/devices/{id}/files", tag = "devices", params(("id" = String, Path), DevicePathQuery),
    responses((status = 200, body = Data<Vec<FileEntry>>)))]
pub async fn list_device_files(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<DevicePathQuery>,
) -> Result<Json<Data<Vec<FileEntry>>>, ApiError> {
    let path = query.path.unwrap_or_else(|| "/workspace".to_owned());
    let entries = api.engine.list_dir(&sandbox_id(&id)?, &path, 1).await?;
    Ok(Json(Data { data: entries.into_iter().map(FileEntry::from).collect() }))
}

/// A file's bytes as base64; at most 64 MiB.
#[utoipa::path(get, path = "/devices/{id}/files/read", tag = "devices", params(("id" = String, Path), DevicePathQuery),
    responses((status = 200, body = Data<DeviceFile>)))]
pub async fn read_device_file(
    State(api): State<Api>,
    Id(id): Id,
    Query(query): Query<DevicePathQuery>,
) -> Result<Json<Data<DeviceFile>>, ApiError> {
    let path = query.path.ok_or_else(|| ApiError::invalid("path", "path is missing"))?;
    let bytes = read_file(&api, &sandbox_id(&id)?, &path).await?;
    let (content, size) = (BASE64_STANDARD.encode(&bytes), bytes.len());
    Ok(Json(Data { data: DeviceFile { path, content, encoding: "base64", size } }))
}

async fn read_file(api: &Api, id: &cove_engine::SandboxId, path: &str) -> Result<Vec<u8>, ApiError> {
    let (entry, mut chunks) = api.engine.read_file(id, path).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > READ_BYTES_MAX || !is_file(&entry) {
            let message = format!("'{path}' is larger than {READ_BYTES_MAX} bytes, the most for this call");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", message));
        }
    }
    Ok(bytes)
}

/// Writes a file; missing parents are made.
#[utoipa::path(post, path = "/devices/{id}/files/write", tag = "devices", params(("id" = String, Path)),
    request_body = DeviceWriteBody, responses((status = 200, body = Data<Written>)))]
pub async fn write_device_file(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<DeviceWriteBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let content = match (body.content_base64, body.content) {
        (Some(text), _) => decoded("content_base64", &text)?,
        (None, Some(text)) => text.into(),
        (None, None) => return Err(ApiError::invalid("content", "content is missing")),
    };
    let work = async move {
        let size = api.engine.write_file(&id, &body.path, 0o644, stream::iter([Ok(content)])).await?;
        Ok::<_, ApiError>(Data { data: Written { path: body.path, size } })
    };
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(Unmistakable)).await)
}

/// What `miosa-mcp` may ask for.
#[utoipa::path(get, path = "/actions/catalog", tag = "mcp", responses((status = 200, body = Data<Vec<ActionCapability>>)))]
pub async fn list_actions() -> Json<Data<Vec<ActionCapability>>> {
    let capability = |name: &str| ActionCapability { name: name.to_owned(), fingerprint: "local" };
    Json(Data { data: CAPABILITIES.iter().map(|name| capability(name)).collect() })
}

/// Whoever has the token may do all that is in the catalogue.
#[utoipa::path(post, path = "/actions/authorize", tag = "mcp", request_body = AuthorizeBody,
    responses((status = 200, body = Data<Decision>)))]
pub async fn authorize_action(JsonBody(body): JsonBody<AuthorizeBody>) -> Json<Data<Decision>> {
    let known = CAPABILITIES.contains(&body.capability.name.as_str());
    let decision = if known {
        Decision { decision: "allow", reason: None }
    } else {
        let reason = format!("'{}' is not available on this computer", body.capability.name.escape_debug());
        Decision { decision: "deny", reason: Some(reason) }
    };
    Json(Data { data: decision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line_of_a_known_kind() {
        let good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here";
        assert_eq!(checked_key(&format!(" {good}\n")).unwrap(), good);
        for wrong in [
            "",
            "hello",
            "ssh-ed25519 x",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ a\nssh-rsa AAAA",
            "command=\"x\" ssh-rsa AAAA",
        ] {
            assert_eq!(checked_key(wrong).unwrap_err().status().as_u16(), 422, "{wrong}");
        }
    }
}
