//! Certificates of a running cluster: listed, renewed, and its authority replaced while mail flows.

use std::{
    fs,
    path::PathBuf,
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
    operator::Operator,
    process::postroad_binary,
};
use tokio::{task::JoinHandle, time::sleep};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(120);

/// The nodes of the cluster: the directory and role of each.
const NODES: [(&str, &str); 6] = [
    ("queue-1", "queue"),
    ("queue-2", "queue"),
    ("queue-3", "queue"),
    ("outbound-1", "outbound"),
    ("control-1", "control"),
    ("ingress-1", "ingress"),
];

/// Takes a step as soon as every node is ready for it; until then it is refused and changes nothing.
async fn rotate_when_ready(operator: &Operator, expected: &str) {
    let taken = async {
        loop {
            let output = operator.postroad(&["certificate", "rotate", "--dir", "cluster", "--yes"]).await;
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            // A machine that is busy with other things may answer late.
            let is_busy = output.status.code() == Some(4);
            assert!(is_busy || error.contains("nothing was changed: not every node is ready"), "{error}");
            sleep(Duration::from_millis(100)).await;
        }
    };
    let text = tokio::time::timeout(PATIENCE, taken).await.expect("every node becomes ready");
    assert!(text.starts_with(expected), "{text}");
}

/// Copies the authorities to every node, as the command asks.
fn copy_authorities(operator: &Operator) {
    let from = operator.path("cluster/authority.pem");
    for (node, _) in NODES {
        fs::copy(&from, operator.path(node).join("authority.pem")).expect("it can be copied");
    }
}

/// Sends one message after the other until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    sending: JoinHandle<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (server, stopped, count) = (cluster.smtp()[0], stop.clone(), acknowledged.clone());
        let sending = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let content = "From: a@sender.test\r\nSubject: hello\r\n\r\nhello\r\n";
                let submitted = submit(server, "a@sender.test", &["b@receiver.test"], content).await;
                if matches!(submitted, Submitted::Acknowledged(_)) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { stop, acknowledged, sending }
    }

    /// Waits until more messages are acknowledged.
    async fn more(&self) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + 3;
        let reached = async {
            while self.acknowledged.load(Ordering::Relaxed) < goal {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("mail is accepted");
    }

    async fn finish(self) -> u64 {
        self.more().await;
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await.expect("the client does not panic");
        self.acknowledged.load(Ordering::Relaxed)
    }
}

async fn start(receiver: std::net::SocketAddr) -> (Cluster, Operator) {
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let spec = ClusterSpec { ingresses: 1, outbounds: 1, ..ClusterSpec::usual(binary, receiver) };
    let cluster = Cluster::start(spec).await.unwrap_or_else(|error| panic!("{error:#}"));
    let operator = cluster.operator();
    (cluster, operator)
}

fn hang_up(cluster: &mut Cluster) {
    for role in [Role::Queue, Role::Outbound, Role::Control, Role::Ingress] {
        for node in cluster.nodes(role) {
            node.process.hang_up().expect("it runs");
        }
    }
}

#[tokio::test]
async fn c_171_the_authority_of_a_cluster_is_replaced_while_mail_flows() {
    let sink = Sink::start(SinkConfig::default()).await.expect("a port is free");
    let (mut cluster, operator) = start(sink.address()).await;
    let load = Load::start(&cluster);
    let keys: Vec<_> = NODES.map(|(node, role)| operator.path(node).join(format!("{role}.key"))).into();
    let read = |path: &PathBuf| fs::read_to_string(path).expect("it is there");
    let before: Vec<String> = keys.iter().map(read).collect();

    let rotate = ["certificate", "rotate", "--dir", "cluster"];
    operator.check(&rotate, 1, "Begin to replace this authority?").await;
    operator.check(&[&rotate[..], &["--status"]].concat(), 0, "no replacement is under way").await;
    operator.check(&[&rotate[..], &["--yes"]].concat(), 0, "step 1 of 3").await;
    operator.check(&[&rotate[..], &["--abort"]].concat(), 0, "the new one is gone").await;
    operator.check(&[&rotate[..], &["--yes"]].concat(), 0, "step 1 of 3").await;
    operator.check(&[&rotate[..], &["--status"]].concat(), 0, "step 1 of 3 is done").await;
    // Nobody trusts the new authority yet, so it must not sign.
    let refused = operator.postroad(&["certificate", "rotate", "--dir", "cluster", "--yes"]).await;
    assert!(!refused.status.success(), "{refused:?}");
    copy_authorities(&operator);
    hang_up(&mut cluster);
    rotate_when_ready(&operator, "step 2 of 3").await;
    operator.check(&[&rotate[..], &["--abort"]].concat(), 1, "the new authority signs already").await;
    load.more().await;

    let renew = ["certificate", "renew", "--dir", "cluster"];
    let nodes = NODES.map(|(node, _)| node);
    operator.check(&[&renew[..], &nodes[..]].concat(), 0, "renewed ingress 11 in ingress-1").await;
    for (path, before) in keys.iter().zip(&before) {
        assert_ne!(read(path), *before, "{} is new", path.display());
    }
    hang_up(&mut cluster);
    rotate_when_ready(&operator, "step 3 of 3").await;
    load.more().await;
    copy_authorities(&operator);
    hang_up(&mut cluster);

    // A node that starts now finds only the new authority, everywhere.
    let restarted = &mut cluster.nodes(Role::Queue)[0].process;
    restarted.kill().await.expect("it can be killed");
    restarted.start_again().expect("it starts");
    restarted.wait_ready(PATIENCE).await.unwrap_or_else(|error| panic!("{error:#}"));
    let list = ["certificate", "list", "--config", "cluster/operator.toml"];
    let text = operator.check(&list, 0, "DAYS LEFT").await;
    for name in ["queue 3", "ingress 11", "outbound 21", "control 31", "authority"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let accepted = load.finish().await;
    assert!(accepted > 0);
    assert!(
        sink.ledger().wait_for_count(accepted, PATIENCE).await,
        "{accepted} accepted\n{}",
        cluster.logs()
    );
}
