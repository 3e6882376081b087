//! Conversions of items as operators describe them.

use std::sync::Arc;

use postroad_directory::{Put, PutCredential, PutLimits, PutPool, PutSource, PutTenant};

use super::{address, domain, networks, nodes, numbers, texts, wire};
use crate::convert::{Malformed, required};

impl From<&Put> for wire::Put {
    fn from(put: &Put) -> Self {
        use wire::put::Put as Wire;
        let put = match put {
            Put::Tenant(put) => Wire::Tenant(wire::PutTenant {
                name: put.name.to_string(),
                domains: Some((&put.domains).into()),
                pool: put.pool.to_string(),
                message_size_max: put.message_size_max,
            }),
            Put::Credential(put) => Wire::Credential(wire::PutCredential {
                name: put.name.to_string(),
                tenant: put.tenant.to_string(),
                secret: Some((&put.secret).into()),
                networks: texts(&put.networks),
            }),
            Put::Pool(put) => {
                let member = |(source, weight): &(Arc<str>, u32)| wire::PutMember {
                    source: source.to_string(),
                    weight: *weight,
                };
                let members = put.members.iter().map(member).collect();
                Wire::Pool(wire::PutPool { name: put.name.to_string(), members })
            }
            Put::Source(put) => Wire::Source(wire::PutSource {
                name: put.name.to_string(),
                address: put.address.map(|address| address.to_string()),
                helo: put.helo.to_string(),
                nodes: numbers(&put.nodes),
            }),
            Put::Limits(put) => Wire::Limits(wire::PutLimits {
                name: put.name.to_string(),
                source: put.source.as_deref().map(Into::into),
                site: put.site.as_deref().map(Into::into),
                caps: Some((&put.caps).into()),
            }),
            Put::Route(route) => Wire::Route(route.into()),
            Put::Suspension(put) => Wire::Suspension(put.into()),
        };
        Self { put: Some(put) }
    }
}

impl TryFrom<wire::Put> for Put {
    type Error = Malformed;

    fn try_from(put: wire::Put) -> Result<Self, Malformed> {
        use wire::put::Put as Wire;
        Ok(match required(put.put, "put")? {
            Wire::Tenant(put) => Self::Tenant(PutTenant {
                name: put.name.into(),
                domains: required(put.domains, "domains")?.try_into()?,
                pool: put.pool.into(),
                message_size_max: put.message_size_max,
            }),
            Wire::Credential(put) => Self::Credential(PutCredential {
                name: put.name.into(),
                tenant: put.tenant.into(),
                secret: required(put.secret, "secret")?.try_into()?,
                networks: networks(&put.networks)?,
            }),
            Wire::Pool(put) => {
                let member = |member: wire::PutMember| (member.source.into(), member.weight);
                let members = put.members.into_iter().map(member).collect();
                Self::Pool(PutPool { name: put.name.into(), members })
            }
            Wire::Source(put) => Self::Source(PutSource {
                name: put.name.into(),
                address: address(put.address)?,
                helo: domain(&put.helo)?,
                nodes: nodes(put.nodes),
            }),
            Wire::Limits(put) => Self::Limits(PutLimits {
                name: put.name.into(),
                source: put.source.map(Into::into),
                site: put.site.map(Into::into),
                caps: put.caps.unwrap_or_default().into(),
            }),
            Wire::Route(route) => Self::Route(route.try_into()?),
            Wire::Suspension(put) => Self::Suspension(put.try_into()?),
        })
    }
}
