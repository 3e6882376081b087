//! What the pods of a cluster run besides its roles: `cluster authority`, `certificate`, `prepare` and `formed`, and `idle`.
//!
//! A cluster in Kubernetes forms by itself, once. Whether it has formed is recorded outside of its volumes, so that a queue
//! node whose volume is empty afterwards waits for an operator, and never begins a new cluster in its place.

mod api;
mod certificate;

pub use certificate::certificate;

use std::{fs, io, path::Path, time::Duration};

use anyhow::Context;
use postroad_net::ClusterAuthority;
use postroad_storage::{Identity, Origin, RealFs};
use tokio::time::Instant;

use self::api::{Api, Created, Kind};
use crate::{
    cli::{AuthorityArgs, FormedArgs, PrepareArgs},
    config::{self, QueueFile},
    operator::Forming,
    output, roles, signal,
};

/// How often a waiting node looks at its data directory.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it says what it waits for, or which failure persists.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Runs `cluster authority`.
///
/// # Errors
/// This is not a pod with a service account, or Kubernetes refuses to create the Secret.
pub async fn authority(args: &AuthorityArgs) -> anyhow::Result<String> {
    let AuthorityArgs { id, kubernetes_secret: name } = args;
    let authority = ClusterAuthority::generate(*id)?;
    let key = authority.key_pem();
    let data = [("authority.pem", authority.certificate_pem()), ("authority.key", key.as_str())];
    Ok(match Api::of_this_pod()?.create(Kind::Secret, name, &data).await? {
        Created::New => format!("created the authority of cluster {id} in Secret `{name}`\n"),
        Created::Existed => format!("Secret `{name}` exists: the authority in it stays in use\n"),
    })
}

/// Runs `cluster formed`: waits until every group has a leader, and records that in a ConfigMap.
///
/// # Errors
/// The configuration is invalid, this is not a pod with a service account, or Kubernetes refuses to create the ConfigMap.
pub async fn formed(args: &FormedArgs) -> anyhow::Result<String> {
    let FormedArgs { config, kubernetes_configmap: name } = args;
    let api = Api::of_this_pod()?;
    let shutdown = signal::shutdown()?;
    let forming = Forming::of(config)?;
    let waited = shutdown.run_until_cancelled(until_formed(&forming)).await;
    waited.context("stopped before every group had a leader")??;
    let cluster = &forming.cluster;
    let (id, nodes) = (cluster.id.to_string(), cluster.queue.len().to_string());
    let groups = cluster.ledger_groups.to_string();
    let now = postroad_env::wall().to_string();
    let data = [("at", now.as_str()), ("cluster", &id), ("queue-nodes", &nodes), ("ledger-groups", &groups)];
    Ok(match api.create(Kind::ConfigMap, name, &data).await? {
        Created::New => {
            format!("every group has a leader: recorded in ConfigMap `{name}` that cluster {id} has formed\n")
        }
        Created::Existed => {
            format!("every group has a leader; ConfigMap `{name}` says when cluster {id} formed\n")
        }
    })
}

/// Waits, and says once a minute what is missing.
async fn until_formed(forming: &Forming) -> anyhow::Result<()> {
    loop {
        match tokio::time::timeout(SAY_EVERY, forming.every_leader()).await {
            Ok(formed) => return formed,
            Err(_) => {
                let missing = forming.missing().await;
                output::complain(&format!("the cluster has not formed; {}", missing.trim_end()));
            }
        }
    }
}

/// Runs `cluster prepare`: formats the data directory of a queue node of a new cluster. In a cluster that has formed, an empty
/// directory is a lost volume or the wrong one: then it waits until an operator has the node rejoin.
///
/// # Errors
/// The configuration is invalid, or the directory cannot be used by this node.
pub async fn prepare(args: &PrepareArgs) -> anyhow::Result<String> {
    let file: QueueFile = config::read(&args.config)?;
    if let Some(disk) = disk_of(&file)? {
        return Ok(format!("the data directory is disk {disk}\n"));
    }
    let Some(formed_at) = read_if_exists(&args.formed)? else {
        let disk = roles::format_data(&file, Origin::Form)?;
        return Ok(format!("formatted disk {disk} for a new cluster\n"));
    };
    let shutdown = signal::shutdown()?;
    let waited = shutdown.run_until_cancelled(until_formatted(&file, formed_at.trim())).await;
    let disk = waited.context("stopped while the data directory was empty")??;
    Ok(format!("the data directory is disk {disk} now: this node rejoins\n"))
}

async fn until_formatted(file: &QueueFile, formed_at: &str) -> anyhow::Result<String> {
    let mut say_at = Instant::now();
    loop {
        if let Some(disk) = disk_of(file)? {
            return Ok(disk);
        }
        if Instant::now() >= say_at {
            say_at += SAY_EVERY;
            output::note(&lost(file, formed_at));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn disk_of(file: &QueueFile) -> anyhow::Result<Option<String>> {
    let data = &file.node.data.0;
    let identity = Identity { cluster: file.cluster.id, node: file.node.id };
    let disk = postroad_storage::formatted(&RealFs::new(data), identity);
    Ok(disk.with_context(|| format!("`{}`", data.display()))?.map(|disk| disk.id.to_string()))
}

/// What an operator reads when the volume of a queue node is empty.
fn lost(file: &QueueFile, formed_at: &str) -> String {
    let machine = rustix::system::uname();
    let pod = machine.nodename().to_string_lossy();
    let (node, data) = (file.node.id, file.node.data.0.display());
    let what_to_do = if file.cluster.queue.len() == 1 {
        let release = pod.rsplit_once("-queue-").map_or("RELEASE", |(release, _)| release);
        format!(
            "If it is lost, so is the mail in it: no other node has a copy. The chart's page says how to begin a new, empty \
             cluster, for which every pod of {release} is stopped first"
        )
    } else {
        format!(
            "If it is lost, and a majority of the queue nodes runs without this one: \
             kubectl exec {pod} -c disk -- postroad cluster rejoin"
        )
    };
    format!(
        "postroad: queue node {node} waits: the cluster formed at {formed_at}, and `{data}` is empty: the volume was lost, or is another one. \
         If the node's own volume exists, mount it. {what_to_do}\n"
    )
}

fn read_if_exists(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}` (`--formed`)", path.display())),
    }
}

/// Runs `idle`.
///
/// # Errors
/// A signal handler cannot be installed.
pub async fn idle() -> anyhow::Result<()> {
    signal::shutdown()?.cancelled().await;
    Ok(())
}
