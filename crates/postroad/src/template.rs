//! The configuration files that `postroad cluster` writes: only settings without a usable default.
//!
//! Paths in them are relative to the file, so that a node's files can be moved together.

use std::{net::SocketAddr, path::Path};

use postroad_core::{Domain, NodeId};

use crate::{cli::RoleName, cluster::ClusterFile};

/// Returns the configuration for `postroad apply` and `postroad message`.
#[must_use]
pub(crate) fn operator(cluster: &ClusterFile) -> String {
    format!("# For `postroad apply` and `postroad message`.\n\n{}", cluster_section(cluster, "operator"))
}

/// What differs from node to node.
#[derive(Clone, Debug)]
pub(crate) struct NodeTemplate<'a> {
    /// The node's role.
    pub(crate) role: RoleName,
    /// Its id.
    pub(crate) node: NodeId,
    /// Its data directory; `None` for ingress.
    pub(crate) data: Option<&'a Path>,
    /// The directory that its files are written to.
    pub(crate) out: &'a Path,
    /// The address of its metrics listener.
    pub(crate) metrics: SocketAddr,
    /// The role's own sections.
    pub(crate) own: String,
}

/// Returns the configuration of a node.
#[must_use]
pub(crate) fn node(cluster: &ClusterFile, template: &NodeTemplate<'_>) -> String {
    let NodeTemplate { role, node, data, metrics, own, .. } = template;
    let name = role.as_str();
    let data =
        data.map_or_else(String::new, |data| format!("data = {}\n", quoted(&data.display().to_string())));
    format!(
        "# postroad {name}; every setting and its default: docs/reference/configuration.md\n\
         # Relative paths count from the directory of this file.\n\n\
         [node]\nid = {node}\n{data}\n{}\n[metrics]\nlisten = \"{metrics}\"\n\n{own}",
        cluster_section(cluster, name)
    )
}

/// Returns the sections of a role, for a machine of its own.
#[must_use]
pub(crate) fn role_sections(
    cluster: &ClusterFile,
    role: RoleName,
    node: NodeId,
    hostname: Option<&Domain>,
) -> String {
    match role {
        RoleName::Queue => {
            let own = cluster.queue.iter().find(|queue| queue.node == node);
            let port = own.map_or("7400", |queue| queue.address.port());
            format!("[queue]\nlisten = \"0.0.0.0:{port}\"\n")
        }
        RoleName::Ingress => {
            let hostname = quoted(hostname.map_or("localhost", Domain::as_str));
            format!("[ingress]\nhostname = {hostname}\n{INGRESS}")
        }
        RoleName::Outbound => "[outbound]\n".to_owned(),
        RoleName::Control => "[http]\nlisten = \"127.0.0.1:8080\"\n".to_owned(),
    }
}

const INGRESS: &str = r#"listeners = [
  { listen = "0.0.0.0:587", service = "submission" },
  { listen = "0.0.0.0:465", service = "submission", implicit_tls = true },
]

[tls]
# The certificate of the listeners, for `hostname`.
# certificate = "server.pem"
# key = "server.key"
# Until there is one, a new one is made at every start, which clients cannot verify.
self_signed = true
"#;

fn cluster_section(cluster: &ClusterFile, name: &str) -> String {
    let nodes = cluster.queue.iter().map(|queue| {
        format!("  {{ node = {}, address = {} }},\n", queue.node, quoted(queue.address.as_str()))
    });
    format!(
        "[cluster]\nid = {}\nledger_groups = {}\nqueue = [\n{}]\n\
         authority = \"authority.pem\"\ncertificate = \"{name}.pem\"\nkey = \"{name}.key\"\n",
        cluster.id,
        cluster.ledger_groups,
        nodes.collect::<String>(),
    )
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_ingress_node_has_its_host_name() {
        let cluster = ClusterFile { id: postroad_core::ClusterId(1), ledger_groups: 1, queue: Vec::new() };
        let text = role_sections(
            &cluster,
            RoleName::Ingress,
            NodeId(11),
            Domain::parse("mail.example.org").ok().as_ref(),
        );
        let table: toml::Table = text.parse().expect("the template is TOML");
        assert_eq!(table["ingress"]["hostname"].as_str(), Some("mail.example.org"));
    }
}
