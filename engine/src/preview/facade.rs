//! What the API may ask of previews and grants, and how previews outlive a server.

use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::doors::{OpenPreview, bind, listen};

use super::{
    Door, GRANTS_MAX, Grant, GrantKind, GrantSpec, Minted, PORT_DEFAULT, PREVIEWS_MAX, Preview, PreviewError,
    PreviewId, PreviewSpec, Scope, token_hash,
};
use crate::Engine;
use crate::db::RETENTION;
use crate::error::Error;
use crate::events::EventKind;
use crate::sandbox::{Sandbox, SandboxId};
use crate::shared::Shared;

/// Most characters of a preview's name.
const NAME_CHARS_MAX: usize = 200;

/// Longest path of a URL.
const PATH_BYTES_MAX: usize = 2000;

/// Longest life of a token that has one, in seconds.
const TTL_SEC_MAX: u32 = 365 * 86_400;

impl Engine {
    /// Exposes a port of a sandbox: makes its preview, or changes the one that it has. The flag says that it is new.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Preview`], [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`].
    pub async fn expose(&self, id: &SandboxId, spec: PreviewSpec) -> Result<(Preview, bool), Error> {
        let shared = &self.shared;
        let now = OffsetDateTime::now_utc();
        let port = spec.port.unwrap_or(PORT_DEFAULT);
        check(&spec, port, now)?;
        self.handle(id).await?;
        let _one_at_a_time = shared.previews.choosing.lock().await;
        let existing = shared.db.previews(id).await?;
        if let Some(found) = existing.iter().find(|preview| preview.port == port) {
            let changed = change(found.clone(), spec, now);
            shared.db.put_preview(&changed).await?;
            shared.previews.change(&changed);
            return Ok((changed, false));
        }
        if existing.len() >= PREVIEWS_MAX {
            return Err(PreviewError::TooMany { sandbox: id.clone(), what: "previews", max: PREVIEWS_MAX }.into());
        }
        let own = shared.db.address(id).await?;
        let taken = if own.is_none() { shared.db.addresses().await? } else { Vec::new() };
        let (at, listener) = listen(own, port, |address| !taken.contains(&address))?;
        let preview = Preview {
            id: PreviewId::generate(),
            sandbox_id: id.clone(),
            port,
            at,
            name: spec.name,
            path: spec.path,
            visibility: spec.visibility.unwrap_or_default(),
            metadata: spec.metadata,
            expires_at: spec.expires_at,
            created_at: now,
            updated_at: now,
        };
        shared.db.put_preview(&preview).await?;
        shared.previews.open(preview.clone(), listener);
        // A destroy that came in between has closed what was open then.
        if let Err(gone) = self.handle(id).await {
            shared.previews.close_all(id);
            return Err(gone);
        }
        tracing::info!(sandbox = %id, port, at = %at, "exposed");
        let kind = EventKind::PreviewReady { preview_id: preview.id.to_string(), url: preview.url(), port };
        shared.events.tell(id, kind);
        Ok((preview, true))
    }

