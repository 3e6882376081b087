//! Forming a group, once all voters have answered, and rejoining it with a new disk (docs/adr/0005).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{ChangeMembers, Membership, Raft, ServerState, async_runtime::WatchReceiver as _};
use postroad_core::{GroupId, NodeId};
use postroad_proto::raft as pb;
use postroad_storage::{DiskId, Log, Origin};
use tonic::{Code, Request, Status};

use crate::{
    group::answered_recently,
    host::Host,
    network::Network,
    node::Voter,
    types::{Member, Types},
};

const RETRY: Duration = Duration::from_millis(250);

/// Timeout of a call to another node.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A learner that lacks no more than this is made a voter; it receives the rest meanwhile.
const CAUGHT_UP_BYTES: u64 = 4 << 20;

/// This node becoming a member of one group.
pub(crate) struct Joining {
    pub(crate) group: GroupId,
    pub(crate) raft: Raft<Types, Host>,
    pub(crate) host: Host,
    pub(crate) log: Log,
    pub(crate) network: Network,
    pub(crate) voters: Arc<[Voter]>,
}

/// The answers of the other voters.
enum Greetings {
    AllNew(BTreeMap<u64, Member>),
    AlreadyFormed(NodeId),
    Incomplete,
}

impl Joining {
    /// Forms or joins the group, and returns when this node has nothing left to do.
    pub(crate) async fn run(self) {
        let is_first = self.voters.iter().map(|voter| voter.node).min() == Some(self.log.identity().node);
        match self.log.disk().origin {
            Origin::Form if is_first => self.form().await,
            // The first node forms the group with all others as members.
            Origin::Form => {}
            Origin::Rejoin => self.rejoin().await,
        }
    }

