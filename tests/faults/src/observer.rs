//! What replicas show from outside: states, leaders, checkpoints.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use postroad_core::{GroupId, NodeId};
use postroad_oracle::{
    What,
    history::{OpenDeliveries, OpenOfTenant, StateHash},
};
use postroad_queue::Replicas;

use crate::{record::Recorder, world::name};

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
    /// Nodes with a new disk that do not vote yet, since when.
    rejoining: BTreeMap<u64, Duration>,
    /// What each replica has dropped of its events: the entry that was applied last, and the last event.
    dropped: BTreeMap<(GroupId, u64), (u64, u64)>,
    /// Replicas that have dropped other events than others.
    disagreeing: BTreeMap<GroupId, String>,
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
            rejoining: BTreeMap::new(),
            dropped: BTreeMap::new(),
            disagreeing: BTreeMap::new(),
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
    pub(crate) fn has_new_disk(&mut self, node: u64, now: Duration) {
        self.rejoining.insert(node, now);
    }

    /// Returns the nodes with a new disk that do not vote yet, since when.
    pub(crate) fn rejoining(&self) -> impl Iterator<Item = (u64, Duration)> {
        self.rejoining.iter().map(|(node, since)| (*node, *since))
    }

    /// Returns what replicas disagree on that their hashes do not show.
    pub(crate) fn disagreements(&self) -> impl Iterator<Item = String> {
        self.disagreeing.values().cloned()
    }

    /// Looks at the replicas of a node that runs.
    pub(crate) fn look(&mut self, node: u64, replicas: &Replicas) {
        self.compare(node, replicas);
        self.compare_dropped(node, replicas);
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
        if self.rejoining.contains_key(&node) && replicas.votes() {
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

    /// Compares the events that replicas have dropped which have applied the same.
    fn compare_dropped(&mut self, node: u64, replicas: &Replicas) {
        let dropped = replicas.dropped_through();
        if dropped.is_empty() {
            return;
        }
        for (group, applied) in replicas.applied() {
            let Some(through) = dropped.get(&group) else { continue };
            self.dropped.insert((group, node), (applied, *through));
            let others = self.dropped.range((group, 0)..=(group, u64::MAX));
            let other =
                others.map(|(key, is)| (key.1, is)).find(|(_, is)| is.0 == applied && is.1 != *through);
            if let Some((other, (_, others))) = other {
                let text = format!(
                    "of group {group} {} has dropped events up to {through}, {} up to {others}",
                    name(node),
                    name(other)
                );
                self.disagreeing.entry(group).or_insert(text);
            }
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
