//! A cluster of real processes with mutual TLS on loopback, whose nodes can be killed one by one.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use postroad_core::{GroupId, MessageId};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::{
    operator::Operator,
    process::{Process, ProcessSpec, free_ports, http_get},
};

/// How long a node may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The API key of the default cluster.
pub const API_KEY: &str = "test-loopback-only";

/// The role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Stores mail durably.
    Queue,
    /// Delivers mail.
    Outbound,
    /// Keeps the history.
    Control,
    /// Accepts mail.
    Ingress,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Outbound => "outbound",
            Self::Control => "control",
            Self::Ingress => "ingress",
        }
    }

    /// Node ids are unique across roles.
    fn id_base(self) -> usize {
        match self {
            Self::Queue => 0,
            Self::Ingress => 10,
            Self::Outbound => 20,
            Self::Control => 30,
        }
    }
}

/// Which cluster to start.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// The `postroad` binary.
    pub binary: PathBuf,
    /// Queue nodes: 1, 3 or 5.
    pub queues: usize,
    /// Ingress nodes.
    pub ingresses: usize,
    /// Outbound nodes.
    pub outbounds: usize,
    /// Control nodes: 0 or 1.
    pub controls: usize,
    /// The policy for `postroad apply`.
    pub policy: String,
    /// Additional settings for each role, in TOML.
    pub settings: BTreeMap<Role, String>,
}

impl ClusterSpec {
    /// Describes 3 queue, 2 ingress, 2 outbound nodes and 1 control node, which send all mail to one receiver.
    ///
    /// Any process on this machine may submit, from any sender address.
    #[must_use]
    pub fn usual(binary: &Path, receiver: SocketAddr) -> Self {
        let policy = format!(
            "sources: [{{name: one, helo: one.test}}, {{name: two, helo: two.test}}]\n\
             pools: [{{name: default, sources: [{{source: one}}, {{source: two}}]}}]\n\
             tenants: [{{name: test, pool: default}}]\n\
             credentials:\n\
             - {{name: here, tenant: test, networks: [127.0.0.0/8]}}\n\
             - {{name: key, tenant: test, api_key: {API_KEY}, networks: [127.0.0.0/8]}}\n\
             routes: [{{domain: '*', host: {}, port: {}}}]\n",
            receiver.ip(),
            receiver.port()
        );
        Self {
            binary: binary.to_owned(),
            queues: 3,
            ingresses: 2,
            outbounds: 2,
            controls: 1,
            policy,
            settings: BTreeMap::new(),
        }
    }
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its role.
    pub role: Role,
    /// Its process.
    pub process: Process,
    /// The SMTP address of an ingress node.
    pub smtp: SocketAddr,
    /// The gRPC address of an ingress node, without TLS.
    pub grpc: SocketAddr,
    /// The HTTP address of a control node.
    pub http: SocketAddr,
}

/// A running cluster; its processes are killed and its files removed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    spec: ClusterSpec,
    dir: TempDir,
}

