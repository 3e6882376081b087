//! What the directory holds: items with a name for people and, where mail refers to them, a number.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use postroad_core::{Domain, Epoch, NodeId, PoolId, SourceId, TenantId};

/// What sort of thing an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Whose mail it is.
    Tenant,
    /// How a client proves that it speaks for a tenant.
    Credential,
    /// Weighted sources.
    Pool,
    /// An egress address.
    Source,
    /// Caps of lanes.
    Limits,
    /// Where mail of some domains goes instead of to its MX.
    Route,
    /// An outbound node whose lease may not have ended.
    Node,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Tenant, Self::Credential, Self::Pool, Self::Source, Self::Limits, Self::Route, Self::Node];

    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Credential => "credential",
            Self::Pool => "pool",
            Self::Source => "source",
            Self::Limits => "limits",
            Self::Route => "route",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one item: unique in the directory, and what `apply` and `remove` go by.
///
/// The name of a route is its pattern, and that of a node its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemName {
    /// The sort of thing.
    pub kind: Kind,
    /// The name among those of its kind.
    pub name: Arc<str>,
}

impl ItemName {
    /// Puts a name together.
    #[must_use]
    pub fn new(kind: Kind, name: impl Into<Arc<str>>) -> Self {
        Self { kind, name: name.into() }
    }

    /// Returns the name of an outbound node.
    #[must_use]
    pub fn node(node: NodeId) -> Self {
        Self::new(Kind::Node, node.to_string())
    }

    /// Returns the name of the limits that always exist.
    #[must_use]
    pub fn default_limits() -> Self {
        Self::new(Kind::Limits, "default")
    }
}

impl fmt::Display for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Whose mail it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Given by the directory, never again.
    pub id: TenantId,
    /// For people.
    pub name: Arc<str>,
    /// The domains it may send as.
    pub domains: SenderDomains,
    /// Where its mail goes out.
    pub pool: PoolId,
    /// A message over this is refused, in bytes; `None` for the listener's own bound.
    pub message_size_max: Option<u64>,
}

/// The domains a tenant may send as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderDomains {
    /// Whatever it likes.
    Any,
    /// These, and not what lies below them.
    Only(BTreeSet<Domain>),
}

impl SenderDomains {
    /// Returns true when the tenant may send as an address of `domain`.
    #[must_use]
    pub fn allows(&self, domain: &Domain) -> bool {
        match self {
            Self::Any => true,
            Self::Only(domains) => domains.contains(domain),
        }
    }
}

/// How a client proves that it speaks for a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// For people.
    pub name: Arc<str>,
    /// Whom it speaks for.
    pub tenant: TenantId,
    /// What the client must know, or where it must be.
    pub secret: Secret,
    /// Where it counts; empty for everywhere.
    pub networks: Vec<IpNet>,
}

impl Credential {
    /// Returns true when the credential counts for a client at this address.
    #[must_use]
    pub fn counts_at(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&client))
    }
}

/// What a client must know, or where it must be. Nothing here can be turned back into what the client knows.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A random key.
    ApiKey {
        /// Its SHA-256.
        sha256: [u8; 32],
    },
    /// A login name and password.
    Login {
        /// As the client says it; unique in the cluster.
        login: Box<str>,
        /// An Argon2 string in PHC form.
        verifier: Box<str>,
    },
    /// Being in one of the credential's networks is enough.
    Network,
}

/// Verifiers and digests stay out of logs.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey { .. } => f.write_str("ApiKey"),
            Self::Login { login, .. } => {
                f.debug_struct("Login").field("login", login).finish_non_exhaustive()
            }
            Self::Network => f.write_str("Network"),
        }
    }
}

/// Weighted sources that mail goes out from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Given by the directory, never again.
    pub id: PoolId,
    /// For people.
    pub name: Arc<str>,
    /// Each source once, with its part of the mail; 0 gives it none.
    pub members: Vec<(SourceId, u32)>,
}

/// An egress address and the EHLO name that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Given by the directory, never again.
    pub id: SourceId,
    /// For people.
    pub name: Arc<str>,
    /// The local address; `None` lets the system choose.
    pub address: Option<IpAddr>,
    /// The EHLO name.
    pub helo: Domain,
    /// The outbound nodes that may own it; empty for any.
    ///
    /// An owner that may no longer own it keeps it until it lets go or its lease ends.
    pub nodes: Vec<NodeId>,
    /// Who owns it now.
    pub owner: Option<Owner>,
    /// The fence: raised whenever the owner changes, never lowered.
    pub epoch: Epoch,
}

