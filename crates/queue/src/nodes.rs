//! The nodes of the cluster as they announce themselves, for operators. Only the end of a suspension waits for it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use postroad_core::NodeId;
use postroad_net::{PeerInfo, Role, peer_info};
use postroad_proto::node::{
    AnnounceRequest, AnnounceResponse, AnnouncedNode, ClockDifference, ListNodesRequest, ListNodesResponse,
    Node,
    node_service_server::{NodeService, NodeServiceServer},
};
use tonic::{Request, Response, Status};

use crate::{clock, metrics::NodeMetrics};

/// The most nodes that are kept. A node needs a certificate of the cluster to be one of them.
const NODES_MAX: usize = 1024;
/// The most bytes of a version.
const VERSION_BYTES_MAX: usize = 64;
/// The most CA certificates of one node.
const AUTHORITIES_MAX: usize = 8;
/// The most bytes of a key's identifier.
const KEY_ID_BYTES_MAX: usize = 64;
/// A node that is silent for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);
/// Clocks that differ by more are not both right.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(30);
/// A node that is silent for so long, three announcements, is not counted as running.
const RUNNING_WITHIN: Duration = Duration::from_secs(90);

/// The service of one queue node; clones share everything.
#[derive(Clone)]
pub(crate) struct Nodes {
    table: Arc<Mutex<NodeTable>>,
    metrics: Arc<NodeMetrics>,
}

pub(crate) type NodesServer = NodeServiceServer<Nodes>;

impl Nodes {
    pub(crate) fn new() -> Self {
        Self { table: Arc::default(), metrics: Arc::new(NodeMetrics::new()) }
    }

    /// Returns true unless the clocks of most running queue nodes differ from the time by which `own`, this node, decides.
    pub(crate) fn agree_on_time(&self, own: NodeId) -> bool {
        self.table.lock().agree_on_time(own, postroad_env::now(), clock::ignored())
    }

    pub(crate) fn into_server(self) -> NodesServer {
        NodesServer::new(self)
    }
}

/// The last announcement of each node.
#[derive(Debug, Default)]
struct NodeTable {
    nodes: BTreeMap<Key, Announcement>,
}

/// Role, id and address: nodes without data, such as the ingress nodes of a deployment, may share an id.
type Key = (Role, NodeId, String);

#[derive(Clone, Debug)]
struct Announcement {
    node: Node,
    at: Instant,
    clock: Option<ClockDifference>,
}

impl NodeTable {
    /// Keeps an announcement in the place of the node's last one; returns false when the table is full of running nodes.
    ///
    /// A full table forgets the node that has been silent for longest.
    fn insert(&mut self, key: Key, announcement: Announcement) -> bool {
        let now = announcement.at;
        self.nodes.retain(|_, kept| now.duration_since(kept.at) < FORGOTTEN_AFTER);
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&key) {
            let silent = self.nodes.iter().filter(|(_, kept)| now.duration_since(kept.at) >= RUNNING_WITHIN);
            if let Some(longest) = silent.min_by_key(|(_, kept)| kept.at).map(|(key, _)| key.clone()) {
                self.nodes.remove(&longest);
            }
        }
        let has_room = self.nodes.len() < NODES_MAX || self.nodes.contains_key(&key);
        if has_room {
            self.nodes.insert(key, announcement);
        }
        has_room
    }

    fn list(&self, now: Instant) -> Vec<AnnouncedNode> {
        let kept = self.nodes.iter().filter(|(key, _)| !self.is_forgotten(key, now));
        let listed = kept.map(|((_, _, address), kept)| AnnouncedNode {
            node: Some(kept.node.clone()),
            address: address.clone(),
            age_millis: u64::try_from(now.duration_since(kept.at).as_millis()).unwrap_or(u64::MAX),
            clock: kept.clock,
        });
        listed.collect()
    }

    /// A node that is silent is remembered for a day, unless it runs at another address: then it has moved there.
    fn is_forgotten(&self, key: &Key, now: Instant) -> bool {
        let (role, node, address) = key;
        let silent = |announcement: &Announcement| now.duration_since(announcement.at);
        let Some(age) = self.nodes.get(key).map(silent) else { return true };
        let runs_elsewhere = || {
            self.nodes.iter().any(|((other_role, other_node, other), announcement)| {
                let is_same = (other_role, other_node) == (role, node) && other != address;
                is_same && silent(announcement) < RUNNING_WITHIN
            })
        };
        age >= FORGOTTEN_AFTER || (age >= RUNNING_WITHIN && runs_elsewhere())
    }

    /// This node counts as one that agrees with itself. Its wall clock, with which the others compare theirs, is ahead of
    /// the time by which it decides by what it ignores of it.
    fn agree_on_time(&self, own: NodeId, now: Instant, ignored: Duration) -> bool {
        let ignored_millis = i64::try_from(ignored.as_millis()).unwrap_or(i64::MAX);
        let others = self.nodes.iter().filter(|((role, node, _), kept)| {
            *role == Role::Queue && *node != own && now.duration_since(kept.at) < RUNNING_WITHIN
        });
        let differs = |clock: &ClockDifference| {
            let offset_millis = clock.offset_millis.saturating_add(ignored_millis);
            u128::from(offset_millis.unsigned_abs()) > CLOCKS_DIFFER_MAX.as_millis()
        };
        let (differ, agree): (Vec<_>, Vec<_>) = others.filter_map(|(_, kept)| kept.clock).partition(differs);
        differ.len() < agree.len() + 1
    }

    fn running(&self, role: Role, now: Instant) -> usize {
        let of_role = self.nodes.iter().filter(|((kept, _, _), _)| *kept == role);
        of_role.filter(|(_, kept)| now.duration_since(kept.at) < RUNNING_WITHIN).count()
    }
}

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn announce(
        &self,
        request: Request<AnnounceRequest>,
    ) -> Result<Response<AnnounceResponse>, Status> {
        let peer = peer_info(&request).cloned();
        let AnnounceRequest { node, clock } = request.into_inner();
        let node = node.ok_or_else(|| Status::invalid_argument("expected `node`"))?;
        let (role, id) = checked(&node, peer.as_ref())?;
        let address = peer.map(|peer| without_port(&peer.address).to_owned()).unwrap_or_default();
        let at = postroad_env::now();
        let mut table = self.table.lock();
        if !table.insert((role, id, address), Announcement { node, at, clock }) {
            self.metrics.refused();
            return Err(Status::resource_exhausted(format!("more than {NODES_MAX} nodes")));
        }
        self.metrics.observe(|role| table.running(role, at));
        Ok(Response::new(AnnounceResponse { clock_millis: postroad_env::wall().as_millis() }))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let readers = [Role::Operator, Role::Control, Role::Queue, Role::Ingress, Role::Outbound];
        peer_info(&request).map_or(Ok(()), |peer| peer.require(&readers))?;
        let nodes = self.table.lock().list(postroad_env::now());
        Ok(Response::new(ListNodesResponse { clock_millis: postroad_env::wall().as_millis(), nodes }))
    }
}

