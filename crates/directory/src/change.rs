//! What can happen to a directory, and what it answers.
//!
//! People name things; the directory gives the numbers.
//! What a command means is fixed once it is in the log: a rule that changes is a new command.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use postroad_core::{Domain, Epoch, NodeId, SourceId};

use crate::item::{Caps, ItemName, Kind, Route, Secret, SenderDomains};

/// One change of the directory's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes items what they are said to be; all or nothing.
    Change(Vec<Change>),
    /// An outbound node has started anew and its earlier run is over: what that owned is the new one's, under new epochs.
    Claim {
        /// The node.
        node: NodeId,
        /// Drawn at random when the process started.
        incarnation: u64,
    },
    /// A source that nobody owns gets an owner.
    Grant {
        /// The source.
        source: SourceId,
        /// Its new owner.
        node: NodeId,
        /// Must be the node's latest run.
        incarnation: u64,
    },
    /// This run of a node owns nothing any more: it let go, or its lease has certainly ended. It must claim again.
    Revoke {
        /// The node.
        node: NodeId,
        /// Which run of it.
        incarnation: u64,
    },
    /// This run of a node has let go of a source and goes on with the others.
    ReleaseSource {
        /// The source.
        source: SourceId,
        /// The node.
        node: NodeId,
        /// Which run of it; a source that is not its own stays what it is.
        incarnation: u64,
        /// Under which it let go. The same run may own the source once more when a release is repeated:
        /// that takes nothing from it.
        epoch: Epoch,
    },
}

/// A change of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The item is to be this.
    Put(Put),
    /// The item is not to be. One that is not there is no error, so that a repeated change succeeds.
    Remove(ItemName),
}

impl Change {
    /// Returns the name of the item it is about.
    #[must_use]
    pub fn name(&self) -> ItemName {
        match self {
            Self::Put(put) => put.name(),
            Self::Remove(name) => name.clone(),
        }
    }
}

/// An item as people describe it: what it refers to is named, and what only the directory knows is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// Whose mail it is.
    Tenant(PutTenant),
    /// How a client proves that it speaks for a tenant.
    Credential(PutCredential),
    /// Weighted sources.
    Pool(PutPool),
    /// An egress address.
    Source(PutSource),
    /// Caps of lanes.
    Limits(PutLimits),
    /// Where mail goes instead of to the MX.
    Route(Route),
}

impl Put {
    /// Returns the name of the item.
    #[must_use]
    pub fn name(&self) -> ItemName {
        match self {
            Self::Tenant(tenant) => ItemName::new(Kind::Tenant, tenant.name.clone()),
            Self::Credential(credential) => ItemName::new(Kind::Credential, credential.name.clone()),
            Self::Pool(pool) => ItemName::new(Kind::Pool, pool.name.clone()),
            Self::Source(source) => ItemName::new(Kind::Source, source.name.clone()),
            Self::Limits(limits) => ItemName::new(Kind::Limits, limits.name.clone()),
            Self::Route(route) => ItemName::new(Kind::Route, route.pattern.to_string()),
        }
    }
}

/// See [`crate::Tenant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutTenant {
    /// For people.
    pub name: Arc<str>,
    /// The domains it may send as.
    pub domains: SenderDomains,
    /// The name of its pool.
    pub pool: Arc<str>,
    /// A message over this is refused, in bytes.
    pub message_size_max: Option<u64>,
}

/// See [`crate::Credential`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutCredential {
    /// For people.
    pub name: Arc<str>,
    /// The name of the tenant it speaks for.
    pub tenant: Arc<str>,
    /// What the client must know, or where it must be.
    pub secret: Secret,
    /// Where it counts; empty for everywhere. A host's bits below the prefix are dropped.
    pub networks: Vec<IpNet>,
}

/// See [`crate::Pool`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutPool {
    /// For people.
    pub name: Arc<str>,
    /// The names of its sources, each with its part of the mail.
    pub members: Vec<(Arc<str>, u32)>,
}

/// See [`crate::Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutSource {
    /// For people.
    pub name: Arc<str>,
    /// The local address.
    pub address: Option<IpAddr>,
    /// The EHLO name.
    pub helo: Domain,
    /// The outbound nodes that may own it; empty for any.
    pub nodes: Vec<NodeId>,
}

/// See [`crate::Limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutLimits {
    /// For people.
    pub name: Arc<str>,
    /// The name of the source they are for; `None` for all.
    pub source: Option<Arc<str>>,
    /// The site they are for; `None` for all.
    pub site: Option<Arc<str>>,
    /// What is capped.
    pub caps: Caps,
}

/// What a command came to: the revision the directory is at, and how many items it changed. Every replica gives the same.
pub type Reply = Result<Done, Refusal>;

/// A command took effect, or there was nothing to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The revision the directory is at.
    pub revision: u64,
    /// The items that are not what they were.
    pub changed: u32,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Something about an item breaks a rule.
    Invalid {
        /// The item.
        item: ItemName,
        /// Which rule, for people.
        rule: &'static str,
    },
    /// One change names an item twice.
    Twice(ItemName),
    /// An item refers to one that is not there.
    Dangling {
        /// The item.
        item: ItemName,
        /// What it refers to.
        reference: ItemName,
    },
    /// An item cannot be removed while another refers to it.
    InUse {
        /// The item.
        item: ItemName,
        /// Who refers to it.
        by: ItemName,
    },
    /// Two items cannot both be: their login, key, network or scope is the same.
    Taken {
        /// The item.
        item: ItemName,
        /// Which has it already.
        by: ItemName,
    },
    /// The directory would hold more than it can.
    TooMany,
    /// The run is not the node's latest.
    Superseded,
    /// It was decided by a leader of another term, who may not have known what is known now.
    OtherTerm,
    /// The source is not there, has an owner, or may not be owned by this node.
    NotGrantable,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid { item, rule } => write!(f, "`{item}`: {rule}"),
            Self::Twice(item) => write!(f, "`{item}` is named twice"),
            Self::Dangling { item, reference } => {
                write!(f, "`{item}` refers to `{reference}`, which does not exist")
            }
            Self::InUse { item, by } => write!(f, "`{item}` cannot be removed: `{by}` refers to it"),
            Self::Taken { item, by } => write!(f, "`{item}` collides with `{by}`"),
            Self::TooMany => f.write_str("the directory would hold too many items"),
            Self::Superseded => f.write_str("another run of the node has claimed"),
            Self::OtherTerm => f.write_str("a leader of another term decided it"),
            Self::NotGrantable => f.write_str("the source cannot be granted to this node"),
        }
    }
}

impl std::error::Error for Refusal {}
