//! The bytes of snapshots: little-endian numbers and length-prefixed text, nothing else.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use postroad_core::{Domain, Epoch, NodeId, PoolId, Scope, SourceId, TenantId, Timestamp};

use crate::item::{
    Caps, Credential, Item, ItemName, Kind, Limits, OutboundNode, Owner, Pattern, Pool, Rate, Route, Secret,
    SenderDomains, Source, Suspension, Tenant,
};

/// The bytes are not a snapshot of this version: damaged, or from another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the snapshot is damaged")
    }
}

impl std::error::Error for Corrupt {}

/// A value that can be encoded.
pub(crate) trait Code: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt>;
}

/// Reads from the front of bytes; missing bytes are [`Corrupt`].
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self) -> Result<&'a str, Corrupt> {
        let len = u32::take(self)? as usize;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| Corrupt)
    }

    /// Refuses a count of more than can follow before memory is reserved: every value takes at least a byte.
    pub(crate) fn list<T: Code>(&mut self) -> Result<Vec<T>, Corrupt> {
        let count = u32::take(self)? as usize;
        if count > self.0.len() {
            return Err(Corrupt);
        }
        (0..count).map(|_| T::take(self)).collect()
    }

    pub(crate) fn finish(self) -> Result<(), Corrupt> {
        if self.0.is_empty() { Ok(()) } else { Err(Corrupt) }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    count(text.len()).put(out);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_list<'a, T: Code + 'a>(out: &mut Vec<u8>, list: impl ExactSizeIterator<Item = &'a T>) {
    count(list.len()).put(out);
    list.for_each(|value| value.put(out));
}

fn count(value: usize) -> u32 {
    u32::try_from(value).expect("counts are bounded far below four billion")
}

macro_rules! code_numbers {
    ($($name:ty),*) => {$(
        impl Code for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
                let (taken, rest) = from.0.split_first_chunk().ok_or(Corrupt)?;
                from.0 = rest;
                Ok(Self::from_le_bytes(*taken))
            }
        }
    )*};
}

code_numbers!(u8, u16, u32, u64);

/// Implements [`Code`] field by field, in this order.
macro_rules! code_fields {
    ($($name:ident { $($field:tt),* })*) => {$(
        impl Code for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
                Ok(Self { $($field: Code::take(from)?),* })
            }
        }
    )*};
}

code_fields! {
    TenantId { 0 }
    PoolId { 0 }
    SourceId { 0 }
    NodeId { 0 }
    Epoch { 0 }
    ItemName { kind, name }
    Tenant { id, name, domains, pool, message_size_max }
    Credential { name, tenant, secret, networks }
    Pool { id, name, members }
    Source { id, name, address, helo, nodes, owner, epoch }
    Owner { node, incarnation }
    Limits { name, source, site, caps }
    Caps { connections_max, messages_per_connection_max, window, rates }
    Rate { messages, per }
    Route { pattern, host, port }
    OutboundNode { node, incarnation }
    Suspension { name, scope, reason, actor, since, until }
}

impl Code for Arc<str> {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, self);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.text().map(Into::into)
    }
}

impl Code for Box<str> {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, self);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.text().map(Into::into)
    }
}

impl Code for Domain {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, self.as_str());
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Self::parse(from.text()?).map_err(|_| Corrupt)
    }
}

impl Code for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.to_string());
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.text()?.parse().map_err(|_| Corrupt)
    }
}

impl Code for IpNet {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.to_string());
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.text()?.parse().map_err(|_| Corrupt)
    }
}

impl Code for Duration {
    fn put(&self, out: &mut Vec<u8>) {
        u64::try_from(self.as_millis()).expect("spans are bounded to days").put(out);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        u64::take(from).map(Self::from_millis)
    }
}

impl Code for Timestamp {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_millis().put(out);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        u64::take(from).map(Self::from_millis)
    }
}

impl<T: Code> Code for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(self.is_some()).put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        match u8::take(from)? {
            0 => Ok(None),
            1 => T::take(from).map(Some),
            _ => Err(Corrupt),
        }
    }
}

impl<T: Code> Code for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(out, self.iter());
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.list()
    }
}

impl Code for Arc<[Rate]> {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(out, self.iter());
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.list().map(Into::into)
    }
}

impl<A: Code, B: Code> Code for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

