//! Probes of sites: chooses the source, and asks the outbound node that owns it.

use std::{cmp::Reverse, time::Duration};

use postroad_core::{NodeId, PoolId, SourceId};
use postroad_directory::View;
use postroad_proto::queue::{Probe, ProbeSiteRequest, ProbeSiteResponse};
use tokio::time;
use tonic::Status;

use crate::{error::not_leader, ledger::LedgerGroup};

/// How long a probe may take: an outbound node gives up earlier.
const WITHIN: Duration = Duration::from_secs(90);

/// Asks an outbound node to probe a domain, and waits for its result.
pub(super) async fn probe(
    ledger: &LedgerGroup,
    request: &ProbeSiteRequest,
) -> Result<ProbeSiteResponse, Status> {
    let asked = ledger.shared.with_leading(|_, leading| {
        let candidates = candidates(&leading.view, request);
        candidates.into_iter().find_map(|(source, node)| {
            let probe =
                Probe { id: 0, source: source.0, domain: request.domain.clone(), connect: request.connect };
            leading.outboxes.probe(node, probe).map(|answer| (source, node, answer))
        })
    });
    let asked = asked.ok_or_else(|| not_leader(ledger.status().leader))?;
    let (source, node, answer) = asked.ok_or_else(|| {
        Status::failed_precondition(
            "no outbound node with such a source is connected to this leader and free",
        )
    })?;
    let result = time::timeout(WITHIN, answer).await;
    let late = "the outbound node did not answer in time; one of an older version knows no probes";
    let result = result.map_err(|_| Status::deadline_exceeded(late))?;
    let result =
        result.map_err(|_| Status::unavailable("the outbound node disconnected during the probe"))?;
    Ok(ProbeSiteResponse { source: source.0, node: node.0, result: Some(result) })
}

/// Returns the sources that may be asked, those with most weight first, with their owners.
fn candidates(view: &View, request: &ProbeSiteRequest) -> Vec<(SourceId, NodeId)> {
    let owned = |id: SourceId| Some((id, view.source(id)?.owner?.node));
    if request.source != 0 {
        return owned(SourceId(request.source)).into_iter().collect();
    }
    let pools = view.pools().filter(|pool| request.pool == 0 || pool.id == PoolId(request.pool));
    let mut members: Vec<(SourceId, u32)> =
        pools.flat_map(|pool| pool.members.iter().copied()).filter(|(_, weight)| *weight > 0).collect();
    members.sort_by_key(|(source, weight)| (Reverse(*weight), *source));
    members.into_iter().filter_map(|(source, _)| owned(source)).collect()
}
