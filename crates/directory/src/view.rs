//! The directory as the roles read it: immutable, with an index for every lookup on a hot path.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use postroad_core::{Domain, NodeId, PoolId, Scope, SourceId, TenantId};

use crate::{
    delta::Delta,
    item::{
        Credential, Item, ItemName, Kind, LaneLimits, Limits, Pattern, Pool, Route, Secret, Source,
        Suspension, Tenant, is_too_wide,
    },
};

/// The directory at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    revision: u64,
    items: BTreeMap<ItemName, Item>,
    tenants: HashMap<TenantId, Arc<Tenant>>,
    pools: BTreeMap<PoolId, Arc<Pool>>,
    sources: BTreeMap<SourceId, Arc<Source>>,
    logins: HashMap<Box<str>, Arc<Credential>>,
    api_keys: HashMap<[u8; 32], Arc<Credential>>,
    networks: Networks,
    routes: HashMap<Domain, Arc<Route>>,
    default_route: Option<Arc<Route>>,
    limits: LimitsIndex,
    incarnations: BTreeMap<NodeId, u64>,
    suspensions: BTreeMap<Scope, Arc<Suspension>>,
}

/// Credentials by network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Networks {
    by_network: HashMap<IpNet, Arc<Credential>>,
    /// The prefix lengths in use, longest first.
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
}

/// Limits by scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LimitsIndex {
    everywhere: Option<Arc<Limits>>,
    sources: HashMap<SourceId, Arc<Limits>>,
    sites: HashMap<Arc<str>, SiteLimits>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SiteLimits {
    any_source: Option<Arc<Limits>>,
    sources: HashMap<SourceId, Arc<Limits>>,
}

impl View {
    /// Returns an empty view: revision 0, default limits for every lane.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Returns the view after `delta`. A delta to an earlier revision changes nothing.
    #[must_use]
    pub fn apply(&self, delta: Delta) -> Self {
        if delta.revision < self.revision {
            return self.clone();
        }
        let mut items = if delta.full { BTreeMap::new() } else { self.items.clone() };
        for name in &delta.removed {
            items.remove(name);
        }
        items.extend(delta.items.into_iter().map(|item| (item.name(), item)));
        Self::of(delta.revision, items)
    }

    fn of(revision: u64, items: BTreeMap<ItemName, Item>) -> Self {
        let mut view = Self { revision, ..Self::default() };
        for item in items.values() {
            view.index(item);
        }
        view.networks.order();
        view.items = items;
        view
    }

    fn index(&mut self, item: &Item) {
        match item {
            Item::Tenant(tenant) => drop(self.tenants.insert(tenant.id, tenant.clone())),
            Item::Credential(credential) => self.index_credential(credential),
            Item::Pool(pool) => drop(self.pools.insert(pool.id, pool.clone())),
            Item::Source(source) => drop(self.sources.insert(source.id, source.clone())),
            Item::Limits(limits) => self.limits.insert(limits),
            Item::Route(route) => match &route.pattern {
                Pattern::Exact(domain) => drop(self.routes.insert(domain.clone(), route.clone())),
                Pattern::Any => self.default_route = Some(route.clone()),
            },
            Item::Node(node) => drop(self.incarnations.insert(node.node, node.incarnation)),
            Item::Suspension(suspension) => {
                self.suspensions.insert(suspension.scope.clone(), suspension.clone());
            }
        }
    }

    fn index_credential(&mut self, credential: &Arc<Credential>) {
        match &credential.secret {
            Secret::Login { login, .. } => drop(self.logins.insert(login.clone(), credential.clone())),
            Secret::ApiKey { sha256 } => drop(self.api_keys.insert(*sha256, credential.clone())),
            Secret::Network { .. } => {
                // A directory that was written before such networks were refused may still have one.
                let narrow = credential.networks.iter().filter(|network| !is_too_wide(network));
                let networks = narrow.map(|network| (*network, credential.clone()));
                self.networks.by_network.extend(networks);
            }
        }
    }

    /// Returns the revision; 0 when nothing is known yet.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the credential with this login name; the caller checks password and network.
    #[must_use]
    pub fn login(&self, login: &str) -> Option<&Arc<Credential>> {
        self.logins.get(login)
    }

    /// Returns the credential whose key has this SHA-256; the caller checks the network.
    #[must_use]
    pub fn api_key(&self, sha256: &[u8; 32]) -> Option<&Arc<Credential>> {
        self.api_keys.get(sha256)
    }

