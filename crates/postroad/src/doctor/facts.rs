//! What is gathered: as it was found, without a judgement. A text in place of a value says why there is none.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use postroad_cluster::{AnnouncedNode, ClockDifference};
use postroad_core::{GroupId, NodeId, Timestamp};
use postroad_net::Certificate;

use crate::cli::RoleName;

/// Everything that is checked.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// This machine's clock.
    pub(crate) now: Timestamp,
    /// The version of this command.
    pub(crate) version: &'static str,
    pub(crate) cluster: ClusterFacts,
    /// This machine, where it was to be checked as a node.
    pub(crate) node: Option<NodeFacts>,
}

/// The cluster as this machine reaches it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterFacts {
    /// Every queue node that is configured, and its clock minus this machine's.
    pub(crate) queue: BTreeMap<NodeId, Result<ClockDifference, String>>,
    /// Every group that a queue node knows, and its leader.
    pub(crate) leaders: BTreeMap<GroupId, Option<NodeId>>,
    /// How the queue nodes follow the leaders that could be asked.
    pub(crate) replicas: BTreeMap<GroupId, ReplicaFacts>,
    /// The nodes that have announced themselves.
    pub(crate) nodes: Vec<AnnouncedNode>,
    /// The sources of the policy in force.
    pub(crate) sources: Vec<SourceFacts>,
    /// Why the policy in force is not known.
    pub(crate) no_policy: Option<String>,
}

/// How the queue nodes follow the leader of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaFacts {
    /// Voters, the leader among them.
    pub(crate) voters: usize,
    /// Bytes of the log that a follower has not confirmed.
    pub(crate) behind: BTreeMap<NodeId, u64>,
    /// Voters that do not answer the leader.
    pub(crate) silent: usize,
}

/// A source, and what the DNS says of it.
#[derive(Clone, Debug)]
pub(crate) struct SourceFacts {
    pub(crate) name: String,
    /// The EHLO name.
    pub(crate) helo: String,
    /// An outbound node owns it.
    pub(crate) has_owner: bool,
    /// A pool gives it a share of mail.
    pub(crate) has_share: bool,
    /// The address that receivers see, where it is known here: the one in the policy, or on an outbound node the one that
    /// the system chooses.
    pub(crate) address: Option<IpAddr>,
    /// The address is a private one: receivers see another.
    pub(crate) is_private: bool,
    /// The outbound nodes that may own it; empty for any.
    pub(crate) owners: Vec<NodeId>,
    /// Whether this machine has the address; `None` where the source is not for this machine.
    pub(crate) usable_here: Option<Result<(), String>>,
    /// What the DNS says; `None` where nothing was looked up.
    pub(crate) names: Option<NameFacts>,
}

impl SourceFacts {
    /// Returns true when this outbound node may own the source.
    pub(crate) fn may_be_owned_by(&self, node: NodeId) -> bool {
        self.owners.is_empty() || self.owners.contains(&node)
    }
}

/// The names of a source's address.
#[derive(Clone, Debug)]
pub(crate) struct NameFacts {
    /// The names that the address has (PTR), each with its addresses.
    pub(crate) ptr: Result<Vec<(String, Vec<IpAddr>)>, String>,
    /// The addresses of the EHLO name.
    pub(crate) helo: Result<Vec<IpAddr>, String>,
}

/// This machine as a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) role: RoleName,
    pub(crate) node: NodeId,
    /// The components that are not ready, as the running node says.
    pub(crate) not_ready: Result<Vec<String>, String>,
    pub(crate) files: FileLimit,
    pub(crate) data: Option<Result<DataFacts, String>>,
    pub(crate) listeners: Vec<ListenerFacts>,
    pub(crate) certificates: Vec<(String, Result<Certificate, String>)>,
    /// Keys that others than their owner can read, with their mode.
    pub(crate) open_keys: Vec<(PathBuf, u32)>,
    pub(crate) dns: Option<DnsFacts>,
    pub(crate) port_25: Vec<PortFacts>,
}

/// How many files and connections the node may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimit {
    pub(crate) max: u64,
    /// What the configuration can need.
    pub(crate) needed: u64,
    /// The limit is that of the running node, not of this command.
    pub(crate) is_of_node: bool,
}

/// The file system of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataFacts {
    pub(crate) available_bytes: u64,
    pub(crate) size_bytes: u64,
    /// How long a write and sync took; measured on queue nodes only.
    pub(crate) sync: Option<SyncTimes>,
}

/// The times of small writes, each with a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncTimes {
    pub(crate) median: Duration,
    pub(crate) slowest: Duration,
    pub(crate) writes: usize,
}

/// An address that the node listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerFacts {
    /// The setting.
    pub(crate) setting: String,
    pub(crate) address: SocketAddr,
    pub(crate) state: ListenerState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListenerState {
    /// Something accepts connections there.
    Open,
    /// Nothing listens, and this user may.
    Free,
    /// Nothing answers, and this user cannot listen either.
    Unusable(String),
}

/// How the resolver answers.
#[derive(Clone, Debug)]
pub(crate) struct DnsFacts {
    pub(crate) domain: String,
    /// The number of mail hosts.
    pub(crate) hosts: Result<usize, String>,
    pub(crate) took: Duration,
}

/// A connection to a mail host, from one of the node's sources.
#[derive(Clone, Debug)]
pub(crate) struct PortFacts {
    /// The source, or what is used without one.
    pub(crate) from: String,
    pub(crate) to: String,
    /// The first line that the mail host said.
    pub(crate) greeting: Result<String, String>,
}