/// Returns which node it is: with mutual TLS the one of the certificate.
fn checked(node: &Node, peer: Option<&PeerInfo>) -> Result<(Role, NodeId), Status> {
    let role: Role = node.role.parse().map_err(|_| Status::invalid_argument("expected a role in `role`"))?;
    let key = (role, NodeId(node.id));
    let proven = peer.and_then(|peer| peer.identity.as_ref());
    if proven.is_some_and(|proven| (proven.role, proven.node) != key) || role == Role::Operator {
        return Err(Status::permission_denied("a node may only announce itself"));
    }
    let mut certificates = node.certificate.iter().chain(&node.authorities);
    let are_short =
        certificates.all(|of| of.key.len() <= KEY_ID_BYTES_MAX && of.signed_by.len() <= KEY_ID_BYTES_MAX);
    if node.version.len() > VERSION_BYTES_MAX || node.authorities.len() > AUTHORITIES_MAX || !are_short {
        return Err(Status::invalid_argument("the description of the node is too long"));
    }
    Ok(key)
}

/// Each connection comes from another port.
fn without_port(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host.trim_matches(['[', ']']),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::ClusterId;
    use postroad_net::PeerIdentity;
    use postroad_proto::node::Certificate;
    use tonic::Code;

    use super::*;

    fn node(role: &str, id: u64) -> Node {
        Node { role: role.to_owned(), id, version: "1".to_owned(), ..Node::default() }
    }

    #[test]
    fn c_171_a_node_announces_only_itself() {
        let peer = |role| PeerInfo {
            identity: Some(PeerIdentity { cluster: ClusterId(1), role, node: NodeId(3) }),
            address: "192.0.2.1:5".to_owned(),
        };
        let check = |node: &Node, peer: Option<PeerInfo>, expected: Result<(Role, NodeId), Code>| {
            let found = checked(node, peer.as_ref()).map_err(|status| status.code());
            assert_eq!(found, expected, "{node:?} from {peer:?}");
        };
        check(&node("outbound", 3), Some(peer(Role::Outbound)), Ok((Role::Outbound, NodeId(3))));
        check(&node("outbound", 4), Some(peer(Role::Outbound)), Err(Code::PermissionDenied));
        check(&node("queue", 3), Some(peer(Role::Outbound)), Err(Code::PermissionDenied));
        check(&node("operator", 3), Some(peer(Role::Operator)), Err(Code::PermissionDenied));
        check(&node("queue", 3), None, Ok((Role::Queue, NodeId(3))));
        check(&node("postmaster", 3), None, Err(Code::InvalidArgument));
        let long = Node { version: "1".repeat(65), ..node("queue", 3) };
        check(&long, None, Err(Code::InvalidArgument));
        let many = Node { authorities: vec![Certificate::default(); 9], ..node("queue", 3) };
        check(&many, None, Err(Code::InvalidArgument));
    }

    /// Announces an ingress node from an address; returns whether there was room.
    fn announce(table: &mut NodeTable, id: u64, address: &str, at: Instant) -> bool {
        let announcement = Announcement { node: node("ingress", id), at, clock: None };
        table.insert((Role::Ingress, NodeId(id), address.to_owned()), announcement)
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_silent_for_a_day() {
        let start = postroad_env::now();
        let mut table = NodeTable::default();
        for id in 0..NODES_MAX as u64 {
            assert!(announce(&mut table, id, "a", start));
        }
        assert!(!announce(&mut table, 5000, "a", start), "there is no room for another node");
        let later = start + Duration::from_secs(60);
        assert!(announce(&mut table, 7, "a", later), "a known node is kept up to date");
        assert!(!announce(&mut table, 5000, "a", later), "none is silent yet");
        assert_eq!(table.running(Role::Ingress, start + RUNNING_WITHIN), 1);
        assert_eq!(table.running(Role::Queue, later), 0);
        let next_day = later + FORGOTTEN_AFTER - Duration::from_secs(1);
        let listed = table.list(next_day);
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].age_millis, 86_399_000);
        assert!(announce(&mut table, 5000, "a", next_day), "silent nodes have made room");
    }

    #[test]
    fn a_full_table_forgets_the_node_that_is_silent_for_longest() {
        let start = postroad_env::now();
        let mut table = NodeTable::default();
        for id in 0..NODES_MAX as u64 {
            announce(&mut table, id, "a", start + Duration::from_millis(id));
        }
        let later = start + Duration::from_secs(300);
        assert!(announce(&mut table, 0, "a", later));
        assert!(announce(&mut table, 5000, "a", later));
        let ids: Vec<u64> = table.nodes.keys().map(|(_, node, _)| node.0).collect();
        assert_eq!(ids.len(), NODES_MAX);
        assert!(ids.contains(&0) && !ids.contains(&1) && ids.contains(&2) && ids.contains(&5000));
    }

    #[test]
    fn a_clock_is_right_unless_most_queue_nodes_have_another_time() {
        let check_ignored = |offsets_secs: &[i64], ignored_secs: u64, expected: bool| {
            let now = postroad_env::now();
            let mut table = NodeTable::default();
            let mut announce = |role: Role, id: u64, offset_secs: i64| {
                let clock = ClockDifference { offset_millis: offset_secs * 1000, round_trip_millis: 1 };
                let announcement = Announcement { node: node(role.name(), id), at: now, clock: Some(clock) };
                table.insert((role, NodeId(id), "a".to_owned()), announcement);
            };
            // What other roles say does not count, nor what this node says of itself.
            (10..20).for_each(|id| announce(Role::Ingress, id, 86_400));
            announce(Role::Queue, 1, 86_400);
            (2..).zip(offsets_secs).for_each(|(id, offset)| announce(Role::Queue, id, *offset));
            let ignored = Duration::from_secs(ignored_secs);
            assert_eq!(
                table.agree_on_time(NodeId(1), now, ignored),
                expected,
                "{offsets_secs:?}, {ignored:?}"
            );
            assert!(table.agree_on_time(NodeId(1), now + RUNNING_WITHIN, ignored), "nobody runs");
        };
        let check = |offsets_secs: &[i64], expected| check_ignored(offsets_secs, 0, expected);
        check(&[], true);
        check(&[3], true);
        check(&[-86_400], false);
        check(&[-86_400, 0], true);
        check(&[-86_400, -86_400], false);
        check(&[-86_400, 0, 0, 86_400], true);
        check(&[-86_400, 0, 86_400, 86_400], false);
        // Set forward by an hour while the process runs, which goes by a minute of it.
        check_ignored(&[-3600, -3600], 3540, false);
        // The same after a start with a clock that was 50 seconds behind.
        check_ignored(&[-3600, -3600], 3590, true);
        // Started a day behind and corrected since: the process goes on a day behind.
        check_ignored(&[0, 0], 86_340, false);
    }

    #[test]
    fn nodes_that_share_an_id_are_listed_each_and_one_that_has_moved_once() {
        let start = postroad_env::now();
        let mut table = NodeTable::default();
        for address in ["a", "b"] {
            announce(&mut table, 40, address, start);
        }
        assert_eq!(table.list(start).len(), 2);
        let later = start + RUNNING_WITHIN;
        assert_eq!(table.list(later).len(), 2, "both are silent, and neither is known to have moved");
        announce(&mut table, 40, "c", later);
        let listed = table.list(later);
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0].address, "c");
    }

    #[test]
    fn an_address_is_kept_without_its_port() {
        for (address, expected) in
            [("192.0.2.1:5", "192.0.2.1"), ("[2001:db8::1]:5", "2001:db8::1"), ("memory", "memory"), ("", "")]
        {
            assert_eq!(without_port(address), expected);
        }
    }
}
