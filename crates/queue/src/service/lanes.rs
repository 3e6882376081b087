//! The lanes that outbound nodes have reported to this leader.

use postroad_core::SourceId;
use postroad_proto::queue::{LaneView, LanesRequest, LanesResponse};
use tonic::Status;

use crate::{error::not_leader, ledger::LedgerGroup};

/// Lanes in one response.
const LANES_MAX: usize = 10_000;

/// Returns lanes, those with most mail first.
pub(super) fn list(ledger: &LedgerGroup, request: &LanesRequest) -> Result<LanesResponse, Status> {
    let is_wanted = |source: SourceId, site: &str| {
        let source = request.source == 0 || request.source == source.0;
        source && (request.site.is_empty() || request.site == site)
    };
    let lanes = ledger.shared.with_leading(|state, leading| {
        let wanted = leading.lanes.iter().filter(|(_, source, site, _)| is_wanted(*source, site));
        let view = wanted.map(|(node, source, site, report)| LaneView {
            source: source.0,
            site: site.to_string(),
            node: node.0,
            assigned: state.outstanding(source, site),
            ..report.into()
        });
        view.collect::<Vec<LaneView>>()
    });
    let mut lanes = lanes.ok_or_else(|| not_leader(ledger.status().leader))?;
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.assigned.max(lane.waiting)));
    let limit = usize::try_from(request.limit).unwrap_or(LANES_MAX);
    let limit = if limit == 0 { LANES_MAX } else { limit.min(LANES_MAX) };
    let left_out = lanes.len().saturating_sub(limit) as u64;
    lanes.truncate(limit);
    Ok(LanesResponse { lanes, left_out })
}
