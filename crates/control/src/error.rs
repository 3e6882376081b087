//! What can go wrong when control starts.

use std::{io, path::PathBuf};

/// Why control did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory of the database cannot be created.
    #[error("cannot create the directory of the history database `{path}`")]
    Directory {
        /// The database.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open the history database `{path}`")]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's error.
        source: sqlx::Error,
    },
    /// The database was written by a later version.
    #[error("the history database `{path}` has schema {found}; this version reads up to {known}")]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest one this version reads.
        known: u32,
    },
}
