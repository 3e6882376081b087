//! The sections that every role's file has, and the small ones that some have.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use postroad_core::{ClusterId, Domain, NodeId};
use postroad_net::ServerTls;
use serde::{Deserialize, Serialize};

use crate::config::Section;

/// `[node]`: which node this is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    /// The node's id: from 1, never used before in the cluster, for any role.
    pub id: u64,
    /// Where the node keeps what it must find again. Ingress keeps nothing and may leave it out.
    pub data: PathBuf,
}

impl NodeSection {
    /// Returns the node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.id)
    }
}

impl Section for NodeSection {
    fn problems(&self) -> Vec<(&'static str, String)> {
        let missing = self.id == 0;
        missing.then(|| ("id", "expected a number from 1".to_owned())).into_iter().collect()
    }
}

/// `[cluster]`: which cluster the node belongs to, and how it proves that.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSection {
    /// The cluster's id, as `postroad cluster init` drew it.
    pub id: u64,
    /// Every queue node and where it can be reached: 1, 3 or 5 of them.
    pub queue: Vec<QueueNode>,
    /// The number of ledger groups. Cannot be changed later.
    pub ledger_groups: u16,
    /// The certificate of the cluster's authority, PEM.
    pub authority: PathBuf,
    /// This node's certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// A queue node and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QueueNode {
    /// Its id.
    pub node: u64,
    /// Host and port.
    pub address: String,
}

impl ClusterSection {
    /// Returns the cluster's id.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.id)
    }
}

impl Section for ClusterSection {
    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.id == 0 {
            problems.push(("id", "expected the id that `postroad cluster init` drew".to_owned()));
        }
        if !matches!(self.queue.len(), 1 | 3 | 5) {
            problems.push(("queue", format!("expected 1, 3 or 5 queue nodes, not {}", self.queue.len())));
        }
        let mut ids: Vec<u64> = self.queue.iter().map(|queue| queue.node).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) || ids.first() == Some(&0) {
            problems.push(("queue", "expected ids from 1, each once".to_owned()));
        }
        if self.ledger_groups == 0 {
            problems.push(("ledger_groups", "expected at least 1".to_owned()));
        }
        for (key, path) in
            [("authority", &self.authority), ("certificate", &self.certificate), ("key", &self.key)]
        {
            if path.as_os_str().is_empty() {
                problems.push((key, "expected the path of a PEM file".to_owned()));
            }
        }
        problems
    }
}

/// `[metrics]`: where `/metrics`, `/healthz` and `/readyz` are served.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// Address and port.
    pub listen: SocketAddr,
}

impl Default for MetricsSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

impl Section for MetricsSection {}

/// `[http]`: where control serves the console.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSection {
    /// Address and port.
    pub listen: SocketAddr,
    /// Names that browsers may use for the console, without port, besides IP addresses, `localhost` and the name of the machine. Others are refused with 421.
    pub hosts: Vec<String>,
}

impl Default for HttpSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), hosts: Vec::new() }
    }
}

impl Section for HttpSection {
    fn problems(&self) -> Vec<(&'static str, String)> {
        let wrong = self.hosts.iter().filter(|name| Domain::parse(name).is_err());
        wrong.map(|name| ("hosts", format!("expected host names without port, not `{name}`"))).collect()
    }
}

/// `[dns]`: whom to ask.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSection {
    /// A resolver's address and port; the system's own when left out.
    pub resolver: Option<SocketAddr>,
}

impl Section for DnsSection {}

/// `[tls]`: the certificate of public listeners.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// The chain, PEM. Looked at again every minute.
    pub certificate: Option<PathBuf>,
    /// The key, PEM.
    pub key: Option<PathBuf>,
    /// Make a certificate of our own when none is given: for tests.
    pub self_signed: bool,
}

impl Section for TlsSection {
    fn problems(&self) -> Vec<(&'static str, String)> {
        let incomplete = self.certificate.is_some() != self.key.is_some();
        incomplete
            .then(|| ("key", "expected `certificate` and `key`, or neither".to_owned()))
            .into_iter()
            .collect()
    }
}

impl TlsSection {
    /// Returns the certificate of public listeners, if there is to be one; one of our own carries this name.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn server_tls(&self, hostname: &str) -> anyhow::Result<Option<ServerTls>> {
        Ok(match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(ServerTls::from_files(certificate, key)?),
            _ if self.self_signed => Some(ServerTls::self_signed(&[hostname.to_owned()])?),
            _ => None,
        })
    }
}

/// `[guard]`: which special-purpose addresses mail may go to.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardSection {
    /// Networks that are open although they are private, loopback or otherwise special.
    #[serde(with = "networks")]
    pub allow: Vec<IpNet>,
}

impl Section for GuardSection {}

/// Networks as text, so that `ipnet` need not know serde.
mod networks {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(networks: &[IpNet], to: S) -> Result<S::Ok, S::Error> {
        networks.iter().map(ToString::to_string).collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let parse =
            |text: &String| text.parse().map_err(|_| D::Error::custom(format!("`{text}` is no network")));
        texts.iter().map(parse).collect()
    }
}
