//! Writing a batch: a handful of statements in one transaction, however many events there are.

use std::collections::HashMap;

use postroad_core::GroupId;
use serde::Serialize;
use sqlx::{Acquire, Connection, Executor, Row, SqlSafeStr};

use super::Writer;
use crate::projection::Rows;

const INSERT_MESSAGES: &str = "
    INSERT OR IGNORE INTO messages (id, accepted_at, tenant, sender, subject, origin, size, recipients)
    SELECT unhex(value->>0), value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7
    FROM jsonb_each(?)";

/// A delivery's first event is its acceptance, or, after a gap, any later one.
const UPSERT_DELIVERIES: &str = "
    INSERT INTO deliveries (message, recipient, address, state, attempts, changed_at, due_at, response)
    SELECT unhex(value->>0), value->>1, value->>2, coalesce(value->>3, 'queued'), value->>4, value->>5, value->>6,
        coalesce(value->>7, '')
    FROM jsonb_each(?1) WHERE true
    ON CONFLICT (message, recipient) DO UPDATE SET
        state = excluded.state,
        attempts = max(attempts, excluded.attempts),
        changed_at = excluded.changed_at,
        due_at = excluded.due_at,
        response = iif(excluded.response = '', response, excluded.response)";

/// Late outcomes count as attempts and change nothing else.
const COUNT_ATTEMPTS: &str = "
    UPDATE deliveries SET attempts = max(deliveries.attempts, late.attempts)
    FROM (SELECT unhex(value->>0) AS message, value->>1 AS recipient, value->>4 AS attempts FROM jsonb_each(?)) AS late
    WHERE deliveries.message = late.message AND deliveries.recipient = late.recipient";

const INSERT_TIMELINE: &str = "
    INSERT OR IGNORE INTO timeline (message, recipient, sequence, at, kind, new_state, due_at, attempt, source, node,
        outcome, class, code, response, remote, tls, started_at, ended_at, party, rule, actor)
    SELECT unhex(value->>0), value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8,
        value->>9, value->>10, value->>11, value->>12, value->>13, value->>14, value->>15, value->>16, value->>17,
        value->>18, value->>19, value->>20
    FROM jsonb_each(?)";

const ADD_SUMS: &str = "
    INSERT INTO minutes (minute, tenant, outcome, count)
    SELECT value->>0, value->>1, value->>2, value->>3 FROM jsonb_each(?) WHERE true
    ON CONFLICT (minute, tenant, outcome) DO UPDATE SET count = count + excluded.count";

/// Only an acceptance names its tenant; later events find it by their message.
const ADD_WITHOUT_TENANT: &str = "
    INSERT INTO minutes (minute, tenant, outcome, count)
    SELECT value->>0, coalesce(messages.tenant, 0), value->>2, count(*)
    FROM jsonb_each(?) LEFT JOIN messages ON messages.id = unhex(value->>1)
    GROUP BY 1, 2, 3
    ON CONFLICT (minute, tenant, outcome) DO UPDATE SET count = count + excluded.count";

const INSERT_GAPS: &str = "
    INSERT OR IGNORE INTO gaps (group_id, first, through, noticed_at)
    SELECT value->>0, value->>1, value->>2, value->>3 FROM jsonb_each(?)";

const MOVE_CURSORS: &str = "
    INSERT INTO cursors (group_id, through) SELECT value->>0, value->>1 FROM jsonb_each(?) WHERE true
    ON CONFLICT (group_id) DO UPDATE SET through = excluded.through";

/// Every statement of a batch. A batch has rows for few of them, so one that is invalid could wait long to be noticed.
const STATEMENTS: [&str; 8] = [
    INSERT_MESSAGES,
    UPSERT_DELIVERIES,
    COUNT_ATTEMPTS,
    INSERT_TIMELINE,
    ADD_SUMS,
    ADD_WITHOUT_TENANT,
    INSERT_GAPS,
    MOVE_CURSORS,
];

impl Writer {
    /// Compiles every statement: an invalid one, or one that does not fit the schema, fails the start.
    pub(super) async fn prepare(&mut self) -> Result<(), sqlx::Error> {
        for statement in STATEMENTS {
            self.connection.prepare(statement.into_sql_str()).await?;
        }
        Ok(())
    }

    /// Returns how far each group's events have been written.
    pub(crate) async fn cursors(&mut self) -> Result<HashMap<GroupId, u64>, sqlx::Error> {
        let rows =
            sqlx::query("SELECT group_id, through FROM cursors").fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| Ok((GroupId(row.try_get(0)?), row.try_get::<i64, _>(1)? as u64))).collect()
    }

    /// Writes a batch and its cursors atomically and durably.
    ///
    /// Returns the number of new messages.
    pub(crate) async fn write(&mut self, rows: &Rows) -> Result<u64, sqlx::Error> {
        let (late, changed): (Vec<_>, Vec<_>) =
            rows.deliveries.rows().iter().partition(|row| row.state.is_none());
        let cursors: Vec<(u16, u64)> =
            rows.cursors.iter().map(|(group, through)| (group.0, *through)).collect();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let connection = transaction.acquire().await?;
        let messages = insert(connection, INSERT_MESSAGES, &rows.messages).await?;
        insert(connection, UPSERT_DELIVERIES, &changed).await?;
        insert(connection, COUNT_ATTEMPTS, &late).await?;
        insert(connection, INSERT_TIMELINE, &rows.timeline).await?;
        insert(connection, ADD_SUMS, &rows.counts.sums()).await?;
        insert(connection, ADD_WITHOUT_TENANT, rows.counts.without_tenant()).await?;
        insert(connection, INSERT_GAPS, &rows.gaps).await?;
        insert(connection, MOVE_CURSORS, &cursors).await?;
        transaction.commit().await?;
        Ok(messages)
    }
}

/// Runs a statement over all rows, bound as one JSON document; returns how many rows it wrote.
async fn insert<T: Serialize>(
    connection: &mut sqlx::SqliteConnection,
    statement: &'static str,
    rows: &[T],
) -> Result<u64, sqlx::Error> {
    debug_assert!(STATEMENTS.contains(&statement), "a statement of a batch is compiled at the start");
    if rows.is_empty() {
        return Ok(0);
    }
    let document = serde_json::to_string(rows).expect("rows hold nothing that JSON cannot");
    let done = sqlx::query(statement).bind(document).execute(connection).await?;
    Ok(done.rows_affected())
}
