//! `postroad certificate`: the certificates between nodes, of the running nodes and in the files of a cluster.

mod list;
mod rotate;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use postroad_core::Timestamp;
use postroad_net::{Certificate, PeerIdentity};

use crate::{
    cli::certificate::{CertificateCommand, CertificateRenewArgs},
    cluster::ClusterDirectory,
};

/// Runs `postroad certificate`.
///
/// # Errors
/// A file cannot be read or written, the cluster cannot be reached, or its nodes are not ready for the step.
pub async fn run(command: &CertificateCommand) -> anyhow::Result<String> {
    match command {
        CertificateCommand::List(args) => list::run(args).await,
        CertificateCommand::Renew(args) => renew(args),
        CertificateCommand::Rotate(args) => rotate::run(args).await,
    }
}

/// How much of its life a certificate has left. Those that a tool renews in time never get to `Low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remaining {
    /// It begins in the future.
    NotYet,
    /// At least a twelfth: a month of a year.
    Enough,
    /// Less than that.
    Low,
    /// Less than a fiftieth: a week of a year.
    Little,
    /// Nothing.
    Ended,
}

/// Returns how much of its life a certificate has left.
pub(crate) fn remaining(certificate: &Certificate, now: Timestamp) -> Remaining {
    let Certificate { not_before, not_after, .. } = *certificate;
    let (life, left) = (not_after.since(not_before), not_after.since(now));
    match () {
        () if now < not_before => Remaining::NotYet,
        () if left.is_zero() => Remaining::Ended,
        () if left < life / 50 => Remaining::Little,
        () if left < life / 12 => Remaining::Low,
        () => Remaining::Enough,
    }
}

/// The names of the roles' certificates in the directories that `cluster join` writes.
const ROLES: [&str; 4] = ["queue", "ingress", "outbound", "control"];

/// A node's certificate in the directory that `cluster join` wrote.
#[derive(Clone, Debug)]
struct NodeFiles {
    /// `queue` and the like: the files are `queue.pem` and `queue.key`.
    stem: &'static str,
    identity: PeerIdentity,
    certificate: Certificate,
}

impl NodeFiles {
    fn path(dir: &Path, stem: &str) -> PathBuf {
        dir.join(format!("{stem}.pem"))
    }

    /// Finds the certificate of the one node whose files are in `dir`.
    fn find(dir: &Path) -> anyhow::Result<Self> {
        let stems: Vec<&'static str> =
            ROLES.into_iter().filter(|stem| Self::path(dir, stem).exists()).collect();
        let [stem] = stems[..] else {
            let found = if stems.is_empty() { "none".to_owned() } else { stems.join(", ") };
            bail!(
                "`{}`: expected the certificate of one node, such as `queue.pem`; found {found}",
                dir.display()
            );
        };
        let file = Self::path(dir, stem);
        let certificate = Certificate::read_first(&file).with_context(|| format!("`{}`", file.display()))?;
        let identity = certificate.identity;
        let identity = identity.with_context(|| format!("`{}` is not of a node", file.display()))?;
        Ok(Self { stem, identity, certificate })
    }
}

fn renew(args: &CertificateRenewArgs) -> anyhow::Result<String> {
    let cluster = ClusterDirectory::open(&args.dir)?;
    // All are looked at before the first is written.
    let nodes = args.nodes.iter().map(|dir| Ok((dir, NodeFiles::find(dir)?)));
    let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
    for (dir, node) in &nodes {
        let found = node.identity.cluster;
        anyhow::ensure!(
            found == cluster.file.id,
            "`{}` is of cluster {found}, not of {} (`--dir`)",
            NodeFiles::path(dir, node.stem).display(),
            cluster.file.id
        );
    }
    let mut text = String::new();
    for (dir, node) in &nodes {
        let renewed = cluster.renew(node.identity, dir, node.stem)?;
        text += &format!(
            "renewed {} {} in {}: valid until {}\n",
            node.identity.role,
            node.identity.node,
            dir.display(),
            renewed.not_after
        );
    }
    if args.operator {
        let renewed = cluster.renew_operator()?;
        text += &format!("renewed operator in {}: valid until {}\n", args.dir.display(), renewed.not_after);
    }
    if !nodes.is_empty() {
        text += "copy `*.pem` and `*.key` of each directory over those on its node, readable by the user of the service; \
                 the node loads them within a minute, without a restart\n";
    }
    Ok(text)
}
