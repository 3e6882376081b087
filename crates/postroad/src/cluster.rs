//! `postroad cluster init` and `join`: the files that identify a cluster and its nodes.

mod rotation;

pub(crate) use rotation::Rotation;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use postroad_core::{ClusterId, Domain, GroupId, NodeId};
use postroad_net::{
    Certificate, PeerIdentity, Role,
    authority::{ClusterAuthority, NodeCertificate, replace_file, write_new_file, write_secret},
};
use postroad_settings::{Rules, Source, print, require, settings};

use crate::{
    cli::{ClusterInitArgs, ClusterJoinArgs, NodeAddress, RoleName},
    sections::{MetricsSection, QueueNode, queue_problems},
    template::{self, NodeTemplate},
};

settings! {
    /// What every node of a cluster agrees on; `cluster.toml`.
    pub struct ClusterFile {
        /// The id of the cluster.
        id: ClusterId, within ClusterId(1)..;
        /// The number of ledger groups.
        ledger_groups: u16, within 1..=GroupId::LEDGERS_MAX;
        /// Every queue node and its address.
        queue: Vec<QueueNode>;
    }
    rules Self::rules;
}

impl ClusterFile {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        for wrong in queue_problems(&self.queue) {
            require!(rules, self.queue; false, "{wrong}");
        }
    }
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
pub(crate) const OPERATOR: NodeId = NodeId(0);

impl ClusterDirectory {
    /// Creates a cluster in an empty directory.
    ///
    /// # Errors
    /// The nodes of the file would refuse the queue nodes, or the directory is not empty or cannot be written to.
    pub fn init(path: &Path, queue: &[NodeAddress], ledger_groups: u16) -> anyhow::Result<Self> {
        let node = |queue: &NodeAddress| QueueNode { node: queue.node, address: queue.address.clone() };
        let queue: Vec<QueueNode> = queue.iter().map(node).collect();
        let problems = queue_problems(&queue);
        ensure!(problems.is_empty(), "`--queue`: {}", problems.join("; "));
        fs::create_dir_all(path).with_context(|| format!("cannot create `{}` (`--dir`)", path.display()))?;
        ensure!(fs::read_dir(path)?.next().is_none(), "`{}` (`--dir`) is not empty", path.display());
        // TOML integers have 63 bits besides the sign.
        let id = ClusterId((postroad_env::random::<u64>() >> 1).max(1));
        let authority = ClusterAuthority::generate(id)?;
        let file = ClusterFile { id, ledger_groups, queue };
        public(&path.join("cluster.toml"), &print(&file))?;
        public(&path.join("authority.pem"), authority.certificate_pem())?;
        let key = path.join("authority.key");
        write_secret(&key, authority.key_pem().as_bytes()).with_context(|| format!("`{}`", key.display()))?;
        let cluster = Self { path: path.to_owned(), file, authority };
        cluster.issue(Role::Operator, OPERATOR, &[], path, "operator")?;
        public(&path.join("operator.toml"), &template::operator(&cluster.file))?;
        Ok(cluster)
    }

    /// Opens the directory that `init` wrote.
    ///
    /// # Errors
    /// A file is missing or invalid.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        // Variables of the environment are for nodes.
        let (file, problems) = Source::new(&path.join("cluster.toml")).with_variables(Vec::new()).read();
        problems.finish()?;
        let file: ClusterFile = file;
        let authority = read_authority(path)?;
        ensure!(
            authority.cluster() == file.id,
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
        let names = self.names_of(net_role(*role), *node)?;
        fs::create_dir_all(out).with_context(|| format!("cannot create `{}` (`--out`)", out.display()))?;
        let certificate = out.join(format!("{}.pem", role.as_str()));
        ensure!(
            !certificate.exists(),
            "`{}` exists: `postroad certificate renew` replaces the certificate of a node that has joined",
            certificate.display()
        );
        self.issue(net_role(*role), *node, &names, out, role.as_str())?;
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

    /// Replaces the certificate and key of a node or operator, and the authorities beside them; nothing else.
    ///
    /// # Errors
    /// The node is not one that the cluster can have, or a file cannot be written.
    pub(crate) fn renew(
        &self,
        identity: PeerIdentity,
        out: &Path,
        stem: &str,
    ) -> anyhow::Result<Certificate> {
        let names = self.names_of(identity.role, identity.node)?;
        let issued = self.authority.issue(identity.role, identity.node, &names)?;
        if out != self.path {
            replace(&out.join("authority.pem"), self.authority.certificate_pem())?;
        }
        replace_certificate(&issued, out, stem)?;
        Ok(Certificate::all_of_pem(issued.certificate_pem.as_bytes())?.swap_remove(0))
    }

    /// Replaces the operator's certificate and key.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn renew_operator(&self) -> anyhow::Result<Certificate> {
        let identity = PeerIdentity { cluster: self.file.id, role: Role::Operator, node: OPERATOR };
        self.renew(identity, &self.path, "operator")
    }

