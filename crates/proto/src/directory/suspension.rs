//! Conversions of suspensions and of what they stop.

use postroad_core::{NodeId, PoolId, Scope, SourceId, TenantId, Timestamp};
use postroad_directory::{PutSuspension, ScopeName, Suspension};

use super::wire;
use crate::convert::{Malformed, required};

impl From<&Scope> for wire::Scope {
    fn from(scope: &Scope) -> Self {
        use wire::scope::Scope as Wire;
        let scope = match scope {
            Scope::Site(site) => Wire::Site(site.to_string()),
            Scope::Lane { source, site } => {
                Wire::Lane(wire::Lane { source: source.0, site: site.to_string() })
            }
            Scope::Source(source) => Wire::Source(source.0),
            Scope::Pool(pool) => Wire::Pool(pool.0),
            Scope::Tenant(tenant) => Wire::Tenant(tenant.0),
            Scope::Node(node) => Wire::Node(node.0),
        };
        Self { scope: Some(scope) }
    }
}

impl TryFrom<wire::Scope> for Scope {
    type Error = Malformed;

    fn try_from(scope: wire::Scope) -> Result<Self, Malformed> {
        use wire::scope::Scope as Wire;
        Ok(match required(scope.scope, "scope")? {
            Wire::Site(site) => Self::Site(site.into()),
            Wire::Lane(lane) => Self::Lane { source: SourceId(lane.source), site: lane.site.into() },
            Wire::Source(source) => Self::Source(SourceId(source)),
            Wire::Pool(pool) => Self::Pool(PoolId(pool)),
            Wire::Tenant(tenant) => Self::Tenant(TenantId(tenant)),
            Wire::Node(node) => Self::Node(NodeId(node)),
        })
    }
}

impl From<&ScopeName> for wire::ScopeName {
    fn from(scope: &ScopeName) -> Self {
        use wire::scope_name::Scope as Wire;
        let scope = match scope {
            ScopeName::Site(site) => Wire::Site(site.to_string()),
            ScopeName::Lane { source, site } => {
                Wire::Lane(wire::LaneName { source: source.to_string(), site: site.to_string() })
            }
            ScopeName::Source(name) => Wire::Source(name.to_string()),
            ScopeName::Pool(name) => Wire::Pool(name.to_string()),
            ScopeName::Tenant(name) => Wire::Tenant(name.to_string()),
            ScopeName::Node(node) => Wire::Node(node.0),
        };
        Self { scope: Some(scope) }
    }
}

impl TryFrom<wire::ScopeName> for ScopeName {
    type Error = Malformed;

    fn try_from(scope: wire::ScopeName) -> Result<Self, Malformed> {
        use wire::scope_name::Scope as Wire;
        Ok(match required(scope.scope, "scope")? {
            Wire::Site(site) => Self::Site(site.into()),
            Wire::Lane(lane) => Self::Lane { source: lane.source.into(), site: lane.site.into() },
            Wire::Source(name) => Self::Source(name.into()),
            Wire::Pool(name) => Self::Pool(name.into()),
            Wire::Tenant(name) => Self::Tenant(name.into()),
            Wire::Node(node) => Self::Node(NodeId(node)),
        })
    }
}

impl From<&Suspension> for wire::Suspension {
    fn from(suspension: &Suspension) -> Self {
        Self {
            name: suspension.name.to_string(),
            scope: Some((&suspension.scope).into()),
            reason: suspension.reason.to_string(),
            actor: suspension.actor.to_string(),
            since_millis: suspension.since.as_millis(),
            until_millis: suspension.until.map(Timestamp::as_millis),
        }
    }
}

impl TryFrom<wire::Suspension> for Suspension {
    type Error = Malformed;

    fn try_from(suspension: wire::Suspension) -> Result<Self, Malformed> {
        Ok(Self {
            name: suspension.name.into(),
            scope: required(suspension.scope, "scope")?.try_into()?,
            reason: suspension.reason.into(),
            actor: suspension.actor.into(),
            since: Timestamp::from_millis(suspension.since_millis),
            until: suspension.until_millis.map(Timestamp::from_millis),
        })
    }
}

impl From<&PutSuspension> for wire::PutSuspension {
    fn from(put: &PutSuspension) -> Self {
        Self {
            scope: Some((&put.scope).into()),
            reason: put.reason.to_string(),
            actor: put.actor.to_string(),
            since_millis: put.since.as_millis(),
            until_millis: put.until.map(Timestamp::as_millis),
        }
    }
}

impl TryFrom<wire::PutSuspension> for PutSuspension {
    type Error = Malformed;

    fn try_from(put: wire::PutSuspension) -> Result<Self, Malformed> {
        Ok(Self {
            scope: required(put.scope, "scope")?.try_into()?,
            reason: put.reason.into(),
            actor: put.actor.into(),
            since: Timestamp::from_millis(put.since_millis),
            until: put.until_millis.map(Timestamp::from_millis),
        })
    }
}