    async fn form(&self) {
        let mut was_logged = false;
        // An error means that the group has stopped.
        while let Ok(false) = self.raft.is_initialized().await {
            match self.greet_all().await {
                Greetings::AllNew(members) => {
                    tracing::info!(group = %self.group, "all queue nodes are new: forming the group");
                    // An error means that the group exists by now.
                    let _ = self.raft.initialize(members).await;
                    return;
                }
                Greetings::AlreadyFormed(peer) if !std::mem::replace(&mut was_logged, true) => {
                    let group = self.group;
                    tracing::error!(%group, %peer, "the cluster exists already: format this node with postroad cluster rejoin instead of form");
                }
                Greetings::AlreadyFormed(_) | Greetings::Incomplete => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks every other voter for its disk, and whether it is new too.
    async fn greet_all(&self) -> Greetings {
        let own = self.log.identity().node;
        let mut members = BTreeMap::new();
        for voter in self.voters.iter() {
            let disk = match voter.node == own {
                true => self.log.disk().id.0,
                false => match self.greet(voter).await {
                    Some(greeting) if greeting.may_form => greeting.disk,
                    Some(_) => return Greetings::AlreadyFormed(voter.node),
                    None => return Greetings::Incomplete,
                },
            };
            members.insert(voter.node.0, Member { address: voter.address.clone(), disk });
        }
        Greetings::AllNew(members)
    }

    async fn greet(&self, voter: &Voter) -> Option<pb::Greeting> {
        let (mut service, request) = self.network.request_without_disk(voter, pb::GreetRequest {});
        let answer = tokio::time::timeout(ANSWER_WITHIN, service.greet(request)).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// Asks the leader until this node is a voter; after a later restart it is one already.
    async fn rejoin(&self) {
        let mut was_missing = false;
        while !votes(&self.host) {
            // Membership is read from this node's own log.
            if self.ask_all().await == Some(false) && !std::mem::replace(&mut was_missing, true) {
                let (group, disk) = (self.group, self.log.disk().id);
                tracing::warn!(%group, %disk, "this node has a new disk and is joining");
            }
            tokio::time::sleep(RETRY).await;
        }
        if was_missing {
            tracing::info!(group = %self.group, disk = %self.log.disk().id, "joined: this node is a voter");
        }
    }

    /// Asks every voter to let this node join; returns whether it votes, if a leader answered.
    async fn ask_all(&self) -> Option<bool> {
        let node = self.log.identity().node;
        let mut votes = None;
        for voter in self.voters.iter().filter(|voter| voter.node != node) {
            let request = pb::RejoinRequest { node: node.0, disk: self.log.disk().id.0 };
            let (mut service, request) = self.network.request_without_disk(voter, request);
            // Nodes that are not the leader refuse.
            match tokio::time::timeout(ANSWER_WITHIN, service.rejoin(request)).await {
                Ok(Ok(answer)) => votes = Some(answer.into_inner().votes),
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                    tracing::warn!(group = %self.group, error = status.message(), "join refused");
                }
                _ => {}
            }
        }
        votes
    }
}

/// Returns true when this node is a voter with its current disk, as of the last entry it applied.
pub(crate) fn votes(host: &Host) -> bool {
    let (node, disk) = (host.log.identity().node, host.log.disk().id);
    next_step(host.state.lock().membership.membership(), node, disk, false) == JoinStep::None
}

/// What the leader does next to make a node with a new disk a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JoinStep {
    /// Complete a membership change that an earlier leader began.
    FinishChange,
    /// Remove the node with its old disk.
    Remove,
    /// Add the node as a learner.
    Add,
    /// Wait until it has caught up.
    Wait,
    /// Make it a voter.
    Promote,
    /// It is a voter: done.
    None,
}

fn next_step(
    membership: &Membership<u64, Member>,
    node: NodeId,
    disk: DiskId,
    is_caught_up: bool,
) -> JoinStep {
    if membership.get_joint_config().len() > 1 {
        return JoinStep::FinishChange;
    }
    let votes = membership.voter_ids().any(|voter| voter == node.0);
    match membership.get_node(&node.0).map(|member| member.disk == disk.0) {
        None => JoinStep::Add,
        Some(false) => JoinStep::Remove,
        Some(true) if votes => JoinStep::None,
        Some(true) if is_caught_up => JoinStep::Promote,
        Some(true) => JoinStep::Wait,
    }
}

/// Makes one step towards a node with a new disk being a voter; returns true when it is.
///
/// # Errors
/// This node is not the leader, the node is not configured, or the step was not committed in time.
pub(crate) async fn advance_join(
    raft: Raft<Types, Host>,
    log: Log,
    group: GroupId,
    voter: Voter,
    disk: DiskId,
) -> Result<bool, Status> {
    let metrics = raft.metrics().borrow_watched().clone();
    if metrics.state != ServerState::Leader {
        return Err(Status::unavailable("this node is not the leader of the group"));
    }
    let matched = metrics.replication.as_ref().and_then(|peers| peers.get(&voter.node.0).cloned().flatten());
    let missing = matched.map(|id| log.bytes_from(group, id.index));
    let is_caught_up = missing.is_some_and(|bytes| bytes <= CAUGHT_UP_BYTES);
    let node = voter.node;
    let ids = std::collections::BTreeSet::from([node.0]);
    let membership = metrics.membership_config.membership();
    let change = match next_step(membership, node, disk, is_caught_up) {
        JoinStep::None => return Ok(true),
        JoinStep::Wait => return Ok(false),
        JoinStep::FinishChange => {
            let wanted = membership.get_joint_config().last().cloned().unwrap_or_default();
            ChangeMembers::ReplaceAllVoters(wanted)
        }
        // Two machines with one node number: the one that answers is kept.
        JoinStep::Remove if answered_recently(raft.config(), &metrics, node) => {
            let text = format!("node `{node}` is running with its known disk");
            return Err(Status::failed_precondition(text));
        }
        JoinStep::Remove if membership.voter_ids().any(|voter| voter == node.0) => {
            ChangeMembers::RemoveVoters(ids)
        }
        JoinStep::Remove => ChangeMembers::RemoveNodes(ids),
        JoinStep::Add => {
            let member = Member { address: voter.address, disk: disk.0 };
            ChangeMembers::AddNodes(BTreeMap::from([(node.0, member)]))
        }
        JoinStep::Promote => ChangeMembers::AddVoterIds(ids),
    };
    tracing::warn!(%group, %node, %disk, ?change, "changing the membership for a queue node with a new disk");
    let changed = tokio::time::timeout(ANSWER_WITHIN, raft.change_membership(change, false)).await;
    match changed {
        Ok(Ok(_)) => Ok(false),
        Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
        Err(_) => Err(Status::unavailable("the change was not committed in time")),
    }
}

/// Finds the configured node of a request to rejoin.
pub(crate) fn configured(voters: &[Voter], request: &Request<pb::RejoinRequest>) -> Result<Voter, Status> {
    let node = NodeId(request.get_ref().node);
    // Set where peers authenticate.
    if let Some(Caller(caller)) = request.extensions().get::<Caller>()
        && *caller != node
    {
        return Err(Status::permission_denied("a node can rejoin only as itself"));
    }
    let voter = voters.iter().find(|voter| voter.node == node).cloned();
    voter.ok_or_else(|| Status::permission_denied("not one of the configured queue nodes"))
}

/// The authenticated caller: a request extension, set by the server that serves [`crate::RaftServer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub NodeId);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_node_with_a_new_disk_is_removed_added_and_promoted_step_by_step() {
        let (node, old, new) = (NodeId(2), 1, 2);
        let members = |voters: &[u64], disk: Option<u64>| {
            let all = [(1, 1), (3, 1)].into_iter().chain(disk.map(|disk| (2, disk)));
            let nodes = all.map(|(node, disk)| (node, Member { disk, ..Member::default() }));
            let voters: BTreeSet<u64> = voters.iter().copied().collect();
            Membership::new(vec![voters], nodes.collect::<BTreeMap<_, _>>()).expect("voters are members")
        };
        let cases = [
            (members(&[1, 2, 3], Some(old)), false, JoinStep::Remove),
            (members(&[1, 3], Some(old)), true, JoinStep::Remove),
            (members(&[1, 3], None), false, JoinStep::Add),
            (members(&[1, 3], Some(new)), false, JoinStep::Wait),
            (members(&[1, 3], Some(new)), true, JoinStep::Promote),
            (members(&[1, 2, 3], Some(new)), false, JoinStep::None),
        ];
        for (membership, is_caught_up, expected) in cases {
            assert_eq!(next_step(&membership, node, DiskId(new), is_caught_up), expected, "{membership}");
        }
        // In a joint configuration the earlier voters may still decide.
        let nodes = [1, 2, 3].map(|node| (node, Member { disk: new, ..Member::default() }));
        let configs = vec![BTreeSet::from([1, 3]), BTreeSet::from([1, 2, 3])];
        let joint = Membership::new(configs, BTreeMap::from(nodes)).expect("voters are members");
        assert_eq!(next_step(&joint, node, DiskId(new), true), JoinStep::FinishChange);
    }
}
