//! The lanes that outbound nodes have reported to this leader.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

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
        let mut busiest = Busiest::new(limit);
        for (node, source, site, report) in leading.lanes.iter() {
            if is_wanted(source, site) && leading.dispatcher.owner(source) == Some(node) {
                let assigned = state.outstanding(source, site);
                busiest.add(assigned.max(report.waiting), Lane { node, source, site, report, assigned });
            }
        }
        busiest.into_response()
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

/// The lanes with most mail, among equals those that came first.
struct Busiest<'a> {
    limit: usize,
    /// By mail and order, the least on top; their lanes are in `lanes`.
    order: BinaryHeap<Reverse<(u32, Reverse<usize>, usize)>>,
    lanes: Vec<Lane<'a>>,
    seen: usize,
}

impl<'a> Busiest<'a> {
    fn new(limit: usize) -> Self {
        Self { limit, order: BinaryHeap::new(), lanes: Vec::new(), seen: 0 }
    }

    fn add(&mut self, mail: u32, lane: Lane<'a>) {
        self.seen += 1;
        let place = if self.lanes.len() < self.limit {
            self.lanes.push(lane);
            self.lanes.len() - 1
        } else {
            match self.order.peek() {
                Some(Reverse((least, ..))) if *least < mail => {}
                _ => return,
            }
            let Some(Reverse((_, _, place))) = self.order.pop() else { return };
            self.lanes[place] = lane;
            place
        };
        self.order.push(Reverse((mail, Reverse(self.seen), place)));
    }

    fn into_response(self) -> LanesResponse {
        let left_out = (self.seen - self.lanes.len()) as u64;
        let order = self.order.into_sorted_vec();
        let lanes = order.into_iter().map(|Reverse((_, _, place))| self.lanes[place].into()).collect();
        LanesResponse { lanes, left_out }
    }
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
        let mut busiest = Busiest::new(limit);
        for (source, mail) in (0..).zip(mail) {
            let source = SourceId(source);
            let lane = Lane { node: NodeId(1), source, site: &site, report: &report, assigned: 0 };
            busiest.add(*mail, lane);
        }
        let listed = busiest.into_response();
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
