//! Grants: tokens that open previews. The token is told once, when it is made; what is kept is its SHA-256.

use std::str::FromStr;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{PreviewId, UnknownWord};
use crate::id::text_id;
use crate::random;
use crate::sandbox::SandboxId;

/// Random letters of a token, five bits each.
const TOKEN_LETTERS: usize = 40;

/// Letters of a token that its record shows, the kind's prefix included.
const PREFIX_CHARS: usize = 8;

text_id! {
    /// A grant's id: `shr_` and lower-case letters and digits.
    pub GrantId, "shr_"
}

/// What a grant was made as, which says where it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantKind {
    /// A share token of one preview (contract X43): `mp_...`.
    PreviewShare,
    /// A preview token of a sandbox (X45): `mp_...`.
    PreviewToken,
    /// A share of a sandbox (X46): `ms_...`.
    Share,
}

impl GrantKind {
    pub(crate) const ALL: [Self; 3] = [Self::PreviewShare, Self::PreviewToken, Self::Share];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PreviewShare => "preview_share",
            Self::PreviewToken => "preview_token",
            Self::Share => "share",
        }
    }

    fn token_prefix(self) -> &'static str {
        match self {
            Self::PreviewShare | Self::PreviewToken => "mp_",
            Self::Share => "ms_",
        }
    }
}

/// What a token allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Requests that change nothing: GET, HEAD, OPTIONS, and the WebSockets that begin with them.
    #[default]
    Read,
    /// Every request.
    Interact,
}

impl Scope {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Interact => "interact",
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord { given: text.chars().take(40).collect(), known: "read, interact" };
        [Scope::Read, Scope::Interact].into_iter().find(|known| known.as_str() == text).ok_or_else(unknown)
    }
}

/// A token's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// Of which sandbox.
    pub sandbox_id: SandboxId,
    /// Of this preview alone; of all the sandbox's when absent.
    pub preview_id: Option<PreviewId>,
    /// What it was made as.
    pub kind: GrantKind,
    /// What it allows.
    pub scope: Scope,
    /// How its token begins.
    pub prefix: String,
    /// From then on it is worth nothing.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// What a token is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantSpec {
    /// What it is made as.
    pub kind: GrantKind,
    /// What it allows.
    pub scope: Scope,
    /// Seconds until it expires; `None` = never.
    pub ttl_sec: Option<u32>,
}

/// A fresh token and its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minted {
    /// The token, which nobody can tell again.
    pub token: String,
    /// Its record.
    pub grant: Grant,
}

impl Minted {
    pub(crate) fn new(sandbox: SandboxId, preview: Option<PreviewId>, spec: GrantSpec, now: OffsetDateTime) -> Self {
        let token = format!("{}{}", spec.kind.token_prefix(), random::letters::<TOKEN_LETTERS>());
        let grant = Grant {
            id: GrantId::generate(),
            sandbox_id: sandbox,
            preview_id: preview,
            kind: spec.kind,
            scope: spec.scope,
            prefix: token.chars().take(PREFIX_CHARS).collect(),
            expires_at: spec.ttl_sec.map(|seconds| now + time::Duration::seconds(i64::from(seconds))),
            created_at: now,
        };
        Self { token, grant }
    }
}

/// What is kept of a token. It is random and long, so that one round of a plain hash is enough.
pub(crate) fn hash(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_its_kind_and_its_record_does_not_hold_it() {
        let spec = GrantSpec { kind: GrantKind::Share, scope: Scope::Read, ttl_sec: Some(60) };
        let now = OffsetDateTime::now_utc();
        let minted = Minted::new(SandboxId::parse("sbx_1").unwrap(), None, spec, now);
        assert!(minted.token.starts_with("ms_") && minted.token.len() == 3 + TOKEN_LETTERS);
        assert!(!format!("{:?}", minted.grant).contains(&minted.token));
        assert_eq!(minted.grant.expires_at, Some(now + time::Duration::minutes(1)));
        assert_eq!(hash(&minted.token).len(), 64);
    }
}
