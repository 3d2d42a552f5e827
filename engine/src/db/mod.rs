//! SQLite: the only module with SQL.

/// SQLite failed, or holds something that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file cannot be opened or brought to this version's form.
    #[error("Cannot open the database {path}")]
    Open {
        /// The database file.
        path: std::path::PathBuf,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("The database failed to {action}")]
    Query {
        /// What was tried, as words.
        action: &'static str,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
    /// A row holds a value that this version cannot read.
    #[error("The database holds {value} as {column}, which this version cannot read")]
    Value {
        /// Table and column.
        column: &'static str,
        /// The value, shortened.
        value: String,
    },
}
