//! What the cluster says at one moment.

use std::{collections::BTreeMap, time::Instant};

use futures::future::join_all;
use postroad_core::{GroupId, NodeId};
use postroad_proto::queue::{NodeStatusRequest, NodeStatusResponse, SummaryRequest, SummaryResponse};
use tokio::time;

use crate::{
    cli::queue::GroupedBy,
    operator::{Operator, OperatorError, client, queue::Depths},
};

/// Rows asked for: more than a screen shows.
const ROWS: usize = 100;

/// How long a node may take: others are not kept waiting for it.
const NODE_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// What the cluster says at one moment; a part that did not answer is missing.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) depths: Depths,
    pub(super) groups: BTreeMap<GroupId, SummaryResponse>,
    pub(super) nodes: Vec<(NodeId, Option<NodeStatusResponse>)>,
    pub(super) leaders: BTreeMap<GroupId, NodeId>,
}

impl Sample {
    pub(super) async fn read(operator: &Operator, by: GroupedBy) -> Result<Self, OperatorError> {
        let depths = Depths::read(operator, by, ROWS).await?;
        let at = postroad_env::now();
        let groups = operator.ledger_groups("read the state of the cluster").await?;
        let (summaries, nodes) = tokio::join!(
            join_all(groups.iter().map(|group| summary(operator, *group))),
            join_all(operator.endpoints.iter().map(|(node, channel)| async {
                let asked = time::timeout(NODE_WITHIN, async {
                    client(channel.clone()).node_status(NodeStatusRequest {}).await
                });
                let status = asked.await.ok().and_then(Result::ok).map(tonic::Response::into_inner);
                let known = status.as_ref().map_or(*node, |status| NodeId(status.node));
                (known, status)
            }))
        );
        let groups = groups.into_iter().zip(summaries);
        let leaders = operator.leaders.subscribe().borrow().clone();
        Ok(Self {
            at,
            depths,
            groups: groups.filter_map(|(group, summary)| Some((group, summary?))).collect(),
            nodes,
            leaders: leaders.into_iter().map(|(group, leader)| (group, leader.node)).collect(),
        })
    }
}

async fn summary(operator: &Operator, group: GroupId) -> Option<SummaryResponse> {
    let request = SummaryRequest { group: group.0.into() };
    let call = async |channel| client(channel).summary(request).await;
    let summary = operator.calls().call(group, NODE_WITHIN, call).await;
    summary.ok().map(tonic::Response::into_inner).filter(|summary| summary.leading)
}