    /// Waits until a sandbox is or becomes command-ready, and resumes a paused persistent one.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn wake(&self, id: &SandboxId) -> Result<(), Error> {
        self.agent(id, "exposing a port").await.map(drop)
    }

    /// A sandbox's previews, oldest first; none of a destroyed one.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn previews(&self, id: &SandboxId) -> Result<Vec<Preview>, Error> {
        self.get(id.as_str()).await?;
        Ok(self.shared.db.previews(id).await?)
    }

    /// One preview of a sandbox.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`PreviewError::NotFound`].
    pub async fn preview(&self, id: &SandboxId, preview: &str) -> Result<Preview, Error> {
        let found = self.previews(id).await?.into_iter().find(|candidate| candidate.id.as_str() == preview);
        let not_found = || PreviewError::NotFound { sandbox: id.clone(), preview: preview.chars().take(80).collect() };
        found.ok_or_else(|| not_found().into())
    }

    /// Takes a preview away: its listener closes and its tokens are worth nothing.
    ///
    /// # Errors
    /// As [`Engine::preview`].
    pub async fn unexpose(&self, id: &SandboxId, preview: &str) -> Result<(), Error> {
        let found = self.preview(id, preview).await?;
        self.shared.db.delete_preview(&found.id).await?;
        self.shared.previews.close(&found.id);
        Ok(())
    }

    /// The doors that are and will be open, for whoever serves them; the first caller has them.
    pub fn take_doors(&self) -> Option<mpsc::UnboundedReceiver<Door>> {
        self.shared.previews.take_queue()
    }

    /// A preview that is open, at no cost.
    pub fn open_preview(&self, id: &PreviewId) -> Option<OpenPreview> {
        self.shared.previews.get(id)
    }

    /// The oldest open preview of a sandbox, at no cost.
    pub fn first_preview(&self, id: &SandboxId) -> Option<OpenPreview> {
        let open = self.shared.previews.all().into_iter().filter(|open| open.record.sandbox_id == *id);
        open.min_by_key(|open| (open.record.created_at, open.record.id.clone()))
    }

    /// The open preview of a guest's port that an alias means: `label` is the sandbox's slug, or its id without `sbx_`.
    /// `None` also when several sandboxes have that slug.
    pub fn preview_by_alias(&self, port: u16, label: &str) -> Option<OpenPreview> {
        let mut on_port = self.shared.previews.all();
        on_port.retain(|open| open.record.port == port);
        let by_id = |open: &OpenPreview| open.record.sandbox_id.as_str().strip_prefix("sbx_") == Some(label);
        if let Some(at) = on_port.iter().position(by_id) {
            return Some(on_port.swap_remove(at));
        }
        on_port.retain(|open| {
            let handle = self.shared.find(&open.record.sandbox_id);
            handle.is_some_and(|handle| handle.record.borrow().slug.as_deref() == Some(label))
        });
        if on_port.len() == 1 { on_port.pop() } else { None }
    }

    /// Makes a token: for one preview, or for all that the sandbox has and will have.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Preview`], [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`].
    pub async fn grant(&self, id: &SandboxId, preview: Option<&PreviewId>, spec: GrantSpec) -> Result<Minted, Error> {
        if spec.ttl_sec.is_some_and(|seconds| seconds == 0 || seconds > TTL_SEC_MAX) {
            let message = format!("expires_in must be 1 to {TTL_SEC_MAX} seconds");
            return Err(Error::invalid("expires_in", message));
        }
        self.handle(id).await?;
        let now = OffsetDateTime::now_utc();
        let live = self.grants(id).await?.iter().filter(|grant| grant.expires_at.is_none_or(|at| at > now)).count();
        if live >= GRANTS_MAX {
            return Err(PreviewError::TooMany { sandbox: id.clone(), what: "tokens", max: GRANTS_MAX }.into());
        }
        let minted = Minted::new(id.clone(), preview.cloned(), spec, now);
        self.shared.db.put_grant(&minted.grant, &token_hash(&minted.token)).await?;
        if spec.kind != GrantKind::PreviewToken {
            self.shared.events.tell(id, EventKind::ShareCreated { share_id: minted.grant.id.to_string() });
        }
        Ok(minted)
    }

    /// A sandbox's tokens, oldest first.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn grants(&self, id: &SandboxId) -> Result<Vec<Grant>, Error> {
        self.get(id.as_str()).await?;
        Ok(self.shared.db.grants(id).await?)
    }

    /// Takes back every share token of one preview.
    ///
    /// # Errors
    /// As [`Engine::preview`].
    pub async fn revoke_preview_shares(&self, id: &SandboxId, preview: &str) -> Result<(), Error> {
        let preview = self.preview(id, preview).await?;
        let of_it = |grant: &Grant| grant.preview_id.as_ref() == Some(&preview.id);
        for grant in self.grants(id).await?.iter().filter(|grant| of_it(grant)) {
            self.revoke(grant).await?;
        }
        Ok(())
    }

    /// Takes a share of a sandbox back.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`PreviewError::ShareNotFound`].
    pub async fn revoke_share(&self, id: &SandboxId, share: &str) -> Result<(), Error> {
        let grants = self.grants(id).await?;
        let found = grants.iter().find(|grant| grant.kind == GrantKind::Share && grant.id.as_str() == share);
        let not_found = || PreviewError::ShareNotFound { sandbox: id.clone(), share: share.chars().take(80).collect() };
        self.revoke(found.ok_or_else(not_found)?).await
    }

    async fn revoke(&self, grant: &Grant) -> Result<(), Error> {
        self.shared.db.delete_grant(&grant.id).await?;
        if grant.kind != GrantKind::PreviewToken {
            self.shared.events.tell(&grant.sandbox_id, EventKind::ShareRevoked { share_id: grant.id.to_string() });
        }
        Ok(())
    }

    /// What a token allows on a preview; `None` when it is worth nothing there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn scope_of(&self, token: &str, preview: &Preview) -> Result<Option<Scope>, Error> {
        let found = self.shared.db.grant(&token_hash(token)).await?;
        let now = OffsetDateTime::now_utc();
        let fits = |grant: &Grant| {
            grant.sandbox_id == preview.sandbox_id
                && grant.preview_id.as_ref().is_none_or(|id| *id == preview.id)
                && grant.expires_at.is_none_or(|expires_at| expires_at > now)
        };
        Ok(found.filter(fits).map(|grant| grant.scope))
    }
}

