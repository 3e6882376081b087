//! Assignments and recalls waiting to be sent to outbound nodes: one outbox for each session.
//!
//! An outbox holds at most what is assigned to its node, which the node's windows bound.
//! A node without a session has no outbox: its assignments are found in the ledger when it reconnects.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use postroad_core::{Epoch, MessageId, NodeId, SourceId};
use postroad_directory::View;
use postroad_ledger::{
    AssignedView, BodyRef, Dispatcher, Ledger,
    command::{AttemptId, Effect, Key, SourceGrant},
    dispatch::Windows,
};
use postroad_proto::{
    CONTENT_BYTES_MAX,
    queue::{self as wire, Hello},
};
use tokio::sync::{Notify, oneshot};

use super::probes::Probes;

/// Deliveries in one frame, and bytes of their contents.
const FRAME_DELIVERIES_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Windows as an outbound node sent them.
pub(crate) type SourceWindows = Vec<(SourceId, Epoch, Windows)>;

/// The outboxes of all nodes that have a session with this leader.
pub(crate) struct Outboxes {
    by_node: BTreeMap<NodeId, Outbox>,
    last_session: u64,
}

struct Outbox {
    session: u64,
    waiting: VecDeque<(Key, AttemptId)>,
    /// Recalls to send, each after its assignment.
    recalls: VecDeque<AttemptId>,
    credit: Credit,
    has_new: bool,
    wake: Arc<Notify>,
    windows: BTreeMap<SourceId, (Epoch, Windows)>,
    probes: Probes,
}

/// Flow control: frames of assignments that the node has not made room for yet.
///
/// They are bounded so that the node keeps reading: acknowledgements and recalls do not wait behind contents.
struct Credit {
    /// 0 for no limit.
    max: u64,
    sent: u64,
    returned: u64,
}

/// A session that was opened.
pub(crate) struct NewSession {
    /// A later session of the same node has a higher number, and ends this one.
    pub(crate) session: u64,
    pub(crate) wake: Arc<Notify>,
}

/// The session was replaced by a later session of the same node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replaced;

/// The next frame to send.
pub(crate) enum Frame {
    Assignments(Vec<PendingAssignment>),
    Recalls(Vec<wire::AttemptId>),
    Probe(wire::Probe),
}

/// An assignment whose content has not been read yet.
pub(crate) struct PendingAssignment {
    pub(crate) message: MessageId,
    grant: SourceGrant,
    pub(crate) assignment: wire::Assignment,
    /// Where the content is; empty where the owner requests it separately.
    pub(crate) content: Vec<BodyRef>,
}

impl Outboxes {
    /// Makes the outboxes of a term; session numbers of different terms differ.
    pub(crate) fn new(term: u64) -> Self {
        Self { by_node: BTreeMap::new(), last_session: term << 32 }
    }

    /// Opens a session: everything assigned to the node that is not among its `pending` attempts is sent again.
    pub(crate) fn open(
        &mut self,
        ledger: &Ledger,
        view: &View,
        node: NodeId,
        hello: &Hello,
        pending: &BTreeSet<AttemptId>,
    ) -> NewSession {
        self.last_session += 1;
        let (mut waiting, mut recalls) = (VecDeque::new(), VecDeque::new());
        for source in view.sources_of(node, hello.incarnation) {
            let assigned = ledger.assigned_to(source.id).filter_map(|delivery| ledger.key(delivery));
            for (key, assigned) in assigned.filter_map(|key| Some((key, ledger.assigned(key)?))) {
                // Assignments of an earlier epoch went to an owner that can no longer report.
                if assigned.grant.node != node || assigned.id.epoch < source.epoch {
                    continue;
                }
                if !pending.contains(&assigned.id) {
                    waiting.push_back((key, assigned.id));
                } else if assigned.recalled {
                    recalls.push_back(assigned.id);
                }
            }
        }
        let wake = Arc::new(Notify::new());
        wake.notify_one();
        let opened = NewSession { session: self.last_session, wake: wake.clone() };
        let outbox = Outbox {
            session: opened.session,
            waiting,
            recalls,
            credit: Credit { max: hello.credit_frames.into(), sent: 0, returned: 0 },
            has_new: false,
            wake,
            windows: BTreeMap::new(),
            probes: Probes::default(),
        };
        if let Some(old) = self.by_node.insert(node, outbox) {
            old.wake.notify_one();
        }
        opened
    }

    /// Closes a session, unless a later one replaced it; returns true when the node has no session now.
    pub(crate) fn close(&mut self, node: NodeId, session: u64) -> bool {
        let is_current = self.by_node.get(&node).is_some_and(|outbox| outbox.session == session);
        is_current && self.by_node.remove(&node).is_some()
    }