impl Code for Kind {
    fn put(&self, out: &mut Vec<u8>) {
        let code: u8 = match self {
            Self::Tenant => 1,
            Self::Credential => 2,
            Self::Pool => 3,
            Self::Source => 4,
            Self::Limits => 5,
            Self::Route => 6,
            Self::Node => 7,
            Self::Suspension => 8,
        };
        code.put(out);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(match u8::take(from)? {
            1 => Self::Tenant,
            2 => Self::Credential,
            3 => Self::Pool,
            4 => Self::Source,
            5 => Self::Limits,
            6 => Self::Route,
            7 => Self::Node,
            8 => Self::Suspension,
            _ => return Err(Corrupt),
        })
    }
}

impl Code for Item {
    fn put(&self, out: &mut Vec<u8>) {
        self.name().kind.put(out);
        match self {
            Self::Tenant(tenant) => tenant.put(out),
            Self::Credential(credential) => credential.put(out),
            Self::Pool(pool) => pool.put(out),
            Self::Source(source) => source.put(out),
            Self::Limits(limits) => limits.put(out),
            Self::Route(route) => route.put(out),
            Self::Node(node) => node.put(out),
            Self::Suspension(suspension) => suspension.put(out),
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(match Kind::take(from)? {
            Kind::Tenant => Self::Tenant(Arc::new(Code::take(from)?)),
            Kind::Credential => Self::Credential(Arc::new(Code::take(from)?)),
            Kind::Pool => Self::Pool(Arc::new(Code::take(from)?)),
            Kind::Source => Self::Source(Arc::new(Code::take(from)?)),
            Kind::Limits => Self::Limits(Arc::new(Code::take(from)?)),
            Kind::Route => Self::Route(Arc::new(Code::take(from)?)),
            Kind::Node => Self::Node(Code::take(from)?),
            Kind::Suspension => Self::Suspension(Arc::new(Code::take(from)?)),
        })
    }
}

impl Code for SenderDomains {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Any => 0_u8.put(out),
            Self::Only(domains) => {
                1_u8.put(out);
                put_list(out, domains.iter());
            }
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        match u8::take(from)? {
            0 => Ok(Self::Any),
            1 => from.list().map(|domains| Self::Only(BTreeSet::from_iter(domains))),
            _ => Err(Corrupt),
        }
    }
}

impl Code for Secret {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::ApiKey { sha256 } => {
                1_u8.put(out);
                out.extend_from_slice(sha256);
            }
            Self::Login { login, verifier } => {
                2_u8.put(out);
                login.put(out);
                verifier.put(out);
            }
            Self::Network { relay: false } => 3_u8.put(out),
            Self::Network { relay: true } => 4_u8.put(out),
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        match u8::take(from)? {
            1 => {
                let sha256 = from.bytes(32)?.try_into().map_err(|_| Corrupt)?;
                Ok(Self::ApiKey { sha256 })
            }
            2 => Ok(Self::Login { login: Code::take(from)?, verifier: Code::take(from)? }),
            3 => Ok(Self::Network { relay: false }),
            4 => Ok(Self::Network { relay: true }),
            _ => Err(Corrupt),
        }
    }
}

impl Code for Pattern {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Any => 0_u8.put(out),
            Self::Exact(domain) => {
                1_u8.put(out);
                domain.put(out);
            }
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        match u8::take(from)? {
            0 => Ok(Self::Any),
            1 => Code::take(from).map(Self::Exact),
            _ => Err(Corrupt),
        }
    }
}

impl Code for Scope {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Site(site) => {
                1_u8.put(out);
                site.put(out);
            }
            Self::Lane { source, site } => {
                2_u8.put(out);
                source.put(out);
                site.put(out);
            }
            Self::Source(source) => {
                3_u8.put(out);
                source.put(out);
            }
            Self::Pool(pool) => {
                4_u8.put(out);
                pool.put(out);
            }
            Self::Tenant(tenant) => {
                5_u8.put(out);
                tenant.put(out);
            }
            Self::Node(node) => {
                6_u8.put(out);
                node.put(out);
            }
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        match u8::take(from)? {
            1 => Code::take(from).map(Self::Site),
            2 => Ok(Self::Lane { source: Code::take(from)?, site: Code::take(from)? }),
            3 => Code::take(from).map(Self::Source),
            4 => Code::take(from).map(Self::Pool),
            5 => Code::take(from).map(Self::Tenant),
            6 => Code::take(from).map(Self::Node),
            _ => Err(Corrupt),
        }
    }
}
