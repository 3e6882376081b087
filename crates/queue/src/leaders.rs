//! The leaders of all groups, as this node knows them.

use std::collections::BTreeMap;

use futures::{StreamExt, stream::select_all};
use postroad_core::{GroupId, NodeId};
use postroad_proto::queue::{GroupLeader, LeaderView};
use postroad_raft::Status;
use postroad_telemetry::Component;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::metrics;

/// A cheap handle to the view.
#[derive(Clone)]
pub(crate) struct Leaders(watch::Receiver<LeaderView>);

/// Keeps the view up to date.
pub(crate) struct LeadersTask {
    statuses: BTreeMap<GroupId, watch::Receiver<Status>>,
    view: watch::Sender<LeaderView>,
    ready: Component,
}

impl Leaders {
    /// Makes the view; `ready` is set while every group has a known leader.
    pub(crate) fn new(
        node: NodeId,
        statuses: BTreeMap<GroupId, watch::Receiver<Status>>,
        ready: Component,
    ) -> (Self, LeadersTask) {
        let (view, watched) = watch::channel(LeaderView { node: node.0, groups: Vec::new() });
        (Self(watched), LeadersTask { statuses, view, ready })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<LeaderView> {
        self.0.clone()
    }
}

impl LeadersTask {
    /// Updates the view until every group has stopped.
    pub(crate) async fn run(self) {
        let node = NodeId(self.view.borrow().node);
        let mut known: BTreeMap<_, _> = self.statuses.keys().map(|group| (*group, (0, None))).collect();
        let changes = self.statuses.into_iter();
        let changes =
            changes.map(|(group, status)| WatchStream::new(status).map(move |status| (group, status)));
        let mut changes = select_all(changes);
        while let Some((group, status)) = changes.next().await {
            if status.stopped {
                tracing::error!(%group, "the group has stopped on this node");
            }
            metrics::leadership(group, status.leading && !status.stopped, status.term);
            known.insert(group, leader(node, &status));
            let groups: Vec<GroupLeader> =
                known.iter().map(|(group, leader)| wire(*group, *leader)).collect();
            self.ready.set_ready(groups.iter().all(|group| group.leader != 0));
            self.view.send_if_modified(|view| std::mem::replace(&mut view.groups, groups.clone()) != groups);
        }
        self.ready.set_ready(false);
    }
}

/// Returns term and leader. This node counts as leader only once it has applied everything committed before its term.
fn leader(node: NodeId, status: &Status) -> (u64, Option<NodeId>) {
    let leader = status.leader.filter(|leader| *leader != node || status.leading);
    (status.term, leader.filter(|_| !status.stopped))
}

fn wire(group: GroupId, (term, leader): (u64, Option<NodeId>)) -> GroupLeader {
    GroupLeader { group: u32::from(group.0), term, leader: leader.map_or(0, |leader| leader.0) }
}
