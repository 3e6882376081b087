//! What can go wrong when control starts.

use std::{io, path::PathBuf};

/// Why control did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory of the database cannot be made.
    #[error("the directory of `{path}` cannot be made")]
    Directory {
        /// The database.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("the history `{path}` cannot be opened")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// The database was written by a later version.
    #[error("the history `{path}` has schema {found}, and this version knows none above {known}")]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The last one known here.
        known: u32,
    },
}
