//! Environment variables on the wire (contract 8.13).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A variable of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"key": "DEBUG", "value": "1", "encrypted": false}))]
pub struct EnvVariable {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `false`: this server hides no values.
    pub encrypted: bool,
}

/// Variables to set.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"vars": [{"key": "DEBUG", "value": "1"}]}))]
pub struct EnvBody {
    /// Each replaces the variable of its name.
    pub vars: Vec<EnvEntry>,
}

/// One of them.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EnvEntry {
    /// A letter or `_`, then letters, digits and `_`.
    pub key: String,
    /// Any text without a zero byte.
    pub value: String,
    /// `false` or absent.
    pub encrypted: Option<bool>,
}

/// A variable was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct EnvRemoved {
    /// `true`.
    pub deleted: bool,
    /// Which.
    pub name: String,
}
