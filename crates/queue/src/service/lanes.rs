//! The lanes that outbound nodes have reported to this leader.

use std::{cmp::Reverse, sync::Arc};

use postroad_core::{NodeId, SourceId};
use postroad_ledger::lanes::LaneReport;
use postroad_proto::queue::{LaneView, LanesRequest, LanesResponse};
use tonic::Status;

use crate::{error::not_leader, ledger::LedgerGroup};

/// Lanes in one response.
const LANES_MAX: usize = 10_000;

/// Returns lanes as the owners of their sources report them, those with most mail first.
pub(super) fn list(ledger: &LedgerGroup, request: &LanesRequest) -> Result<LanesResponse, Status> {
    let limit = match usize::try_from(request.limit).unwrap_or(LANES_MAX) {
        0 => LANES_MAX,
        limit => limit.min(LANES_MAX),
    };
    let is_wanted = |source: SourceId, site: &str| {
        let source = request.source == 0 || request.source == source.0;
        source && (request.site.is_empty() || request.site == site)
    };
    let listed = ledger.shared.with_leading(|state, leading| {
        let wanted = leading.lanes.iter().filter(|(node, source, site, _)| {
            is_wanted(*source, site) && leading.dispatcher.owner(*source) == Some(*node)
        });
        let ranked = wanted.enumerate().map(|(place, (node, source, site, report))| {
            let assigned = state.outstanding(source, site);
            (assigned.max(report.waiting), place, Lane { node, source, site, report, assigned })
        });
        busiest(ranked.collect(), limit)
    });
    listed.ok_or_else(|| not_leader(ledger.status().leader))
}

/// A lane that is not copied yet: under the ledger's lock only those that are returned are.
#[derive(Clone, Copy)]
struct Lane<'a> {
    node: NodeId,
    source: SourceId,
    site: &'a Arc<str>,
    report: &'a LaneReport,
    assigned: u32,
}

impl From<Lane<'_>> for LaneView {
    fn from(Lane { node, source, site, report, assigned }: Lane<'_>) -> Self {
        Self { source: source.0, site: site.to_string(), node: node.0, assigned, ..report.into() }
    }
}

/// A lane with its mail and its place among all.
type Ranked<'a> = (u32, usize, Lane<'a>);

/// Returns the lanes with most mail, among equals those that came first.
fn busiest(mut lanes: Vec<Ranked<'_>>, limit: usize) -> LanesResponse {
    let order = |(mail, place, _): &Ranked<'_>| (Reverse(*mail), *place);
    let left_out = lanes.len().saturating_sub(limit);
    if left_out > 0 {
        lanes.select_nth_unstable_by_key(limit, order);
        lanes.truncate(limit);
    }
    lanes.sort_unstable_by_key(order);
    let lanes = lanes.into_iter().map(|(_, _, lane)| lane.into()).collect();
    LanesResponse { lanes, left_out: left_out as u64 }
}

#[cfg(test)]
mod tests {
    use postroad_ledger::lanes::RateState;

    use super::*;

    /// Lanes are named by their place and have so much mail; returns the places of those that are listed.
    fn check(mail: &[u32], limit: usize, expected: &[u32]) {
        let report = LaneReport {
            connections: 0,
            connections_max: 0,
            waiting: 0,
            delivered: 0,
            failed: 0,
            pause: None,
            rate: RateState::Ready,
        };
        let site: Arc<str> = "x".into();
        let lane = |(place, mail): (usize, &u32)| {
            let source = SourceId(u32::try_from(place).unwrap());
            (*mail, place, Lane { node: NodeId(1), source, site: &site, report: &report, assigned: 0 })
        };
        let listed = busiest(mail.iter().enumerate().map(lane).collect(), limit);
        assert_eq!(listed.lanes.iter().map(|lane| lane.source).collect::<Vec<_>>(), expected);
        assert_eq!(listed.left_out as usize, mail.len() - expected.len());
    }

    #[test]
    fn the_lanes_with_most_mail_are_listed_first_and_the_others_counted() {
        check(&[], 3, &[]);
        check(&[1, 5, 3], 3, &[1, 2, 0]);
        check(&[1, 5, 3, 9, 0, 4], 3, &[3, 1, 5]);
        check(&[2, 2, 2, 2], 2, &[0, 1]);
        check(&[0, 7], 1, &[1]);
    }
}