impl Cluster {
    /// Creates a cluster, starts its nodes and waits until all are ready.
    ///
    /// # Errors
    /// A command of the binary fails, or a node does not become ready.
    pub async fn start(spec: ClusterSpec) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("postroad-cluster-").tempdir()?;
        let mut cluster = Self { nodes: Vec::new(), spec, dir };
        let queue_ports = cluster.init().await?;
        let counts = [
            (Role::Queue, cluster.spec.queues),
            (Role::Outbound, cluster.spec.outbounds),
            (Role::Control, cluster.spec.controls),
            (Role::Ingress, cluster.spec.ingresses),
        ];
        for (role, count) in counts {
            for number in 0..count {
                let listen = queue_ports.get(number).copied().unwrap_or_default();
                let node = cluster.start_node(role, number, listen).await?;
                cluster.nodes.push(node);
            }
            if role == Role::Queue {
                cluster.wait_all_ready().await?;
                let policy = cluster.spec.policy.clone();
                cluster.apply(&policy).await?;
            }
        }
        cluster.wait_all_ready().await?;
        Ok(cluster)
    }

    /// Returns the nodes of a role, in their order.
    pub fn nodes(&mut self, role: Role) -> Vec<&mut Node> {
        self.nodes.iter_mut().filter(|node| node.role == role).collect()
    }

    /// Returns the SMTP address of each ingress node.
    #[must_use]
    pub fn smtp(&self) -> Vec<SocketAddr> {
        self.nodes.iter().filter(|node| node.role == Role::Ingress).map(|node| node.smtp).collect()
    }

    /// Returns the gRPC address of each ingress node.
    #[must_use]
    pub fn grpc(&self) -> Vec<SocketAddr> {
        self.nodes.iter().filter(|node| node.role == Role::Ingress).map(|node| node.grpc).collect()
    }

    /// Returns the HTTP address of the control node.
    #[must_use]
    pub fn control(&self) -> Option<SocketAddr> {
        self.nodes.iter().find(|node| node.role == Role::Control).map(|node| node.http)
    }

    /// Waits until every running node is ready.
    ///
    /// # Errors
    /// A node does not become ready.
    pub async fn wait_all_ready(&mut self) -> anyhow::Result<()> {
        for node in self.nodes.iter_mut().filter(|node| node.process.pid().is_some()) {
            node.process.wait_ready(READY_WITHIN).await?;
        }
        Ok(())
    }

    /// Returns the index among the queue nodes of the leader of a group, according to their metrics.
    pub async fn leader(&self, group: GroupId) -> Option<usize> {
        let queues = self.nodes.iter().filter(|node| node.role == Role::Queue).enumerate();
        let running = queues.filter(|(_, node)| node.process.pid().is_some());
        leader_of(running.map(|(index, node)| (index, node.process.spec().metrics)), group).await
    }

    /// Runs `postroad apply` with a policy.
    ///
    /// # Errors
    /// It fails.
    pub async fn apply(&self, policy: &str) -> anyhow::Result<()> {
        let file = self.dir.path().join("policy.yaml");
        std::fs::write(&file, policy)?;
        let operator = self.files().join("operator.toml");
        let arguments = ["apply".into(), "-f".into(), file.into(), "--config".into(), operator.into()];
        self.postroad(&arguments).await.map(drop)
    }

    /// Runs `postroad message` with a command for one message, such as `hold`.
    ///
    /// # Errors
    /// It fails.
    pub async fn message(&self, command: &str, id: MessageId) -> anyhow::Result<()> {
        let operator = self.files().join("operator.toml");
        let arguments =
            ["message".into(), command.into(), id.to_string().into(), "--config".into(), operator.into()];
        self.postroad(&arguments).await.map(drop)
    }

    /// Returns the directory with the files of the cluster, in `cluster`, and of each node, such as `queue-1`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Returns an operator whose commands run in [`Cluster::directory`].
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(&self.spec.binary, self.directory())
    }

    /// Runs an operator's command, and returns what it prints.
    ///
    /// # Errors
    /// It fails.
    pub async fn operate(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let operator = self.files().join("operator.toml");
        let target = ["--config".into(), operator.into()];
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).chain(target).collect();
        self.postroad(&arguments).await
    }

    /// Returns the last lines of every node's log.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |node: &Node| format!("== {}\n{}\n", node.process.spec().name, node.process.log_tail());
        self.nodes.iter().map(log).collect()
    }

    /// Where `postroad cluster init` writes.
    fn files(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    async fn postroad(&self, arguments: &[OsString]) -> anyhow::Result<String> {
        let ended = self.operator().run(arguments).await;
        let ended = ended.with_context(|| format!("cannot start `{}`", self.spec.binary.display()))?;
        let errors = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "postroad {arguments:?} ended with {}: {errors}", ended.status);
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    async fn init(&self) -> anyhow::Result<Vec<u16>> {
        let ports: [u16; 5] = free_ports()?;
        let ports = ports.get(..self.spec.queues).context("a cluster has 1, 3 or 5 queue nodes")?;
        let mut arguments: Vec<OsString> =
            ["cluster".into(), "init".into(), "--dir".into(), self.files().into()].into();
        for (index, port) in ports.iter().enumerate() {
            arguments.push("--queue".into());
            arguments.push(format!("{}=127.0.0.1:{port}", index + 1).into());
        }
        self.postroad(&arguments).await?;
        Ok(ports.to_vec())
    }

    /// Creates the files of a node, adjusts its settings, and starts it.
    async fn start_node(&self, role: Role, number: usize, queue_port: u16) -> anyhow::Result<Node> {
        let name = format!("{}-{}", role.as_str(), number + 1);
        let out = self.dir.path().join(&name);
        let id = role.id_base() + number + 1;
        let (own_argument, own_value) = match role {
            Role::Ingress => ("--hostname", "localhost"),
            _ => ("--data", "data"),
        };
        self.postroad(&[
            "cluster".into(),
            "join".into(),
            "--dir".into(),
            self.files().into(),
            role.as_str().into(),
            "--node".into(),
            id.to_string().into(),
            "--out".into(),
            out.clone().into(),
            own_argument.into(),
            own_value.into(),
        ])
        .await?;
        let [metrics, smtp, grpc, http] =
            free_ports()?.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let config = out.join(format!("{}.toml", role.as_str()));
        let mut settings: Table = std::fs::read_to_string(&config)?.parse()?;
        merge(&mut settings, own_settings(role, queue_port, [metrics, smtp, grpc, http]).parse()?);
        if let Some(more) = self.spec.settings.get(&role) {
            merge(&mut settings, more.parse()?);
        }
        std::fs::write(&config, settings.to_string())?;
        if role == Role::Queue {
            self.postroad(&["cluster".into(), "form".into(), "--config".into(), config.clone().into()])
                .await?;
        }
        let process = Process::start(ProcessSpec {
            name,
            program: self.spec.binary.clone(),
            arguments: vec![role.as_str().into(), "--config".into(), config.into()],
            log: out.join("log"),
            metrics,
        })?;
        Ok(Node { role, process, smtp, grpc, http })
    }
}

