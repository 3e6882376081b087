//! Conversions of the directory's items.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use postroad_core::{Epoch, NodeId, PoolId, SourceId, TenantId};
use postroad_directory::{
    Caps, Credential, Item, ItemName, Kind, Limits, OutboundNode, Owner, Pattern, Pool, Rate, Route, Secret,
    SenderDomains, Source, Tenant,
};

use super::{address, domain, networks, nodes, numbers, texts, wire};
use crate::convert::{Malformed, required};

impl From<&ItemName> for wire::ItemName {
    fn from(name: &ItemName) -> Self {
        let kind = match name.kind {
            Kind::Tenant => wire::Kind::Tenant,
            Kind::Credential => wire::Kind::Credential,
            Kind::Pool => wire::Kind::Pool,
            Kind::Source => wire::Kind::Source,
            Kind::Limits => wire::Kind::Limits,
            Kind::Route => wire::Kind::Route,
            Kind::Node => wire::Kind::Node,
            Kind::Suspension => wire::Kind::Suspension,
        };
        Self { kind: kind.into(), name: name.name.to_string() }
    }
}

impl TryFrom<wire::ItemName> for ItemName {
    type Error = Malformed;

    fn try_from(name: wire::ItemName) -> Result<Self, Malformed> {
        let kind = match wire::Kind::try_from(name.kind).unwrap_or_default() {
            wire::Kind::Unspecified => return Err(Malformed("kind")),
            wire::Kind::Tenant => Kind::Tenant,
            wire::Kind::Credential => Kind::Credential,
            wire::Kind::Pool => Kind::Pool,
            wire::Kind::Source => Kind::Source,
            wire::Kind::Limits => Kind::Limits,
            wire::Kind::Route => Kind::Route,
            wire::Kind::Node => Kind::Node,
            wire::Kind::Suspension => Kind::Suspension,
        };
        Ok(Self::new(kind, name.name))
    }
}

impl From<&SenderDomains> for wire::SenderDomains {
    fn from(domains: &SenderDomains) -> Self {
        match domains {
            SenderDomains::Any => Self { any: true, only: Vec::new() },
            SenderDomains::Only(domains) => Self { any: false, only: texts(domains) },
        }
    }
}

impl TryFrom<wire::SenderDomains> for SenderDomains {
    type Error = Malformed;

    fn try_from(domains: wire::SenderDomains) -> Result<Self, Malformed> {
        match (domains.any, domains.only.is_empty()) {
            (true, true) => Ok(Self::Any),
            (true, false) => Err(Malformed("domains")),
            (false, _) => {
                domains.only.iter().map(|text| domain(text)).collect::<Result<_, _>>().map(Self::Only)
            }
        }
    }
}

impl From<&Secret> for wire::Secret {
    fn from(secret: &Secret) -> Self {
        use wire::secret::Secret as Wire;
        let secret = match secret {
            Secret::ApiKey { sha256 } => Wire::ApiKeySha256(Bytes::copy_from_slice(sha256)),
            Secret::Login { login, verifier } => {
                Wire::Login(wire::Login { login: login.to_string(), verifier: verifier.to_string() })
            }
            Secret::Network { relay } => Wire::Network(wire::Network { relay: *relay }),
        };
        Self { secret: Some(secret) }
    }
}

impl TryFrom<wire::Secret> for Secret {
    type Error = Malformed;

    fn try_from(secret: wire::Secret) -> Result<Self, Malformed> {
        use wire::secret::Secret as Wire;
        Ok(match required(secret.secret, "secret")? {
            Wire::ApiKeySha256(bytes) => {
                let sha256 = bytes.as_ref().try_into().map_err(|_| Malformed("api_key_sha256"))?;
                Self::ApiKey { sha256 }
            }
            Wire::Login(login) => Self::Login { login: login.login.into(), verifier: login.verifier.into() },
            Wire::Network(wire::Network { relay }) => Self::Network { relay },
        })
    }
}

impl From<&Caps> for wire::Caps {
    fn from(caps: &Caps) -> Self {
        let rate = |rate: &Rate| wire::Rate {
            messages: rate.messages,
            per_millis: u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX),
        };
        let rates = caps.rates.as_ref().map(|rates| wire::Rates { rates: rates.iter().map(rate).collect() });
        Self {
            connections_max: caps.connections_max,
            messages_per_connection_max: caps.messages_per_connection_max,
            window: caps.window,
            rates,
        }
    }
}

impl From<wire::Caps> for Caps {
    fn from(caps: wire::Caps) -> Self {
        let rate =
            |rate: wire::Rate| Rate { messages: rate.messages, per: Duration::from_millis(rate.per_millis) };
        Self {
            connections_max: caps.connections_max,
            messages_per_connection_max: caps.messages_per_connection_max,
            window: caps.window,
            rates: caps.rates.map(|rates| rates.rates.into_iter().map(rate).collect()),
        }
    }
}

impl From<&Route> for wire::Route {
    fn from(route: &Route) -> Self {
        let domain = match &route.pattern {
            Pattern::Exact(domain) => Some(domain.to_string()),
            Pattern::Any => None,
        };
        Self { domain, host: route.host.to_string(), port: route.port.into() }
    }
}

impl TryFrom<wire::Route> for Route {
    type Error = Malformed;

