//! The operator's commands, and which cluster they talk to.

mod apply;
mod confirm;
mod context;
mod edit;
mod error;
mod message;
mod policy;
mod queue;
mod scope;
mod selection;
mod target;
mod text;
mod top;

use std::{path::Path, sync::Arc, time::Duration};

use postroad_cluster::{
    ApplyOptions, CallError, DirectoryClient, DirectoryWatch, Endpoints, FRAME_BYTES_MAX, LeaderCalls,
    LeaderWatch,
};
use postroad_core::GroupId;
use postroad_directory::View;
use postroad_net::{Expect, NodeTls, Role, TlsError, Transport};
use postroad_proto::queue::{GroupLeader, LeadersRequest, queue_service_client::QueueServiceClient};
use tonic::{Status, transport::Channel};

pub use apply::{apply_file, diff};
pub(crate) use confirm::confirm;
pub use context::context;
pub(crate) use context::context_name;
pub use edit::{delete, edit};
pub use error::{EXIT_STATUS_HELP, OperatorError, exit_code};
pub use message::message;
pub use policy::{describe, export, get};
pub use queue::queue;
pub use scope::{ScopeKind, scope, site};
pub(crate) use selection::{parse_mailbox, parse_sender, parse_sender_domain};
pub use top::top;

use self::target::Target;
use crate::{
    cli::TargetArgs,
    config::{self, OperatorFile},
    sections::{ClusterSection, QueueNode},
};

/// Where `postroad dev` listens for operators.
pub(crate) const DEV_ADDRESS: &str = "127.0.0.1:7070";

/// Its port.
pub(crate) const DEV_PORT: u16 = 7070;

/// Pause after no queue node answered.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How long the cluster may take to respond.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// How long one queue node may take to respond where another one can be asked instead.
const NODE_WITHIN: Duration = Duration::from_secs(2);

/// The queue nodes that an operator's command talks to.
pub(crate) struct Operator {
    endpoints: Endpoints,
    /// How a person names them.
    addresses: String,
    /// How questions and results name the cluster.
    cluster: String,
    leaders: LeaderWatch,
    /// Who runs the command, for the record.
    actor: String,
}

impl Operator {
    /// Reads which cluster is meant; connections are opened by the first call.
    pub(crate) fn connect(target: &TargetArgs) -> anyhow::Result<Self> {
        let target = Target::of(target)?;
        let (endpoints, addresses) = target.endpoints()?;
        let leaders = LeaderWatch::start(&endpoints);
        Ok(Self { endpoints, addresses, cluster: target.cluster(), leaders, actor: actor() })
    }

    /// Reads which cluster a node belongs to, and calls it as that node.
    pub(crate) fn of_node(cluster: &ClusterSection) -> anyhow::Result<Self> {
        let endpoints = cluster.endpoints(&Transport::Mutual(cluster.node_tls()?));
        let nodes = cluster.queue.iter().map(|queue| format!("`{}`", queue.address));
        let addresses = nodes.collect::<Vec<_>>().join(", ");
        let leaders = LeaderWatch::start(&endpoints);
        Ok(Self { endpoints, cluster: addresses.clone(), addresses, leaders, actor: actor() })
    }

    /// Returns channels to the queue nodes.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub(crate) fn calls(&self) -> LeaderCalls {
        LeaderCalls::new(&self.endpoints, &self.leaders.subscribe())
    }

    fn directory(&self) -> DirectoryClient {
        DirectoryClient::new(&self.endpoints, &self.leaders.subscribe())
    }

    /// Returns the directory, not older than what its leader has now.
    async fn view(&self, action: &str) -> Result<Arc<View>, OperatorError> {
        view(&self.endpoints, &self.directory()).await.map_err(|error| self.failed(action, error))
    }

    /// Returns the directory as one of the queue nodes has it, which may not be the latest: any node may ask for that.
    pub(crate) async fn watched_view(&self) -> Result<Arc<View>, String> {
        let watch = DirectoryWatch::start(&self.endpoints);
        let mut views = watch.subscribe();
        let known = tokio::time::timeout(WITHIN / 2, views.wait_for(|view| view.revision() > 0)).await;
        match known {
            Ok(Ok(view)) => Ok(Arc::clone(&view)),
            Ok(Err(_)) | Err(_) => Err("no queue node sent a policy in time".to_owned()),
        }
    }

    /// Says that no queue node answered.
    pub(crate) fn unreachable(&self, action: &str, cause: String) -> OperatorError {
        OperatorError::Unreachable { action: action.to_owned(), addresses: self.addresses.clone(), cause }
    }

    /// Returns every ledger group, whether it has a leader or not.
    async fn ledger_groups(&self, action: &str) -> Result<Vec<GroupId>, OperatorError> {
        let mut last = Status::unavailable("no queue node is configured");
        let asked = async {
            loop {
                for channel in self.endpoints.values() {
                    // One that is silent does not keep the others from being asked.
                    match tokio::time::timeout(NODE_WITHIN, groups_of(channel.clone())).await {
                        Ok(Ok(groups)) => return groups,
                        Ok(Err(status)) => last = status,
                        Err(_) => last = Status::unavailable("a queue node does not answer"),
                    }
                }
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
        };
        match tokio::time::timeout(WITHIN, asked).await {
            Ok(groups) => Ok(groups),
            Err(_) => {
                let group = GroupId::DIRECTORY;
                Err(self.failed(action, CallError::Unavailable { group, last: last.message().to_owned() }))
            }
        }
    }

    /// Says what a failed call means for the command, whose purpose is `action`.
    fn failed(&self, action: &str, error: CallError) -> OperatorError {
        OperatorError::of(action, &self.addresses, error)
    }
}

