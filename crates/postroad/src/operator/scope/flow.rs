//! What the cluster knows of its mail flow: the directory, and the lanes of all ledger groups.

use std::{collections::BTreeMap, sync::Arc};

use postroad_cluster::FRAME_BYTES_MAX;
use postroad_core::{GroupId, NodeId, Scope, SourceId};
use postroad_directory::{Item, Pool, Source, Tenant, View};
use postroad_proto::queue::{
    LaneView, LanesRequest, LanesResponse, queue_service_client::QueueServiceClient,
};

use super::{
    super::{Operator, OperatorError, WITHIN},
    ShownSuspension,
};

/// The directory, and the lanes that outbound nodes have reported.
pub(super) struct Flow {
    pub(super) view: Arc<View>,
    /// One for each source and site, with what all groups have assigned.
    pub(super) lanes: Vec<LaneView>,
    /// Groups whose lanes are not known.
    missing: Vec<u16>,
    left_out: u64,
}

impl Flow {
    /// Asks the leaders of all groups, for all sites or one.
    pub(super) async fn read(operator: &Operator, site: &str, action: &str) -> Result<Self, OperatorError> {
        let view = operator.view(action).await?;
        let (mut lanes, mut missing, mut left_out) = (BTreeMap::new(), Vec::new(), 0);
        for group in operator.ledger_groups(action).await? {
            match lanes_of_group(operator, group, site).await {
                Ok(response) => {
                    left_out += response.left_out;
                    response.lanes.into_iter().for_each(|lane| merge(&mut lanes, lane));
                }
                Err(_) => missing.push(group.0),
            }
        }
        Ok(Self { view, lanes: lanes.into_values().collect(), missing, left_out })
    }

    /// Returns what is to be printed, or an error after it where something is missing.
    pub(super) fn complete(&self, shown: String) -> anyhow::Result<String> {
        if self.missing.is_empty() {
            return Ok(shown);
        }
        crate::output::print(&shown)?;
        let groups = &self.missing;
        Err(OperatorError::Unreachable {
            action: "read all lanes".to_owned(),
            addresses: "the queue nodes".to_owned(),
            cause: format!("ledger groups {groups:?} have no leader that answers"),
        }
        .into())
    }

    /// Returns how many lanes no leader listed.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Returns the suspension of a scope itself.
    pub(super) fn suspended(&self, scope: &Scope) -> Option<ShownSuspension> {
        self.view.suspension(scope).map(|suspension| ShownSuspension::of(suspension))
    }

    /// Returns the suspensions that stop a lane.
    pub(super) fn suspensions_of(
        &self,
        source: SourceId,
        node: NodeId,
        site: &Arc<str>,
    ) -> Vec<ShownSuspension> {
        let lane = Scope::Lane { source, site: site.clone() };
        let scopes = [Scope::Site(site.clone()), lane, Scope::Source(source), Scope::Node(node)];
        scopes.iter().filter_map(|scope| self.suspended(scope)).collect()
    }

    /// Returns the sources of a pool, with their weights.
    pub(super) fn members(&self, pool: &Pool) -> impl Iterator<Item = (&Arc<Source>, u32)> {
        let members = pool.members.clone();
        members.into_iter().filter_map(|(source, weight)| Some((self.view.source(source)?, weight)))
    }

    /// Returns every tenant, by name.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.view.items().filter_map(|item| match item {
            Item::Tenant(tenant) => Some(tenant),
            _ => None,
        })
    }

    pub(super) fn source_name(&self, source: u32) -> String {
        self.view
            .source(SourceId(source))
            .map_or_else(|| source.to_string(), |source| source.name.to_string())
    }
}

/// Every group reports the same lane of an outbound node, and its own assignments.
fn merge(lanes: &mut BTreeMap<(u32, String), LaneView>, lane: LaneView) {
    let name = (lane.source, lane.site.clone());
    lanes.entry(name).and_modify(|known| known.assigned += lane.assigned).or_insert(lane);
}

async fn lanes_of_group(
    operator: &Operator,
    group: GroupId,
    site: &str,
) -> Result<LanesResponse, postroad_cluster::CallError> {
    let request = LanesRequest { group: group.0.into(), site: site.to_owned(), ..LanesRequest::default() };
    let call = async |channel| {
        let mut client = QueueServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
        client.lanes(request.clone()).await
    };
    Ok(operator.calls().call(group, WITHIN, call).await?.into_inner())
}
