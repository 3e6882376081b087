//! The one task per group that proposes: it follows who leads, and while this node does, it puts entries together.
//!
//! There are no timers in the way of mail: while one entry commits the next one gathers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use postroad_core::{Epoch, MessageId, SourceId, Timestamp};
use postroad_directory::View;
use postroad_ledger::{
    Ledger,
    command::{Command, Reply},
};
use postroad_raft::{Group, ProposeError, Status};
use postroad_storage::Room;
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{Batch, Pending, Work},
    machine::LedgerMachine,
    shared::Core,
};
use crate::clock;

/// Entries whose commit is awaited: one, so that the next one gathers meanwhile.
const IN_FLIGHT_MAX: usize = 1;

/// How long a full disk is left alone.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// A pause that lets others run where there is more to do at once.
const BREATH: Duration = Duration::from_millis(2);

/// How often messages whose queue does not move are looked at for their expiry and their owner.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_MESSAGES: usize = 1024;
const SWEEP_DELIVERIES: usize = 10_000;

/// A source that is in nobody's directory any more has no owner who could still report.
const GONE_AFTER: Duration = Duration::from_secs(600);

/// Proposes for one ledger group.
pub(crate) struct Proposer {
    core: Arc<Core>,
    group: Group<LedgerMachine>,
    inbox: mpsc::Receiver<Work>,
    /// Taken from the inbox and not proposed yet.
    waiting: VecDeque<Work>,
    status: watch::Receiver<Status>,
    views: watch::Receiver<Arc<View>>,
    /// Sources may have changed hands.
    reclaim: bool,
    gone_since: BTreeMap<SourceId, Instant>,
    sweep: Sweep,
}

/// How far the search for what has expired has come.
struct Sweep {
    next_at: Instant,
    from: Option<MessageId>,
}

/// The fate of an entry.
struct Committed {
    term: u64,
    pending: Pending,
    took: Duration,
    result: Result<Vec<Reply>, ProposeError>,
}

impl Proposer {
    pub(crate) fn new(
        core: Arc<Core>,
        group: Group<LedgerMachine>,
        inbox: mpsc::Receiver<Work>,
        views: watch::Receiver<Arc<View>>,
    ) -> Self {
        let sweep = Sweep { next_at: Instant::now() + SWEEP_EVERY, from: None };
        Self {
            core,
            status: group.status(),
            group,
            inbox,
            waiting: VecDeque::new(),
            views,
            reclaim: false,
            gone_since: BTreeMap::new(),
            sweep,
        }
    }

