//! What every worker needs and none owns.

use std::{net::IpAddr, sync::Arc};

use postroad_directory::View;
use postroad_dns::Resolver;
use postroad_net::{ClientTls, Guard};
use postroad_smtp::client::Timeouts;
use tokio::sync::watch;

use crate::{config::OutboundConfig, content::ContentSource, lease::Lease, metrics::OutboundMetrics};

/// What every worker needs.
#[derive(Debug)]
pub(crate) struct Workshop {
    /// The role's configuration.
    pub(crate) config: OutboundConfig,
    /// Bounds of waiting in a session.
    pub(crate) timeouts: Timeouts,
    /// Finds mail hosts.
    pub(crate) resolver: Resolver,
    /// Keeps connections away from where they must not go.
    pub(crate) guard: Guard,
    /// How TLS is done.
    pub(crate) tls: ClientTls,
    /// Whether sources may be used.
    pub(crate) lease: Arc<Lease>,
    /// The directory.
    pub(crate) directory: watch::Receiver<Arc<View>>,
    /// Large content.
    pub(crate) content: ContentSource,
    /// What is measured.
    pub(crate) metrics: Arc<OutboundMetrics>,
}

impl Workshop {
    /// Returns the directory as it is now.
    #[must_use]
    pub(crate) fn view(&self) -> Arc<View> {
        self.directory.borrow().clone()
    }

    /// Returns the addresses that lead back to the cluster. Loopback leads to whatever the operator put there.
    pub(crate) fn own_addresses(&self) -> Vec<IpAddr> {
        let view = self.view();
        let sources = view.sources().filter_map(|source| source.address);
        sources
            .filter(|address| !address.is_loopback())
            .chain(self.config.own_addresses.iter().copied())
            .collect()
    }
}
