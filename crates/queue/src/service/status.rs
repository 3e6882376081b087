//! The state of this node: its disk and its log.

use std::{collections::BTreeMap, iter, sync::atomic::Ordering};

use postroad_core::{GroupId, NodeId};
use postroad_proto::queue::{FollowerView, GroupReplication, NodeStatusResponse};
use postroad_raft::{DiskStatus, Group, Replication};
use postroad_storage::{Log, Room};
use postroad_telemetry::data_disk;
use tokio::sync::watch;

use crate::{directory::DirectoryMachine, ledger::LedgerGroup};

/// What the state of a node is read from; a clone is cheap.
#[derive(Clone)]
pub(crate) struct NodeState {
    pub(crate) node: NodeId,
    pub(crate) log: Log,
    /// Whether the other queue nodes accept the disk.
    pub(crate) disk: watch::Receiver<DiskStatus>,
    pub(crate) directory: Group<DirectoryMachine>,
}

impl NodeState {
    pub(super) fn read(&self, ledgers: &BTreeMap<GroupId, LedgerGroup>) -> NodeStatusResponse {
        let (disk, stats) = (data_disk(), self.log.stats());
        NodeStatusResponse {
            node: self.node.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_total_bytes: disk.map_or(0, |disk| disk.size_bytes),
            disk_free_bytes: disk.map_or(0, |disk| disk.available_bytes),
            disk_full: self.log.room() != Room::Plenty,
            disk_refused: *self.disk.borrow() != DiskStatus::Accepted,
            log_written_bytes: stats.written_bytes.load(Ordering::Relaxed),
            log_batches: stats.batches.load(Ordering::Relaxed),
            replication: self.replication(ledgers).map(group_replication).collect(),
        }
    }

    /// Returns how the other nodes follow, for every group that this node leads.
    fn replication(
        &self,
        ledgers: &BTreeMap<GroupId, LedgerGroup>,
    ) -> impl Iterator<Item = (GroupId, Replication)> {
        let of_directory = (GroupId::DIRECTORY, self.directory.replication());
        let of_ledgers = ledgers.iter().map(|(group, ledger)| (*group, ledger.group.replication()));
        let all = iter::once(of_directory).chain(of_ledgers);
        all.filter_map(|(group, replication)| Some((group, replication?)))
    }
}

fn group_replication((group, replication): (GroupId, Replication)) -> GroupReplication {
    let count = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
    let follower = |(node, behind_bytes): (NodeId, u64)| FollowerView { node: node.0, behind_bytes };
    GroupReplication {
        group: group.0.into(),
        voters: count(replication.voters),
        answering: count(replication.answering),
        followers: replication.behind.into_iter().map(follower).collect(),
    }
}
