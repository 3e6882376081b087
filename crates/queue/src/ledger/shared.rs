//! The state of one ledger group on this node, shared by Raft, the proposer and the service.
//!
//! Raft applies entries; while the node leads, the dispatcher and the outboxes are updated under the same lock, so that
//! they never miss an effect.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use postroad_core::{BounceClass, GroupId, PoolId};
use postroad_directory::View;
use postroad_ledger::{
    Dispatcher, Ledger, Limits,
    command::{Effect, Reply, SourceGrant},
    dispatch::Weighted,
    event::{Event, EventKind, NextState},
    lanes::LaneReports,
};
use postroad_proto::{log::Batch, queue as wire};
use tokio::sync::{Notify, watch};

use super::{mail_log, outbox::Outboxes};
use crate::metrics::LedgerMetrics;

/// Bytes of events in one batch, unless one event is larger.
const EVENTS_BYTES_MAX: usize = 4 << 20;

/// A ledger and, while this node leads, its dispatcher and outboxes.
pub(crate) struct SharedLedger {
    pub(crate) id: GroupId,
    pub(crate) limits: Limits,
    pub(crate) metrics: LedgerMetrics,
    state: Mutex<State>,
    /// Notified when there may be something to propose.
    pub(crate) wake: Notify,
    /// The number of the next event.
    events: watch::Sender<u64>,
}

struct State {
    ledger: Ledger,
    leading: Option<Leading>,
    /// Reused for every command.
    effects: Vec<Effect>,
}

/// What only the leader has: rebuilt from the ledger when this node becomes leader.
pub(crate) struct Leading {
    pub(crate) term: u64,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) outboxes: Outboxes,
    /// What outbound nodes report of their lanes.
    pub(crate) lanes: LaneReports,
    /// The directory, for names.
    pub(crate) view: Arc<View>,
}

impl SharedLedger {
    pub(crate) fn new(id: GroupId, limits: Limits) -> Self {
        let state = State { ledger: Ledger::new(limits), leading: None, effects: Vec::new() };
        let metrics = LedgerMetrics::new(id);
        let (events, _) = watch::channel(1);
        Self { id, limits, metrics, state: Mutex::new(state), wake: Notify::new(), events }
    }

    /// Applies a committed batch; assignments are sent from here and from nowhere else.
    pub(crate) fn apply(&self, index: u64, batch: Batch) -> Vec<Reply> {
        let mut replies = Vec::with_capacity(batch.commands.len());
        let (mut assigned, mut finished) = (0, 0);
        let mut state = self.state.lock();
        let State { ledger, leading, effects } = &mut *state;
        for command in batch.commands {
            let first_event = ledger.event_range().1;
            replies.push(ledger.apply(index, batch.at, command, effects));
            if let Some(leading) = leading {
                self.note_unconfirmed(ledger, first_event);
                if postroad_telemetry::mail_log::is_enabled() {
                    mail_log::write(ledger, &leading.view, first_event, effects);
                }
            }
            for effect in effects.drain(..) {
                assigned += u64::from(matches!(effect, Effect::Assigned { .. }));
                finished += u64::from(matches!(effect, Effect::Finished(_)));
                if let Some(leading) = leading {
                    leading.dispatcher.handle(ledger, &effect);
                    leading.outboxes.handle(&effect);
                }
            }
        }
        if let Some(leading) = leading {
            leading.outboxes.wake();
        }
        let next_event = ledger.event_range().1;
        drop(state);
        self.metrics.assigned.increment(assigned);
        self.metrics.finished.increment(finished);
        self.events.send_if_modified(|known| std::mem::replace(known, next_event) != next_event);
        replies
    }

