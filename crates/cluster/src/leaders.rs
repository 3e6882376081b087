//! The leader of each group, as reported by the queue nodes.
//!
//! One task per queue node follows that node's view; the highest term wins.
//! A view is dropped when its stream breaks: a node that cannot be reached is of no use as a leader.

use std::{collections::BTreeMap, time::Duration};

use postroad_core::{GroupId, NodeId};
use postroad_proto::queue::{GroupLeader, LeadersRequest, queue_service_client::QueueServiceClient};
use tokio::{sync::watch, task::JoinSet, time};
use tonic::transport::Channel;

/// The connections to all queue nodes, by node.
pub type Endpoints = BTreeMap<NodeId, Channel>;

/// A leader and the term it leads in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The term; a leader of a higher one replaces it.
    pub term: u64,
    /// The node.
    pub node: NodeId,
}

/// The leader of every group that has one.
pub type LeaderTable = BTreeMap<GroupId, Leader>;

/// The last view of each reachable node.
type Views = BTreeMap<NodeId, Vec<GroupLeader>>;

/// Pause before a node that could not be reached is asked again.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);

/// Follows the leaders of all groups until it is dropped.
#[derive(Debug)]
pub struct LeaderWatch {
    table: watch::Receiver<LeaderTable>,
    _followers: JoinSet<()>,
}

impl LeaderWatch {
    /// Starts to follow `endpoints`.
    #[must_use]
    pub fn start(endpoints: &Endpoints) -> Self {
        let (views, mut changed) = watch::channel(Views::new());
        let (publish, table) = watch::channel(LeaderTable::new());
        let mut followers = JoinSet::new();
        for (node, channel) in endpoints {
            followers.spawn(follow(*node, channel.clone(), views.clone()));
        }
        followers.spawn(async move {
            while changed.changed().await.is_ok() {
                let merged = merge(&changed.borrow_and_update());
                publish.send_if_modified(|table| {
                    let differs = *table != merged;
                    *table = merged;
                    differs
                });
            }
        });
        Self { table, _followers: followers }
    }

    /// Returns a receiver of the table, which sees every later change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<LeaderTable> {
        self.table.clone()
    }
}

async fn follow(node: NodeId, channel: Channel, views: watch::Sender<Views>) {
    let mut client = QueueServiceClient::new(channel);
    loop {
        if let Ok(response) = client.leaders(LeadersRequest {}).await {
            let mut stream = response.into_inner();
            while let Ok(Some(view)) = stream.message().await {
                views.send_modify(|views| drop(views.insert(node, view.groups)));
            }
            views.send_modify(|views| drop(views.remove(&node)));
        }
        time::sleep(RECONNECT_AFTER).await;
    }
}

/// Takes the leader with the highest term of each group, if it can be reached.
fn merge(views: &Views) -> LeaderTable {
    let mut table = LeaderTable::new();
    for said in views.values().flatten() {
        let Ok(group) = u16::try_from(said.group).map(GroupId) else { continue };
        let leader = Leader { term: said.term, node: NodeId(said.leader) };
        let known = table.get(&group).is_some_and(|known: &Leader| known.term >= leader.term);
        if said.leader != 0 && !known {
            table.insert(group, leader);
        }
    }
    table.retain(|_, leader| views.contains_key(&leader.node));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group, a term and a leader.
    type Said = (u32, u64, u64);

    /// `views` is what each node says.
    fn check(views: &[(u64, &[Said])], expected: &[(u16, u64, u64)]) {
        let said = |groups: &[Said]| {
            groups
                .iter()
                .map(|(group, term, leader)| GroupLeader { group: *group, term: *term, leader: *leader })
                .collect()
        };
        let views = views.iter().map(|(node, groups)| (NodeId(*node), said(groups))).collect();
        let expected: LeaderTable = expected
            .iter()
            .map(|(group, term, node)| (GroupId(*group), Leader { term: *term, node: NodeId(*node) }))
            .collect();
        assert_eq!(merge(&views), expected);
    }

    #[test]
    fn the_highest_term_wins() {
        check(&[(1, &[(1, 3, 1)]), (2, &[(1, 4, 2)]), (3, &[(1, 4, 2)])], &[(1, 4, 2)]);
    }

    #[test]
    fn an_unreachable_leader_is_not_listed() {
        check(&[(2, &[(1, 4, 1), (2, 1, 2)])], &[(2, 1, 2)]);
    }

    #[test]
    fn a_node_without_a_known_leader_changes_nothing() {
        check(&[(1, &[(1, 3, 1)]), (2, &[(1, 5, 0)])], &[(1, 3, 1)]);
    }
}