    /// The names in a node's certificate, which other tools check: a queue node's address.
    fn names_of(&self, role: Role, node: NodeId) -> anyhow::Result<Vec<String>> {
        let queue = self.file.queue.iter().find(|queue| queue.node == node);
        match (role, queue) {
            (Role::Queue, Some(queue)) => Ok(vec![queue.address.host().trim_matches(['[', ']']).to_owned()]),
            (Role::Queue, None) => anyhow::bail!(
                "`cluster.toml` has no queue node `{node}`; `cluster init --queue` sets the queue nodes"
            ),
            (Role::Operator, _) => Ok(Vec::new()),
            (_, queue) => {
                ensure!(queue.is_none() && node != OPERATOR, "node id `{node}` is already in use (`--node`)");
                Ok(Vec::new())
            }
        }
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
    write_new_file(path, text.as_bytes()).with_context(|| format!("cannot write `{}`", path.display()))
}

pub(crate) fn net_role(role: RoleName) -> Role {
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
    let groups = args.ledger_groups.unwrap_or_else(|| u16::try_from(args.queue.len()).unwrap_or(1));
    let cluster = ClusterDirectory::init(&args.dir, &args.queue, groups)?;
    let id = cluster.file.id;
    let dir = cluster.path().display();
    Ok(format!(
        "created cluster {id} in {dir}; `{dir}/authority.key` signs the certificates of nodes: do not copy it to a node\n"
    ))
}

/// Returns this machine's fully qualified name, as `hostname --fqdn` finds it without DNS.
fn machine_name() -> anyhow::Result<Domain> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (name, hosts) = (read("/proc/sys/kernel/hostname"), read("/etc/hosts"));
    let name = name.trim();
    full_name(name, &hosts).with_context(|| {
        format!(
            "this machine has no fully qualified name (`{name}`): give the ingress node's with `--hostname`, such as mail.example.org"
        )
    })
}

/// Returns the first of the name itself and the names that `/etc/hosts` has for it that is fully qualified.
fn full_name(name: &str, hosts: &str) -> Option<Domain> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let entries = lines.map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>());
    let aliases = entries.filter(|names| names.contains(&name)).flatten();
    let qualified = |name: &str| {
        let domain = Domain::parse(name).ok()?;
        let usable = !domain.is_single_label() && !domain.as_str().starts_with("localhost.");
        usable.then_some(domain)
    };
    std::iter::once(name).chain(aliases).find_map(qualified)
}

/// Runs `cluster join`.
///
/// # Errors
/// The cluster's files cannot be read, the node's id is not allowed, or a file cannot be written.
pub fn join(args: &ClusterJoinArgs) -> anyhow::Result<String> {
    let cluster = ClusterDirectory::open(&args.dir)?;
    let metrics = MetricsSection::default().listen;
    let ClusterJoinArgs { role, node, data, hostname, out, .. } = args;
    ensure!(
        *role != RoleName::Ingress || data.is_none(),
        "an ingress node keeps no data: expected no `--data`"
    );
    ensure!(
        *role == RoleName::Ingress || hostname.is_none(),
        "only ingress nodes have a name that clients see: expected no `--hostname`"
    );
    let hostname = match (role, hostname) {
        (RoleName::Ingress, None) => Some(machine_name()?),
        (_, given) => given.clone(),
    };
    let own = template::role_sections(&cluster.file, *role, *node, hostname.as_ref());
    let data = data.as_deref();
    let template = NodeTemplate { role: *role, node: *node, data, out, metrics, own };
    let config = cluster.join(&template)?;
    let (config, name) = (config.display(), role.as_str());
    let first = match role {
        RoleName::Queue => format!("on the node run `postroad cluster form --config {config}` once, then "),
        _ => String::new(),
    };
    Ok(format!("created {config}; {first}start the node with `postroad {name} --config {config}`\n"))
}

