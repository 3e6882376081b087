//! Queries for pages and API.

use postroad_core::{Address, DeliveryState, MessageId, Timestamp};
use sqlx::{QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::Reader;

/// Which messages a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// A whole address, or part of one.
    pub(crate) recipient: String,
    /// Part of the reverse path.
    pub(crate) sender: String,
    /// A recipient is in this state; with `recipient` set, that recipient.
    pub(crate) state: Option<DeliveryState>,
    /// Only older messages than this one.
    pub(crate) before: Option<MessageId>,
}

/// One message in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessageSummary {
    pub(crate) id: MessageId,
    pub(crate) accepted_at: Timestamp,
    pub(crate) sender: String,
    pub(crate) subject: String,
    pub(crate) recipients: u64,
    /// The first recipient.
    pub(crate) recipient: String,
    /// How many recipients are in which state.
    pub(crate) states: Vec<(DeliveryState, u64)>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) accepted_at: Timestamp,
    pub(crate) tenant: u32,
    pub(crate) sender: String,
    pub(crate) subject: String,
    pub(crate) origin: String,
    pub(crate) size: u64,
    pub(crate) recipients: u64,
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) recipient: u32,
    pub(crate) address: String,
    pub(crate) state: DeliveryState,
    pub(crate) attempts: u32,
    pub(crate) changed_at: Timestamp,
    pub(crate) due_at: Option<Timestamp>,
    pub(crate) response: String,
    /// Its timeline, in order; at most [`STEPS_MAX`].
    pub(crate) steps: Vec<Step>,
}

/// One line of a timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) recipient: u32,
    pub(crate) sequence: u64,
    pub(crate) at: Timestamp,
    pub(crate) kind: String,
    pub(crate) new_state: Option<String>,
    pub(crate) due_at: Option<Timestamp>,
    pub(crate) attempt: Option<u32>,
    pub(crate) source: Option<u32>,
    pub(crate) node: Option<u64>,
    pub(crate) outcome: Option<String>,
    pub(crate) class: Option<String>,
    /// Whose matter a refusal was.
    pub(crate) party: Option<String>,
    /// The rule that read the reply.
    pub(crate) rule: Option<String>,
    /// Who changed the delivery, or asked for it.
    pub(crate) actor: Option<String>,
    pub(crate) code: Option<u32>,
    pub(crate) response: Option<String>,
    pub(crate) remote: Option<String>,
    pub(crate) tls: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
}

/// How many recipients had an outcome in a minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MinuteCount {
    /// Minutes since the epoch.
    pub(crate) minute: u64,
    pub(crate) outcome: String,
    pub(crate) count: u64,
}

/// Events missing from this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) group: u16,
    pub(crate) first: u64,
    pub(crate) through: u64,
    pub(crate) noticed_at: Timestamp,
}

/// Steps read in one query, of all its recipients together.
const STEPS_MAX: i64 = 5_000;
const GAPS_SHOWN_MAX: i64 = 10;

const SELECT_LINES: &str = "
    SELECT id, accepted_at, sender, subject, recipients,
        (SELECT address FROM deliveries WHERE message = messages.id AND recipient = 0) AS recipient,
        (SELECT json_group_array(json_array(state, n)) FROM
            (SELECT state, count(*) AS n FROM deliveries WHERE message = messages.id GROUP BY state)) AS states
    FROM messages WHERE ";

