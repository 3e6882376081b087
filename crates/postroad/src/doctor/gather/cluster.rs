//! Asks the queue nodes.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use postroad_cluster::{ClockDifference, NodeList};
use postroad_core::{GroupId, NodeId};
use postroad_directory::{Source, View};
use postroad_net::Guard;
use postroad_proto::queue::{
    GroupReplication, LeadersRequest, NodeStatusRequest, queue_service_client::QueueServiceClient,
};
use tonic::transport::Channel;

use super::super::facts::{ClusterFacts, ReplicaFacts, SourceFacts};
use crate::{
    nodes::{self, Lists},
    operator::Operator,
};

/// How long to wait for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(super) async fn gather(operator: &Operator) -> ClusterFacts {
    let (lists, leaders, replicas, view) =
        tokio::join!(nodes::lists(operator), leaders(operator), replicas(operator), operator.watched_view());
    let (sources, no_policy) = match &view {
        Ok(view) => (view.sources().map(|source| source_facts(source, view)).collect(), None),
        Err(error) => (Vec::new(), Some(error.clone())),
    };
    let (queue, nodes) = (clocks(&lists), nodes::merged(&lists));
    ClusterFacts { queue, leaders, replicas, nodes, sources, no_policy }
}

fn clocks(lists: &Lists) -> BTreeMap<NodeId, Result<ClockDifference, String>> {
    let clock = |(queue, list): (&NodeId, &Result<NodeList, tonic::Status>)| {
        (*queue, list.as_ref().map(|list| list.clock).map_err(nodes::cause))
    };
    lists.iter().map(clock).collect()
}

/// The leader of every group that a queue node knows; of two that are named, the one of the later term.
async fn leaders(operator: &Operator) -> BTreeMap<GroupId, Option<NodeId>> {
    let mut said: BTreeMap<GroupId, (u64, u64)> = BTreeMap::new();
    let answers = join_all(operator.endpoints().values().map(|channel| leaders_of(channel.clone()))).await;
    for (group, term, leader) in answers.into_iter().flatten().flatten() {
        let known = said.entry(group).or_default();
        if (term, leader) > *known {
            *known = (term, leader);
        }
    }
    said.into_iter().map(|(group, (_, leader))| (group, (leader != 0).then_some(NodeId(leader)))).collect()
}

/// Group, term and leader, as one node knows them; the leader is 0 where it knows none.
async fn leaders_of(channel: Channel) -> Option<Vec<(GroupId, u64, u64)>> {
    let view = async {
        let mut client = QueueServiceClient::new(channel);
        client.leaders(LeadersRequest {}).await.ok()?.into_inner().message().await.ok()?
    };
    let view = tokio::time::timeout(ANSWER_MAX, view).await.ok()??;
    let groups = view.groups.into_iter();
    Some(groups.filter_map(|of| Some((GroupId(u16::try_from(of.group).ok()?), of.term, of.leader))).collect())
}

/// How the queue nodes follow, as the leaders say. Only operators may ask; a node that does not answer is a fact elsewhere.
async fn replicas(operator: &Operator) -> BTreeMap<GroupId, ReplicaFacts> {
    let answers =
        join_all(operator.endpoints().values().map(|channel| replication_of(channel.clone()))).await;
    let facts = |of: GroupReplication| {
        let facts = ReplicaFacts {
            voters: of.voters as usize,
            behind: of.followers.iter().map(|of| (NodeId(of.node), of.behind_bytes)).collect(),
            silent: of.voters.saturating_sub(of.answering) as usize,
        };
        Some((GroupId(u16::try_from(of.group).ok()?), facts))
    };
    answers.into_iter().flatten().flatten().filter_map(facts).collect()
}

async fn replication_of(channel: Channel) -> Option<Vec<GroupReplication>> {
    let mut client = QueueServiceClient::new(channel);
    let status = tokio::time::timeout(ANSWER_MAX, client.node_status(NodeStatusRequest {})).await;
    Some(status.ok()?.ok()?.into_inner().replication)
}

fn source_facts(source: &Source, view: &View) -> SourceFacts {
    let mut members = view.pools().flat_map(|pool| &pool.members);
    SourceFacts {
        name: source.name.to_string(),
        helo: source.helo.to_string(),
        has_owner: source.owner.is_some(),
        has_share: members.any(|(id, weight)| *id == source.id && *weight > 0),
        address: source.address,
        is_private: source.address.is_some_and(|address| Guard::default().check(address).is_err()),
        owners: source.nodes.clone(),
        usable_here: None,
        names: None,
    }
}
