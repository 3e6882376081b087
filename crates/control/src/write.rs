//! The writer: gathers the events that all followers have read into transactions.

use std::{collections::HashMap, mem, time::Duration};

use postroad_core::GroupId;
use postroad_proto::queue::Event;
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    history::{self, Retention},
    metrics::WriterMetrics,
    projection::{EventCounts, Rows},
};

/// Events in one transaction, about: gathering ends with the batch that passes this.
const EVENTS_MAX: usize = 2_048;
/// Rows in one transaction, about: one message has a row for each recipient.
const ROWS_MAX: usize = 20_000;
/// How long a transaction waits for more events: each transaction syncs a disk that the queue may share.
const GATHER_FOR: Duration = Duration::from_millis(100);
/// How long to wait after a transaction failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// What a follower has read.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) group: GroupId,
    pub(crate) events: Vec<Event>,
    /// Receives the number of the group's last durably written event.
    pub(crate) written: watch::Sender<u64>,
}

/// The writer's state between transactions.
#[derive(Debug)]
pub(crate) struct HistoryWriter {
    pub(crate) history: history::Writer,
    pub(crate) cursors: HashMap<GroupId, u64>,
    pub(crate) messages: u64,
    pub(crate) retention: Retention,
    pub(crate) metrics: WriterMetrics,
    /// Followers whose events are in the next transaction.
    pub(crate) unacknowledged: HashMap<GroupId, watch::Sender<u64>>,
}

impl HistoryWriter {
    /// Writes until every follower has ended and everything that was read is written.
    pub(crate) async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>, shutdown: CancellationToken) {
        let mut prune_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                first = incoming.recv() => match first {
                    Some(first) => {
                        let batch = gather(first, &mut incoming).await;
                        if !self.write(batch, &shutdown).await {
                            return;
                        }
                    }
                    None => return,
                },
                () = time::sleep_until(prune_at) => prune_at = self.prune().await,
            }
            if prune_at <= Instant::now() {
                prune_at = self.prune().await;
            }
        }
    }

    /// Writes what was gathered; returns false when the process shuts down first.
    async fn write(&mut self, batch: Vec<Incoming>, shutdown: &CancellationToken) -> bool {
        let mut rows = Rows::after(&self.cursors);
        for Incoming { group, events, written } in batch {
            for event in events {
                rows.add(group, event);
                if rows.count() >= ROWS_MAX {
                    if !self.commit(mem::take(&mut rows), shutdown).await {
                        return false;
                    }
                    rows = Rows::after(&self.cursors);
                }
            }
            self.unacknowledged.insert(group, written);
        }
        self.commit(rows, shutdown).await
    }

    /// Commits one transaction, retrying until it succeeds, and informs the followers.
    async fn commit(&mut self, rows: Rows, shutdown: &CancellationToken) -> bool {
        let started = Instant::now();
        while let Err(error) = self.try_commit(&rows).await {
            tracing::error!(%error, "cannot write events to the history database; trying again");
            self.metrics.failures.increment(1);
            if time::timeout(RETRY_AFTER, shutdown.cancelled()).await.is_ok() {
                return false;
            }
        }
        self.metrics.batch_seconds.record(started.elapsed());
        self.count(rows.events);
        self.cursors = rows.cursors;
        for (group, written) in self.unacknowledged.drain() {
            written.send_replace(self.cursors.get(&group).copied().unwrap_or(0));
        }
        true
    }

    async fn try_commit(&mut self, rows: &Rows) -> Result<(), sqlx::Error> {
        self.messages += self.history.write(rows).await?;
        Ok(())
    }

    fn count(&self, events: EventCounts) {
        let EventCounts { written, repeated, unreadable, lost } = events;
        self.metrics.batch_events.record(written as f64);
        self.metrics.events.increment(written);
        self.metrics.repeated.increment(repeated);
        self.metrics.unreadable.increment(unreadable);
        self.metrics.lost.increment(lost);
        self.metrics.messages.set(self.messages as f64);
        if lost > 0 {
            tracing::warn!(lost, "events missing from this database: the queue no longer has them");
        }
        if unreadable > 0 {
            tracing::warn!(unreadable, "ignored events of a kind this version does not know");
        }
    }

    /// Deletes one slice of old history; returns when to delete the next.
    async fn prune(&mut self) -> Instant {
        match self.history.prune(self.retention, self.messages, postroad_env::wall()).await {
            Ok(0) => Instant::now() + PRUNE_EVERY,
            Ok(deleted) => {
                self.messages = self.messages.saturating_sub(deleted);
                self.metrics.messages.set(self.messages as f64);
                Instant::now()
            }
            Err(error) => {
                tracing::warn!(%error, "cannot delete old history");
                Instant::now() + PRUNE_EVERY
            }
        }
    }
}

/// Takes the batches that arrive within [`GATHER_FOR`], up to the bound.
async fn gather(first: Incoming, incoming: &mut mpsc::Receiver<Incoming>) -> Vec<Incoming> {
    let until = Instant::now() + GATHER_FOR;
    let mut events = first.events.len();
    let mut batch = vec![first];
    while events < EVENTS_MAX
        && let Ok(Some(next)) = time::timeout_at(until, incoming.recv()).await
    {
        events += next.events.len();
        batch.push(next);
    }
    batch
}
