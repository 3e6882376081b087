//! What outbound nodes report of their lanes, for people. It decides nothing: windows do.

use std::{collections::BTreeMap, sync::Arc};

use postroad_core::{NodeId, SourceId, Timestamp};

/// The most lanes of one node that are kept; the reports of further ones are dropped.
pub const LANES_PER_NODE_MAX: usize = 100_000;

/// One lane, as the outbound node that owns its source reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReport {
    /// Connections that are open or being opened.
    pub connections: u32,
    /// The most connections at the moment: it grows with success and shrinks with failure.
    pub connections_max: u32,
    /// Messages that are assigned and wait for a connection.
    pub waiting: u32,
    /// Deliveries that the receiver accepted since the node began to use the lane.
    pub delivered: u64,
    /// Attempts that ended otherwise.
    pub failed: u64,
    /// Why it is paused, and until when.
    pub pause: Option<LanePause>,
    /// When its rates allow the next message.
    pub rate: RateState,
}

/// A pause of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePause {
    /// When it ends.
    pub until: Timestamp,
    /// The receiver's reply, or the error.
    pub reason: Arc<str>,
}

/// When the rates of a lane allow the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateState {
    /// At once.
    Ready,
    /// From this time on.
    From(Timestamp),
    /// Never: a rate is 0.
    Never,
}

/// The lanes that outbound nodes have reported to one leader.
#[derive(Debug, Default)]
pub struct LaneReports {
    by_node: BTreeMap<NodeId, BTreeMap<(SourceId, Arc<str>), LaneReport>>,
}

impl LaneReports {
    /// Notes what a node reports of a lane; `None` for a lane that it no longer keeps.
    ///
    /// Returns false when it is dropped, because the node has too many.
    pub fn note(
        &mut self,
        node: NodeId,
        source: SourceId,
        site: Arc<str>,
        report: Option<LaneReport>,
    ) -> bool {
        let lanes = self.by_node.entry(node).or_default();
        let name = (source, site);
        match report {
            None => drop(lanes.remove(&name)),
            Some(_) if lanes.len() >= LANES_PER_NODE_MAX && !lanes.contains_key(&name) => return false,
            Some(report) => drop(lanes.insert(name, report)),
        }
        true
    }

    /// Forgets the lanes of a node whose session has ended.
    pub fn forget(&mut self, node: NodeId) {
        self.by_node.remove(&node);
    }

    /// Returns a lane as `owner` reports it. What other nodes say of it does not count: a report may be a mistake.
    #[must_use]
    pub fn get(&self, owner: NodeId, source: SourceId, site: &Arc<str>) -> Option<&LaneReport> {
        self.by_node.get(&owner)?.get(&(source, site.clone()))
    }

    /// Returns every lane with the node that reports it, its source and its site.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, SourceId, &Arc<str>, &LaneReport)> {
        self.by_node.iter().flat_map(|(node, lanes)| {
            lanes.iter().map(|((source, site), report)| (*node, *source, site, report))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_kept_until_they_or_their_node_are_forgotten() {
        let report = |waiting| LaneReport {
            connections: 1,
            connections_max: 5,
            waiting,
            delivered: 0,
            failed: 0,
            pause: None,
            rate: RateState::Ready,
        };
        let (one, other): (Arc<str>, Arc<str>) = ("one.example".into(), "other.example".into());
        let mut lanes = LaneReports::default();
        assert!(lanes.note(NodeId(1), SourceId(1), one.clone(), Some(report(1))));
        assert!(lanes.note(NodeId(1), SourceId(1), one.clone(), Some(report(2))));
        assert!(lanes.note(NodeId(2), SourceId(2), one.clone(), Some(report(3))));
        assert!(lanes.note(NodeId(2), SourceId(2), other.clone(), Some(report(4))));
        assert_eq!(lanes.get(NodeId(1), SourceId(1), &one).map(|lane| lane.waiting), Some(2));
        assert_eq!(lanes.get(NodeId(2), SourceId(1), &one), None, "another node does not own it");
        assert_eq!(lanes.iter().count(), 3);
        lanes.note(NodeId(2), SourceId(2), other.clone(), None);
        assert_eq!(lanes.get(NodeId(2), SourceId(2), &other), None);
        lanes.forget(NodeId(1));
        let left: Vec<_> = lanes.iter().map(|(node, source, site, _)| (node, source, site)).collect();
        assert_eq!(left, [(NodeId(2), SourceId(2), &one)]);
    }
}
