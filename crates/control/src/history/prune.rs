//! Deletion of old history: by age and by count, oldest messages first, a slice at a time.

use std::time::Duration;

use postroad_core::{GroupId, MessageId, Timestamp};
use sqlx::{Acquire, Connection, Row};

use super::Writer;

/// Messages deleted in one transaction: new events wait for it.
const SLICE: i64 = 2_000;
/// Gaps kept for the console.
const GAPS_MAX: i64 = 1_000;

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    pub(crate) age_max: Duration,
    pub(crate) messages_max: u64,
}

impl Writer {
    /// Returns how many messages there are.
    pub(crate) async fn count(&mut self) -> Result<u64, sqlx::Error> {
        let row = sqlx::query("SELECT count(*) FROM messages").fetch_one(&mut self.connection).await?;
        Ok(row.try_get::<i64, _>(0)? as u64)
    }

    /// Deletes one slice of what is beyond the retention; `count` is the number of messages. Returns how many it deleted.
    pub(crate) async fn prune(
        &mut self,
        retention: Retention,
        count: u64,
        now: Timestamp,
    ) -> Result<u64, sqlx::Error> {
        let oldest = now.before(retention.age_max);
        let excess = i64::try_from(count.saturating_sub(retention.messages_max)).unwrap_or(i64::MAX);
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let connection = transaction.acquire().await?;
        let too_old = MessageId::new(oldest, GroupId(0), 0).as_u128().to_be_bytes();
        // The first message to keep: the younger of both bounds, at most a slice from the oldest.
        let row = sqlx::query(
            "SELECT max(coalesce((SELECT id FROM messages ORDER BY id LIMIT 1 OFFSET ?1), x''), ?2) AS bound,
                (SELECT id FROM messages ORDER BY id LIMIT 1 OFFSET ?3) AS slice",
        )
        .bind(excess)
        .bind(too_old.as_slice())
        .bind(SLICE)
        .fetch_one(&mut *connection)
        .await?;
        let (bound, slice): (Vec<u8>, Option<Vec<u8>>) = (row.try_get(0)?, row.try_get(1)?);
        let first_kept = slice.map_or_else(|| bound.clone(), |slice| slice.min(bound.clone()));
        sqlx::query("DELETE FROM timeline WHERE message < ?")
            .bind(&first_kept)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM deliveries WHERE message < ?")
            .bind(&first_kept)
            .execute(&mut *connection)
            .await?;
        let deleted = sqlx::query("DELETE FROM messages WHERE id < ?")
            .bind(&first_kept)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM minutes WHERE minute < ?")
            .bind((oldest.as_millis() / 60_000) as i64)
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "DELETE FROM gaps WHERE noticed_at < (SELECT noticed_at FROM gaps ORDER BY noticed_at DESC LIMIT 1 OFFSET ?)",
        )
        .bind(GAPS_MAX)
        .execute(&mut *connection)
        .await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected())
    }
}
