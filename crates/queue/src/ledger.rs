//! One ledger group on this node: committing commands, and reading its state.

use std::sync::Arc;

use bytes::Bytes;
use postroad_core::{GroupId, RetrySchedule, TenantId};
use postroad_directory::View;
use postroad_ledger::{
    BodyRef, Counts,
    command::{Command, NextTry, Reply, Report},
};
use postroad_raft::{Group, Node, OpenError, ProposeError, Status};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    clock,
    config::QueueConfig,
    metrics::{POOLS, SITES, TENANTS},
};

mod batch;
pub(crate) mod flow;
mod machine;
mod mail_log;
pub(crate) mod outbox;
mod probes;
pub(crate) mod proposer;
pub(crate) mod shared;

pub(crate) use self::batch::CommitResult;
use self::{
    batch::{CommitRequest, bytes},
    machine::LedgerMachine,
    proposer::Proposer,
    shared::SharedLedger,
};

/// Requests that may wait, besides the bound on their bytes.
const REQUESTS_MAX: usize = 4096;

/// The unit in which waiting bytes are counted.
const PERMIT_BYTES: usize = 1 << 10;

/// A cheap handle to one ledger group.
#[derive(Clone)]
pub(crate) struct LedgerGroup {
    pub(crate) shared: Arc<SharedLedger>,
    pub(crate) group: Group<LedgerMachine>,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) retry: RetrySchedule,
    inbox: mpsc::Sender<CommitRequest>,
    room: Arc<Semaphore>,
    room_max: usize,
}

impl LedgerGroup {
    /// Opens the group on this node; the caller runs the proposer.
    pub(crate) async fn open(
        node: &Node,
        id: GroupId,
        config: &QueueConfig,
        views: watch::Receiver<Arc<View>>,
    ) -> Result<(Self, Proposer), OpenError> {
        let shared = Arc::new(SharedLedger::new(id, config.limits()));
        let group = node.open_group(id, LedgerMachine(shared.clone())).await?;
        let (inbox, requests) = mpsc::channel(REQUESTS_MAX);
        let retry = config.retry_schedule();
        let proposer = Proposer::new(shared.clone(), group.clone(), requests, views.clone(), retry);
        let room_max = config.waiting_bytes_max.to_usize() / PERMIT_BYTES;
        let room_max = room_max.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(room_max));
        Ok((Self { shared, group, views, retry, inbox, room, room_max }, proposer))
    }

    pub(crate) fn id(&self) -> GroupId {
        self.shared.id
    }

    pub(crate) fn status(&self) -> Status {
        self.group.status().borrow().clone()
    }

    /// Queues commands to be committed together; waits while the queue is full.
    ///
    /// The slots in the commands number `bodies`. Dropping the receiver does not cancel the commit.
    pub(crate) async fn enqueue(
        &self,
        commands: Vec<Command>,
        bodies: Vec<Bytes>,
    ) -> Result<oneshot::Receiver<CommitResult>, ProposeError> {
        let bytes = bytes(&commands, &bodies);
        let permits = bytes.div_ceil(PERMIT_BYTES).min(self.room_max);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(permits).await.map_err(|_| ProposeError::Stopped)?;
        let (answer, answered) = oneshot::channel();
        let request = CommitRequest { commands, bodies, bytes, answer, room };
        self.inbox.send(request).await.map_err(|_| ProposeError::Stopped)?;
        Ok(answered)
    }

    /// Commits commands together and returns one reply for each.
    pub(crate) async fn commit(&self, commands: Vec<Command>, bodies: Vec<Bytes>) -> CommitResult {
        let answered = self.enqueue(commands, bodies).await?;
        answered.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Commits one command.
    pub(crate) async fn commit_one(&self, command: Command) -> Result<Reply, ProposeError> {
        self.commit(vec![command], Vec::new()).await?.pop().ok_or(ProposeError::Unknown)
    }

    /// Makes commands of reports: decides when each delivery is due again, from the retry schedule.
    pub(crate) fn report_commands(&self, reports: Vec<Report>) -> Vec<Command> {
        let now = clock::now();
        self.shared.with_ledger(|ledger| {
            let command = |report: Report| {
                let attempts = ledger.attempts(report.id.delivery).unwrap_or_default();
                let wait = self.retry.wait_after(&report.outcome, attempts, postroad_env::random());
                let next_try = NextTry { at: now.after(wait), copies_max: self.retry.copies_max };
                Command::Report(Box::new(report), next_try)
            };
            reports.into_iter().map(command).collect()
        })
    }

    /// Reads a message's content, from memory where possible.
    pub(crate) async fn content(&self, parts: &[BodyRef]) -> std::io::Result<Bytes> {
        let mut read = Vec::with_capacity(parts.len());
        for part in parts {
            read.push(self.part(*part).await?);
        }
        Ok(match read.len() {
            1 => read.remove(0),
            _ => read.concat().into(),
        })
    }

    /// Reads one part of a message's content.
    pub(crate) async fn part(&self, part: BodyRef) -> std::io::Result<Bytes> {
        let (log, id) = (self.group.log(), self.id());
        if let Some(bytes) = log.body_in_memory(id, part.index, part.slot) {
            return Ok(bytes);
        }
        let log = log.clone();
        let read = move || log.body(id, part.index, part.slot);
        postroad_env::blocking(read).await.map_err(std::io::Error::other)?
    }

    /// Returns true when every delivery has ended here, and a consumer has read every event.
    pub(crate) fn is_idle(&self, consumer: &str) -> bool {
        self.shared.with_ledger(|ledger| {
            let Counts { queued, sending, held } = ledger.counts();
            queued + sending + held == 0 && ledger.cursor(consumer).max(1) >= ledger.event_range().1
        })
    }

    /// Returns how many chunks wait here for the rest of their messages.
    pub(crate) fn staged_chunks(&self) -> usize {
        self.shared.with_ledger(|ledger| ledger.staged_chunks())
    }

    /// Returns the number of the last event that was dropped here before it was read, while its gap is kept.
    pub(crate) fn dropped_through(&self) -> Option<u64> {
        self.shared.with_ledger(|ledger| ledger.dropped_through())
    }

    /// Returns the number of the last event here, and how many deliveries of each tenant have not ended after it.
    pub(crate) fn open_by_tenant(&self) -> (u64, Vec<(TenantId, u64)>) {
        self.shared.with_ledger(|ledger| (ledger.event_range().1 - 1, ledger.open_by_tenant().collect()))
    }

    /// Updates the group's gauges.
    pub(crate) fn observe(&self) {
        let metrics = &self.shared.metrics;
        let now = clock::now();
        self.shared.with_ledger(|ledger| {
            let counts = ledger.counts();
            metrics.messages.set(ledger.message_count() as f64);
            metrics.queued.set(counts.queued as f64);
            metrics.sending.set(counts.sending as f64);
            metrics.held.set(counts.held as f64);
            metrics.oldest.set(ledger.oldest().map_or(0.0, |oldest| now.since(oldest).as_secs_f64()));
            metrics.event_bytes.set(ledger.event_bytes() as f64);
            metrics.event_fill.set(ledger.event_bytes() as f64 / self.shared.limits.event_bytes_max as f64);
            let next = ledger.event_range().1;
            metrics.unread.set(next.saturating_sub(ledger.cursor(CONTROL).max(1)) as f64);
        });
        let leads =
            self.shared.with_leading(|_, leading| (leading.dispatcher.ready_count(), leading.outboxes.len()));
        let (ready, sessions) = leads.unwrap_or((0, 0));
        metrics.ready.set(ready as f64);
        metrics.sessions.set(sessions as f64);
        metrics.applied.set(self.group.applied() as f64);
        let waiting = self.room_max - self.room.available_permits();
        metrics.waiting_bytes.set((waiting * PERMIT_BYTES) as f64);
    }
}

