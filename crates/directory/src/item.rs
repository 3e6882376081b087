//! The items of the directory: each has a name, and a number where mail refers to it.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use postroad_core::{Domain, Epoch, NodeId, PoolId, Scope, SourceId, TenantId, Timestamp};

/// The kind of an item.
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
    /// An outbound node that may have a lease.
    Node,
    /// What an operator has stopped for a time.
    Suspension,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Tenant,
        Self::Credential,
        Self::Pool,
        Self::Source,
        Self::Limits,
        Self::Route,
        Self::Node,
        Self::Suspension,
    ];

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
            Self::Suspension => "suspension",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The unique name of an item.
///
/// The name of a route is its pattern, that of a node its number, that of a suspension its scope: `site example.org`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemName {
    /// The kind.
    pub kind: Kind,
    /// The name, unique within the kind.
    pub name: Arc<str>,
}

impl ItemName {
    /// Makes a name.
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
    /// Assigned by the directory, never reused.
    pub id: TenantId,
    /// The name.
    pub name: Arc<str>,
    /// The domains it may send as.
    pub domains: SenderDomains,
    /// The pool that its mail is sent from.
    pub pool: PoolId,
    /// A message over this is refused, in bytes; `None` for the listener's own bound.
    pub message_size_max: Option<u64>,
}

/// The domains a tenant may send as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderDomains {
    /// Any domain.
    Any,
    /// These domains, without their subdomains.
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
    /// The name.
    pub name: Arc<str>,
    /// The tenant it authenticates.
    pub tenant: TenantId,
    /// The secret the client must know, or the networks it must be in.
    pub secret: Secret,
    /// The networks it is valid in; empty for all.
    pub networks: Vec<IpNet>,
}

impl Credential {
    /// Returns true when the credential is valid for a client at this address.
    #[must_use]
    pub fn counts_at(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&client))
    }
}

/// Returns true for a network that no organisation has to itself: wider than /8 (IPv4) or /16 (IPv6).
///
/// As a credential it would make an open relay.
pub(crate) fn is_too_wide(network: &IpNet) -> bool {
    let shortest = match network {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 16,
    };
    network.prefix_len() < shortest
}

/// How a client authenticates. Only hashes: the client's secret cannot be recovered from them.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A random key.
    ApiKey {
        /// Its SHA-256.
        sha256: [u8; 32],
    },
    /// A login name and password.
    Login {
        /// The login name; unique in the cluster.
        login: Box<str>,
        /// An Argon2 string in PHC form.
        verifier: Box<str>,
    },
    /// Being in one of the credential's networks is enough.
    Network {
        /// Also on listeners of the service `relay`, such as port 25, where strangers connect too.
        relay: bool,
    },
}

/// Keeps verifiers and digests out of logs.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey { .. } => f.write_str("ApiKey"),
            Self::Login { login, .. } => {
                f.debug_struct("Login").field("login", login).finish_non_exhaustive()
            }
            Self::Network { relay } => f.debug_struct("Network").field("relay", relay).finish(),
        }
    }
}

/// Weighted sources that mail goes out from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Assigned by the directory, never reused.
    pub id: PoolId,
    /// The name.
    pub name: Arc<str>,
    /// Each source once, with its weight; 0 for no mail.
    pub members: Vec<(SourceId, u32)>,
}

/// An egress address and the EHLO name that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Assigned by the directory, never reused.
    pub id: SourceId,
    /// The name.
    pub name: Arc<str>,
    /// The local address; `None` lets the system choose.
    pub address: Option<IpAddr>,
    /// The EHLO name.
    pub helo: Domain,
    /// The outbound nodes that may own it; empty for any.
    ///
    /// An owner that is no longer in this list keeps the source until it releases it or its lease ends.
    pub nodes: Vec<NodeId>,
    /// The current owner.
    pub owner: Option<Owner>,
    /// The fence: rises with every change of owner.
    pub epoch: Epoch,
}

impl Source {
    /// Returns true when the node may become its owner.
    #[must_use]
    pub fn may_be_owned_by(&self, node: NodeId) -> bool {
        self.nodes.is_empty() || self.nodes.contains(&node)
    }
}

/// An incarnation of an outbound node, as the owner of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
}

/// Caps of the lanes in a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The name.
    pub name: Arc<str>,
    /// Only lanes of this source; `None` for all.
    pub source: Option<SourceId>,
    /// Only lanes to this site; `None` for all.
    pub site: Option<Arc<str>>,
    /// The caps.
    pub caps: Caps,
}

/// Caps; a missing one is inherited from a wider scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Connections at a time.
    pub connections_max: Option<u32>,
    /// Messages sent over one connection.
    pub messages_per_connection_max: Option<u32>,
    /// Deliveries assigned and not yet reported.
    pub window: Option<u32>,
    /// Rates, all of which apply; an empty list lifts those of wider scopes.
    pub rates: Option<Arc<[Rate]>>,
}

/// At most this many messages in any interval of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The number of messages; 0 stops the lane.
    pub messages: u64,
    /// The length of the interval.
    pub per: Duration,
}

/// The caps of one lane, merged from all scopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Connections at a time.
    pub connections_max: u32,
    /// Messages sent over one connection.
    pub messages_per_connection_max: u32,
    /// Deliveries assigned and not yet reported.
    pub window: u32,
    /// Rates, all of which apply.
    pub rates: Arc<[Rate]>,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self { connections_max: 20, messages_per_connection_max: 100, window: 500, rates: Arc::default() }
    }
}

impl LaneLimits {
    /// Overrides the caps that are set in `caps`.
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
    /// All domains without a route of their own.
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

/// An outbound node that may have a lease, and its latest incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundNode {
    /// The node.
    pub node: NodeId,
    /// The only incarnation that may own sources.
    pub incarnation: u64,
}

/// What an operator has stopped: in force from its commit until it is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// Its scope as text: `site example.org`, `lane SOURCE/SITE`, `source NAME`, `pool NAME`, `tenant NAME`, `node ID`.
    pub name: Arc<str>,
    /// What does not start.
    pub scope: Scope,
    /// Why, for people.
    pub reason: Arc<str>,
    /// Who suspended it.
    pub actor: Arc<str>,
    /// When it was suspended.
    pub since: Timestamp,
    /// The directory's leader removes it then; `None` until an operator resumes it.
    pub until: Option<Timestamp>,
}

/// One item. A clone is cheap.
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
    /// What an operator has stopped.
    Suspension(Arc<Suspension>),
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
            Self::Suspension(suspension) => ItemName::new(Kind::Suspension, suspension.name.clone()),
        }
    }
}
