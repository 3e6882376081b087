//! An outbound node: the real one, with simulated queue nodes on one side and receivers on the other.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use postroad_core::NodeId;
use postroad_dns::Resolver;
use postroad_net::{ClientTls, Connector, Guard, Role};
use postroad_outbound::{Home, Outbound, OutboundConfig, OutboundDeps};
use postroad_telemetry::Health;

use super::{Place, Starting, receiver::Receivers};
use crate::{network::Host, process::Process};

/// Never asked: every site has a route with an address.
const NO_RESOLVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

pub(crate) fn start(place: &Place, starting: Starting, home: &Home) -> Process {
    let Starting { number, seed, wall, stop, .. } = starting;
    let (place, home) = (place.clone(), home.clone());
    let config = OutboundConfig {
        drain_timeout: Duration::from_secs(2),
        pause_first: Duration::from_secs(1),
        pause_max: Duration::from_secs(4),
        ..OutboundConfig::default()
    };
    Process::start(Host(number), seed, wall, async move {
        let receivers = Receivers::new(&place, NodeId(number), seed);
        let deps = OutboundDeps {
            node: NodeId(number),
            home,
            endpoints: place.endpoints(number, Role::Outbound),
            resolver: Resolver::at(NO_RESOLVER),
            connector: Connector::Simulated(Arc::new(receivers)),
            guard: Guard::default(),
            tls: ClientTls::opportunistic(),
            health: Health::new(),
        };
        match Outbound::start(config, deps) {
            Ok(outbound) => outbound.run(stop).await,
            Err(error) => tracing::error!(%error, "an outbound node cannot start"),
        }
    })
}
