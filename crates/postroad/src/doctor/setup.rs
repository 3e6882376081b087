//! A node's configuration, as far as it is checked: what the four roles' files have in common.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use postroad_core::NodeId;
use postroad_dns::Resolver;
use postroad_net::Guard;

use crate::{
    cli::RoleName,
    config::{self, ControlFile, IngressFile, OutboundFile, QueueFile, RoleFile},
    resolver::resolver,
    sections::ClusterSection,
};

/// Files, besides connections, that a node has open.
const FILES: u64 = 1024;

/// What a node's configuration says.
#[derive(Clone, Debug)]
pub(crate) struct NodeSetup {
    pub(crate) role: RoleName,
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterSection,
    /// Where the running node answers.
    pub(crate) metrics: SocketAddr,
    pub(crate) data: Option<PathBuf>,
    /// Each address that it listens on, with its setting.
    pub(crate) listeners: Vec<(String, SocketAddr)>,
    /// The certificate of the listeners, and its key.
    pub(crate) listener_certificate: Option<(PathBuf, PathBuf)>,
    /// The resolver of the nodes that look names up: one of them, or the system's.
    pub(crate) dns: Option<Option<SocketAddr>>,
    /// On outbound nodes: the port of MX hosts, and the addresses that mail may be sent to.
    pub(crate) sends: Option<(u16, Guard)>,
    /// The number of files and connections that it can need.
    pub(crate) files_needed: u64,
}

impl NodeSetup {
    /// Reads a node's configuration; files that it names are not opened.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub(crate) fn read(role: RoleName, path: &Path) -> anyhow::Result<Self> {
        Ok(match role {
            RoleName::Ingress => Self::of_ingress(&config::read(path)?),
            RoleName::Queue => Self::of_queue(&config::read(path)?),
            RoleName::Outbound => Self::of_outbound(&config::read(path)?),
            RoleName::Control => Self::of_control(&config::read(path)?),
        })
    }

    /// Returns the resolver that the node asks.
    ///
    /// # Errors
    /// The system's configuration cannot be read.
    pub(crate) fn resolver(&self) -> anyhow::Result<Option<Resolver>> {
        self.dns.map(resolver).transpose()
    }

    fn common<T: RoleFile>(file: &T) -> Self {
        let common = file.common();
        let metrics = common.metrics.listen;
        Self {
            role: T::ROLE,
            node: common.node,
            cluster: common.cluster.clone(),
            metrics,
            data: None,
            listeners: vec![("metrics.listen".to_owned(), metrics)],
            listener_certificate: None,
            dns: None,
            sends: None,
            files_needed: FILES,
        }
    }

    fn of_ingress(file: &IngressFile) -> Self {
        let mut setup = Self::common(file);
        let listeners = file.ingress.listeners.iter().enumerate();
        let listeners =
            listeners.map(|(index, listener)| (format!("ingress.listeners[{index}]"), listener.listen));
        setup.listeners.extend(listeners);
        setup
            .listeners
            .extend(file.ingress.grpc_listen.map(|address| ("ingress.grpc_listen".to_owned(), address)));
        let of_listener = u64::try_from(file.ingress.connections_max).unwrap_or(u64::MAX);
        let listeners = file.ingress.listeners.len() as u64;
        setup.files_needed = FILES.saturating_add(of_listener.saturating_mul(listeners));
        let (certificate, key) = (file.tls.certificate.clone(), file.tls.key.clone());
        setup.listener_certificate = certificate.zip(key).map(|(certificate, key)| (certificate.0, key.0));
        setup.dns = Some(file.dns.resolver);
        setup
    }

    fn of_queue(file: &QueueFile) -> Self {
        let mut setup = Self::common(file);
        setup.data = Some(file.node.data.0.clone());
        setup.listeners.push(("queue.listen".to_owned(), file.queue.listen));
        setup.files_needed = 4 * FILES;
        setup
    }

    fn of_outbound(file: &OutboundFile) -> Self {
        let mut setup = Self::common(file);
        setup.data = Some(file.node.data.0.clone());
        setup.dns = Some(file.dns.resolver);
        setup.sends = Some((file.outbound.smtp_port, Guard { allow: file.guard.allow.clone() }));
        // Connections of many lanes at the same time.
        setup.files_needed = 16 * FILES;
        setup
    }

    fn of_control(file: &ControlFile) -> Self {
        let mut setup = Self::common(file);
        setup.data = Some(file.node.data.0.clone());
        setup.listeners.push(("http.listen".to_owned(), file.http.listen));
        setup
    }
}