impl Source {
    /// Returns true when the node may become its owner.
    #[must_use]
    pub fn may_be_owned_by(&self, node: NodeId) -> bool {
        self.nodes.is_empty() || self.nodes.contains(&node)
    }
}

/// One run of an outbound node, as the owner of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Its run.
    pub incarnation: u64,
}

/// Caps of the lanes in a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For people.
    pub name: Arc<str>,
    /// Only lanes of this source; `None` for all.
    pub source: Option<SourceId>,
    /// Only lanes to this site; `None` for all.
    pub site: Option<Arc<str>>,
    /// What is capped.
    pub caps: Caps,
}

/// Caps, each of which may be left to a wider scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Connections at a time.
    pub connections_max: Option<u32>,
    /// Messages sent over one connection.
    pub messages_per_connection_max: Option<u32>,
    /// Deliveries assigned and not yet reported.
    pub window: Option<u32>,
    /// How much in how long; all of them hold, and `Some` of none lifts those of wider scopes.
    pub rates: Option<Arc<[Rate]>>,
}

/// At most so many messages in any interval of a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; 0 lets nothing through.
    pub messages: u64,
    /// In how long.
    pub per: Duration,
}

/// The caps of one lane, from all scopes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Connections at a time.
    pub connections_max: u32,
    /// Messages sent over one connection.
    pub messages_per_connection_max: u32,
    /// Deliveries assigned and not yet reported.
    pub window: u32,
    /// How much in how long; all of them hold.
    pub rates: Arc<[Rate]>,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self { connections_max: 20, messages_per_connection_max: 100, window: 500, rates: Arc::default() }
    }
}

impl LaneLimits {
    /// Overrides what these caps say anything about.
    pub(crate) fn refine(&mut self, caps: &Caps) {
        self.connections_max = caps.connections_max.unwrap_or(self.connections_max);
        self.messages_per_connection_max =
            caps.messages_per_connection_max.unwrap_or(self.messages_per_connection_max);
        self.window = caps.window.unwrap_or(self.window);
        if let Some(rates) = &caps.rates {
            self.rates = rates.clone();
        }
    }
}

/// Mail for these domains goes to this host instead of to their MX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which domains.
    pub pattern: Pattern,
    /// A host name or an address.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
}

impl Route {
    /// Returns the site that mail of this route is counted under: `route:HOST:PORT`.
    #[must_use]
    pub fn site(&self) -> String {
        format!("route:{}:{}", self.host, self.port)
    }
}

/// Which domains a route is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// This one.
    Exact(Domain),
    /// All that no other route is for.
    Any,
}

/// A domain, or `*` for any.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(domain) => domain.fmt(f),
            Self::Any => f.write_str("*"),
        }
    }
}

/// An outbound node whose lease may not have ended, and its latest run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundNode {
    /// The node.
    pub node: NodeId,
    /// The run that may own sources; every earlier one may not.
    pub incarnation: u64,
}

/// One item. A clone shares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Whose mail it is.
    Tenant(Arc<Tenant>),
    /// How a client proves that it speaks for a tenant.
    Credential(Arc<Credential>),
    /// Weighted sources.
    Pool(Arc<Pool>),
    /// An egress address.
    Source(Arc<Source>),
    /// Caps of lanes.
    Limits(Arc<Limits>),
    /// Where mail goes instead of to the MX.
    Route(Arc<Route>),
    /// An outbound node.
    Node(OutboundNode),
}

impl Item {
    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> ItemName {
        match self {
            Self::Tenant(tenant) => ItemName::new(Kind::Tenant, tenant.name.clone()),
            Self::Credential(credential) => ItemName::new(Kind::Credential, credential.name.clone()),
            Self::Pool(pool) => ItemName::new(Kind::Pool, pool.name.clone()),
            Self::Source(source) => ItemName::new(Kind::Source, source.name.clone()),
            Self::Limits(limits) => ItemName::new(Kind::Limits, limits.name.clone()),
            Self::Route(route) => ItemName::new(Kind::Route, route.pattern.to_string()),
            Self::Node(node) => ItemName::node(node.node),
        }
    }
}
