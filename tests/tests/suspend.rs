//! Suspensions in a cluster of real processes while mail flows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use postroad_testkit::{
    Sink, SinkConfig,
    client::{Submitted, submit},
    cluster::{Cluster, ClusterSpec, Role},
    process::postroad_binary,
};
use tokio::{task::JoinHandle, time::sleep};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(120);

/// The domain whose mail goes to a receiver of its own.
const STOPPED: &str = "stopped.test";

/// A client that sends to both receivers in turn until `stop`.
struct Load {
    stop: Arc<AtomicBool>,
    /// Messages to the receiver that is suspended, which were acknowledged.
    sent: Arc<AtomicU64>,
    client: JoinHandle<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, servers) = (stop.clone(), sent.clone(), cluster.smtp());
        let client = tokio::spawn(async move {
            for number in 0_usize.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let domain = if number.is_multiple_of(2) { STOPPED } else { "other.test" };
                let recipient = format!("{number}@{domain}");
                let content = format!("From: <a@example.test>\r\nSubject: {number}\r\n\r\nhello\r\n");
                let server = servers[number % servers.len()];
                let submitted = submit(server, "a@example.test", &[&*recipient], &content).await;
                if domain == STOPPED && matches!(submitted, Submitted::Acknowledged(_)) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        Self { stop, sent, client }
    }

    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.client.await.expect("the client does not panic");
        self.sent.load(Ordering::Relaxed)
    }
}

/// Waits until a receiver has taken this many messages.
async fn taken(sink: &Sink, count: u64, cluster: &Cluster) {
    let until = postroad_env::now() + PATIENCE;
    while sink.ledger().count() < count {
        let seen = sink.ledger().count();
        assert!(postroad_env::now() < until, "{seen} of {count} messages arrived\n{}", cluster.logs());
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until nothing is on its way to a site, as `postroad site get` shows it.
async fn is_quiet(cluster: &Cluster, site: &str) {
    let until = postroad_env::now() + PATIENCE;
    loop {
        let shown = cluster.operate(&["site", "get", site, "-o", "json"]).await.expect("it is known");
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
        if shown["connections"] == 0 && shown["sending"] == 0 {
            return;
        }
        assert!(postroad_env::now() < until, "{shown}\n{}", cluster.logs());
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_site_gets_nothing_while_other_mail_goes_on_and_all_of_it_once_it_is_resumed() {
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let other = Sink::start(SinkConfig::default()).await.expect("a receiver starts");
    let stopped = Sink::start(SinkConfig::default()).await.expect("a receiver starts");
    let (host, port) = (stopped.address().ip(), stopped.address().port());
    let mut spec = ClusterSpec::usual(binary, other.address());
    let route = format!("routes: [{{domain: {STOPPED}, host: {host}, port: {port}}}, ");
    spec.policy = spec.policy.replace("routes: [", &route);
    let cluster = Cluster::start(spec).await.unwrap_or_else(|error| panic!("{error:#}"));
    let site = format!("route:{host}:{port}");

    let load = Load::start(&cluster);
    taken(&stopped, 10, &cluster).await;
    let suspend = ["site", "suspend", &site, "--reason", "they block us", "--for", "1h"];
    let said = cluster.operate(&suspend).await.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.contains(" (operator))"), "what the certificate proves is in it: {said}");
    is_quiet(&cluster, &site).await;
    let before = stopped.ledger().count();
    taken(&other, other.ledger().count() + 50, &cluster).await;
    assert_eq!(stopped.ledger().count(), before, "a suspended site got mail\n{}", cluster.logs());

    cluster.operate(&["site", "resume", &site]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let sent = load.finish().await;
    assert!(sent > before, "some waited");
    taken(&stopped, sent, &cluster).await;
}

/// Whether the numbers of sources that nodes own are as expected.
type Wanted<'a> = &'a dyn Fn(&[(u64, usize)]) -> bool;

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_outbound_node_hands_its_sources_over_and_gets_them_back() {
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let sink = Sink::start(SinkConfig::default()).await.expect("a receiver starts");
    let settings = [(Role::Queue, "[queue.lease]\nrebalance_delay = \"2s\"\n".to_owned())].into();
    let spec = ClusterSpec { settings, ..ClusterSpec::usual(binary, sink.address()) };
    let cluster = Cluster::start(spec).await.unwrap_or_else(|error| panic!("{error:#}"));
    let nodes = async || {
        let shown = cluster.operate(&["node", "list", "-o", "json"]).await.expect("it is shown");
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
        let node = |item: &serde_json::Value| {
            let sources = item["sources"].as_array().map(Vec::len);
            Some((item["node"].as_u64()?, sources?))
        };
        let items = shown["items"].as_array().expect("it is a list");
        items.iter().filter_map(node).collect::<Vec<(u64, usize)>>()
    };
    let until = async |what: &str, wanted: Wanted<'_>| {
        let until = postroad_env::now() + PATIENCE;
        loop {
            let found = nodes().await;
            if wanted(&found) {
                return found;
            }
            assert!(postroad_env::now() < until, "{what}: {found:?}\n{}", cluster.logs());
            sleep(Duration::from_millis(200)).await;
        }
    };
    let all_owned = |found: &[(u64, usize)]| found.iter().map(|(_, sources)| sources).sum::<usize>() == 2;
    let found = until("both sources are owned", &|found| found.len() == 2 && all_owned(found)).await;
    let (busiest, _) = *found.iter().max_by_key(|(_, sources)| *sources).expect("there are two");
    let name = busiest.to_string();
    let suspend = ["node", "suspend", &name, "--reason", "maintenance"];
    cluster.operate(&suspend).await.unwrap_or_else(|error| panic!("{error:#}"));
    let has_none = |found: &[(u64, usize)]| found.contains(&(busiest, 0)) && all_owned(found);
    until("the other node owns both", &has_none).await;

    let load = Load::start(&cluster);
    taken(&sink, 20, &cluster).await;
    cluster.operate(&["node", "resume", &name]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let has_one = |found: &[(u64, usize)]| found.contains(&(busiest, 1)) && all_owned(found);
    until("its share comes back", &has_one).await;
    load.finish().await;
}
