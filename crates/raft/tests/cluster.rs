//! Groups on one and three nodes over loopback, with killed leaders, power cuts and replaced disks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use postroad_core::{ClusterId, GroupId, NodeId};
use postroad_proto::raft::{RejoinRequest, raft_service_client::RaftServiceClient};
use postroad_raft::{
    Connect, DiskStatus, Entry, Group, Machine, MachineError, MachineSnapshot, Node, NodeConfig,
    ProposeError, Purpose, Replication, Voter,
};
use postroad_storage::{Disk, DiskId, Fs, Identity, Log, LogConfig, OpenError, Origin, format, sim::SimFs};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request,
    metadata::AsciiMetadataKey,
    transport::{Channel, Endpoint, Server},
};

const GROUP: GroupId = GroupId(1);

/// Keeps every head, and the bodies of heads that begin with `keep`.
#[derive(Default)]
struct Heads {
    heads: Vec<Bytes>,
    live: BTreeMap<Bytes, u64>,
}

impl Machine for Heads {
    type Reply = usize;

    fn apply(&mut self, entry: Entry<'_>) -> Result<usize, MachineError> {
        self.heads.push(entry.head.clone());
        if entry.head.starts_with(b"keep") {
            self.live.insert(entry.head.clone(), entry.index);
        }
        Ok(self.heads.len())
    }

    fn snapshot(&self) -> Box<dyn MachineSnapshot> {
        Box::new(Frozen { heads: self.heads.clone(), live: self.live.clone() })
    }

    fn restore(&mut self, state: Bytes) -> Result<(), MachineError> {
        *self = Self::default();
        for line in std::str::from_utf8(&state)?.lines() {
            let (index, head) = line.split_once(' ').ok_or("no line of a snapshot")?;
            let head = Bytes::copy_from_slice(head.as_bytes());
            self.heads.push(head.clone());
            if index != "-" {
                self.live.insert(head, index.parse()?);
            }
        }
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        self.heads.iter().flatten().fold(7, |hash, byte| hash * 31 % 0xffff_ffff_ffc5 + u64::from(*byte))
    }
}

struct Frozen {
    heads: Vec<Bytes>,
    live: BTreeMap<Bytes, u64>,
}

impl MachineSnapshot for Frozen {
    fn encode(&self) -> Bytes {
        let line = |head: &Bytes| {
            let index = self.live.get(head).map_or_else(|| "-".to_owned(), u64::to_string);
            format!("{index} {}\n", String::from_utf8_lossy(head))
        };
        self.heads.iter().map(line).collect::<String>().into()
    }

    fn live_bodies(&self) -> Vec<(u64, u32)> {
        let mut live: Vec<(u64, u32)> = self.live.values().map(|index| (*index, 0)).collect();
        live.sort_unstable();
        live
    }
}

struct Tcp;

impl Connect for Tcp {
    fn channel(&self, _: NodeId, address: &str, _: Purpose) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true).connect_lazy()
    }
}

fn identity(node: NodeId) -> Identity {
    Identity { cluster: ClusterId(1), node }
}

/// A disk as an operator formats it.
fn formatted(node: NodeId, id: u64, origin: Origin) -> SimFs {
    let fs = SimFs::default();
    format(&fs, identity(node), Disk { id: DiskId(id), origin }).unwrap();
    fs
}

/// A running node.
struct Running {
    node: Node,
    group: Group<Heads>,
    server: JoinHandle<()>,
    close: oneshot::Sender<()>,
}

impl Running {
    async fn start(id: u64, fs: Arc<dyn Fs>, address: SocketAddr, voters: &[Voter]) -> Self {
        let config = LogConfig { segment_bytes: 1 << 20, ..LogConfig::default() };
        let log = Log::open(fs, config, identity(NodeId(id))).unwrap();
        let config = NodeConfig { checkpoint_bytes: 512 << 10, ..NodeConfig::default() };
        let config = NodeConfig { log_retain_bytes_max: 512 << 10, ..config };
        let node = Node::new(config, voters.to_vec(), log, Arc::new(Tcp));
        let group = node.open_group(GROUP, Heads::default()).await.unwrap();
        let service = node.service();
        let listener = bind(address).await;
        let (close, closed) = oneshot::channel();
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(service);
            // Its connections end when the server is dropped, or in order by `close`.
            let closed = async move {
                if closed.await.is_err() {
                    std::future::pending().await
                }
            };
            server.serve_with_incoming_shutdown(incoming, closed).await.unwrap();
        });
        Self { node, group, server, close }
    }

    /// Stops in order: the server waits until every stream has ended.
    async fn stop(self) {
        self.node.stop();
        self.group.shutdown().await;
        self.close.send(()).unwrap();
        time::timeout(Duration::from_secs(60), self.server).await.expect("every stream ends").unwrap();
    }

    /// Stops without flushing, as if killed.
    async fn kill(self) {
        self.server.abort();
        self.node.stop();
        self.group.shutdown().await;
    }
}

