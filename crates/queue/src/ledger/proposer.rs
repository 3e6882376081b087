//! Proposes entries for one ledger group while this node leads it: one task per group.
//!
//! No timer delays mail: while one entry commits, the next one fills.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use postroad_core::{Epoch, MessageId, RetrySchedule, SourceId, Timestamp};
use postroad_directory::View;
use postroad_ledger::{
    Dispatcher, Ledger,
    command::{Command, NextTry, Reply},
};
use postroad_raft::{Group, ProposeError, Status};
use postroad_storage::Room;
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{AfterCommit, Batch, CommitRequest},
    machine::LedgerMachine,
    shared::SharedLedger,
};
use crate::clock;

/// Entries being committed at a time: one, so that the next one fills meanwhile.
const IN_FLIGHT_MAX: usize = 1;

/// Pause before a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Pause after an entry that was not committed. While leadership is transferred, Raft refuses every entry at once.
const FAILED_RETRY: Duration = Duration::from_millis(20);

/// The shortest pause, so that other tasks run too.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// How often all messages are searched for expired ones, and sources for earlier owners: a blocked queue finds neither.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_MESSAGES: usize = 1024;
const SWEEP_ENTRIES: usize = 4096;
const SWEEP_DELIVERIES: usize = 10_000;

/// After this long without a source in the directory, its owner can no longer report.
const UNKNOWN_SOURCE_WAIT: Duration = Duration::from_secs(600);

/// Proposes for one ledger group.
pub(crate) struct Proposer {
    shared: Arc<SharedLedger>,
    group: Group<LedgerMachine>,
    inbox: mpsc::Receiver<CommitRequest>,
    /// Received and not proposed yet.
    waiting: VecDeque<CommitRequest>,
    status: watch::Receiver<Status>,
    views: watch::Receiver<Arc<View>>,
    /// Sources may have new owners.
    reclaim: bool,
    unknown_since: BTreeMap<SourceId, Instant>,
    sweep: Sweep,
    retry: RetrySchedule,
    /// Nothing is proposed before.
    proposes_at: Instant,
}

/// The search for expired messages, and for what the dispatcher's queues still have of them.
struct Sweep {
    next_at: Instant,
    /// The message where it goes on.
    from: Option<MessageId>,
    in_queues: bool,
}

/// An entry that has been committed or has failed.
struct FinishedEntry {
    term: u64,
    after_commit: AfterCommit,
    took: Duration,
    result: Result<Vec<Reply>, ProposeError>,
}

impl Proposer {
    pub(crate) fn new(
        shared: Arc<SharedLedger>,
        group: Group<LedgerMachine>,
        inbox: mpsc::Receiver<CommitRequest>,
        views: watch::Receiver<Arc<View>>,
        retry: RetrySchedule,
    ) -> Self {
        let sweep = Sweep { next_at: postroad_env::now() + SWEEP_EVERY, from: None, in_queues: false };
        Self {
            shared,
            status: group.status(),
            group,
            inbox,
            waiting: VecDeque::new(),
            views,
            reclaim: false,
            unknown_since: BTreeMap::new(),
            sweep,
            retry,
            proposes_at: postroad_env::now(),
        }
    }

