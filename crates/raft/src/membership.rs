//! How a group comes to its members: formed once, by voters that have all been heard from, and joined again by a node
//! whose disk was replaced (docs/adr/0005).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{ChangeMembers, Membership, Raft, ServerState, async_runtime::WatchReceiver as _};
use postroad_core::{GroupId, NodeId};
use postroad_proto::raft as pb;
use postroad_storage::{DiskId, Log, Origin};
use tonic::{Code, Request, Status};

use crate::{
    group::was_heard,
    host::Host,
    machine::Machine,
    network::Network,
    node::Voter,
    types::{Member, Types},
};

const RETRY: Duration = Duration::from_millis(250);

/// How long another node may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A learner may vote when no more than this is missing: the rest comes while it is made a voter.
const CAUGHT_UP_BYTES: u64 = 4 << 20;

/// One group on this node, on its way to being a member.
pub(crate) struct Joining<M: Machine> {
    pub(crate) group: GroupId,
    pub(crate) raft: Raft<Types, Host<M>>,
    pub(crate) host: Host<M>,
    pub(crate) log: Log,
    pub(crate) network: Network,
    pub(crate) voters: Arc<[Voter]>,
}

/// What the other voters said.
enum Greeted {
    AllNew(BTreeMap<u64, Member>),
    Exists(NodeId),
    Incomplete,
}

impl<M: Machine> Joining<M> {
    /// Does what is this node's part, until that is done.
    pub(crate) async fn run(self) {
        let is_first = self.voters.iter().map(|voter| voter.node).min() == Some(self.log.identity().node);
        match self.log.disk().origin {
            Origin::Form if is_first => self.form().await,
            // The first one forms the group, and the others are in it.
            Origin::Form => {}
            Origin::Rejoin => self.rejoin().await,
        }
    }

