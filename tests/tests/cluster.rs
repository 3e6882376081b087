//! A cluster of real processes under load while its nodes are killed.
#![allow(clippy::print_stdout, reason = "people read how long a group had no leader")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postroad_core::GroupId;
use postroad_testkit::{
    Script, Sink, SinkConfig,
    checker::{Acknowledged, Findings},
    client::{Submitted, submit, submit_grpc},
    cluster::{API_KEY, Cluster, ClusterSpec, Role},
    failover::{Queues, kill_leader},
    process::{http_get, postroad_binary},
    sink::{Phase, Rule},
};
use tokio::{task::JoinSet, time::sleep};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients, each of which sends one message after the other.
const CLIENTS: usize = 4;

/// Clients that send until `stop`, half over SMTP and half over gRPC, spread over the ingress nodes.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Counts>,
    clients: JoinSet<Vec<Acknowledged>>,
}

/// How many messages of each group were acknowledged.
type Counts = Mutex<BTreeMap<GroupId, u64>>;

/// Where a client sends to.
#[derive(Clone, Copy)]
enum Server {
    Smtp(SocketAddr),
    Grpc(SocketAddr),
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let smtp = cluster.smtp().into_iter().map(Server::Smtp);
        let servers: Vec<Server> = smtp.chain(cluster.grpc().into_iter().map(Server::Grpc)).collect();
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let server = servers[number % servers.len()];
            clients.spawn(send(number, server, stop.clone(), acknowledged.clone()));
        }
        Self { stop, acknowledged, clients }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.lock().expect("no client panics").values().sum()
    }

    /// Waits until `number` more messages are acknowledged.
    async fn more(&self, number: u64) {
        let goal = self.acknowledged() + number;
        let reached = async {
            while self.acknowledged() < goal {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("mail is accepted again in time");
    }

    async fn finish(self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

async fn send(
    client: usize,
    server: Server,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let recipient = format!("{client}-{number}@domain{}.test", number % 7);
        let content = format!("From: <a@example.test>\r\nSubject: {client} {number}\r\n\r\nhello\r\n");
        let (sender, recipients) = ("a@example.test", [&*recipient]);
        let submitted = match server {
            Server::Smtp(server) => submit(server, sender, &recipients, &content).await,
            Server::Grpc(server) => submit_grpc(server, API_KEY, sender, &recipients, &content).await,
        };
        match submitted {
            Submitted::Acknowledged(message) => {
                *counts.lock().expect("no client panics").entry(message.id.group()).or_default() += 1;
                acknowledged.push(message);
            }
            Submitted::Refused(_) | Submitted::Rejected(_) | Submitted::Unknown => {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    acknowledged
}

/// Queue nodes as processes to kill, and the load meanwhile.
struct Processes<'a> {
    cluster: &'a mut Cluster,
    load: &'a Load,
}

impl Queues for Processes<'_> {
    type Error = String;

    async fn leader(&mut self, group: GroupId) -> Option<usize> {
        self.cluster.leader(group).await
    }

    async fn kill(&mut self, index: usize) -> Result<(), String> {
        let mut queues = self.cluster.nodes(Role::Queue);
        queues[index].process.kill().await.map_err(|error| error.to_string())
    }

    async fn start_again(&mut self, index: usize) -> Result<(), String> {
        let mut queues = self.cluster.nodes(Role::Queue);
        let started = queues[index].process.start_again();
        started.map_err(|error| format!("{error:#}"))?;
        self.cluster.wait_all_ready().await.map_err(|error| format!("{error:#}"))
    }

    fn acknowledged(&self, group: GroupId) -> u64 {
        if group == GroupId::DIRECTORY {
            return self.load.acknowledged();
        }
        self.load.acknowledged.lock().expect("no client panics").get(&group).copied().unwrap_or(0)
    }
}

async fn start(script: Script) -> (Sink, Cluster) {
    start_with(script, BTreeMap::new()).await
}

async fn start_with(script: Script, settings: BTreeMap<Role, String>) -> (Sink, Cluster) {
    let sink =
        Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.expect("loopback has a free port");
    let binary = postroad_env::blocking(postroad_binary).await.expect("the build does not panic");
    let binary = binary.unwrap_or_else(|error| panic!("{error:#}"));
    let spec = ClusterSpec { settings, ..ClusterSpec::usual(binary, sink.address()) };
    let cluster = Cluster::start(spec).await;
    (sink, cluster.unwrap_or_else(|error| panic!("{error:#}")))
}

/// Waits until every acknowledged message is at the sink, and checks that each is there once or explained.
async fn check_delivered(sink: &Sink, cluster: &Cluster, acknowledged: &[Acknowledged]) {
    let control = cluster.control().expect("the cluster has control");
    let findings = Findings::wait_until_explained(acknowledged, &sink.ledger(), control, PATIENCE).await;
    if let Err(error) = findings.and_then(|findings| findings.require_exactly_once()) {
        panic!("{error:#}\n{}", cluster.logs());
    }
    assert_eq!(sink.ledger().bare_newlines(), 0, "bare CR or LF on the wire");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_02_the_leader_of_every_group_dies_under_load_and_nothing_acknowledged_is_lost() {
    let (sink, mut cluster) = start(Script::default()).await;
    let load = Load::start(&cluster);
    load.more(50).await;
    for group in [0, 1, 2, 3].map(GroupId) {
        let mut processes = Processes { cluster: &mut cluster, load: &load };
        let kill = tokio::time::timeout(PATIENCE, kill_leader(&mut processes, group)).await;
        let kill = kill.unwrap_or_else(|_| panic!("group {group} does not accept\n{}", cluster.logs()));
        let kill = kill.unwrap_or_else(|error| panic!("{error}"));
        println!("group {group}: led after {:?}, accepts after {:?}", kill.led_after, kill.accepted_after);
    }
    load.more(50).await;
    let acknowledged = load.finish().await;
    check_delivered(&sink, &cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_04_outbound_nodes_die_during_deliveries_and_every_second_copy_is_explained() {
    let slow = Rule { delay_ms: 300, ..Rule::reply(Phase::Message, "250 2.0.0 accepted late") };
    let (sink, mut cluster) = start(Script::default().with_rule(slow)).await;
    let load = Load::start(&cluster);
    load.more(50).await;
    for index in [0, 1] {
        let mut outbounds = cluster.nodes(Role::Outbound);
        outbounds[index].process.kill().await.expect("it was running");
        outbounds[index].process.start_again().expect("it has ended");
        load.more(20).await;
        cluster.wait_all_ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    }
    let acknowledged = load.finish().await;
    sink.set_script(Script::default());
    check_delivered(&sink, &cluster, &acknowledged).await;
}

/// Waits until an outbound node has delivered a message since its start.
async fn wait_until_delivers(metrics: SocketAddr) {
    let delivers = async {
        loop {
            let page = http_get(metrics, "/metrics").await.map(|(_, page)| page).unwrap_or_default();
            let page = String::from_utf8_lossy(&page);
            let count = page.lines().find_map(|line| {
                line.strip_prefix("postroad_outbound_attempts_total{outcome=\"delivered\"} ")
            });
            if count.is_some_and(|count| count != "0") {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, delivers).await.expect("the node gets its share");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_33_an_outbound_node_that_joins_under_load_gets_its_share_and_nothing_is_sent_twice() {
    let slow = Rule { delay_ms: 200, ..Rule::reply(Phase::Message, "250 2.0.0 accepted late") };
    let settings = [(Role::Queue, "[queue.lease]\nrebalance_delay = \"2s\"\n".to_owned())].into();
    let (sink, mut cluster) = start_with(Script::default().with_rule(slow), settings).await;
    let joining = |cluster: &mut Cluster| cluster.nodes(Role::Outbound)[1].process.spec().metrics;
    let mut outbounds = cluster.nodes(Role::Outbound);
    outbounds[1].process.terminate(PATIENCE).await.expect("it stops in time");
    let load = Load::start(&cluster);
    load.more(50).await;
    let mut outbounds = cluster.nodes(Role::Outbound);
    outbounds[1].process.start_again().expect("it has ended");
    wait_until_delivers(joining(&mut cluster)).await;
    load.more(50).await;
    let acknowledged = load.finish().await;
    check_delivered(&sink, &cluster, &acknowledged).await;
    let findings = Findings::new(&acknowledged, &sink.ledger().copies());
    assert!(findings.duplicates.is_empty(), "{findings:?}\n{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_05_without_control_mail_flows_and_the_history_is_complete_afterwards() {
    let (sink, mut cluster) = start(Script::default()).await;
    cluster.nodes(Role::Control)[0].process.kill().await.expect("it was running");
    let load = Load::start(&cluster);
    load.more(50).await;
    let acknowledged = load.finish().await;
    cluster.nodes(Role::Control)[0].process.start_again().expect("it has ended");
    cluster.wait_all_ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    check_delivered(&sink, &cluster, &acknowledged).await;
    let control = cluster.control().expect("the cluster has control");
    for message in &acknowledged {
        let known = async {
            while postroad_testkit::checker::record(control, message.id).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, known).await.expect("control catches up");
    }
}