    /// Proposes until the node stops.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut in_flight = FuturesOrdered::new();
        self.follow_leadership();
        loop {
            let failed_pause = self.proposes_at.saturating_duration_since(postroad_env::now());
            let is_free = in_flight.len() < IN_FLIGHT_MAX && failed_pause.is_zero();
            if is_free {
                // Let tasks that are ready add their requests: an entry costs about the same however full it is.
                tokio::task::yield_now().await;
            }
            self.take_requests();
            if is_free && let Some((term, head, bodies, after_commit)) = self.gather() {
                in_flight.push_back(propose(self.group.clone(), term, head, bodies, after_commit));
                continue;
            }
            let pause = match is_free {
                true => self.pause(),
                false if in_flight.is_empty() => failed_pause,
                false => FULL_RETRY,
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(committed) = in_flight.next(), if !in_flight.is_empty() => self.finish_entry(committed),
                changed = self.status.changed() => match changed {
                    Ok(()) => self.follow_leadership(),
                    Err(_) => break,
                },
                Ok(()) = self.views.changed() => self.update_view(),
                Some(request) = self.inbox.recv(), if is_free => self.waiting.push_back(request),
                () = self.shared.wake.notified() => {}
                () = time::sleep(pause) => {}
            }
        }
        self.shared.follow();
        self.refuse_all(&ProposeError::Stopped);
    }

    /// Follows Raft's leadership: sets up or drops the leader's state.
    fn follow_leadership(&mut self) {
        let status = self.status.borrow_and_update().clone();
        let led = self.shared.with_leading(|_, leading| leading.term);
        if status.leading && led != Some(status.term) {
            let started = postroad_env::now();
            self.shared.lead(status.term, &self.views.borrow_and_update());
            self.reclaim = true;
            tracing::info!(group = %self.shared.id, term = status.term, took = ?postroad_env::since(started), "became leader");
        } else if !status.leading && led.is_some() {
            self.shared.follow();
            tracing::info!(group = %self.shared.id, term = status.term, leader = ?status.leader, "lost leadership");
        }
    }

    fn update_view(&mut self) {
        let view = self.views.borrow_and_update().clone();
        self.shared.with_leading(|ledger, leading| leading.update_view(ledger, &view));
        self.reclaim = true;
    }

    /// Receives requests. While the disk is full, new mail is refused; commands about accepted mail go on, since they free
    /// space.
    fn take_requests(&mut self) {
        while let Ok(request) = self.inbox.try_recv() {
            self.waiting.push_back(request);
        }
        if !self.waiting.is_empty() && !self.group.takes_bodies() {
            self.refuse_bodies();
        }
    }

    /// Builds the next entry; `None` when there is nothing to propose, or this node does not lead.
    fn gather(&mut self) -> Option<(u64, Bytes, Vec<Bytes>, AfterCommit)> {
        if self.group.log().room() == Room::None {
            return None;
        }
        let shared = self.shared.clone();
        let now = clock::now();
        let gathered = shared.with_leading(|ledger, leading| {
            let mut batch = Batch::new(self.leader_commands(ledger, &mut leading.dispatcher, now));
            while batch.has_room()
                && let Some(request) = self.waiting.pop_front()
            {
                batch.add(request, now, ledger, &mut leading.dispatcher);
            }
            batch.add_due(now, ledger, &mut leading.dispatcher);
            (!batch.is_empty()).then_some((leading.term, batch))
        });
        match gathered {
            None => {
                let leader = self.status.borrow().leader;
                self.refuse_all(&ProposeError::NotLeader { leader });
                None
            }
            Some(None) => None,
            Some(Some((term, batch))) => {
                self.shared.metrics.commands.record(batch.len() as f64);
                let (head, bodies, after_commit) = batch.seal(now);
                Some((term, head, bodies, after_commit))
            }
        }
    }

    /// The leader's own commands, which come before any assignment under new epochs.
    fn leader_commands(
        &mut self,
        ledger: &Ledger,
        dispatcher: &mut Dispatcher,
        now: Timestamp,
    ) -> Vec<Command> {
        let mut commands = Vec::new();
        self.reclaim |= self.sweep.begins();
        if std::mem::take(&mut self.reclaim) {
            let below = self.earlier_epochs(ledger);
            self.shared.metrics.reclaims.increment(below.len() as u64);
            let next_try = NextTry { at: now, copies_max: self.retry.copies_max };
            let repeated_at = now.after(self.retry.distant);
            let reclaim = |(source, below)| Command::Reclaim { source, below, next_try, repeated_at };
            commands.extend(below.into_iter().map(reclaim));
        }
        commands.extend(self.sweep.step(ledger, dispatcher, now));
        commands
    }

    /// Sources with assignments from an earlier epoch, whose owner can no longer report them.
    fn earlier_epochs(&mut self, ledger: &Ledger) -> Vec<(SourceId, Epoch)> {
        let view = self.views.borrow().clone();
        let mut ended = Vec::new();
        let mut gone = BTreeMap::new();
        for source in ledger.sources_with_work() {
            let epoch = match view.source(source) {
                Some(known) => known.epoch,
                None => {
                    let since = self.unknown_since.get(&source).copied().unwrap_or_else(postroad_env::now);
                    gone.insert(source, since);
                    if postroad_env::since(since) < UNKNOWN_SOURCE_WAIT {
                        continue;
                    }
                    Epoch(u64::MAX)
                }
            };
            if ledger.has_work_below(source, epoch) {
                ended.push((source, epoch));
            }
        }
        self.unknown_since = gone;
        ended
    }

    fn finish_entry(&mut self, committed: FinishedEntry) {
        let FinishedEntry { term, mut after_commit, took, result } = committed;
        let failed = result.is_err();
        // The leader's own commands are proposed again.
        self.reclaim |= failed;
        self.shared.with_leading(|ledger, leading| {
            // Reservations of an earlier term were dropped with its dispatcher.
            if leading.term == term {
                after_commit.release_reservations(ledger, &mut leading.dispatcher, failed);
            }
        });
        match &result {
            Ok(_) => self.shared.metrics.commit.record(took),
            Err(error) => {
                self.proposes_at = postroad_env::now() + FAILED_RETRY;
                tracing::debug!(group = %self.shared.id, %error, "entry not committed");
            }
        }
        after_commit.answer(result);
    }

    /// Refuses new mail: the disk is full.
    fn refuse_bodies(&mut self) {
        let (refused, kept) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| !w.bodies.is_empty());
        self.waiting = kept;
        let refused: VecDeque<CommitRequest> = refused;
        refused.into_iter().for_each(|request| request.refuse(ProposeError::Full));
    }

    fn refuse_all(&mut self, error: &ProposeError) {
        self.waiting.drain(..).for_each(|request| request.refuse(error.clone()));
    }

    /// Returns how long to wait if nothing happens.
    fn pause(&self) -> Duration {
        if self.group.log().room() == Room::None {
            return FULL_RETRY;
        }
        let now = clock::now();
        let wake = self.shared.with_leading(|_, leading| leading.dispatcher.next_wake(now)).flatten();
        let due = wake.map_or(SWEEP_EVERY, |at| at.since(now));
        due.min(self.sweep.pause()).max(PAUSE_MIN)
    }
}

