//! What waits to be sent to outbound nodes, one outbox for each session.
//!
//! An outbox holds no more than what is assigned to its node, which its windows bound.
//! A node without a session has none: what is assigned to it is found in the state when it comes back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use postroad_core::{Epoch, MessageId, NodeId, SourceId};
use postroad_directory::View;
use postroad_ledger::{
    AssignedView, BodyRef, Dispatcher, Ledger,
    command::{AttemptId, Effect, Key, Lane},
    dispatch::Windows,
};
use postroad_proto::{
    CONTENT_BYTES_MAX,
    queue::{self as wire, Hello},
};
use tokio::sync::Notify;

/// Deliveries in one frame, and bytes of their contents.
const FRAME_DELIVERIES_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 1 << 20;

/// The windows one owner has stated.
pub(crate) type Stated = Vec<(SourceId, Epoch, Windows)>;

/// The outboxes of all nodes that have a session with this leader.
pub(crate) struct Outboxes {
    by_node: BTreeMap<NodeId, Outbox>,
    last_session: u64,
}

struct Outbox {
    session: u64,
    waiting: VecDeque<(Key, AttemptId)>,
    /// Attempts whose assignment has been sent, or is to be: then its recall follows it.
    recalls: VecDeque<AttemptId>,
    ahead: Ahead,
    has_new: bool,
    wake: Arc<Notify>,
    windows: BTreeMap<SourceId, (Epoch, Windows)>,
}

/// Frames of assignments that are with the node and that it has no room for yet.
///
/// They are bounded so that it can read on: what else it is told does not wait behind contents.
struct Ahead {
    /// 0 for any number.
    max: u64,
    sent: u64,
    taken: u64,
}

/// A session that has begun.
pub(crate) struct Opened {
    /// A later session of the same node has a higher number, and ends this one.
    pub(crate) session: u64,
    pub(crate) wake: Arc<Notify>,
}

/// The session was replaced by a later one of the same node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replaced;

/// What is sent next.
pub(crate) enum Frame {
    Assignments(Vec<Outbound>),
    Recalls(Vec<wire::AttemptId>),
}

/// An assignment whose content is still to be fetched.
pub(crate) struct Outbound {
    pub(crate) message: MessageId,
    lane: Lane,
    pub(crate) assignment: wire::Assignment,
    /// Where the content is; empty where the owner asks for it later.
    pub(crate) content: Vec<BodyRef>,
}

impl Outboxes {
    /// For a leadership; sessions of an earlier one have other numbers, so that their end is not taken for one of these.
    pub(crate) fn new(term: u64) -> Self {
        Self { by_node: BTreeMap::new(), last_session: term << 32 }
    }

    /// Begins a session: everything that is assigned to the node and that it does not hold is sent again.
    pub(crate) fn open(
        &mut self,
        ledger: &Ledger,
        view: &View,
        node: NodeId,
        hello: &Hello,
        held: &BTreeSet<AttemptId>,
    ) -> Opened {
        self.last_session += 1;
        let (mut waiting, mut recalls) = (VecDeque::new(), VecDeque::new());
        for source in view.sources_of(node, hello.incarnation) {
            let assigned = ledger.assigned_to(source.id).filter_map(|delivery| ledger.key(delivery));
            for (key, assigned) in assigned.filter_map(|key| Some((key, ledger.assigned(key)?))) {
                // What was assigned under an earlier epoch went to somebody who will not report any more.
                if assigned.lane.node != node || assigned.id.epoch < source.epoch {
                    continue;
                }
                if !held.contains(&assigned.id) {
                    waiting.push_back((key, assigned.id));
                } else if assigned.recalled {
                    recalls.push_back(assigned.id);
                }
            }
        }
        let wake = Arc::new(Notify::new());
        wake.notify_one();
        let opened = Opened { session: self.last_session, wake: wake.clone() };
        let outbox = Outbox {
            session: opened.session,
            waiting,
            recalls,
            ahead: Ahead { max: hello.assignments_ahead_max.into(), sent: 0, taken: 0 },
            has_new: false,
            wake,
            windows: BTreeMap::new(),
        };
        if let Some(old) = self.by_node.insert(node, outbox) {
            old.wake.notify_one();
        }
        opened
    }

    /// Ends a session, unless a later one has taken its place; returns true when the node has none now.
    pub(crate) fn close(&mut self, node: NodeId, session: u64) -> bool {
        let is_current = self.by_node.get(&node).is_some_and(|outbox| outbox.session == session);
        is_current && self.by_node.remove(&node).is_some()
    }

    /// Takes over the windows a node states, and remembers them for the session.
    pub(crate) fn state_windows(
        &mut self,
        node: NodeId,
        session: u64,
        stated: Stated,
        dispatcher: &mut Dispatcher,
    ) {
        let Some(outbox) = self.by_node.get_mut(&node).filter(|outbox| outbox.session == session) else {
            return;
        };
        for (source, epoch, windows) in stated {
            dispatcher.set_windows(Lane { source, epoch, node }, windows.clone());
            outbox.windows.insert(source, (epoch, windows));
        }
    }