impl LedgerGroup {
    /// Updates the gauges by site, tenant and pool; only the leader shows them, so that they can be added up over nodes.
    pub(crate) fn observe_depths(&self) {
        let group = self.id().to_string();
        let view = self.views.borrow().clone();
        let tenant = |id| view.tenant(id).map_or_else(|| id.to_string(), |tenant| tenant.name.to_string());
        let pool = |id| view.pool(id).map_or_else(|| id.to_string(), |pool| pool.name.to_string());
        let led = self.shared.with_leading(|ledger, leading| {
            SITES.set(&group, ledger.open_by_site());
            let due = leading.dispatcher.longest_due(ledger);
            let waits = due.map_or(0.0, |due| clock::now().since(due).as_secs_f64());
            self.shared.metrics.longest_wait.set(waits);
            (ledger.open_by_tenant().collect::<Vec<_>>(), leading.dispatcher.ready_by_pool())
        });
        if led.is_none() {
            SITES.set(&group, std::iter::empty());
            self.shared.metrics.longest_wait.set(0.0);
        }
        let (tenants, pools) = led.unwrap_or_default();
        let tenants: Vec<_> = tenants.into_iter().map(|(id, open)| (tenant(id), open)).collect();
        let pools: Vec<_> = pools.into_iter().map(|(id, ready)| (pool(id), ready)).collect();
        TENANTS.set(&group, tenants.iter().map(|(name, open)| (&**name, *open)));
        POOLS.set(&group, pools.iter().map(|(name, ready)| (&**name, *ready)));
    }
}

/// The control role's name as a consumer of events.
const CONTROL: &str = "control";
