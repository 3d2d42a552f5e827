//! Previews, shares and listeners on the wire (contract 6.6, X43-X48).

use cove_engine::protocol::guest::Listener;
use cove_engine::{Grant, Minted, Preview, PreviewSpec, Sandbox, Visibility};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::timestamp;
use crate::error::ApiError;
use crate::preview::alias_url;

/// Longest life of a preview that is given in seconds: as long as a session at most lasts, 365 times.
const TTL_SECONDS_MAX: u32 = 365 * 86_400;

/// Which port to expose.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({ "port": 3000 }))]
pub struct ExposeBody {
    /// The port in the guest; 3000 when absent.
    pub port: Option<u16>,
    /// `public` or `private`.
    pub visibility: Option<String>,
    /// Seconds until it expires.
    pub ttl_seconds: Option<u32>,
}

impl ExposeBody {
    /// The same for the engine.
    pub fn into_spec(self) -> Result<PreviewSpec, ApiError> {
        let body = PreviewBody {
            port: self.port,
            visibility: self.visibility,
            ttl_seconds: self.ttl_seconds,
            ..PreviewBody::default()
        };
        body.into_spec()
    }
}

/// A preview to make, or to change when the port has one.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({ "port": 3000, "name": "web", "visibility": "private", "ttl_seconds": 3600 }))]
pub struct PreviewBody {
    /// The port in the guest.
    pub port: Option<u16>,
    /// For people.
    pub name: Option<String>,
    /// The same as `name`.
    pub label: Option<String>,
    /// `public` (every process and page of this computer) or `private` (who shows a token).
    pub visibility: Option<String>,
    /// Where its URL leads.
    pub path: Option<String>,
    /// The caller's own data.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// From then on it answers nobody (RFC 3339).
    pub expires_at: Option<String>,
    /// The same as seconds from now.
    pub ttl_seconds: Option<u32>,
}

impl PreviewBody {
    /// The same for the engine.
    pub fn into_spec(self) -> Result<PreviewSpec, ApiError> {
        let visibility = self.visibility.map(|word| word.parse::<Visibility>()).transpose();
        let visibility = visibility.map_err(|error| ApiError::invalid("visibility", format!("visibility: {error}")))?;
        let at = self.expires_at.map(|text| {
            let wrong =
                |_| ApiError::invalid("expires_at", format!("expires_at is '{text}', and must be as RFC 3339 says"));
            OffsetDateTime::parse(&text, &Rfc3339).map_err(wrong)
        });
        let after = self.ttl_seconds.map(|seconds| {
            let fine = (1..=TTL_SECONDS_MAX).contains(&seconds);
            let message = format!("ttl_seconds is {seconds}, and must be 1 to {TTL_SECONDS_MAX}");
            let wrong = ApiError::invalid("ttl_seconds", message);
            let at = OffsetDateTime::now_utc() + time::Duration::seconds(i64::from(seconds));
            fine.then_some(at).ok_or(wrong)
        });
        Ok(PreviewSpec {
            port: self.port,
            name: self.name.or(self.label),
            path: self.path,
            visibility,
            metadata: self.metadata.unwrap_or_default(),
            expires_at: at.or(after).transpose()?,
        })
    }
}

/// Where an exposed port can be reached.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({ "url": "http://127.83.0.5:3000/", "preview_url": "http://127.83.0.5:3000/",
    "alias_url": "http://3000-my-app.localhost:7334/", "alias_slug": "my-app", "url_class": "temporary_preview",
    "class": "temporary_preview", "stable_for_embedding": false, "recommended_next_action": "create_alias_or_publish",
    "port": 3000, "visibility": "public", "preview_id": "prv_k3j2h4g5f6d7s8a9" }))]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct UrlInfo {
    /// What counts: the host's port is not always the guest's.
    pub url: String,
    pub preview_url: String,
    /// For browsers, which resolve names below `localhost` by themselves.
    pub alias_url: Option<String>,
    pub alias_slug: String,
    #[schema(value_type = String)]
    pub url_class: &'static str,
    #[schema(value_type = String)]
    pub class: &'static str,
    /// The address is the sandbox's as long as it lives.
    pub stable_for_embedding: bool,
    #[schema(value_type = String)]
    pub recommended_next_action: &'static str,
    pub port: u16,
    #[schema(value_type = String)]
    pub visibility: &'static str,
    pub preview_id: String,
}

impl UrlInfo {
    /// The URLs of a preview.
    pub fn new(preview: &Preview, sandbox: &Sandbox, alias_port: Option<u16>) -> Self {
        let class = if sandbox.always_on { "always_on_preview" } else { "temporary_preview" };
        let label = sandbox.alias_label();
        Self {
            url: preview.url(),
            preview_url: preview.url(),
            alias_url: alias_port.map(|port| alias_url(preview.port, label, port)),
            alias_slug: label.to_owned(),
            url_class: class,
            class,
            stable_for_embedding: sandbox.always_on,
            recommended_next_action: "create_alias_or_publish",
            port: preview.port,
            visibility: preview.visibility.as_str(),
            preview_id: preview.id.to_string(),
        }
    }
}