    async fn form(&self) {
        let mut was_told = false;
        // An error means that the group has stopped.
        while let Ok(false) = self.raft.is_initialized().await {
            match self.greet_all().await {
                Greeted::AllNew(members) => {
                    tracing::info!(group = %self.group, "every queue node is new: the group is formed");
                    // It may be refused only because there is a group by now.
                    let _ = self.raft.initialize(members).await;
                    return;
                }
                Greeted::Exists(peer) if !std::mem::replace(&mut was_told, true) => {
                    let group = self.group;
                    tracing::error!(%group, %peer, "the cluster exists already: this node was to rejoin, not to form it");
                }
                Greeted::Exists(_) | Greeted::Incomplete => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks every other voter for its disk, and whether it is as new as this one.
    async fn greet_all(&self) -> Greeted {
        let own = self.log.identity().node;
        let mut members = BTreeMap::new();
        for voter in self.voters.iter() {
            let disk = match voter.node == own {
                true => self.log.disk().id.0,
                false => match self.greet(voter).await {
                    Some(greeting) if greeting.may_form => greeting.disk,
                    Some(_) => return Greeted::Exists(voter.node),
                    None => return Greeted::Incomplete,
                },
            };
            members.insert(voter.node.0, Member { address: voter.address.clone(), disk });
        }
        Greeted::AllNew(members)
    }

    async fn greet(&self, voter: &Voter) -> Option<pb::Greeting> {
        let (mut service, request) = self.network.stranger(voter, pb::GreetRequest {});
        let answer = tokio::time::timeout(ANSWER_WITHIN, service.greet(request)).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// Asks until the leader has taken this node in; where it has, after a restart too, that is soon seen.
    async fn rejoin(&self) {
        let mut was_missing = false;
        while !votes(&self.host) {
            // What counts is what this node's own log says.
            if self.ask_all().await == Some(false) && !std::mem::replace(&mut was_missing, true) {
                let (group, disk) = (self.group, self.log.disk().id);
                tracing::warn!(%group, %disk, "this node has a new disk, and is being taken in");
            }
            tokio::time::sleep(RETRY).await;
        }
        if was_missing {
            tracing::info!(group = %self.group, disk = %self.log.disk().id, "this node votes");
        }
    }

    /// Asks the leader to take this node in; returns whether it votes, if there was a leader to say so.
    async fn ask_all(&self) -> Option<bool> {
        let node = self.log.identity().node;
        let mut votes = None;
        for voter in self.voters.iter().filter(|voter| voter.node != node) {
            let request = pb::RejoinRequest { node: node.0, disk: self.log.disk().id.0 };
            let (mut service, request) = self.network.stranger(voter, request);
            // Whoever does not lead refuses.
            match tokio::time::timeout(ANSWER_WITHIN, service.rejoin(request)).await {
                Ok(Ok(answer)) => votes = Some(answer.into_inner().votes),
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                    tracing::warn!(group = %self.group, error = status.message(), "not taken in");
                }
                _ => {}
            }
        }
        votes
    }
}

/// Returns true when this node votes with the disk it has, as of the last entry it has applied.
pub(crate) fn votes<M: Machine>(host: &Host<M>) -> bool {
    let (node, disk) = (host.log.identity().node, host.log.disk().id);
    next_step(host.state.lock().membership.membership(), node, disk, false) == Step::None
}

/// What a leader does next to have a node vote that has a new disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A change of the voters that an earlier leader began is completed.
    Settle,
    /// The node with the disk it had before is no member any more.
    Remove,
    /// The node becomes a learner.
    Add,
    /// It has not caught up.
    Wait,
    /// It votes.
    Promote,
    /// There is nothing to do.
    None,
}

fn next_step(membership: &Membership<u64, Member>, node: NodeId, disk: DiskId, is_caught_up: bool) -> Step {
    if membership.get_joint_config().len() > 1 {
        return Step::Settle;
    }
    let votes = membership.voter_ids().any(|voter| voter == node.0);
    match membership.get_node(&node.0).map(|member| member.disk == disk.0) {
        None => Step::Add,
        Some(false) => Step::Remove,
        Some(true) if votes => Step::None,
        Some(true) if is_caught_up => Step::Promote,
        Some(true) => Step::Wait,
    }
}

/// Makes one step towards having a node vote with a new disk; returns true when it does.
///
/// # Errors
/// This node does not lead, the node is none of the configured ones, or the step was not committed in time.
pub(crate) async fn take_in<M: Machine>(
    raft: Raft<Types, Host<M>>,
    log: Log,
    group: GroupId,
    voter: Voter,
    disk: DiskId,
) -> Result<bool, Status> {
    let metrics = raft.metrics().borrow_watched().clone();
    if metrics.state != ServerState::Leader {
        return Err(Status::unavailable("this node does not lead the group"));
    }
    let matched = metrics.replication.as_ref().and_then(|peers| peers.get(&voter.node.0).cloned().flatten());
    let missing = matched.map(|id| log.bytes_from(group, id.index));
    let is_caught_up = missing.is_some_and(|bytes| bytes <= CAUGHT_UP_BYTES);
    let node = voter.node;
    let ids = std::collections::BTreeSet::from([node.0]);
    let membership = metrics.membership_config.membership();
    let change = match next_step(membership, node, disk, is_caught_up) {
        Step::None => return Ok(true),
        Step::Wait => return Ok(false),
        Step::Settle => {
            let wanted = membership.get_joint_config().last().cloned().unwrap_or_default();
            ChangeMembers::ReplaceAllVoters(wanted)
        }
        // Two machines under one name: the one that works is kept.
        Step::Remove if was_heard(&metrics, node) => {
            let text = format!("node `{node}` is there, with the disk that is known");
            return Err(Status::failed_precondition(text));
        }
        Step::Remove if membership.voter_ids().any(|voter| voter == node.0) => {
            ChangeMembers::RemoveVoters(ids)
        }
        Step::Remove => ChangeMembers::RemoveNodes(ids),
        Step::Add => {
            let member = Member { address: voter.address, disk: disk.0 };
            ChangeMembers::AddNodes(BTreeMap::from([(node.0, member)]))
        }
        Step::Promote => ChangeMembers::AddVoterIds(ids),
    };
    tracing::warn!(%group, %node, %disk, ?change, "a queue node comes back with a new disk");
    let changed = tokio::time::timeout(ANSWER_WITHIN, raft.change_membership(change, false)).await;
    match changed {
        Ok(Ok(_)) => Ok(false),
        Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
        Err(_) => Err(Status::unavailable("the change was not committed in time")),
    }
}

/// The configured node of a request to rejoin.
pub(crate) fn configured(voters: &[Voter], request: &Request<pb::RejoinRequest>) -> Result<Voter, Status> {
    let node = NodeId(request.get_ref().node);
    // Known where peers prove who they are.
    if let Some(Caller(caller)) = request.extensions().get::<Caller>()
        && *caller != node
    {
        return Err(Status::permission_denied("a node can ask for itself only"));
    }
    let voter = voters.iter().find(|voter| voter.node == node).cloned();
    voter.ok_or_else(|| Status::permission_denied("the node is none of the configured queue nodes"))
}

/// Who calls, as proven; an extension of a request, put there by whoever serves [`crate::RaftServer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub NodeId);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_node_with_a_new_disk_goes_and_comes_back_step_by_step() {
        let (node, old, new) = (NodeId(2), 1, 2);
        let members = |voters: &[u64], disk: Option<u64>| {
            let all = [(1, 1), (3, 1)].into_iter().chain(disk.map(|disk| (2, disk)));
            let nodes = all.map(|(node, disk)| (node, Member { disk, ..Member::default() }));
            let voters: BTreeSet<u64> = voters.iter().copied().collect();
            Membership::new(vec![voters], nodes.collect::<BTreeMap<_, _>>()).expect("voters are members")
        };
        let cases = [
            (members(&[1, 2, 3], Some(old)), false, Step::Remove),
            (members(&[1, 3], Some(old)), true, Step::Remove),
            (members(&[1, 3], None), false, Step::Add),
            (members(&[1, 3], Some(new)), false, Step::Wait),
            (members(&[1, 3], Some(new)), true, Step::Promote),
            (members(&[1, 2, 3], Some(new)), false, Step::None),
        ];
        for (membership, is_caught_up, expected) in cases {
            assert_eq!(next_step(&membership, node, DiskId(new), is_caught_up), expected, "{membership}");
        }
        // Between two sets of voters it may still be that those of before decide.
        let nodes = [1, 2, 3].map(|node| (node, Member { disk: new, ..Member::default() }));
        let configs = vec![BTreeSet::from([1, 3]), BTreeSet::from([1, 2, 3])];
        let joint = Membership::new(configs, BTreeMap::from(nodes)).expect("voters are members");
        assert_eq!(next_step(&joint, node, DiskId(new), true), Step::Settle);
    }
}
