//! Templates: what sandboxes are made from.

pub use self::types::Template;

mod types;