/// A preview.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({ "id": "prv_k3j2h4g5f6d7s8a9", "sandbox_id": "sbx_1", "tenant_id": null, "owner_id": null,
    "name": "web", "port": 3000, "host_port": 3000, "visibility": "public", "state": "active",
    "url": "http://127.83.0.5:3000/", "alias_url": "http://3000-my-app.localhost:7334/", "expires_at": null,
    "deleted_at": null, "share_token_prefix": null, "share_token_expires_at": null, "metadata": {},
    "external_workspace_id": null, "external_user_id": null, "external_project_id": null,
    "created_at": "2026-01-02T03:04:05.000000Z", "updated_at": "2026-01-02T03:04:05.000000Z" }))]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct PreviewRecord {
    pub id: String,
    pub sandbox_id: String,
    pub tenant_id: Option<String>,
    pub owner_id: Option<String>,
    pub name: Option<String>,
    /// The port in the guest.
    pub port: u16,
    /// The port on the sandbox's loopback address: the same number where it was free.
    pub host_port: u16,
    #[schema(value_type = String)]
    pub visibility: &'static str,
    /// `active` or `expired`.
    #[schema(value_type = String)]
    pub state: &'static str,
    pub url: String,
    pub alias_url: Option<String>,
    pub expires_at: Option<String>,
    pub deleted_at: Option<String>,
    /// Of the newest share token.
    pub share_token_prefix: Option<String>,
    pub share_token_expires_at: Option<String>,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub created_at: String,
    pub updated_at: String,
}

impl PreviewRecord {
    /// The record of a preview now, with the newest of its share tokens among `grants`.
    pub fn new(preview: Preview, sandbox: &Sandbox, grants: &[Grant], alias_port: Option<u16>) -> Self {
        let expired = preview.is_expired(OffsetDateTime::now_utc());
        let share = grants.iter().rfind(|grant| grant.preview_id.as_ref() == Some(&preview.id));
        Self {
            url: preview.url(),
            alias_url: alias_port.map(|port| alias_url(preview.port, sandbox.alias_label(), port)),
            id: preview.id.to_string(),
            sandbox_id: preview.sandbox_id.to_string(),
            tenant_id: None,
            owner_id: None,
            name: preview.name,
            port: preview.port,
            host_port: preview.at.port(),
            visibility: preview.visibility.as_str(),
            state: if expired { "expired" } else { "active" },
            expires_at: preview.expires_at.map(timestamp),
            deleted_at: None,
            share_token_prefix: share.map(|grant| grant.prefix.clone()),
            share_token_expires_at: share.and_then(|grant| grant.expires_at.map(timestamp)),
            metadata: preview.metadata,
            external_workspace_id: sandbox.external.workspace_id.clone(),
            external_user_id: sandbox.external.user_id.clone(),
            external_project_id: sandbox.external.project_id.clone(),
            created_at: timestamp(preview.created_at),
            updated_at: timestamp(preview.updated_at),
        }
    }
}

/// How long a share token of a preview lives.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({ "ttl_seconds": 3600 }))]
pub struct SharePreviewBody {
    /// Seconds; 3600 when absent.
    pub ttl_seconds: Option<u32>,
    /// `read` or `interact`; a share of one preview allows everything when absent.
    pub scope: Option<String>,
}

/// A share token of a preview; exactly these three keys (contract X43).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({ "data": { "id": "prv_k3j2h4g5f6d7s8a9", "share_token_prefix": "mp_a2b3c",
    "share_token_expires_at": "2026-01-02T04:04:05.000000Z" }, "preview_token": "mp_a2b3c4...",
    "share_url": "http://127.83.0.5:3000/?mt=mp_a2b3c4..." }))]
pub struct SharedPreview {
    /// The preview.
    pub data: SharedPreviewRecord,
    /// The token, which nobody can tell again.
    pub preview_token: String,
    /// The URL with the token.
    pub share_url: String,
}

/// See [`SharedPreview`].
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SharedPreviewRecord {
    /// The preview's id.
    pub id: String,
    /// How the token begins.
    pub share_token_prefix: String,
    /// When it is worth nothing any more.
    pub share_token_expires_at: Option<String>,
}

impl SharedPreview {
    /// What is told of a fresh token.
    pub fn new(preview: &Preview, minted: Minted) -> Self {
        let record = SharedPreviewRecord {
            id: preview.id.to_string(),
            share_token_prefix: minted.grant.prefix,
            share_token_expires_at: minted.grant.expires_at.map(timestamp),
        };
        let share_url = with_token(&preview.url(), "mt", &minted.token);
        Self { data: record, preview_token: minted.token, share_url }
    }
}