impl Reader {
    /// Returns the newest messages that pass the filter, at most `limit`.
    pub(crate) async fn messages(
        &self,
        filter: &Filter,
        limit: u32,
    ) -> Result<Vec<MessageSummary>, sqlx::Error> {
        let mut query = QueryBuilder::<Sqlite>::new(SELECT_LINES);
        if filter.recipient.is_empty() && filter.state.is_none() {
            query.push("true");
            narrow_messages(&mut query, filter);
        } else {
            // Walks deliveries newest first and stops at the limit: its cost is the rows passed over.
            query.push("id IN (SELECT message FROM deliveries JOIN messages ON id = message WHERE true");
            narrow_deliveries(&mut query, filter);
            narrow_messages(&mut query, filter);
            query.push(" GROUP BY message ORDER BY message DESC LIMIT ").push_bind(limit).push(")");
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(summary).collect()
    }

    /// Returns a message; `None` when its acceptance is not in the history.
    pub(crate) async fn message(&self, id: MessageId) -> Result<Option<Message>, sqlx::Error> {
        let row = sqlx::query(
            "SELECT accepted_at, tenant, sender, subject, origin, size, recipients FROM messages WHERE id = ?",
        )
        .bind(blob(id))
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Message {
                accepted_at: time(&row, "accepted_at")?,
                tenant: row.try_get("tenant")?,
                sender: row.try_get("sender")?,
                subject: row.try_get("subject")?,
                origin: row.try_get("origin")?,
                size: number(&row, "size")?,
                recipients: number(&row, "recipients")?,
            })
        })
        .transpose()
    }

    /// Returns recipients of a message with their timelines, from number `from` on, at most `limit`.
    pub(crate) async fn deliveries(
        &self,
        id: MessageId,
        from: u32,
        limit: u32,
    ) -> Result<Vec<Delivery>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT * FROM deliveries WHERE message = ? AND recipient >= ? ORDER BY recipient LIMIT ?",
        )
        .bind(blob(id))
        .bind(from)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let mut deliveries: Vec<Delivery> = rows.iter().map(delivery).collect::<Result<_, _>>()?;
        let Some(last) = deliveries.last().map(|delivery| delivery.recipient) else { return Ok(deliveries) };
        let rows = sqlx::query(
            "SELECT * FROM timeline WHERE message = ? AND recipient BETWEEN ? AND ? ORDER BY recipient, sequence LIMIT ?",
        )
        .bind(blob(id))
        .bind(from)
        .bind(last)
        .bind(STEPS_MAX)
        .fetch_all(&self.pool)
        .await?;
        for row in &rows {
            let step = step(row)?;
            let found = deliveries.binary_search_by_key(&step.recipient, |delivery| delivery.recipient);
            if let Ok(position) = found {
                deliveries[position].steps.push(step);
            }
        }
        Ok(deliveries)
    }

    /// Returns the counts of every minute since `since`, all tenants together.
    pub(crate) async fn minutes(&self, since: u64) -> Result<Vec<MinuteCount>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT minute, outcome, sum(count) AS count FROM minutes WHERE minute >= ? GROUP BY minute, outcome",
        )
        .bind(since as i64)
        .fetch_all(&self.pool)
        .await?;
        let count = |row: &SqliteRow| {
            let (minute, count) = (number(row, "minute")?, number(row, "count")?);
            Ok(MinuteCount { minute, outcome: row.try_get("outcome")?, count })
        };
        rows.iter().map(count).collect()
    }

    /// Returns the newest gaps.
    pub(crate) async fn gaps(&self) -> Result<Vec<Gap>, sqlx::Error> {
        let rows = sqlx::query("SELECT * FROM gaps ORDER BY noticed_at DESC, first DESC LIMIT ?")
            .bind(GAPS_SHOWN_MAX)
            .fetch_all(&self.pool)
            .await?;
        let gap = |row: &SqliteRow| {
            Ok(Gap {
                group: row.try_get("group_id")?,
                first: number(row, "first")?,
                through: number(row, "through")?,
                noticed_at: time(row, "noticed_at")?,
            })
        };
        rows.iter().map(gap).collect()
    }

    /// Returns how far each group's events have been written.
    pub(crate) async fn cursor(&self, group: u16) -> Result<u64, sqlx::Error> {
        let row = sqlx::query("SELECT through FROM cursors WHERE group_id = ?")
            .bind(group)
            .fetch_optional(&self.pool)
            .await?;
        row.map_or(Ok(0), |row| number(&row, "through"))
    }
}

