//! `postroad cluster init` and `join`: the files that identify a cluster and its nodes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use postroad_core::{ClusterId, NodeId};
use postroad_net::{
    Role,
    authority::{ClusterAuthority, write_public, write_secret},
};
use serde::{Deserialize, Serialize};

use crate::{
    cli::{ClusterInitArgs, ClusterJoinArgs, NodeAddress, RoleName},
    sections::{MetricsSection, QueueNode},
    template::{self, NodeTemplate},
};

/// What every node of a cluster agrees on; `cluster.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// The cluster's id.
    pub id: u64,
    /// The number of ledger groups.
    pub ledger_groups: u16,
    /// Every queue node's id and address.
    pub queue: Vec<QueueNode>,
}

/// A cluster's directory: written by `init`, read by `join`.
#[derive(Debug)]
pub struct ClusterDirectory {
    path: PathBuf,
    /// What every node of the cluster agrees on.
    pub file: ClusterFile,
    authority: ClusterAuthority,
}

/// The node id of operators; no node may have it.
const OPERATOR: NodeId = NodeId(0);

impl ClusterDirectory {
    /// Creates a cluster in an empty directory.
    ///
    /// # Errors
    /// The directory is not empty, or cannot be written to.
    pub fn init(path: &Path, queue: &[NodeAddress], ledger_groups: u16) -> anyhow::Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot create `{}` (`--dir`)", path.display()))?;
        ensure!(fs::read_dir(path)?.next().is_none(), "`{}` (`--dir`) is not empty", path.display());
        // TOML integers have 63 bits besides the sign.
        let id = (rand::random::<u64>() >> 1).max(1);
        let authority = ClusterAuthority::generate(ClusterId(id))?;
        let node = |queue: &NodeAddress| QueueNode { node: queue.node, address: queue.address.clone() };
        let queue = queue.iter().map(node).collect();
        let file = ClusterFile { id, ledger_groups, queue };
        public(&path.join("cluster.toml"), &toml::to_string(&file)?)?;
        public(&path.join("authority.pem"), authority.certificate_pem())?;
        let key = path.join("authority.key");
        write_secret(&key, authority.key_pem().as_bytes()).with_context(|| format!("`{}`", key.display()))?;
        let cluster = Self { path: path.to_owned(), file, authority };
        cluster.issue(Role::Operator, OPERATOR, &[], path, "operator")?;
        public(&path.join("operator.toml"), &template::operator(&cluster.file, path))?;
        Ok(cluster)
    }

    /// Opens the directory that `init` wrote.
    ///
    /// # Errors
    /// A file is missing or invalid.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let file = path.join(name);
            fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))
        };
        let file: ClusterFile = toml::from_str(&read("cluster.toml")?).context("`cluster.toml`")?;
        let authority = ClusterAuthority::from_pem(&read("authority.pem")?, &read("authority.key")?)?;
        ensure!(
            authority.cluster() == ClusterId(file.id),
            "`authority.pem` and `cluster.toml` are of different clusters"
        );
        Ok(Self { path: path.to_owned(), file, authority })
    }

    /// Writes a node's certificate, key and configuration into its `out` directory; returns the configuration's path.
    ///
    /// # Errors
    /// The node's id is not allowed, or a file cannot be written.
    pub(crate) fn join(&self, template: &NodeTemplate<'_>) -> anyhow::Result<PathBuf> {
        let NodeTemplate { role, node, out, .. } = template;
        let queue = self.file.queue.iter().find(|queue| queue.node == *node);
        let mut names = Vec::new();
        if *role == RoleName::Queue {
            let queue = queue.with_context(|| {
                format!(
                    "`cluster.toml` has no queue node `{node}`; `cluster init --queue` sets the queue nodes"
                )
            })?;
            names.extend(queue.address.rsplit_once(':').map(|(host, _)| host.to_owned()));
        } else {
            ensure!(queue.is_none() && *node != 0, "node id `{node}` is already in use (`--node`)");
        }
        fs::create_dir_all(out).with_context(|| format!("cannot create `{}` (`--out`)", out.display()))?;
        self.issue(net_role(*role), NodeId(*node), &names, out, role.as_str())?;
        public(&out.join("authority.pem"), self.authority.certificate_pem())?;
        let config = out.join(format!("{}.toml", role.as_str()));
        public(&config, &template::node(&self.file, template))?;
        Ok(config)
    }

    /// Writes the configuration of a node that joined before, replacing its settings.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn reconfigure(&self, template: &NodeTemplate<'_>) -> anyhow::Result<()> {
        let config = template.out.join(format!("{}.toml", template.role.as_str()));
        fs::write(&config, template::node(&self.file, template))
            .with_context(|| format!("cannot write `{}`", config.display()))
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn issue(
        &self,
        role: Role,
        node: NodeId,
        names: &[String],
        out: &Path,
        stem: &str,
    ) -> anyhow::Result<()> {
        let issued = self.authority.issue(role, node, names)?;
        let (certificate, key) = (out.join(format!("{stem}.pem")), out.join(format!("{stem}.key")));
        issued.write(&certificate, &key).with_context(|| format!("cannot write `{}`", certificate.display()))
    }
}

fn public(path: &Path, text: &str) -> anyhow::Result<()> {
    write_public(path, text.as_bytes()).with_context(|| format!("cannot write `{}`", path.display()))
}

fn net_role(role: RoleName) -> Role {
    match role {
        RoleName::Ingress => Role::Ingress,
        RoleName::Queue => Role::Queue,
        RoleName::Outbound => Role::Outbound,
        RoleName::Control => Role::Control,
    }
}

/// Runs `cluster init`.
///
/// # Errors
/// See [`ClusterDirectory::init`].
pub fn init(args: &ClusterInitArgs) -> anyhow::Result<String> {
    ensure!(
        matches!(args.queue.len(), 1 | 3 | 5),
        "expected 1, 3 or 5 queue nodes (`--queue`), found {}",
        args.queue.len()
    );
    let groups = args.ledger_groups.unwrap_or_else(|| u16::try_from(args.queue.len()).unwrap_or(1));
    let cluster = ClusterDirectory::init(&args.dir, &args.queue, groups)?;
    let id = cluster.file.id;
    let dir = cluster.path().display();
    Ok(format!(
        "created cluster {id} in {dir}; `{dir}/authority.key` signs the certificates of nodes: do not copy it to a node\n"
    ))
}

/// Runs `cluster join`.
///
/// # Errors
/// The cluster's files cannot be read, the node's id is not allowed, or a file cannot be written.
pub fn join(args: &ClusterJoinArgs) -> anyhow::Result<String> {
    let cluster = ClusterDirectory::open(&args.dir)?;
    let metrics = MetricsSection::default().listen;
    let ClusterJoinArgs { role, node, data, out, .. } = args;
    let template = NodeTemplate { role: *role, node: *node, data, out, metrics, own: None };
    let config = cluster.join(&template)?;
    let (config, name) = (config.display(), role.as_str());
    let first = match role {
        RoleName::Queue => format!("on the node run `postroad cluster form --config {config}` once, then "),
        _ => String::new(),
    };
    Ok(format!("created {config}; {first}start the node with `postroad {name} --config {config}`\n"))
}