fn check(spec: &PreviewSpec, port: u16, now: OffsetDateTime) -> Result<(), Error> {
    if port == 0 {
        return Err(Error::invalid("port", "port is 0, and must be 1 to 65535"));
    }
    if spec.expires_at.is_some_and(|expires_at| expires_at <= now) {
        return Err(Error::invalid("expires_at", "expires_at has passed already"));
    }
    let chars = spec.name.as_ref().map_or(0, |name| name.chars().count());
    if chars > NAME_CHARS_MAX {
        return Err(Error::invalid(
            "name",
            format!("name has {chars} characters, and at most {NAME_CHARS_MAX} are possible"),
        ));
    }
    let is_path =
        |path: &String| path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if spec.path.as_ref().is_some_and(|path| !is_path(path) || path.len() > PATH_BYTES_MAX) {
        let message = format!("path must begin with / and be a URL's path of at most {PATH_BYTES_MAX} bytes");
        return Err(Error::invalid("path", message));
    }
    Ok(())
}

/// A preview that is exposed again: what the caller says is new, and one that had expired is no more.
fn change(mut preview: Preview, spec: PreviewSpec, now: OffsetDateTime) -> Preview {
    if spec.expires_at.is_some() || preview.is_expired(now) {
        preview.expires_at = spec.expires_at;
    }
    preview.name = spec.name.or(preview.name);
    preview.path = spec.path.or(preview.path);
    preview.visibility = spec.visibility.unwrap_or(preview.visibility);
    for (key, value) in spec.metadata {
        match value {
            Value::Null => drop(preview.metadata.remove(&key)),
            value => drop(preview.metadata.insert(key, value)),
        }
    }
    preview.updated_at = now;
    preview
}

/// Opens the previews of an earlier server again. One whose place is taken by now moves to another port; one that cannot be
/// opened at all is left for the next start.
pub(crate) async fn reopen(shared: &Arc<Shared>) -> Result<(), Error> {
    for mut preview in shared.db.all_previews().await? {
        let listener = match bind(preview.at) {
            Ok(listener) => listener,
            Err(error) => match listen(Some(*preview.at.ip()), preview.port, |_| true) {
                Ok((at, listener)) => {
                    tracing::warn!(sandbox = %preview.sandbox_id, was = %preview.at, %at, %error, "a preview moved");
                    preview.at = at;
                    shared.db.put_preview(&preview).await?;
                    listener
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(sandbox = %preview.sandbox_id, at = %preview.at, error, "a preview was not opened");
                    continue;
                }
            },
        };
        shared.previews.open(preview, listener);
    }
    Ok(())
}

/// Deletes what expired a day ago.
pub(crate) async fn forget_expired(shared: &Shared) -> Result<(), Error> {
    let before = OffsetDateTime::now_utc() - RETENTION;
    for open in shared.previews.all().into_iter().filter(|open| open.record.is_expired(before)) {
        shared.db.delete_preview(&open.record.id).await?;
        shared.previews.close(&open.record.id);
    }
    Ok(shared.db.forget_grants(before).await?)
}

/// The part of an alias that stands for a sandbox: its slug, or its id without `sbx_`, whose `_` no host name may have.
pub(super) fn label(sandbox: &Sandbox) -> &str {
    sandbox.slug.as_deref().unwrap_or_else(|| sandbox.id.as_str().trim_start_matches("sbx_"))
}

impl Sandbox {
    /// The part of its previews' aliases that stands for it: its slug, or its id without `sbx_`.
    pub fn alias_label(&self) -> &str {
        label(self)
    }
}
