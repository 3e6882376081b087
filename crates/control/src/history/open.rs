//! Opening the database, and bringing its schema up to date.

use std::{path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::StartError;

/// The nth entry migrates schema n to n + 1; entries are added, never changed.
const SCHEMAS: &[&str] =
    &[include_str!("schema_1.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];

const READERS_MAX: u32 = 4;

/// The one connection that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) connection: SqliteConnection,
}

/// Reads committed rows; a clone is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(super) pool: SqlitePool,
}

/// Opens the database, or creates it.
pub(crate) async fn open(path: &Path) -> Result<(Writer, Reader), StartError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)
            .map_err(|source| StartError::Directory { path: path.to_owned(), source })?;
    }
    let failed = |source| StartError::Database { path: path.to_owned(), source };
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // The queue deletes events once they are committed here: a commit must survive a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .pragma("cache_size", "-65536")
        .pragma("temp_store", "memory")
        // A page changes many times; copying it into the database after 64 MiB of log saves writes.
        .pragma("wal_autocheckpoint", "16384");
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
    migrate(&mut connection, path).await?;
    let mut writer = Writer { connection };
    writer.prepare().await.map_err(failed)?;
    let pool = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options.read_only(true).pragma("cache_size", "-16384"))
        .await
        .map_err(failed)?;
    Ok((writer, Reader { pool }))
}

async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Database { path: path.to_owned(), source };
    let row = sqlx::query("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let found: u32 = row.get(0);
    let known = u32::try_from(SCHEMAS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StartError::TooNew { path: path.to_owned(), found, known });
    }
    for (number, schema) in (1_u32..).zip(SCHEMAS).skip(found as usize) {
        // Safe: no caller's text is in these statements.
        let statements = format!("BEGIN IMMEDIATE;\n{schema}\nPRAGMA user_version = {number};\nCOMMIT;");
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}
