//! Where mail for a domain goes: a route of the operator, or the mail hosts that DNS names.

use std::{net::IpAddr, sync::Arc};

use postroad_core::{Domain, Outcome};
use postroad_directory::Route;
use postroad_dns::MailHosts;

use crate::{
    context::DeliveryContext,
    plan::{Rules, Target, plan},
    result,
};

/// The hosts of a domain, looked up.
#[derive(Debug)]
pub(crate) enum Destination {
    /// The operator's, and its addresses.
    Route(Arc<Route>, Vec<IpAddr>),
    /// Those of the domain.
    Hosts(MailHosts),
}

impl Destination {
    /// Looks up where mail for a domain goes.
    pub(crate) async fn find(context: &DeliveryContext, domain: &Domain) -> Result<Self, Box<Outcome>> {
        let failed = |error: &_| Box::new(result::outcome_of_dns(error));
        if let Some(route) = context.view().route(domain) {
            let addresses = context.resolver.addresses(&route.host).await;
            return Ok(Self::Route(route.clone(), addresses.map_err(|error| failed(&error))?));
        }
        let hosts = context.resolver.mail_hosts(domain).await;
        Ok(Self::Hosts(hosts.map_err(|error| failed(&error))?))
    }

    /// Returns the addresses to try from a source, best first; none where a route has none of the source's family.
    pub(crate) fn targets(
        &self,
        context: &DeliveryContext,
        source: Option<IpAddr>,
        avoid_ipv6: bool,
    ) -> Result<Vec<Target>, Box<Outcome>> {
        let addresses_max = context.config.addresses_max;
        match self {
            Self::Route(route, addresses) => {
                let of_family = addresses
                    .iter()
                    .filter(|address| source.is_none_or(|s| s.is_ipv4() == address.is_ipv4()));
                let target = |address: &IpAddr| Target {
                    host: route.host.clone(),
                    address: (*address, route.port).into(),
                    trusted: true,
                };
                Ok(of_family.take(addresses_max).map(target).collect())
            }
            Self::Hosts(hosts) => {
                let rules = Rules {
                    port: context.config.smtp_port,
                    source,
                    own: &context.own_addresses(),
                    guard: &context.guard,
                    avoid_ipv6,
                    addresses_max,
                };
                plan(hosts, &rules)
            }
        }
    }
}
