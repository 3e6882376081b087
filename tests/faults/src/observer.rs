//! What replicas show from outside: states, leaders, checkpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use postroad_core::{GroupId, NodeId};
use postroad_oracle::{
    What,
    history::{OpenDeliveries, OpenOfTenant, StateHash},
};
use postroad_queue::Replicas;

use crate::record::Recorder;

/// What is open is recorded after as many events of a replica: each record is judged against all events before it.
const EVENTS_BETWEEN_COUNTS: u64 = 16;

/// Watches the replicas of all queue nodes.
pub(crate) struct Observer {
    recorder: Recorder,
    /// The last entry of each replica whose state was recorded.
    compared: BTreeMap<(u64, GroupId), u64>,
    /// The event of each replica after which its open deliveries were recorded last.
    counted: BTreeMap<(u64, GroupId), u64>,
    /// The last leader of each group, and its term.
    leaders: BTreeMap<GroupId, (u64, u64)>,
    /// Groups whose leader stops in order.
    handed_over: BTreeMap<GroupId, u64>,
    /// Nodes with a new disk that do not vote yet.
    rejoining: BTreeSet<u64>,
    /// Checkpoints and freed segments of each node, since it started.
    logs: BTreeMap<u64, [u64; 2]>,
}

impl Observer {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            compared: BTreeMap::new(),
            counted: BTreeMap::new(),
            leaders: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            rejoining: BTreeSet::new(),
            logs: BTreeMap::new(),
        }
    }

    /// A node starts: what it counts begins at zero, and what it counts as open comes from its disk.
    pub(crate) fn starts(&mut self, node: u64) {
        self.logs.remove(&node);
        self.counted.retain(|(counted, _), _| *counted != node);
    }

    /// A node is asked to stop, and gives the groups that it leads to others.
    pub(crate) fn stops(&mut self, node: u64) {
        let led = self.leaders.iter().filter(|(_, (leader, _))| *leader == node);
        self.handed_over.extend(led.map(|(group, _)| (*group, node)));
    }

    /// A node has a new disk.
    pub(crate) fn has_new_disk(&mut self, node: u64) {
        self.rejoining.insert(node);
    }

    /// Looks at the replicas of a node that runs.
    pub(crate) fn look(&mut self, node: u64, replicas: &Replicas) {
        self.compare(node, replicas);
        for (group, term) in replicas.leading() {
            let before = self.leaders.get(&group).copied();
            if before.is_some_and(|(_, before)| before >= term) {
                continue;
            }
            self.leaders.insert(group, (node, term));
            self.recorder.count("vote", 1);
            if self.handed_over.remove(&group).is_some_and(|from| from != node) {
                self.recorder.count("transfer", 1);
            }
        }
        if self.rejoining.contains(&node) && replicas.votes() {
            self.rejoining.remove(&node);
            self.recorder.count("rejoin", 1);
        }
        let stats = replicas.log().stats();
        let now = [&stats.checkpoints, &stats.recycled].map(|count| count.load(Ordering::Relaxed));
        let before = self.logs.insert(node, now).unwrap_or_default();
        for (name, (now, before)) in ["checkpoint", "recycle"].into_iter().zip(now.into_iter().zip(before)) {
            self.recorder.count(name, now - before);
        }
    }

    /// Records the states of replicas that have changed.
    fn compare(&mut self, node: u64, replicas: &Replicas) {
        for (group, applied) in replicas.applied() {
            if self.compared.insert((node, group), applied) == Some(applied) {
                continue;
            }
            let Some((index, hash)) = replicas.state_hash(group) else { continue };
            self.recorder.push(What::StateHash(StateHash { group, index, node: NodeId(node), hash }));
            self.count_open(node, group, replicas, EVENTS_BETWEEN_COUNTS);
        }
    }

    /// Records what every replica of a node counts as open.
    pub(crate) fn count_all(&mut self, node: u64, replicas: &Replicas) {
        replicas.applied().into_iter().for_each(|(group, _)| self.count_open(node, group, replicas, 0));
    }

    /// Records what a replica counts as open, unless it had fewer events since the last time.
    fn count_open(&mut self, node: u64, group: GroupId, replicas: &Replicas, events_min: u64) {
        let Some((event, tenants)) = replicas.open_by_tenant(group) else { return };
        let counted = self.counted.get(&(node, group));
        if counted.is_some_and(|counted| event < counted + events_min) {
            return;
        }
        self.counted.insert((node, group), event);
        let node = NodeId(node);
        let tenants = tenants.into_iter().map(|(tenant, open)| OpenOfTenant { tenant, open }).collect();
        self.recorder.push(What::Open(OpenDeliveries { group, node, event, tenants }));
    }
}
