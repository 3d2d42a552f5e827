//! The words on Cove's two sockets, and nothing else.
//!
//! ```text
//! engine ── vmm::Request ──► vmm (control socket, one unix socket a machine)
//!        ◄─ vmm::Reply ────
//! engine ── guest::Request ──► agent (vsock stream, through the machine's unix socket)
//!        ◄─ guest::Reply ────
//! ```
//!
//! Both sockets carry [`frame`]s. Every enum here is closed: what is not in it cannot be asked.
//!
//! **Version rule.** Postcard numbers the variants and fields by their order, so any change to these types changes
//! [`VERSION`]. The agent says its version in [`guest::Reply::Hello`], a machine in [`vmm::Reply::Started`]; the engine
//! refuses a peer of another version with a sentence that names both.
#![forbid(unsafe_code)]

pub mod vmm;

pub mod guest;

pub mod frame;

/// Changes whenever a type of this crate changes.
pub const VERSION: u32 = 3;