async fn propose(
    group: Group<LedgerMachine>,
    term: u64,
    head: Bytes,
    bodies: Vec<Bytes>,
    after_commit: AfterCommit,
) -> FinishedEntry {
    let started = postroad_env::now();
    let result = group.propose(head, bodies).await.map(|committed| committed.reply);
    FinishedEntry { term, after_commit, took: postroad_env::since(started), result }
}

impl Sweep {
    fn is_running(&self) -> bool {
        self.from.is_some() || self.in_queues
    }

    fn begins(&self) -> bool {
        !self.is_running() && self.next_at <= postroad_env::now()
    }

    /// Searches some messages and entries; returns the command for messages that have expired.
    fn step(&mut self, ledger: &Ledger, dispatcher: &mut Dispatcher, now: Timestamp) -> Option<Command> {
        if self.begins() {
            (self.from, self.in_queues) = (Some(MessageId::from_u128(0)), true);
        }
        if !self.is_running() {
            return None;
        }
        self.in_queues = self.in_queues && !dispatcher.drop_stale(ledger, now, SWEEP_ENTRIES);
        let (mut expired, next) = match self.from {
            Some(from) => ledger.expired(from, SWEEP_MESSAGES, now),
            None => (Vec::new(), None),
        };
        self.from = next;
        if !self.is_running() {
            self.next_at = postroad_env::now() + SWEEP_EVERY;
        }
        // The next sweep finds the rest.
        expired.truncate(SWEEP_DELIVERIES);
        (!expired.is_empty()).then_some(Command::Expire(expired))
    }

    fn pause(&self) -> Duration {
        if self.is_running() {
            return Duration::ZERO;
        }
        self.next_at.saturating_duration_since(postroad_env::now())
    }
}