fn own_settings(role: Role, queue_port: u16, [metrics, smtp, grpc, http]: [SocketAddr; 4]) -> String {
    let own = match role {
        Role::Queue => format!("[queue]\nlisten = \"127.0.0.1:{queue_port}\"\n"),
        Role::Ingress => {
            format!(
                "[ingress]\nconnections_per_network_max = 10000\nlisteners = [{{ listen = \"{smtp}\" }}]\n\
                 grpc_listen = \"{grpc}\"\ngrpc_plaintext = true\n"
            )
        }
        Role::Outbound => "[guard]\nallow = [\"127.0.0.0/8\"]\n".to_owned(),
        Role::Control => format!("[http]\nlisten = \"{http}\"\n"),
    };
    format!("[metrics]\nlisten = \"{metrics}\"\n{own}")
}

/// Merges `from` into `into`, key by key.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Asks queue nodes, given with their index, who leads a group.
///
/// A deposed leader may not know it yet: of several that claim to lead, the one with the highest term leads.
pub(crate) async fn leader_of(
    nodes: impl Iterator<Item = (usize, SocketAddr)>,
    group: GroupId,
) -> Option<usize> {
    let mut leader: Option<(f64, usize)> = None;
    for (index, metrics) in nodes {
        let Ok((200, page)) = http_get(metrics, "/metrics").await else { continue };
        let term = leading_term(&String::from_utf8_lossy(&page), group);
        if let Some(term) = term.filter(|term| leader.is_none_or(|(highest, _)| *term > highest)) {
            leader = Some((term, index));
        }
    }
    leader.map(|(_, index)| index)
}

/// Returns the term in which a node leads a group; `None` if its metrics say that it does not lead.
fn leading_term(page: &str, group: GroupId) -> Option<f64> {
    let value = |name| {
        let series = format!("{name}{{group=\"{group}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    value("postroad_queue_leading").filter(|leading| *leading > 0.0)?;
    value("postroad_queue_term")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Serves one page to every request.
    async fn serve(page: String) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{page}").as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn of_several_claimed_leaders_the_one_with_the_highest_term_leads() {
        let check = async |nodes: [(u8, u64); 3], expected| {
            let mut nodes_asked = Vec::new();
            for (index, (leading, term)) in nodes.into_iter().enumerate() {
                // The metrics of another group do not matter.
                let page = format!(
                    "postroad_queue_leading{{group=\"12\"}} 1\npostroad_queue_term{{group=\"12\"}} {}\n\
                     postroad_queue_leading{{group=\"1\"}} {leading}\npostroad_queue_term{{group=\"1\"}} {term}\n",
                    100 - index
                );
                nodes_asked.push((index, serve(page).await));
            }
            assert_eq!(leader_of(nodes_asked.into_iter(), GroupId(1)).await, expected, "{nodes:?}");
        };
        check([(0, 7), (1, 7), (0, 7)], Some(1)).await;
        check([(1, 9), (1, 10), (0, 11)], Some(1)).await;
        check([(1, 10), (1, 9), (0, 10)], Some(0)).await;
        check([(0, 7), (0, 8), (0, 8)], None).await;
    }

    #[test]
    fn settings_are_merged_key_by_key() {
        let mut into: Table = "[a]\nx = 1\ny = [1]\n[b]\nz = 1".parse().unwrap();
        merge(&mut into, "[a]\ny = [2, 3]\n[c]\nw = 1".parse().unwrap());
        assert_eq!(into, "[a]\nx = 1\ny = [2, 3]\n[b]\nz = 1\n[c]\nw = 1".parse().unwrap());
    }
}