/// Asks one queue node for the groups that it knows.
async fn groups_of(channel: Channel) -> Result<Vec<GroupId>, Status> {
    let mut views = client(channel).leaders(LeadersRequest {}).await?.into_inner();
    let view = views.message().await?.ok_or_else(|| Status::unavailable("the node is stopping"))?;
    let group = |group: &GroupLeader| u16::try_from(group.group).ok().map(GroupId);
    Ok(view.groups.iter().filter_map(group).filter(|group| *group != GroupId::DIRECTORY).collect())
}

fn client(channel: Channel) -> QueueServiceClient<Channel> {
    QueueServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX)
}

/// Returns the user and the machine; the cluster adds what the certificate proves.
fn actor() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("SUDO_USER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let system = rustix::system::uname();
    format!("{user}@{}", system.nodename().to_string_lossy())
}

/// Returns the directory, not older than what its leader has now.
///
/// # Errors
/// No leader answered in time.
pub(crate) async fn view(endpoints: &Endpoints, directory: &DirectoryClient) -> Result<Arc<View>, CallError> {
    // A change of nothing returns the leader's revision; any node streams the items.
    let leader =
        directory.apply(&[], &[], ApplyOptions { dry_run: true, ..ApplyOptions::default() }, WITHIN).await?;
    let watch = DirectoryWatch::start(endpoints);
    let mut views = watch.subscribe();
    let current = views.wait_for(|view| view.revision() >= leader.revision);
    match tokio::time::timeout(WITHIN, current).await {
        Ok(Ok(view)) => Ok(Arc::clone(&view)),
        Ok(Err(_)) | Err(_) => Err(CallError::Unavailable {
            group: GroupId::DIRECTORY,
            last: "no queue node sent the directory in time".to_owned(),
        }),
    }
}

/// A new cluster, whose groups are to have leaders.
pub(crate) struct Forming {
    pub(crate) cluster: ClusterSection,
    endpoints: Endpoints,
    leaders: LeaderWatch,
}

impl Forming {
    /// Reads which cluster it is.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub(crate) fn of(config: &Path) -> anyhow::Result<Self> {
        let OperatorFile { cluster } = config::load_operator(config)?;
        let endpoints = cluster.endpoints(&Transport::Mutual(cluster.node_tls()?));
        let leaders = LeaderWatch::start(&endpoints);
        Ok(Self { cluster, endpoints, leaders })
    }

    fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.cluster.ledger_groups).map(GroupId)
    }

    /// Waits until every group has a leader that this command reaches.
    pub(crate) async fn every_leader(&self) -> anyhow::Result<()> {
        let mut table = self.leaders.subscribe();
        table.wait_for(|table| self.groups().all(|group| table.contains_key(&group))).await?;
        Ok(())
    }

    /// Says which groups have no leader, and of each queue node why it does not answer.
    pub(crate) async fn missing(&self) -> String {
        let without: Vec<String> = {
            let table = self.leaders.subscribe();
            let table = table.borrow();
            self.groups().filter(|group| !table.contains_key(group)).map(|group| group.to_string()).collect()
        };
        let without = if without.is_empty() { "none".to_owned() } else { without.join(", ") };
        let mut text = format!("groups without a leader: {without}\n");
        let asked = self.endpoints.iter().map(async |(node, channel)| {
            let answer = tokio::time::timeout(NODE_WITHIN, groups_of(channel.clone())).await;
            let said = match answer {
                Ok(Ok(groups)) => format!("answers, with {} ledger groups", groups.len()),
                Ok(Err(status)) => crate::nodes::cause(&status),
                Err(_) => "does not answer".to_owned(),
            };
            format!("  queue node {node}: {said}\n")
        });
        text.extend(futures::future::join_all(asked).await);
        text
    }
}

impl ClusterSection {
    /// Loads this node's certificate and key.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn node_tls(&self) -> Result<NodeTls, TlsError> {
        NodeTls::from_files(&self.authority.0, &self.certificate.0, &self.key.0)
    }

    /// Returns channels to every queue node; they connect on first use.
    #[must_use]
    pub fn endpoints(&self, transport: &Transport) -> Endpoints {
        endpoints_of(&self.queue, transport)
    }
}

/// Returns channels to queue nodes; they connect on first use.
#[must_use]
pub fn endpoints_of(queue: &[QueueNode], transport: &Transport) -> Endpoints {
    let channel = |queue: &QueueNode| {
        (queue.node, transport.channel(queue.address.as_str(), Expect::node(Role::Queue, queue.node)))
    };
    queue.iter().map(channel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ClusterDirectory;

    #[tokio::test]
    async fn a_cluster_that_does_not_form_says_what_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("cluster");
        let queue = ["1=127.0.0.1:1", "2=127.0.0.1:2", "3=127.0.0.1:3"].map(|node| node.parse().unwrap());
        ClusterDirectory::init(&directory, &queue, 2).unwrap();
        let forming = Forming::of(&directory.join("operator.toml")).unwrap();
        let text = forming.missing().await;
        assert!(text.starts_with("groups without a leader: 0, 1, 2\n"), "{text}");
        for node in ["queue node 1: ", "queue node 3: "] {
            let line = text.lines().find(|line| line.contains(node)).unwrap_or_default();
            assert!(line.contains("refused") || line.contains("connect"), "{text}");
        }
    }
}