    /// Proposes until the node stops.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut in_flight = FuturesOrdered::new();
        self.follow_leadership();
        loop {
            let is_free = in_flight.len() < IN_FLIGHT_MAX;
            if is_free {
                // Whoever can run now may still bring something: an entry costs much the same however full it is.
                tokio::task::yield_now().await;
            }
            self.take_works();
            if is_free && let Some((term, head, bodies, pending)) = self.gather() {
                in_flight.push_back(propose(self.group.clone(), term, head, bodies, pending));
                continue;
            }
            let pause = if is_free { self.pause() } else { FULL_RETRY };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(committed) = in_flight.next(), if !in_flight.is_empty() => self.settle(committed),
                changed = self.status.changed() => match changed {
                    Ok(()) => self.follow_leadership(),
                    Err(_) => break,
                },
                Ok(()) = self.views.changed() => self.take_over_view(),
                Some(work) = self.inbox.recv(), if is_free => self.waiting.push_back(work),
                () = self.core.wake.notified() => {}
                () = time::sleep(pause) => {}
            }
        }
        self.core.follow();
        self.refuse_all(&ProposeError::Stopped);
    }

    /// Begins or ends leading, as Raft says.
    fn follow_leadership(&mut self) {
        let status = self.status.borrow_and_update().clone();
        let led = self.core.with_leading(|_, leading| leading.term);
        if status.leading && led != Some(status.term) {
            let started = Instant::now();
            self.core.lead(status.term, &self.views.borrow_and_update());
            self.reclaim = true;
            tracing::info!(group = %self.core.id, term = status.term, took = ?started.elapsed(), "leads");
        } else if !status.leading && led.is_some() {
            self.core.follow();
            tracing::info!(group = %self.core.id, term = status.term, leader = ?status.leader, "leads no more");
        }
    }

    fn take_over_view(&mut self) {
        let view = self.views.borrow_and_update().clone();
        self.core.with_leading(|_, leading| leading.take_over(&view));
        self.reclaim = true;
    }

    /// Takes what waits; mail is refused while the disk is full, and what is only about mail goes on: it frees room.
    fn take_works(&mut self) {
        while let Ok(work) = self.inbox.try_recv() {
            self.waiting.push_back(work);
        }
        if !self.waiting.is_empty() && !self.group.takes_bodies() {
            self.refuse_bodies();
        }
    }

    /// Puts the next entry together; `None` when there is nothing to propose, or nobody may.
    fn gather(&mut self) -> Option<(u64, Bytes, Vec<Bytes>, Pending)> {
        if self.group.log().room() == Room::None {
            return None;
        }
        let core = self.core.clone();
        let now = clock::now();
        let gathered = core.with_leading(|ledger, leading| {
            let mut batch = Batch::new(self.own_commands(ledger, now));
            while batch.has_room()
                && let Some(work) = self.waiting.pop_front()
            {
                batch.add(work, now, ledger, &mut leading.dispatcher);
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
                self.core.metrics.commands.record(batch.len() as f64);
                let (head, bodies, pending) = batch.seal(now);
                Some((term, head, bodies, pending))
            }
        }
    }

    /// What the leader itself has to say, before anything is assigned under new epochs.
    fn own_commands(&mut self, ledger: &Ledger, now: Timestamp) -> Vec<Command> {
        let mut commands = Vec::new();
        self.reclaim |= self.sweep.begins();
        if std::mem::take(&mut self.reclaim) {
            let below = self.ended_epochs(ledger);
            self.core.metrics.reclaims.increment(below.len() as u64);
            let reclaim = |(source, below)| Command::Reclaim { source, below, retry_at: now };
            commands.extend(below.into_iter().map(reclaim));
        }
        commands.extend(self.sweep.step(ledger, now));
        commands
    }

    /// Sources with work that their owner of now has not been given: whoever had it will not report any more.
    fn ended_epochs(&mut self, ledger: &Ledger) -> Vec<(SourceId, Epoch)> {
        let view = self.views.borrow().clone();
        let mut ended = Vec::new();
        let mut gone = BTreeMap::new();
        for source in ledger.sources_with_work() {
            let epoch = match view.source(source) {
                Some(known) => known.epoch,
                None => {
                    let since = self.gone_since.get(&source).copied().unwrap_or_else(Instant::now);
                    gone.insert(source, since);
                    if since.elapsed() < GONE_AFTER {
                        continue;
                    }
                    Epoch(u64::MAX)
                }
            };
            if ledger.has_work_below(source, epoch) {
                ended.push((source, epoch));
            }
        }
        self.gone_since = gone;
        ended
    }

    fn settle(&mut self, committed: Committed) {
        let Committed { term, mut pending, took, result } = committed;
        let failed = result.is_err();
        // What was to be said before anything else is said again.
        self.reclaim |= failed;
        self.core.with_leading(|ledger, leading| {
            // The room in the lanes of an earlier leadership went with its work queues.
            if leading.term == term {
                pending.settle(ledger, &mut leading.dispatcher, failed);
            }
        });
        match &result {
            Ok(_) => self.core.metrics.commit.record(took),
            Err(error) => tracing::debug!(group = %self.core.id, %error, "an entry was not committed"),
        }
        pending.answer(result);
    }

    /// A full disk takes no mail.
    fn refuse_bodies(&mut self) {
        let (refused, kept) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| !w.bodies.is_empty());
        self.waiting = kept;
        let refused: VecDeque<Work> = refused;
        refused.into_iter().for_each(|work| work.refuse(ProposeError::Full));
    }

    fn refuse_all(&mut self, error: &ProposeError) {
        self.waiting.drain(..).for_each(|work| work.refuse(error.clone()));
    }

    /// How long nothing needs to be done unless something happens.
    fn pause(&self) -> Duration {
        if self.group.log().room() == Room::None {
            return FULL_RETRY;
        }
        let now = clock::now();
        let wake = self.core.with_leading(|_, leading| leading.dispatcher.next_wake(now)).flatten();
        let due = wake.map_or(SWEEP_EVERY, |at| at.since(now));
        due.min(self.sweep.pause()).max(BREATH)
    }
}

async fn propose(
    group: Group<LedgerMachine>,
    term: u64,
    head: Bytes,
    bodies: Vec<Bytes>,
    pending: Pending,
) -> Committed {
    let started = Instant::now();
    let result = group.propose(head, bodies).await.map(|committed| committed.reply);
    Committed { term, pending, took: started.elapsed(), result }
}

impl Sweep {
    fn begins(&self) -> bool {
        self.from.is_none() && self.next_at <= Instant::now()
    }

    /// Looks at some messages; returns what to propose for those that have expired.
    fn step(&mut self, ledger: &Ledger, now: Timestamp) -> Option<Command> {
        if self.from.is_none() && !self.begins() {
            return None;
        }
        let from = self.from.unwrap_or(MessageId::from_u128(0));
        let (mut expired, next) = ledger.expired(from, SWEEP_MESSAGES, now);
        self.from = next;
        if next.is_none() {
            self.next_at = Instant::now() + SWEEP_EVERY;
        }
        // The rest is found by the next sweep.
        expired.truncate(SWEEP_DELIVERIES);
        (!expired.is_empty()).then_some(Command::Expire(expired))
    }

    fn pause(&self) -> Duration {
        match self.from {
            Some(_) => Duration::ZERO,
            None => self.next_at.saturating_duration_since(Instant::now()),
        }
    }
}