    /// Sets the windows that a node sent, and keeps them for the session.
    pub(crate) fn set_windows(
        &mut self,
        node: NodeId,
        session: u64,
        windows: SourceWindows,
        dispatcher: &mut Dispatcher,
    ) {
        let Some(outbox) = self.by_node.get_mut(&node).filter(|outbox| outbox.session == session) else {
            return;
        };
        for (source, epoch, windows) in windows {
            dispatcher.set_windows(SourceGrant { source, epoch, node }, windows.clone());
            outbox.windows.insert(source, (epoch, windows));
        }
    }

    /// Sets every node's windows again, after sources or epochs changed.
    pub(crate) fn reapply_windows(&self, dispatcher: &mut Dispatcher) {
        for (node, outbox) in &self.by_node {
            for (source, (epoch, windows)) in &outbox.windows {
                let grant = SourceGrant { source: *source, epoch: *epoch, node: *node };
                dispatcher.set_windows(grant, windows.clone());
            }
        }
    }

    pub(crate) fn handle(&mut self, effect: &Effect) {
        let node = match effect {
            Effect::Assigned { grant, .. } | Effect::Recall { grant, .. } => grant.node,
            Effect::Queued { .. } | Effect::Freed { .. } | Effect::Finished(_) => return,
        };
        let Some(outbox) = self.by_node.get_mut(&node) else { return };
        match effect {
            Effect::Assigned { key, id, .. } => outbox.waiting.push_back((*key, *id)),
            Effect::Recall { id, .. } => outbox.recalls.push_back(*id),
            Effect::Queued { .. } | Effect::Freed { .. } | Effect::Finished(_) => return,
        }
        outbox.has_new = true;
    }

    /// The node has made room for this many frames of assignments, in this session.
    pub(crate) fn return_credit(&mut self, node: NodeId, session: u64, frames: u64) {
        if let Some(outbox) = self.by_node.get_mut(&node).filter(|outbox| outbox.session == session) {
            outbox.credit.returned = frames.min(outbox.credit.sent);
            outbox.wake.notify_one();
        }
    }

    /// Returns true while this is the node's latest session.
    pub(crate) fn is_current(&self, node: NodeId, session: u64) -> bool {
        self.by_node.get(&node).is_some_and(|outbox| outbox.session == session)
    }

    /// Asks a node to probe a domain; `None` when it has no session, or too many probes.
    pub(crate) fn probe(
        &mut self,
        node: NodeId,
        probe: wire::Probe,
    ) -> Option<oneshot::Receiver<wire::ProbeResult>> {
        let outbox = self.by_node.get_mut(&node)?;
        let answer = outbox.probes.ask(probe)?;
        outbox.wake.notify_one();
        Some(answer)
    }

    /// Takes the result of a probe; that of a caller who has gone is dropped.
    pub(crate) fn finish_probe(&mut self, node: NodeId, session: u64, result: wire::ProbeResult) {
        if let Some(outbox) = self.by_node.get_mut(&node).filter(|outbox| outbox.session == session) {
            outbox.probes.finish(result);
        }
    }

    /// Wakes the sessions whose outbox has grown.
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

    /// Takes the next frame of a session; `None` when nothing waits.
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
        if let Some(probe) = outbox.probes.next() {
            return Ok(Some(Frame::Probe(probe)));
        }
        if outbox.credit.is_exhausted() {
            return Ok(None);
        }
        let assignments = outbox.take_assignments(ledger);
        if assignments.is_empty() {
            return Ok(None);
        }
        outbox.credit.sent += 1;
        Ok(Some(Frame::Assignments(assignments)))
    }
}

impl Credit {
    fn is_exhausted(&self) -> bool {
        self.max != 0 && self.sent - self.returned >= self.max
    }
}

impl Outbox {
    fn take_recalls(&mut self) -> Vec<wire::AttemptId> {
        let count = self.recalls.len().min(FRAME_DELIVERIES_MAX);
        self.recalls.drain(..count).map(Into::into).collect()
    }

    /// Takes assignments up to the bounds of a frame; drops those that no longer apply.
    ///
    /// A recall that was sent before its assignment had no effect, so it is sent again after it.
    fn take_assignments(&mut self, ledger: &Ledger) -> Vec<PendingAssignment> {
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

/// Adds a recipient; recipients of one message from one source to one site and of one pool share an assignment. Returns the bytes added.
fn add(assignments: &mut Vec<PendingAssignment>, view: &AssignedView<'_>) -> usize {
    if let Some(last) = assignments.last_mut()
        && last.message == view.id.delivery.message
        && last.grant == view.grant
        && last.assignment.site == view.site
        && last.assignment.retry_now == view.retry_now
        && last.assignment.pool == view.pool.0
    {
        last.assignment.recipients.push(view.into());
        return 0;
    }
    let bytes = view.size as usize;
    let content = if bytes <= CONTENT_BYTES_MAX { view.content.to_vec() } else { Vec::new() };
    let content_bytes = if content.is_empty() { 0 } else { bytes };
    assignments.push(PendingAssignment {
        message: view.id.delivery.message,
        grant: view.grant,
        assignment: view.into(),
        content,
    });
    content_bytes
}
