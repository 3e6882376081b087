//! What all workers share.

use std::{net::IpAddr, sync::Arc};

use postroad_directory::View;
use postroad_dns::Resolver;
use postroad_net::{ClientTls, ConnectError, Connector, Guard, Socket};
use postroad_smtp::client::Timeouts;
use tokio::sync::watch;

use crate::{
    config::OutboundConfig, content::ContentSource, conversion::Conversions, lease::Lease,
    metrics::OutboundMetrics, plan::Target,
};

/// What all workers share.
#[derive(Debug)]
pub(crate) struct DeliveryContext {
    /// The role's configuration.
    pub(crate) config: OutboundConfig,
    /// Timeouts in a session.
    pub(crate) timeouts: Timeouts,
    /// Finds mail hosts.
    pub(crate) resolver: Resolver,
    /// Opens connections to mail hosts.
    pub(crate) connector: Connector,
    /// Refuses connections to forbidden networks.
    pub(crate) guard: Guard,
    /// TLS as a client.
    pub(crate) tls: ClientTls,
    /// Whether sources may be used.
    pub(crate) lease: Arc<Lease>,
    /// The directory.
    pub(crate) directory: watch::Receiver<Arc<View>>,
    /// Fetches large content.
    pub(crate) content: ContentSource,
    /// Converts content for hops that need it.
    pub(crate) conversions: Conversions,
    /// Metrics.
    pub(crate) metrics: Arc<OutboundMetrics>,
}

impl DeliveryContext {
    /// Returns the current directory.
    #[must_use]
    pub(crate) fn view(&self) -> Arc<View> {
        self.directory.borrow().clone()
    }

    /// Connects to a target from a source's address. The guard does not apply to what the operator configured in a route.
    pub(crate) async fn connect(
        &self,
        target: &Target,
        from: Option<IpAddr>,
    ) -> Result<Socket, ConnectError> {
        let limit = self.config.connect_timeout;
        if target.trusted {
            self.connector.connect_trusted(target.address, from, limit).await
        } else {
            self.connector.connect(&self.guard, target.address, from, limit).await
        }
    }

    /// Returns the addresses that lead back to the cluster. Loopback is not among them: other servers may listen there.
    pub(crate) fn own_addresses(&self) -> Vec<IpAddr> {
        let view = self.view();
        let sources = view.sources().filter_map(|source| source.address);
        sources
            .filter(|address| !address.is_loopback())
            .chain(self.config.own_addresses.iter().copied())
            .collect()
    }
}
