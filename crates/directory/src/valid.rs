//! Rules for a single item, whatever else is in the directory. Each is a sentence for operators.

use std::{net::IpAddr, time::Duration};

use postroad_core::{Domain, NodeId};

use crate::{
    change::{Put, PutCredential, PutLimits, PutPool, PutSource, PutSuspension, PutTenant, ScopeName},
    item::{Caps, ItemName, Rate, Route, Secret, SenderDomains, is_too_wide},
};

const NAME_BYTES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 255;
const VERIFIER_BYTES_MAX: usize = 512;
const REASON_BYTES_MAX: usize = 256;
const ACTOR_BYTES_MAX: usize = 128;
const DOMAINS_MAX: usize = 10_000;
const NETWORKS_MAX: usize = 256;
const MEMBERS_MAX: usize = 1000;
const NODES_MAX: usize = 256;
const RATES_MAX: usize = 8;
const RATE_PER_MAX: Duration = Duration::from_secs(31 * 86_400);

type Checked = Result<(), &'static str>;

impl Put {
    /// Checks the item by itself, whatever else is in the directory.
    ///
    /// # Errors
    /// The rule that it breaks, as a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        check(self)
    }
}

/// Checks one item by itself.
pub(crate) fn check(put: &Put) -> Checked {
    match put {
        Put::Tenant(put) => tenant(put),
        Put::Credential(put) => credential(put),
        Put::Pool(put) => pool(put),
        Put::Source(put) => source(put),
        Put::Limits(put) => limits(put),
        Put::Route(put) => route(put),
        Put::Suspension(put) => suspension(put),
    }
}

fn rule(holds: bool, rule: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(rule) }
}

fn name(name: &str) -> Checked {
    let written = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    let good = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(written);
    rule(good, "expected a name of 1 to 64 letters, digits, `-`, `_`, `.` and `@`")
}

fn tenant(put: &PutTenant) -> Checked {
    name(&put.name)?;
    if let SenderDomains::Only(domains) = &put.domains {
        rule(domains.len() <= DOMAINS_MAX, "expected at most 10000 domains")?;
    }
    rule(put.message_size_max != Some(0), "expected a largest message above 0 bytes")
}

fn credential(put: &PutCredential) -> Checked {
    name(&put.name)?;
    rule(put.networks.len() <= NETWORKS_MAX, "expected at most 256 networks")?;
    let narrow = !put.networks.iter().any(is_too_wide);
    rule(narrow, "expected networks no wider than /8 (IPv4) or /16 (IPv6): a wider one admits strangers")?;
    match &put.secret {
        Secret::ApiKey { .. } => Ok(()),
        Secret::Network { .. } => rule(!put.networks.is_empty(), "expected at least one network"),
        Secret::Login { login, verifier } => {
            let printable = !login.is_empty() && !login.chars().any(char::is_control);
            rule(printable && login.len() <= TEXT_BYTES_MAX, "expected a login of 1 to 255 bytes")?;
            let phc = verifier.starts_with("$argon2") && verifier.bytes().all(|byte| byte.is_ascii_graphic());
            rule(phc && verifier.len() <= VERIFIER_BYTES_MAX, "expected an Argon2 verifier in PHC form")
        }
    }
}

fn pool(put: &PutPool) -> Checked {
    name(&put.name)?;
    rule(put.members.len() <= MEMBERS_MAX, "expected at most 1000 sources")
}

fn source(put: &PutSource) -> Checked {
    name(&put.name)?;
    rule(put.nodes.len() <= NODES_MAX, "expected at most 256 nodes")?;
    let addressed = put.address.is_none_or(|address| !address.is_unspecified() && !address.is_multicast());
    rule(addressed, "expected an address that connections can come from")
}

fn limits(put: &PutLimits) -> Checked {
    name(&put.name)?;
    if let Some(name) = &put.site {
        site(name)?;
    }
    if put.name == ItemName::default_limits().name {
        rule(put.source.is_none() && put.site.is_none(), "expected the default limits to be for every lane")?;
    }
    caps(&put.caps)
}

fn site(site: &str) -> Checked {
    let written = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
    let good = (1..=TEXT_BYTES_MAX).contains(&site.len()) && site.bytes().all(written);
    rule(good, "expected a site of 1 to 255 characters in lower case")
}

fn suspension(put: &PutSuspension) -> Checked {
    match &put.scope {
        ScopeName::Site(name) | ScopeName::Lane { site: name, .. } => site(name)?,
        ScopeName::Node(node) => rule(*node != NodeId(0), "expected a node from 1")?,
        ScopeName::Source(_) | ScopeName::Pool(_) | ScopeName::Tenant(_) => {}
    }
    let is_text = |text: &str| !text.trim().is_empty() && !text.chars().any(char::is_control);
    let reason = put.reason.len() <= REASON_BYTES_MAX && is_text(&put.reason);
    rule(reason, "expected a reason of 1 to 256 bytes, in one line")?;
    let actor = put.actor.len() <= ACTOR_BYTES_MAX && is_text(&put.actor);
    rule(actor, "expected the name of who suspends it, of 1 to 128 bytes, in one line")?;
    rule(put.until.is_none_or(|until| until > put.since), "expected an end after its beginning")
}

fn caps(caps: &Caps) -> Checked {
    let numbers = [caps.connections_max, caps.messages_per_connection_max, caps.window];
    rule(!numbers.contains(&Some(0)), "expected caps above 0; a rate of 0 messages stops a lane")?;
    let rates = caps.rates.as_deref().unwrap_or_default();
    rule(rates.len() <= RATES_MAX, "expected at most 8 rates")?;
    rule(rates.iter().all(is_rate), "expected rates per 1 ms to 31 days, in whole milliseconds")
}

fn is_rate(rate: &Rate) -> bool {
    let whole = rate.per.subsec_nanos().is_multiple_of(1_000_000);
    whole && !rate.per.is_zero() && rate.per <= RATE_PER_MAX
}

fn route(route: &Route) -> Checked {
    let is_name = Domain::parse(&route.host).is_ok_and(|domain| domain.as_str() == &*route.host);
    let is_address = route.host.parse::<IpAddr>().is_ok();
    rule(is_name || is_address, "expected a host name in lower case, or an address")?;
    rule(route.port != 0, "expected a port from 1")
}