    /// Returns the network credential of a client: that of the smallest network it is in.
    #[must_use]
    pub fn network(&self, client: IpAddr) -> Option<&Arc<Credential>> {
        self.networks.find(client.to_canonical())
    }

    /// Returns a tenant.
    #[must_use]
    pub fn tenant(&self, id: TenantId) -> Option<&Arc<Tenant>> {
        self.tenants.get(&id)
    }

    /// Returns a pool.
    #[must_use]
    pub fn pool(&self, id: PoolId) -> Option<&Arc<Pool>> {
        self.pools.get(&id)
    }

    /// Returns every pool, by number.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.values()
    }

    /// Returns a source.
    #[must_use]
    pub fn source(&self, id: SourceId) -> Option<&Arc<Source>> {
        self.sources.get(&id)
    }

    /// Returns every source, by number.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.sources.values()
    }

    /// Returns the sources that this incarnation of a node owns, by number.
    pub fn sources_of(&self, node: NodeId, incarnation: u64) -> impl Iterator<Item = &Arc<Source>> {
        let owner = Some(crate::item::Owner { node, incarnation });
        self.sources.values().filter(move |source| source.owner == owner)
    }

    /// Returns the latest incarnation of an outbound node; `None` once its lease has ended.
    #[must_use]
    pub fn incarnation(&self, node: NodeId) -> Option<u64> {
        self.incarnations.get(&node).copied()
    }

    /// Returns every outbound node that may have a lease, with its latest incarnation.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.incarnations.iter().map(|(node, incarnation)| (*node, *incarnation))
    }

    /// Returns the route of a domain, if it has one.
    #[must_use]
    pub fn route(&self, domain: &Domain) -> Option<&Arc<Route>> {
        self.routes.get(domain).or(self.default_route.as_ref())
    }

    /// Returns the caps of a lane.
    ///
    /// Each cap comes from the narrowest scope that sets it: source and site, else site, else source, else default.
    #[must_use]
    pub fn lane_limits(&self, source: SourceId, site: &str) -> LaneLimits {
        let at_site = self.limits.sites.get(site);
        let scopes = [
            self.limits.everywhere.as_ref(),
            self.limits.sources.get(&source),
            at_site.and_then(|site| site.any_source.as_ref()),
            at_site.and_then(|site| site.sources.get(&source)),
        ];
        let mut lane = LaneLimits::default();
        scopes.into_iter().flatten().for_each(|limits| lane.refine(&limits.caps));
        lane
    }

    /// Returns the suspension of a scope, if it is suspended itself.
    #[must_use]
    pub fn suspension(&self, scope: &Scope) -> Option<&Arc<Suspension>> {
        self.suspensions.get(scope)
    }

    /// Returns every suspension, by scope.
    pub fn suspensions(&self) -> impl Iterator<Item = &Arc<Suspension>> {
        self.suspensions.values()
    }

    /// Returns an item by its name.
    #[must_use]
    pub fn item(&self, kind: Kind, name: &str) -> Option<&Item> {
        self.items.get(&ItemName::new(kind, name))
    }

    /// Returns every item, by kind and name.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }
}

impl Networks {
    fn order(&mut self) {
        let lengths = |v4: bool| {
            let networks = self.by_network.keys().filter(|network| matches!(network, IpNet::V4(_)) == v4);
            let mut lengths: Vec<u8> = networks.map(IpNet::prefix_len).collect();
            lengths.sort_unstable_by(|one, other| other.cmp(one));
            lengths.dedup();
            lengths
        };
        (self.v4_lengths, self.v6_lengths) = (lengths(true), lengths(false));
    }

    fn find(&self, client: IpAddr) -> Option<&Arc<Credential>> {
        let lengths = if client.is_ipv4() { &self.v4_lengths } else { &self.v6_lengths };
        lengths.iter().find_map(|length| {
            let network = IpNet::new(client, *length).ok()?;
            self.by_network.get(&network.trunc())
        })
    }
}

impl LimitsIndex {
    fn insert(&mut self, limits: &Arc<Limits>) {
        let limits = limits.clone();
        match (limits.source, limits.site.clone()) {
            (None, None) => self.everywhere = Some(limits),
            (Some(source), None) => drop(self.sources.insert(source, limits)),
            (None, Some(site)) => self.sites.entry(site).or_default().any_source = Some(limits),
            (Some(source), Some(site)) => {
                self.sites.entry(site).or_default().sources.insert(source, limits);
            }
        }
    }
}