async fn bind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => time::sleep(Duration::from_millis(20)).await,
        }
    }
}

struct Cluster {
    disks: Vec<SimFs>,
    voters: Vec<Voter>,
    nodes: Vec<Option<Running>>,
}

impl Cluster {
    async fn start(size: u64) -> Self {
        let mut voters = Vec::new();
        for id in 1..=size {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            voters.push(Voter { node: NodeId(id), address: free.to_string() });
        }
        let disks = (1..=size).map(|id| formatted(NodeId(id), id, Origin::Form)).collect();
        let mut cluster = Self { disks, voters, nodes: (0..size).map(|_| None).collect() };
        for place in 0..cluster.nodes.len() {
            cluster.restart(place).await;
        }
        cluster
    }

    async fn restart(&mut self, place: usize) {
        let voter = &self.voters[place];
        let address = voter.address.parse().unwrap();
        let fs = Arc::new(self.disks[place].clone());
        self.nodes[place] = Some(Running::start(voter.node.0, fs, address, &self.voters).await);
    }

    /// Gives a stopped node an empty disk.
    fn replace_disk(&mut self, place: usize, origin: Origin) {
        self.disks[place] = formatted(self.voters[place].node, 100 + place as u64, origin);
    }

    fn node(&self, place: usize) -> &Running {
        self.nodes[place].as_ref().unwrap()
    }

    /// Waits until a node's disk has the expected status.
    async fn until_disk_status(&self, place: usize, is_expected: impl Fn(DiskStatus) -> bool) {
        let mut now = self.node(place).node.disk_status();
        let changed = now.wait_for(|now| is_expected(*now));
        time::timeout(Duration::from_secs(60), changed).await.expect("it is noticed").unwrap();
    }