    fn try_from(route: wire::Route) -> Result<Self, Malformed> {
        let pattern = match route.domain {
            Some(text) => Pattern::Exact(domain(&text)?),
            None => Pattern::Any,
        };
        let port = u16::try_from(route.port).map_err(|_| Malformed("port"))?;
        Ok(Self { pattern, host: route.host.into(), port })
    }
}

impl From<&Item> for wire::Item {
    fn from(item: &Item) -> Self {
        use wire::item::Item as Wire;
        let item = match item {
            Item::Tenant(tenant) => Wire::Tenant(wire::Tenant {
                id: tenant.id.0,
                name: tenant.name.to_string(),
                domains: Some((&tenant.domains).into()),
                pool: tenant.pool.0,
                message_size_max: tenant.message_size_max,
            }),
            Item::Credential(credential) => Wire::Credential(wire::Credential {
                name: credential.name.to_string(),
                tenant: credential.tenant.0,
                secret: Some((&credential.secret).into()),
                networks: texts(&credential.networks),
            }),
            Item::Pool(pool) => {
                let member =
                    |(source, weight): &(SourceId, u32)| wire::Member { source: source.0, weight: *weight };
                let members = pool.members.iter().map(member).collect();
                Wire::Pool(wire::Pool { id: pool.id.0, name: pool.name.to_string(), members })
            }
            Item::Source(source) => Wire::Source(source.as_ref().into()),
            Item::Limits(limits) => Wire::Limits(wire::Limits {
                name: limits.name.to_string(),
                source: limits.source.map(|source| source.0),
                site: limits.site.as_deref().map(Into::into),
                caps: Some((&limits.caps).into()),
            }),
            Item::Route(route) => Wire::Route(route.as_ref().into()),
            Item::Node(node) => Wire::Node(wire::Node { node: node.node.0, incarnation: node.incarnation }),
            Item::Suspension(suspension) => Wire::Suspension(suspension.as_ref().into()),
        };
        Self { item: Some(item) }
    }
}

impl From<&Source> for wire::Source {
    fn from(source: &Source) -> Self {
        let owner = |owner: Owner| wire::Owner { node: owner.node.0, incarnation: owner.incarnation };
        Self {
            id: source.id.0,
            name: source.name.to_string(),
            address: source.address.map(|address| address.to_string()),
            helo: source.helo.to_string(),
            nodes: numbers(&source.nodes),
            owner: source.owner.map(owner),
            epoch: source.epoch.0,
        }
    }
}

impl TryFrom<wire::Item> for Item {
    type Error = Malformed;

    fn try_from(item: wire::Item) -> Result<Self, Malformed> {
        use wire::item::Item as Wire;
        Ok(match required(item.item, "item")? {
            Wire::Tenant(tenant) => Self::Tenant(Arc::new(tenant.try_into()?)),
            Wire::Credential(credential) => Self::Credential(Arc::new(credential.try_into()?)),
            Wire::Pool(pool) => {
                let member = |member: wire::Member| (SourceId(member.source), member.weight);
                let members = pool.members.into_iter().map(member).collect();
                Self::Pool(Arc::new(Pool { id: PoolId(pool.id), name: pool.name.into(), members }))
            }
            Wire::Source(source) => Self::Source(Arc::new(source.try_into()?)),
            Wire::Limits(limits) => Self::Limits(Arc::new(Limits {
                name: limits.name.into(),
                source: limits.source.map(SourceId),
                site: limits.site.map(Into::into),
                caps: required(limits.caps, "caps")?.into(),
            })),
            Wire::Route(route) => Self::Route(Arc::new(route.try_into()?)),
            Wire::Node(node) => {
                Self::Node(OutboundNode { node: NodeId(node.node), incarnation: node.incarnation })
            }
            Wire::Suspension(suspension) => Self::Suspension(Arc::new(suspension.try_into()?)),
        })
    }
}

impl TryFrom<wire::Tenant> for Tenant {
    type Error = Malformed;

    fn try_from(tenant: wire::Tenant) -> Result<Self, Malformed> {
        Ok(Self {
            id: TenantId(tenant.id),
            name: tenant.name.into(),
            domains: required(tenant.domains, "domains")?.try_into()?,
            pool: PoolId(tenant.pool),
            message_size_max: tenant.message_size_max,
        })
    }
}

impl TryFrom<wire::Credential> for Credential {
    type Error = Malformed;

    fn try_from(credential: wire::Credential) -> Result<Self, Malformed> {
        Ok(Self {
            name: credential.name.into(),
            tenant: TenantId(credential.tenant),
            secret: required(credential.secret, "secret")?.try_into()?,
            networks: networks(&credential.networks)?,
        })
    }
}

impl TryFrom<wire::Source> for Source {
    type Error = Malformed;

    fn try_from(source: wire::Source) -> Result<Self, Malformed> {
        let owner = |owner: wire::Owner| Owner { node: NodeId(owner.node), incarnation: owner.incarnation };
        Ok(Self {
            id: SourceId(source.id),
            name: source.name.into(),
            address: address(source.address)?,
            helo: domain(&source.helo)?,
            nodes: nodes(source.nodes),
            owner: source.owner.map(owner),
            epoch: Epoch(source.epoch),
        })
    }
}