    /// Tells the dispatcher again what every node has stated.
    pub(crate) fn restate_windows(&self, dispatcher: &mut Dispatcher) {
        for (node, outbox) in &self.by_node {
            for (source, (epoch, windows)) in &outbox.windows {
                let lane = Lane { source: *source, epoch: *epoch, node: *node };
                dispatcher.set_windows(lane, windows.clone());
            }
        }
    }

    pub(crate) fn handle(&mut self, effect: &Effect) {
        let node = match effect {
            Effect::Assigned { lane, .. } | Effect::Recall { lane, .. } => lane.node,
            Effect::Waiting { .. } | Effect::Freed { .. } | Effect::Finished(_) => return,
        };
        let Some(outbox) = self.by_node.get_mut(&node) else { return };
        match effect {
            Effect::Assigned { key, id, .. } => outbox.waiting.push_back((*key, *id)),
            Effect::Recall { id, .. } => outbox.recalls.push_back(*id),
            Effect::Waiting { .. } | Effect::Freed { .. } | Effect::Finished(_) => return,
        }
        outbox.has_new = true;
    }

    /// The node has found room for so many frames of assignments in all.
    pub(crate) fn taken(&mut self, node: NodeId, session: u64, frames: u64) {
        if let Some(outbox) = self.by_node.get_mut(&node).filter(|outbox| outbox.session == session) {
            outbox.ahead.taken = frames.min(outbox.ahead.sent);
            outbox.wake.notify_one();
        }
    }

    /// Wakes the sessions whose outbox has something new.
    pub(crate) fn wake(&mut self) {
        for outbox in self.by_node.values_mut() {
            if std::mem::take(&mut outbox.has_new) {
                outbox.wake.notify_one();
            }
        }
    }

    /// Returns how many nodes have a session.
    pub(crate) fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Takes what goes into the next frame of a session; `None` when nothing waits.
    pub(crate) fn take_frame(
        &mut self,
        ledger: &Ledger,
        node: NodeId,
        session: u64,
    ) -> Result<Option<Frame>, Replaced> {
        let outbox =
            self.by_node.get_mut(&node).filter(|outbox| outbox.session == session).ok_or(Replaced)?;
        if !outbox.recalls.is_empty() {
            return Ok(Some(Frame::Recalls(outbox.take_recalls())));
        }
        if outbox.ahead.is_used_up() {
            return Ok(None);
        }
        let assignments = outbox.take_assignments(ledger);
        if assignments.is_empty() {
            return Ok(None);
        }
        outbox.ahead.sent += 1;
        Ok(Some(Frame::Assignments(assignments)))
    }
}

impl Ahead {
    fn is_used_up(&self) -> bool {
        self.max != 0 && self.sent - self.taken >= self.max
    }
}

impl Outbox {
    fn take_recalls(&mut self) -> Vec<wire::AttemptId> {
        let count = self.recalls.len().min(FRAME_DELIVERIES_MAX);
        self.recalls.drain(..count).map(Into::into).collect()
    }

    /// Takes assignments up to the bounds of a frame; those that have moved on since are dropped.
    ///
    /// A recall that came before its assignment was sent went nowhere, and is sent behind it.
    fn take_assignments(&mut self, ledger: &Ledger) -> Vec<Outbound> {
        let mut assignments = Vec::new();
        let (mut deliveries, mut bytes) = (0, 0);
        while deliveries < FRAME_DELIVERIES_MAX
            && bytes < FRAME_BYTES_MAX
            && let Some((key, id)) = self.waiting.pop_front()
        {
            let Some(view) = ledger.assigned(key).filter(|view| view.id == id) else { continue };
            bytes += add(&mut assignments, &view);
            deliveries += 1;
            if view.recalled {
                self.recalls.push_back(id);
            }
        }
        assignments
    }
}

/// Recipients of one message that go out from one source to one site travel as one assignment; returns the bytes added.
fn add(assignments: &mut Vec<Outbound>, view: &AssignedView<'_>) -> usize {
    if let Some(last) = assignments.last_mut()
        && last.message == view.id.delivery.message
        && last.lane == view.lane
        && last.assignment.site == view.site
    {
        last.assignment.recipients.push(view.into());
        return 0;
    }
    let bytes = view.size as usize;
    let content = if bytes <= CONTENT_BYTES_MAX { view.content.to_vec() } else { Vec::new() };
    let travels = if content.is_empty() { 0 } else { bytes };
    assignments.push(Outbound {
        message: view.id.delivery.message,
        lane: view.lane,
        assignment: view.into(),
        content,
    });
    travels
}