fn narrow_deliveries(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    if let Some(before) = filter.before {
        query.push(" AND message < ").push_bind(blob(before));
    }
    if Address::parse(&filter.recipient).is_ok() {
        query.push(" AND address = ").push_bind(filter.recipient.clone());
    } else if !filter.recipient.is_empty() {
        let part = filter.recipient.to_ascii_lowercase();
        query.push(" AND instr(lower(address), ").push_bind(part).push(")");
    }
    if let Some(state) = filter.state {
        query.push(" AND state = ").push_bind(state.as_str());
    }
}

fn narrow_messages(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    if let Some(before) = filter.before {
        query.push(" AND id < ").push_bind(blob(before));
    }
    if !filter.sender.is_empty() {
        let part = filter.sender.to_ascii_lowercase();
        query.push(" AND instr(lower(sender), ").push_bind(part).push(")");
    }
}

fn summary(row: &SqliteRow) -> Result<MessageSummary, sqlx::Error> {
    let states: Vec<(String, u64)> = serde_json::from_str(row.try_get("states")?).unwrap_or_default();
    let mut states: Vec<(DeliveryState, u64)> =
        states.iter().filter_map(|(state, count)| Some((DeliveryState::from_name(state)?, *count))).collect();
    states.sort_unstable();
    Ok(MessageSummary {
        id: id(row.try_get("id")?)?,
        accepted_at: time(row, "accepted_at")?,
        sender: row.try_get("sender")?,
        subject: row.try_get("subject")?,
        recipients: number(row, "recipients")?,
        recipient: row.try_get::<Option<String>, _>("recipient")?.unwrap_or_default(),
        states,
    })
}

fn delivery(row: &SqliteRow) -> Result<Delivery, sqlx::Error> {
    let state: &str = row.try_get("state")?;
    Ok(Delivery {
        recipient: row.try_get("recipient")?,
        address: row.try_get("address")?,
        state: DeliveryState::from_name(state).ok_or_else(|| invalid("state"))?,
        attempts: row.try_get("attempts")?,
        changed_at: time(row, "changed_at")?,
        due_at: maybe_time(row, "due_at")?,
        response: row.try_get("response")?,
        steps: Vec::new(),
    })
}

fn step(row: &SqliteRow) -> Result<Step, sqlx::Error> {
    Ok(Step {
        recipient: row.try_get("recipient")?,
        sequence: number(row, "sequence")?,
        at: time(row, "at")?,
        kind: row.try_get("kind")?,
        new_state: row.try_get("new_state")?,
        due_at: maybe_time(row, "due_at")?,
        attempt: row.try_get("attempt")?,
        source: row.try_get("source")?,
        node: row.try_get::<Option<i64>, _>("node")?.map(|node| node as u64),
        outcome: row.try_get("outcome")?,
        class: row.try_get("class")?,
        party: row.try_get("party")?,
        rule: row.try_get("rule")?,
        actor: row.try_get("actor")?,
        code: row.try_get("code")?,
        response: row.try_get("response")?,
        remote: row.try_get("remote")?,
        tls: row.try_get("tls")?,
        started_at: maybe_time(row, "started_at")?,
        ended_at: maybe_time(row, "ended_at")?,
    })
}

fn blob(id: MessageId) -> Vec<u8> {
    id.as_u128().to_be_bytes().to_vec()
}

fn id(blob: &[u8]) -> Result<MessageId, sqlx::Error> {
    let bytes = blob.try_into().map_err(|_| invalid("id"))?;
    Ok(MessageId::from_u128(u128::from_be_bytes(bytes)))
}

fn number(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(column).map(|number| number as u64)
}

fn time(row: &SqliteRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    number(row, column).map(Timestamp::from_millis)
}

fn maybe_time(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    let millis: Option<i64> = row.try_get(column)?;
    Ok(millis.map(|millis| Timestamp::from_millis(millis as u64)))
}

/// A value that this version does not write.
fn invalid(column: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("invalid value in column `{column}`").into())
}