/// A preview token to make.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({ "expires_in": 3600, "scope": "interact", "port": 3000 }))]
pub struct PreviewTokenBody {
    /// Seconds, at most 86400; 3600 when absent.
    pub expires_in: Option<u32>,
    /// `read` (the default: GET, HEAD, OPTIONS, WebSockets) or `interact`.
    pub scope: Option<String>,
    /// Which preview the URL leads to; the sandbox's first when absent.
    pub port: Option<u16>,
}

/// A preview token.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({ "token": "mp_a2b3c4...", "url": "http://127.83.0.5:3000/?mt=mp_a2b3c4...",
    "expires_at": "2026-01-02T04:04:05.000000Z", "scope": "read" }))]
pub struct PreviewTokenRecord {
    /// The token, which nobody can tell again.
    pub token: String,
    /// A preview's URL with the token.
    pub url: String,
    /// When it is worth nothing any more.
    pub expires_at: Option<String>,
    /// What it allows.
    #[schema(value_type = String)]
    pub scope: &'static str,
}

impl PreviewTokenRecord {
    /// What is told of a fresh token.
    pub fn new(preview: &Preview, minted: Minted) -> Self {
        Self {
            url: with_token(&preview.url(), "mt", &minted.token),
            token: minted.token,
            expires_at: minted.grant.expires_at.map(timestamp),
            scope: minted.grant.scope.as_str(),
        }
    }
}

/// A share to make.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({ "scope": "read", "expires_in": 86400 }))]
pub struct ShareBody {
    /// `read` (the default) or `interact`.
    pub scope: Option<String>,
    /// Seconds; never when absent.
    pub expires_in: Option<u32>,
    /// Which preview the URL leads to; the sandbox's first when absent.
    pub port: Option<u16>,
}

/// A share of a sandbox's previews.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({ "share_id": "shr_k3j2h4g5f6d7s8a9", "id": "shr_k3j2h4g5f6d7s8a9", "scope": "read",
    "share_url": "http://127.83.0.5:3000/?ms=ms_a2b3c4...", "token_prefix": "ms_a2b3c", "expires_at": null,
    "created_at": "2026-01-02T03:04:05.000000Z" }))]
pub struct ShareRecord {
    /// Its id.
    pub share_id: String,
    /// Its id.
    pub id: String,
    /// A preview's URL with the token; told once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_url: Option<String>,
    /// How the token begins.
    pub token_prefix: String,
    /// When it is worth nothing any more.
    pub expires_at: Option<String>,
    /// What it allows.
    #[schema(value_type = String)]
    pub scope: &'static str,
    /// When it was made.
    pub created_at: String,
}

impl ShareRecord {
    /// What is told of a fresh share.
    pub fn fresh(preview: &Preview, minted: Minted) -> Self {
        let url = with_token(&preview.url(), "ms", &minted.token);
        Self { share_url: Some(url), ..Self::from(minted.grant) }
    }
}

impl From<Grant> for ShareRecord {
    fn from(grant: Grant) -> Self {
        Self {
            share_id: grant.id.to_string(),
            id: grant.id.to_string(),
            share_url: None,
            token_prefix: grant.prefix,
            expires_at: grant.expires_at.map(timestamp),
            scope: grant.scope.as_str(),
            created_at: timestamp(grant.created_at),
        }
    }
}

/// Who listens on a port in a guest.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({ "port": 3000, "address": "0.0.0.0", "pid": 41, "command": "node server.js", "preview_id": null,
    "url": null }))]
pub struct ListenerRecord {
    /// The port.
    pub port: u16,
    /// The address in the guest; `0.0.0.0` and `::` are all.
    pub address: String,
    /// A process that has it; `null` when none was found.
    pub pid: Option<i32>,
    /// That process's command line.
    pub command: Option<String>,
    /// The port's preview, when it is exposed.
    pub preview_id: Option<String>,
    /// That preview's URL.
    pub url: Option<String>,
}

impl ListenerRecord {
    /// A listener with its preview, if it has one.
    pub fn new(listener: Listener, previews: &[Preview]) -> Self {
        let preview = previews.iter().find(|preview| preview.port == listener.port);
        Self {
            port: listener.port,
            address: listener.address.to_string(),
            pid: listener.pid,
            command: listener.command,
            preview_id: preview.map(|preview| preview.id.to_string()),
            url: preview.map(Preview::url),
        }
    }
}

fn with_token(url: &str, name: &str, token: &str) -> String {
    let mark = if url.contains('?') { '&' } else { '?' };
    format!("{url}{mark}{name}={token}")
}