pub(crate) fn read_authority(dir: &Path) -> anyhow::Result<ClusterAuthority> {
    let read = |name: &str| {
        let file = dir.join(name);
        fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))
    };
    let authority = ClusterAuthority::from_pem(&read("authority.pem")?, &read("authority.key")?);
    authority.with_context(|| format!("`{}`", dir.display()))
}

pub(crate) fn replace_certificate(issued: &NodeCertificate, out: &Path, stem: &str) -> anyhow::Result<()> {
    let certificate = out.join(format!("{stem}.pem"));
    let replaced = issued.replace(&certificate, &certificate.with_extension("key"));
    replaced.with_context(|| format!("cannot write `{}` or its key", certificate.display()))
}

pub(crate) fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    replace_file(file, text.as_bytes()).with_context(|| format!("cannot write `{}`", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, ClusterCommand, Command};

    #[test]
    fn a_cluster_is_not_created_of_what_its_nodes_would_refuse() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("cluster");
        let init = |arguments: &[&str]| {
            let common = ["postroad", "cluster", "init", "--dir", dir.to_str().unwrap()];
            let cli =
                Cli::try_parse_from([&common[..], arguments].concat()).map_err(|error| error.to_string());
            let Command::Cluster(ClusterCommand::Init(args)) = cli?.command else { panic!("it is `init`") };
            init(&args).map_err(|error| format!("{error:#}"))
        };
        let check = |arguments: &[&str], expected: &str| {
            let error = init(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?}: {error}");
            assert!(!dir.exists(), "{arguments:?}");
        };
        let queue = |nodes: [&'static str; 3]| nodes.map(|node| ["--queue", node]).concat();
        check(&["--queue", "1=a:1", "--ledger-groups", "0"], "invalid value '0' for '--ledger-groups <N>'");
        check(&["--queue", "1=a:1", "--queue", "2=b:1"], "`--queue`: expected 1, 3 or 5 queue nodes, not 2");
        check(&queue(["1=a:1", "1=b:1", "2=c:1"]), "`--queue`: node 1 is listed twice");
        check(&queue(["1=a:1", "2=b:1", "3=A:1"]), "`--queue`: address A:1 is listed twice");
        let expected = "expected a node id from 1 to 9223372036854775807";
        check(&["--queue", "9223372036854775808=a:1"], expected);
        check(&["--queue", "0=a:1"], expected);
        let join = |node: &str| {
            let join = ["postroad", "cluster", "join", "ingress", "--dir", "a", "--out", "b", "--node", node];
            Cli::try_parse_from(join).is_ok()
        };
        assert_eq!(["0", "1", "9223372036854775808"].map(join), [false, true, false]);
        init(&queue(["1=a:1", "2=b:1", "3=c:1"])).unwrap();
        let file = dir.join("cluster.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("node = 2", "node = 1")).unwrap();
        let error = ClusterDirectory::open(&dir).unwrap_err().to_string();
        assert!(error.contains("node 1 is listed twice"), "{error}");
    }

    #[test]
    fn the_name_of_a_machine_is_fully_qualified_or_asked_for() {
        let hosts =
            "127.0.0.1 localhost.localdomain localhost mail\n127.0.1.1 mail.example.org mail # this one\n";
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(full_name(name, hosts).as_ref().map(Domain::as_str), expected)
        };
        check("mx1.example.org", Some("mx1.example.org"));
        check("mail", Some("mail.example.org"));
        check("other", None);
        check("localhost", None);
        check("localhost.localdomain", None);
        check("", None);
    }
}
