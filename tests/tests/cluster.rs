//! A cluster of real processes under load, while its nodes die.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use postroad_testkit::{
    Script, Sink, SinkConfig,
    checker::{Acknowledged, Duplicate, Findings},
    client::{Submitted, submit},
    cluster::{Cluster, ClusterSpec, Role},
    process::{http_get, postroad_binary},
    sink::{Phase, Rule},
};
use tokio::{task::JoinSet, time::sleep};

/// Whatever a test waits for comes within this, or never.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients that send one message after the other.
const CLIENTS: usize = 4;

/// Clients that send until they are told to stop, each to an ingress node of its own.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: JoinSet<Vec<Acknowledged>>,
}

impl Load {
    fn start(servers: &[SocketAddr]) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let server = servers[number % servers.len()];
            clients.spawn(send(number, server, stop.clone(), acknowledged.clone()));
        }
        Self { stop, acknowledged, clients }
    }

    /// Waits until so many more messages were acknowledged.
    async fn more(&self, number: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + number;
        let reached = async {
            while self.acknowledged.load(Ordering::Relaxed) < goal {
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
    server: SocketAddr,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let recipient = format!("{client}-{number}@domain{}.test", number % 7);
        let content = format!("From: <a@example.test>\r\nSubject: {client} {number}\r\n\r\nhello\r\n");
        match submit(server, "a@example.test", &[&recipient], &content).await {
            Submitted::Acknowledged(message) => {
                count.fetch_add(1, Ordering::Relaxed);
                acknowledged.push(message);
            }
            Submitted::Refused(_) | Submitted::Unknown => sleep(Duration::from_millis(50)).await,
        }
    }
    acknowledged
}

async fn start(script: Script) -> (Sink, Cluster) {
    start_with(script, BTreeMap::new()).await
}

async fn start_with(script: Script, settings: BTreeMap<Role, String>) -> (Sink, Cluster) {
    let sink =
        Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.expect("loopback has a free port");
    let binary = tokio::task::spawn_blocking(postroad_binary).await.expect("the build does not panic");
    let binary = binary.unwrap_or_else(|error| panic!("{error:#}"));
    let spec = ClusterSpec { settings, ..ClusterSpec::usual(binary, sink.address()) };
    let cluster = Cluster::start(spec).await;
    (sink, cluster.unwrap_or_else(|error| panic!("{error:#}")))
}

/// Waits until nothing is missing, and judges.
async fn judge(sink: &Sink, cluster: &Cluster, acknowledged: &[Acknowledged]) {
    let all_arrived = async {
        while !Findings::new(acknowledged, &sink.ledger().copies()).lost.is_empty() {
            sleep(Duration::from_millis(200)).await;
        }
    };
    // What is still missing after that is told below.
    let _ = tokio::time::timeout(PATIENCE, all_arrived).await;
    // A copy that is on its way counts too.
    sleep(Duration::from_secs(2)).await;
    let mut findings = Findings::new(acknowledged, &sink.ledger().copies());
    let control = cluster.control().expect("the cluster has control");
    let explained = async {
        // Control follows the queue a moment behind.
        while findings.explain(control).await.is_err()
            || !findings.duplicates.iter().all(Duplicate::is_explained)
        {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, explained).await;
    if let Err(error) = findings.require_exactly_once() {
        panic!("{error:#}\n{}", cluster.logs());
    }
    assert_eq!(sink.ledger().bare_newlines(), 0, "bare CR or LF on the wire");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_die_under_load_and_nothing_acknowledged_is_lost() {
    let (sink, mut cluster) = start(Script::default()).await;
    let load = Load::start(&cluster.smtp());
    load.more(50).await;
    for group in [1, 2, 3] {
        let leader = cluster.wait_leader(group, PATIENCE).await.expect("every group has a leader");
        let mut queues = cluster.nodes(Role::Queue);
        queues[leader].process.kill().await.expect("it was running");
        load.more(50).await;
        let mut queues = cluster.nodes(Role::Queue);
        queues[leader].process.start_again().expect("it has ended");
        cluster.wait_all_ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    }
    load.more(50).await;
    let acknowledged = load.finish().await;
    judge(&sink, &cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbound_nodes_die_with_mail_in_hand_and_every_second_copy_is_explained() {
    let slow = Rule { delay_ms: 300, ..Rule::reply(Phase::Message, "250 2.0.0 taken at last") };
    let (sink, mut cluster) = start(Script::default().with_rule(slow)).await;
    let load = Load::start(&cluster.smtp());
    load.more(50).await;
    for place in [0, 1] {
        let mut outbounds = cluster.nodes(Role::Outbound);
        outbounds[place].process.kill().await.expect("it was running");
        outbounds[place].process.start_again().expect("it has ended");
        load.more(20).await;
        cluster.wait_all_ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    }
    let acknowledged = load.finish().await;
    sink.set_script(Script::default());
    judge(&sink, &cluster, &acknowledged).await;
}

/// Waits until an outbound node has delivered something since it was started.
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
    let slow = Rule { delay_ms: 200, ..Rule::reply(Phase::Message, "250 2.0.0 taken at last") };
    let settings = [(Role::Queue, "[queue.lease]\nsettle_secs = 2\n".to_owned())].into();
    let (sink, mut cluster) = start_with(Script::default().with_rule(slow), settings).await;
    let joining = |cluster: &mut Cluster| cluster.nodes(Role::Outbound)[1].process.spec().metrics;
    let mut outbounds = cluster.nodes(Role::Outbound);
    outbounds[1].process.terminate(PATIENCE).await.expect("it stops in time");
    let load = Load::start(&cluster.smtp());
    load.more(50).await;
    let mut outbounds = cluster.nodes(Role::Outbound);
    outbounds[1].process.start_again().expect("it has ended");
    wait_until_delivers(joining(&mut cluster)).await;
    load.more(50).await;
    let acknowledged = load.finish().await;
    judge(&sink, &cluster, &acknowledged).await;
    let findings = Findings::new(&acknowledged, &sink.ledger().copies());
    assert!(findings.duplicates.is_empty(), "{findings:?}\n{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_control_mail_flows_and_the_history_is_complete_afterwards() {
    let (sink, mut cluster) = start(Script::default()).await;
    cluster.nodes(Role::Control)[0].process.kill().await.expect("it was running");
    let load = Load::start(&cluster.smtp());
    load.more(50).await;
    let acknowledged = load.finish().await;
    cluster.nodes(Role::Control)[0].process.start_again().expect("it has ended");
    cluster.wait_all_ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    judge(&sink, &cluster, &acknowledged).await;
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