    /// Waits until a node knows that it votes.
    async fn votes(&self, place: usize) {
        while !self.node(place).group.votes() {
            time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn kill(&mut self, place: usize) {
        self.nodes[place].take().unwrap().kill().await;
    }

    /// Cuts the power of all nodes at once; `random` decides which unsynced blocks reached the disks.
    async fn cut_power(&mut self, mut random: impl FnMut() -> bool) {
        self.disks.iter().for_each(|disk| disk.fail_after(0));
        for place in 0..self.nodes.len() {
            self.kill(place).await;
            self.disks[place] = self.disks[place].power_cut(&mut random);
        }
    }

    /// Waits for a leader, and returns its position.
    async fn leader(&self) -> usize {
        loop {
            let leads = |node: &Option<Running>| {
                node.as_ref().is_some_and(|node| node.group.status().borrow().leading)
            };
            if let Some(place) = self.nodes.iter().position(leads) {
                return place;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the leader sees its followers as expected.
    async fn until_replication(&self, is_expected: impl Fn(&Replication) -> bool) {
        let look = async {
            loop {
                let seen = self.node(self.leader().await).group.replication();
                if seen.is_some_and(|seen| is_expected(&seen)) {
                    return;
                }
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        time::timeout(Duration::from_secs(60), look).await.expect("the leader sees it");
    }

    /// Proposes until it is committed.
    async fn commit(&self, head: &str, body: usize) -> u64 {
        loop {
            let leader = self.nodes[self.leader().await].as_ref().unwrap();
            let bodies = vec![Bytes::from(vec![b'x'; body])];
            match leader.group.propose(Bytes::copy_from_slice(head.as_bytes()), bodies).await {
                Ok(committed) => return committed.index,
                Err(_) => time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Waits until all running nodes have applied the same entries, and compares their states.
    async fn agree(&self) -> u64 {
        let running = || self.nodes.iter().flatten();
        loop {
            let states: Vec<(u64, u64)> = running().map(|node| node.group.state_hash()).collect();
            if states.iter().all(|(applied, _)| *applied == states[0].0) {
                assert!(states.iter().all(|state| *state == states[0]), "states differ: {states:?}");
                return states[0].0;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_commits_and_finds_everything_after_a_restart() {
    let mut cluster = Cluster::start(1).await;
    for number in 0..50 {
        cluster.commit(&format!("entry {number}"), 100).await;
    }
    let before = cluster.agree().await;
    cluster.kill(0).await;
    cluster.restart(0).await;
    cluster.commit("after", 100).await;
    assert!(cluster.agree().await > before);
    let (_, hash) = cluster.nodes[0].as_ref().unwrap().group.state_hash();
    let mut expected = Heads::default();
    let heads = (0..50).map(|number| format!("entry {number}")).chain(["after".to_owned()]);
    expected.heads = heads.map(Bytes::from).collect();
    assert_eq!(hash, expected.state_hash());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_02_a_dead_leader_is_replaced_and_nothing_committed_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let mut longest = Duration::ZERO;
    for round in 0..3 {
        for number in 0..20 {
            cluster.commit(&format!("entry {round}.{number}"), 1000).await;
        }
        let leader = cluster.leader().await;
        cluster.kill(leader).await;
        let died = postroad_env::now();
        cluster.commit(&format!("after {round}"), 1000).await;
        longest = longest.max(postroad_env::since(died));
        cluster.restart(leader).await;
    }
    cluster.agree().await;
    let (_, hash) = cluster.nodes[0].as_ref().unwrap().group.state_hash();
    let mut expected = Heads::default();
    for round in 0..3 {
        expected.heads.extend((0..20).map(|number| Bytes::from(format!("entry {round}.{number}"))));
        expected.heads.push(Bytes::from(format!("after {round}")));
    }
    assert_eq!(hash, expected.state_hash());
    assert!(longest < Duration::from_secs(10), "no leader for {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_called_a_few_times_a_second_and_catches_up_when_it_is_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.commit("before", 1000).await;
    let dead = (cluster.leader().await + 1) % 3;
    cluster.kill(dead).await;
    // In its place, something that counts the calls and answers none. Every failed call of openraft is a line in its log.
    let listener = bind(cluster.voters[dead].address.parse().unwrap()).await;
    let mut called = Vec::new();
    while called.len() < 30 {
        cluster.commit(&format!("entry {}", called.len()), 100).await;
        drop(listener.accept().await.unwrap());
        called.push(postroad_env::now());
    }
    let twelve = called[29] - called[17];
    assert!(twelve > Duration::from_secs(1), "12 calls within {twelve:?}");
    drop(listener);
    cluster.restart(dead).await;
    cluster.commit("after", 1000).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_knows_which_voters_answer_and_how_far_each_is_behind() {
    let mut cluster = Cluster::start(3).await;
    cluster.commit("before", 1000).await;
    let is_whole =
        |seen: &Replication| seen.answering == 3 && seen.behind.iter().all(|(_, bytes)| *bytes == 0);
    cluster.until_replication(is_whole).await;
    let leader = cluster.leader().await;
    let dead = (leader + 1) % 3;
    assert_eq!(cluster.node(dead).group.replication(), None, "only the leader knows");
    cluster.kill(dead).await;
    for number in 0..10 {
        cluster.commit(&format!("entry {number}"), 10_000).await;
    }
    let node = cluster.voters[dead].node;
    let is_behind =
        |seen: &Replication| seen.behind.iter().any(|(of, bytes)| *of == node && *bytes >= 100_000);
    cluster.until_replication(|seen| seen.voters == 3 && seen.answering == 2 && is_behind(seen)).await;
    cluster.restart(dead).await;
    cluster.until_replication(is_whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_21_a_follower_that_is_too_far_behind_gets_the_state_and_its_bodies() {
    let mut cluster = Cluster::start(3).await;
    let index = cluster.commit("keep this", 30_000).await;
    let behind = (cluster.leader().await + 1) % 3;
    cluster.kill(behind).await;
    for number in 0..300 {
        cluster.commit(&format!("entry {number}"), 20_000).await;
    }
    let leader = cluster.leader().await;
    let log = cluster.nodes[leader].as_ref().unwrap().group.log().clone();
    while log.group(GROUP).purged.is_none_or(|purged| purged.index <= index) {
        time::sleep(Duration::from_millis(50)).await;
    }
    // The follower's own state was replaced.
    cluster.replace_disk(behind, Origin::Rejoin);
    cluster.restart(behind).await;
    cluster.votes(behind).await;
    cluster.agree().await;
    let follower = cluster.nodes[behind].as_ref().unwrap();
    assert_eq!(follower.group.log().body(GROUP, index, 0).unwrap(), vec![b'x'; 30_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_everything_committed_is_there_after_a_power_cut_of_all_nodes() {
    let mut cluster = Cluster::start(3).await;
    let mut expected = Heads::default();
    for round in 0..3_u8 {
        for number in 0..30 {
            let head = format!("entry {round}.{number}");
            cluster.commit(&head, 3000).await;
            expected.heads.push(head.into());
        }
        cluster.cut_power(|| round == 1).await;
        for place in 0..3 {
            cluster.restart(place).await;
        }
    }
    cluster.commit("the end", 10).await;
    expected.heads.push("the end".into());
    cluster.agree().await;
    assert_eq!(cluster.nodes[0].as_ref().unwrap().group.state_hash().1, expected.state_hash());
}

/// Two followers that have synced an entry commit it while the leader's own disk is still writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_entries_committed_by_two_followers_survive_a_restart_of_their_slow_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.commit("everywhere", 3000).await;
    let leader = cluster.leader().await;
    cluster.disks[leader].stall_syncs();
    cluster.commit("at the followers only", 3000).await;
    cluster.cut_power(|| false).await;
    for place in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        cluster.restart(place).await;
    }
    cluster.commit("at the end", 3000).await;
    cluster.agree().await;
    let mut expected = Heads::default();
    expected.heads.extend(["everywhere", "at the followers only", "at the end"].map(Bytes::from));
    assert_eq!(cluster.nodes[0].as_ref().unwrap().group.state_hash().1, expected.state_hash());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_13_a_full_disk_refuses_proposals_until_it_has_space() {
    let cluster = Cluster::start(1).await;
    cluster.commit("before", 1000).await;
    let group = cluster.nodes[0].as_ref().unwrap().group.clone();
    let spares =
        || cluster.disks[0].list().unwrap().into_iter().filter(|name| name.starts_with("spare")).count();
    while spares() < 3 {
        time::sleep(Duration::from_millis(20)).await;
    }
    cluster.disks[0].set_capacity(Some(0));
    let mut refused = None;
    for number in 0..200_u64 {
        let propose = group.propose(number.to_string().into(), vec![Bytes::from(vec![0; 20_000])]);
        match time::timeout(Duration::from_secs(2), propose).await {
            Ok(Err(error)) => refused = Some(error),
            // It waits for the disk: it may still be committed.
            Err(_) => {}
            Ok(Ok(_)) => continue,
        }
        if !group.takes_bodies() {
            break;
        }
    }
    let full = group.propose("while full".into(), vec![Bytes::from_static(b"x")]).await;
    assert_eq!(full.err(), Some(ProposeError::Full), "after {refused:?}");
    group.propose("what has no body".into(), Vec::new()).await.unwrap();
    cluster.disks[0].set_capacity(None);
    cluster.commit("after", 1000).await;
}

/// A cluster where one follower has all committed entries, and the other is down and lacks some: (leader, one, other).
async fn committed_by_two(cluster: &mut Cluster, heads: &mut Heads) -> (usize, usize, usize) {
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.commit("before", 100).await;
    cluster.agree().await;
    cluster.kill(other).await;
    heads.heads.push("before".into());
    for number in 0..20 {
        let head = format!("entry {number}");
        cluster.commit(&head, 1000).await;
        heads.heads.push(head.into());
    }
    (leader, one, other)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_24_a_voter_with_a_wiped_disk_cannot_elect_a_leader_that_lacks_committed_entries() {
    let (mut cluster, mut expected) = (Cluster::start(3).await, Heads::default());
    let (leader, wiped, behind) = committed_by_two(&mut cluster, &mut expected).await;
    cluster.kill(leader).await;
    cluster.kill(wiped).await;
    // Even if it was formatted for a new cluster.
    cluster.replace_disk(wiped, Origin::Form);
    cluster.restart(behind).await;
    cluster.restart(wiped).await;
    // The node that is behind asked for a vote and was refused.
    cluster.until_disk_status(wiped, |standing| matches!(standing, DiskStatus::OtherDisk(_))).await;
    for place in [wiped, behind] {
        assert!(!cluster.node(place).group.status().borrow().leading, "two of three nodes lack the entry");
    }
    cluster.restart(leader).await;
    cluster.commit("after", 100).await;
    expected.heads.push("after".into());
    cluster.kill(wiped).await;
    cluster.agree().await;
    assert_eq!(cluster.node(behind).group.state_hash().1, expected.state_hash());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_24_a_node_with_a_new_disk_rejoins_and_votes_again() {
    let (mut cluster, mut expected) = (Cluster::start(3).await, Heads::default());
    let (leader, wiped, other) = committed_by_two(&mut cluster, &mut expected).await;
    cluster.restart(other).await;
    cluster.agree().await;
    cluster.kill(wiped).await;
    cluster.replace_disk(wiped, Origin::Rejoin);
    cluster.restart(wiped).await;
    cluster.votes(wiped).await;
    // With one of the others down, its acknowledgement and its vote are needed.
    cluster.kill(leader).await;
    cluster.commit("after", 100).await;
    expected.heads.push("after".into());
    cluster.agree().await;
    assert_eq!(cluster.node(wiped).group.state_hash().1, expected.state_hash());
    // It restarts like any other node.
    cluster.kill(wiped).await;
    cluster.restart(wiped).await;
    cluster.commit("the end", 100).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_26_a_second_machine_with_the_number_of_a_running_node_cannot_join() {
    let (cluster, mut expected) = (Cluster::start(3).await, Heads::default());
    cluster.commit("before", 100).await;
    expected.heads.push("before".into());
    cluster.agree().await;
    let leader = cluster.leader().await;
    let healthy = (leader + 1) % 3;
    let channel = Tcp.channel(cluster.voters[leader].node, &cluster.voters[leader].address, Purpose::Vote);
    let mut request = Request::new(RejoinRequest { node: cluster.voters[healthy].node.0, disk: 77 });
    let labels = [("cluster", 1), ("group", u64::from(GROUP.0)), ("to", cluster.voters[leader].node.0)];
    for (name, number) in labels {
        let key: AsciiMetadataKey = format!("postroad-{name}").parse().unwrap();
        request.metadata_mut().insert(key, number.into());
    }
    let refused = RaftServiceClient::new(channel).rejoin(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    cluster.votes(healthy).await;
    cluster.commit("after", 100).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_25_an_old_copy_of_a_disk_is_detected_and_not_used_again() {
    let (mut cluster, mut expected) = (Cluster::start(3).await, Heads::default());
    let (_, restored, other) = committed_by_two(&mut cluster, &mut expected).await;
    let copy = cluster.disks[restored].power_cut(|| false);
    cluster.commit("after the copy", 100).await;
    expected.heads.push("after the copy".into());
    cluster.kill(restored).await;
    cluster.disks[restored] = copy;
    cluster.restart(restored).await;
    cluster.until_disk_status(restored, |standing| standing == DiskStatus::RolledBack).await;
    cluster.kill(restored).await;
    let voter = cluster.voters[restored].node;
    let fs = Arc::new(cluster.disks[restored].clone());
    let refused = Log::open(fs, LogConfig::default(), identity(voter));
    assert!(matches!(refused, Err(OpenError::RolledBack(_))), "{refused:?}");
    // With an empty disk it rejoins.
    cluster.restart(other).await;
    cluster.replace_disk(restored, Origin::Rejoin);
    cluster.restart(restored).await;
    cluster.votes(restored).await;
    cluster.agree().await;
    assert_eq!(cluster.node(restored).group.state_hash().1, expected.state_hash());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_stops_although_its_leader_has_nothing_to_send() {
    let mut cluster = Cluster::start(3).await;
    cluster.commit("entry", 100).await;
    cluster.agree().await;
    let leader = cluster.leader().await;
    for place in (0..3).filter(|place| *place != leader) {
        cluster.nodes[place].take().unwrap().stop().await;
    }
    cluster.kill(leader).await;
}
