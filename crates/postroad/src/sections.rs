//! The sections that the files of several roles have.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;
use postroad_core::{ClusterId, Domain, GroupId, NodeId};
use postroad_net::ServerTls;
use postroad_settings::{HostPort, ReadableFile, Rules, WritableDirectory, require, settings};

settings! {
    /// Which node this is.
    pub struct NodeSection {
        /// The id of the node, from 1.
        /// No other node of the cluster, of any role, may ever have had it; only replicas of an ingress node share one.
        id: NodeId, within NodeId(1)..;
        /// The directory for the node's data.
        data: WritableDirectory;
    }
}

settings! {
    /// Which node this is. It keeps no data.
    pub struct StatelessNodeSection {
        /// The id of the node, from 1.
        /// No other node of the cluster, of any role, may ever have had it; only replicas of an ingress node share one.
        id: NodeId, within NodeId(1)..;
    }
}

settings! {
    /// Which cluster the node belongs to, and how it proves that.
    pub struct ClusterSection {
        /// The id of the cluster, as `postroad cluster init` wrote it.
        id: ClusterId, within ClusterId(1)..;
        /// Every queue node and its address: 1, 3 or 5 of them.
        queue: Vec<QueueNode>;
        /// The number of ledger groups.
        /// Cannot be changed later.
        ledger_groups: u16, within 1..=GroupId::LEDGERS_MAX;
        /// The certificate of the cluster's authority, PEM.
        authority: ReadableFile;
        /// The certificate of this node, PEM.
        /// Checked for changes every minute.
        certificate: ReadableFile;
        /// The key of this node's certificate, PEM.
        key: ReadableFile;
    }
    rules Self::rules;
}

settings! {
    /// A queue node and its address.
    pub struct QueueNode {
        /// Its id.
        node: NodeId, within NodeId(1)..;
        /// Host and port where the other nodes reach it.
        address: HostPort;
    }
}

/// Returns what is wrong with a list of queue nodes, wherever it is given.
#[must_use]
pub(crate) fn queue_problems(queue: &[QueueNode]) -> Vec<String> {
    let mut problems = Vec::new();
    let count = queue.len();
    if !matches!(count, 1 | 3 | 5) {
        problems.push(format!("expected 1, 3 or 5 queue nodes, not {count}"));
    }
    let (mut nodes, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let twice = |node: &QueueNode| {
        let node_twice = (!nodes.insert(node.node)).then(|| format!("node {} is listed twice", node.node));
        let is_new = addresses.insert(node.address.as_str().to_ascii_lowercase());
        node_twice.or_else(|| (!is_new).then(|| format!("address {} is listed twice", node.address)))
    };
    problems.extend(queue.iter().filter_map(twice));
    problems
}

impl ClusterSection {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        for wrong in queue_problems(&self.queue) {
            require!(rules, self.queue; false, "{wrong}");
        }
    }

    /// Returns true when the node is a queue node.
    #[must_use]
    pub fn has_queue_node(&self, node: NodeId) -> bool {
        self.queue.iter().any(|queue| queue.node == node)
    }
}

settings! {
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub struct MetricsSection {
        /// Address and port.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
    }
}

settings! {
    /// Where the console is served.
    pub struct HttpSection {
        /// Address and port.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        /// Names that browsers may use for the console, without port.
        /// IP addresses, `localhost` and the name of the machine are always allowed; others are refused with 421.
        hosts: Vec<Domain> = Vec::new();
    }
}

settings! {
    /// Which DNS resolver is asked.
    pub struct DnsSection {
        /// The address and port of a resolver.
        /// Left out, those of `/etc/resolv.conf` are asked.
        resolver: Option<SocketAddr>;
    }
}

settings! {
    /// The certificate of the SMTP and gRPC listeners.
    pub struct TlsSection {
        /// The certificate chain, PEM.
        /// Checked for changes every minute.
        certificate: Option<ReadableFile>;
        /// The key of the certificate, PEM.
        key: Option<ReadableFile>;
        /// Makes a certificate at every start when none is given; clients cannot verify it.
        self_signed: bool = false;
    }
    rules Self::rules;
}

impl TlsSection {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        let (certificate, key) = (self.certificate.is_some(), self.key.is_some());
        require!(rules, self.key, self.certificate; key || !certificate, "missing; expected the key of `certificate`");
        require!(rules, self.certificate, self.key; certificate || !key, "missing; expected the certificate of `key`");
    }

    /// Returns true when listeners can do TLS.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.certificate.is_some() || self.self_signed
    }

    /// Returns the certificate of the listeners, if there is to be one; a self-signed one has this name.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn server_tls(&self, hostname: &str) -> anyhow::Result<Option<ServerTls>> {
        Ok(match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(ServerTls::from_files(&certificate.0, &key.0)?),
            _ if self.self_signed => Some(ServerTls::self_signed(&[hostname.to_owned()])?),
            _ => None,
        })
    }
}

settings! {
    /// Which special-purpose addresses mail may be sent to.
    pub struct GuardSection {
        /// Networks that are allowed although they are private, loopback or otherwise special.
        allow: Vec<IpNet> = Vec::new();
    }
}
