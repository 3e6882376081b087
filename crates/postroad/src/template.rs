//! The configuration files that `postroad cluster` writes: only settings without a usable default.

use std::{net::SocketAddr, path::Path};

use crate::{cli::RoleName, cluster::ClusterFile};

/// Returns the configuration for `postroad apply` and `postroad message`.
#[must_use]
pub(crate) fn operator(cluster: &ClusterFile, dir: &Path) -> String {
    format!("# For `postroad apply` and `postroad message`.\n\n{}", cluster_section(cluster, dir, "operator"))
}

/// What differs from node to node.
#[derive(Clone, Debug)]
pub(crate) struct NodeTemplate<'a> {
    /// The node's role.
    pub(crate) role: RoleName,
    /// Its id.
    pub(crate) node: u64,
    /// Its data directory.
    pub(crate) data: &'a Path,
    /// The directory with its certificate.
    pub(crate) out: &'a Path,
    /// The address of its metrics listener.
    pub(crate) metrics: SocketAddr,
    /// The role's own sections.
    pub(crate) own: String,
}

/// Returns the configuration of a node.
#[must_use]
pub(crate) fn node(cluster: &ClusterFile, template: &NodeTemplate<'_>) -> String {
    let NodeTemplate { role, node, data, out, metrics, own } = template;
    let name = role.as_str();
    let data = quoted(&data.display().to_string());
    format!(
        "# postroad {name}; every setting and its default: docs/reference/configuration.md\n\n\
         [node]\nid = {node}\ndata = {data}\n\n{}\n[metrics]\nlisten = \"{metrics}\"\n\n{own}",
        cluster_section(cluster, out, name)
    )
}

/// Returns the sections that a new node of a role needs; `hostname` is that of an ingress node.
#[must_use]
pub(crate) fn role_sections(cluster: &ClusterFile, role: RoleName, node: u64, hostname: &str) -> String {
    match role {
        RoleName::Queue => {
            let address = cluster.queue.iter().find(|queue| queue.node == node);
            let port =
                address.and_then(|queue| queue.address.rsplit_once(':')).map_or("7000", |(_, port)| port);
            format!("[queue]\nlisten = \"0.0.0.0:{port}\"\n")
        }
        RoleName::Ingress => ingress(hostname),
        RoleName::Outbound => "[outbound]\n".to_owned(),
        RoleName::Control => "[http]\nlisten = \"127.0.0.1:8080\"\n".to_owned(),
    }
}

fn ingress(hostname: &str) -> String {
    format!(
        r#"[tls]
# With `true`, a certificate for the listeners below is generated at every start.
self_signed = true

[ingress]
hostname = {}
listeners = [
  {{ listen = "0.0.0.0:587", service = "submission" }},
  {{ listen = "0.0.0.0:465", service = "submission", implicit_tls = true }},
]
"#,
        quoted(hostname)
    )
}

fn cluster_section(cluster: &ClusterFile, dir: &Path, stem: &str) -> String {
    let path = |name: String| quoted(&dir.join(name).display().to_string());
    let nodes = cluster
        .queue
        .iter()
        .map(|queue| format!("  {{ node = {}, address = {} }},\n", queue.node, quoted(&queue.address)));
    format!(
        "[cluster]\nid = {}\nledger_groups = {}\nqueue = [\n{}]\nauthority = {}\ncertificate = {}\nkey = {}\n",
        cluster.id,
        cluster.ledger_groups,
        nodes.collect::<String>(),
        path("authority.pem".to_owned()),
        path(format!("{stem}.pem")),
        path(format!("{stem}.key")),
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
        let cluster = ClusterFile { id: 1, ledger_groups: 1, queue: Vec::new() };
        let text = role_sections(&cluster, RoleName::Ingress, 11, "mail.example.org");
        let table: toml::Table = text.parse().expect("the template is TOML");
        assert_eq!(table["ingress"]["hostname"].as_str(), Some("mail.example.org"));
    }
}
