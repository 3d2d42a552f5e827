//! Previews: ports of a guest that can be reached from the host, and who may reach them.
//!
//! ```text
//!  expose ─► address (127.a.b.c, the sandbox's own) ─► door (a listener there) ─► whoever serves doors (`cove-api`)
//!                                                                                   │ Engine::connect
//!  grants (tokens, kept as hashes) ── Engine::grant ────────────────────────────────┘
//! ```
//!
//! A loopback address of its own keeps the cookies and storage of a sandbox's pages apart from all others, and needs no DNS.
//! Doors are open as long as their record exists, also while the sandbox is paused, and are opened again by the next
//! server. No HTTP here: what is said through a door is the API's business.

mod address;

pub(crate) mod doors;

mod facade;

mod grant;

pub(crate) mod watch;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::id::text_id;
use crate::sandbox::SandboxId;

pub use doors::{Door, OpenPreview};
pub use grant::{Grant, GrantId, GrantKind, GrantSpec, Minted, Scope};

pub(crate) use facade::{forget_expired, reopen};
pub(crate) use grant::hash as token_hash;

/// Most previews of one sandbox: each is a listener on the host.
pub const PREVIEWS_MAX: usize = 32;

/// Most grants of one sandbox.
pub const GRANTS_MAX: usize = 256;

/// The guest's port when a caller names none (contract 8.11).
pub const PORT_DEFAULT: u16 = 3000;

text_id! {
    /// A preview's id: `prv_` and lower-case letters and digits.
    pub PreviewId, "prv_"
}

/// Who may use a preview.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Every process and page of this computer; no token is needed.
    #[default]
    Public,
    /// Who shows a token.
    Private,
}

impl Visibility {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Visibility::Public => "public",
            Visibility::Private => "private",
        }
    }
}

/// The text names no such thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not one of {known}")]
pub struct UnknownWord {
    given: String,
    known: &'static str,
}

impl FromStr for Visibility {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord { given: text.chars().take(40).collect(), known: "public, private" };
        [Visibility::Public, Visibility::Private].into_iter().find(|known| known.as_str() == text).ok_or_else(unknown)
    }
}

/// An exposed port.
#[derive(Clone, Debug, PartialEq)]
pub struct Preview {
    /// Its id.
    pub id: PreviewId,
    /// Of which sandbox.
    pub sandbox_id: SandboxId,
    /// The port in the guest.
    pub port: u16,
    /// Where it is on the host.
    pub at: SocketAddrV4,
    /// For people.
    pub name: Option<String>,
    /// Where its URL leads, with a slash in front; the root when absent.
    pub path: Option<String>,
    /// Who may use it.
    pub visibility: Visibility,
    /// The caller's own data.
    pub metadata: Map<String, Value>,
    /// From then on it answers nobody.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When its record last changed.
    pub updated_at: OffsetDateTime,
}

impl Preview {
    /// Its URL, which is what counts: the host's port is not always the guest's.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.at, self.path.as_deref().unwrap_or("/"))
    }

    /// Its time is over.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

/// What a preview is to be. Of one that exists, what is absent stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PreviewSpec {
    /// The port in the guest; the default one when absent.
    pub port: Option<u16>,
    /// For people.
    pub name: Option<String>,
    /// Where its URL leads.
    pub path: Option<String>,
    /// Who may use it; public when absent.
    pub visibility: Option<Visibility>,
    /// Laid over the metadata.
    pub metadata: Map<String, Value>,
    /// From then on it answers nobody.
    pub expires_at: Option<OffsetDateTime>,
}

/// Why a preview cannot be made or found.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The sandbox has no preview with this id.
    #[error("Sandbox {sandbox} has no preview '{preview}'")]
    NotFound {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The id, as given.
        preview: String,
    },
    /// The sandbox has no share with this id.
    #[error("Sandbox {sandbox} has no share '{share}'")]
    ShareNotFound {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The id, as given.
        share: String,
    },
    /// There are too many of them.
    #[error("Sandbox {sandbox} has {max} {what} already, which is the most; delete one first")]
    TooMany {
        /// Which sandbox.
        sandbox: SandboxId,
        /// Of what: "previews".
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// No listener can be opened on the host.
    #[error("Port {port} cannot be exposed: no listener can be opened at {address}, nor on the ports after it")]
    Bind {
        /// The guest's port.
        port: u16,
        /// What was tried first.
        address: SocketAddrV4,
        /// What the host's kernel says.
        #[source]
        source: io::Error,
    },
}

/// The address as the number that is stored.
pub(crate) fn address_number(address: Ipv4Addr) -> i64 {
    i64::from(u32::from(address))
}
