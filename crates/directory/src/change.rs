//! The commands of a directory, and its replies.
//!
//! Commands refer to items by name; the directory assigns the numbers.
//! The meaning of a command is fixed once it is in the log: a changed rule is a new command.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use postroad_core::{Domain, Epoch, NodeId, SourceId, Timestamp};

use crate::item::{Caps, ItemName, Kind, Route, Secret, SenderDomains};

/// One change of the directory's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Puts and removes items, all or nothing.
    Change(Vec<Change>),
    /// A new incarnation of an outbound node takes over what the earlier one owned, under new epochs.
    Claim {
        /// The node.
        node: NodeId,
        /// Random, drawn when the process starts.
        incarnation: u64,
    },
    /// Grants a source without an owner to a node.
    Grant {
        /// The source.
        source: SourceId,
        /// Its new owner.
        node: NodeId,
        /// Must be the node's latest incarnation.
        incarnation: u64,
    },
    /// Takes all sources from an incarnation that released them or whose lease has certainly ended. It must claim again.
    Revoke {
        /// The node.
        node: NodeId,
        /// Its incarnation.
        incarnation: u64,
    },
    /// An incarnation releases one source and keeps the others.
    ReleaseSource {
        /// The source.
        source: SourceId,
        /// The node.
        node: NodeId,
        /// Its incarnation; without effect on a source that it does not own.
        incarnation: u64,
        /// The epoch it released. A repeated release does not take the source from an incarnation that was granted it again.
        epoch: Epoch,
    },
    /// Removes a suspension whose end has passed.
    EndSuspension {
        /// Its name.
        name: Arc<str>,
        /// Its end; without effect on a suspension that an operator has prolonged since.
        until: Timestamp,
    },
}

/// A change of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Creates or replaces an item.
    Put(Put),
    /// Removes an item. A missing one is no error, so that a repeated change succeeds.
    Remove(ItemName),
}

impl Change {
    /// Returns the name of the item.
    #[must_use]
    pub fn name(&self) -> ItemName {
        match self {
            Self::Put(put) => put.name(),
            Self::Remove(name) => name.clone(),
        }
    }
}

/// An item as an operator describes it: references are names, and what only the directory knows is left out.
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
    /// What an operator stops.
    Suspension(PutSuspension),
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
            Self::Suspension(suspension) => suspension.scope.item(),
        }
    }
}

/// See [`crate::Tenant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutTenant {
    /// The name.
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
    /// The name.
    pub name: Arc<str>,
    /// The name of the tenant it speaks for.
    pub tenant: Arc<str>,
    /// The secret the client must know, or the networks it must be in.
    pub secret: Secret,
    /// The networks it is valid in; empty for all. Host bits are dropped.
    pub networks: Vec<IpNet>,
}

/// See [`crate::Pool`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutPool {
    /// The name.
    pub name: Arc<str>,
    /// The names of its sources, with their weights.
    pub members: Vec<(Arc<str>, u32)>,
}

/// See [`crate::Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutSource {
    /// The name.
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
    /// The name.
    pub name: Arc<str>,
    /// The name of the source; `None` for all.
    pub source: Option<Arc<str>>,
    /// The site; `None` for all.
    pub site: Option<Arc<str>>,
    /// The caps.
    pub caps: Caps,
}

/// See [`crate::Suspension`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutSuspension {
    /// What to stop.
    pub scope: ScopeName,
    /// Why.
    pub reason: Arc<str>,
    /// Who suspends it.
    pub actor: Arc<str>,
    /// When it is suspended.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}

/// A [`postroad_core::Scope`] by names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScopeName {
    /// Mail to a site.
    Site(Arc<str>),
    /// Mail from one source to one site.
    Lane {
        /// The name of the source.
        source: Arc<str>,
        /// The site.
        site: Arc<str>,
    },
    /// Mail from a source.
    Source(Arc<str>),
    /// Mail that is sent from a pool.
    Pool(Arc<str>),
    /// A tenant's mail.
    Tenant(Arc<str>),
    /// An outbound node.
    Node(NodeId),
}

impl ScopeName {
    /// Returns the name of its suspension.
    #[must_use]
    pub fn item(&self) -> ItemName {
        ItemName::new(Kind::Suspension, self.to_string())
    }
}

/// A kind and a name: `site example.org`, `lane SOURCE/SITE`.
impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site(site) => write!(f, "site {site}"),
            Self::Lane { source, site } => write!(f, "lane {source}/{site}"),
            Self::Source(name) => write!(f, "source {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Tenant(name) => write!(f, "tenant {name}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// The result of a command: equal on every replica.
pub type Reply = Result<Done, Refusal>;

/// A command took effect, or there was nothing to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The revision the directory is at.
    pub revision: u64,
    /// The number of items that changed.
    pub changed: u32,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An item breaks a rule.
    Invalid {
        /// The item.
        item: ItemName,
        /// The rule, as a sentence.
        rule: &'static str,
    },
    /// A change names an item twice.
    NamedTwice(ItemName),
    /// An item refers to one that does not exist.
    MissingReference {
        /// The item.
        item: ItemName,
        /// What it refers to.
        reference: ItemName,
    },
    /// An item cannot be removed while another refers to it.
    InUse {
        /// The item.
        item: ItemName,
        /// The item that refers to it.
        by: ItemName,
    },
    /// Two items have the same login, key, network or scope.
    Conflict {
        /// The item.
        item: ItemName,
        /// The item that has it already.
        by: ItemName,
    },
    /// The directory would exceed its bound on items.
    TooMany,
    /// The incarnation is not the node's latest.
    Superseded,
    /// It was decided by a leader of another term, and may no longer be right.
    OtherTerm,
    /// The source does not exist, has an owner, or may not be owned by this node.
    NotGrantable,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid { item, rule } => write!(f, "`{item}`: {rule}"),
            Self::NamedTwice(item) => write!(f, "`{item}` is named twice"),
            Self::MissingReference { item, reference } => {
                write!(f, "`{item}` refers to `{reference}`, which does not exist")
            }
            Self::InUse { item, by } if by.kind == Kind::Suspension => {
                write!(f, "`{item}` cannot be removed while `{}` is suspended", by.name)
            }
            Self::InUse { item, by } => write!(f, "`{item}` cannot be removed: `{by}` refers to it"),
            Self::Conflict { item, by } => write!(f, "`{item}` collides with `{by}`"),
            Self::TooMany => f.write_str("the directory would hold too many items"),
            Self::Superseded => f.write_str("another incarnation of the node has claimed"),
            Self::OtherTerm => f.write_str("decided by a leader of another term"),
            Self::NotGrantable => f.write_str("the source cannot be granted to this node"),
        }
    }
}

impl std::error::Error for Refusal {}