    /// Counts and logs the deliveries that stop because their receivers may have as many copies as are allowed.
    fn note_unconfirmed(&self, ledger: &Ledger, from: u64) {
        for event in ledger.events(from) {
            let EventKind::Attempt(attempt) = &event.kind else { continue };
            if attempt.outcome.class != Some(BounceClass::Unconfirmed) {
                continue;
            }
            self.metrics.unconfirmed.increment(1);
            let message = attempt.delivery.message;
            match attempt.next_state {
                NextState::Held => {
                    tracing::warn!(%message, "delivery held: its receiver may have as many copies as are allowed, and the last attempt was lost on our side");
                }
                _ => {
                    tracing::warn!(%message, remote = %attempt.remote, "delivery stopped: the receiver never confirms and may have copies");
                }
            }
        }
    }

    /// Replaces the state with that of a snapshot. Only a follower receives one.
    pub(crate) fn replace(&self, ledger: Ledger) {
        let next_event = ledger.event_range().1;
        let mut state = self.state.lock();
        state.ledger = ledger;
        state.leading = None;
        drop(state);
        self.events.send_replace(next_event);
    }

    /// Starts leading: builds the dispatcher from the ledger.
    pub(crate) fn lead(&self, term: u64, view: &Arc<View>) {
        let mut state = self.state.lock();
        let mut leading = Leading {
            term,
            dispatcher: Dispatcher::rebuild(&state.ledger),
            outboxes: Outboxes::new(term),
            lanes: LaneReports::default(),
            view: view.clone(),
        };
        leading.update_view(&state.ledger, view);
        state.leading = Some(leading);
    }

    /// Stops leading; the sessions of outbound nodes end with their outboxes.
    pub(crate) fn follow(&self) {
        self.state.lock().leading = None;
    }

    pub(crate) fn with_ledger<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.state.lock().ledger)
    }

    /// Runs `act` while this node leads; `None` when it does not.
    pub(crate) fn with_leading<T>(&self, act: impl FnOnce(&Ledger, &mut Leading) -> T) -> Option<T> {
        let State { ledger, leading, .. } = &mut *self.state.lock();
        leading.as_mut().map(|leading| act(ledger, leading))
    }

    /// Watches the number of the next event.
    pub(crate) fn subscribe_events(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    /// Returns up to `max` events from number `from` on, for the wire, and no more than fit a frame.
    pub(crate) fn events_from(&self, from: u64, max: usize) -> Vec<wire::Event> {
        let mut bytes = 0;
        self.with_ledger(|ledger| {
            let fits = |event: &&Event| {
                let first = bytes == 0;
                bytes += event_bytes(event);
                first || bytes < EVENTS_BYTES_MAX
            };
            ledger.events(from).take(max).take_while(fits).map(wire::Event::from).collect()
        })
    }
}

impl Leading {
    /// Updates pools, owners of sources and suspensions from the directory.
    pub(crate) fn update_view(&mut self, ledger: &Ledger, view: &Arc<View>) {
        self.view = view.clone();
        let members =
            |members: &[_]| members.iter().map(|(source, weight)| weighted(*source, *weight)).collect();
        let pools: BTreeMap<PoolId, Vec<Weighted>> =
            view.pools().map(|pool| (pool.id, members(&pool.members))).collect();
        let grant = |source: &Arc<postroad_directory::Source>| {
            let owner = source.owner?;
            // A node that has restarted owns nothing under the earlier epochs.
            (view.incarnation(owner.node) == Some(owner.incarnation)).then_some(SourceGrant {
                source: source.id,
                epoch: source.epoch,
                node: owner.node,
            })
        };
        let owners: Vec<SourceGrant> = view.sources().filter_map(grant).collect();
        self.dispatcher.set_pools(&pools, &owners);
        let suspended = view.suspensions().map(|suspension| suspension.scope.clone()).collect();
        self.dispatcher.set_suspended(ledger, suspended);
        // An owner may have sent its windows before this node knew its epoch.
        self.outboxes.reapply_windows(&mut self.dispatcher);
    }
}

/// The most bytes an event takes on the wire.
fn event_bytes(event: &Event) -> usize {
    let recipients = match &event.kind {
        EventKind::Accepted(accepted) => accepted.recipients.len(),
        _ => 0,
    };
    1500 + recipients * 256
}

fn weighted(source: postroad_core::SourceId, weight: u32) -> Weighted {
    Weighted { source, weight }
}
