//! Plans a change: resolves names, assigns numbers and checks every rule before anything is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use postroad_core::{Epoch, PoolId, Scope, SourceId, TenantId};

use crate::{
    change::{
        Change, Put, PutCredential, PutLimits, PutPool, PutSource, PutSuspension, PutTenant, Refusal,
        ScopeName,
    },
    directory::{Directory, Numbers, Row},
    item::{Credential, Item, ItemName, Kind, Limits, Pool, Secret, Source, Suspension, Tenant},
    valid,
    view::View,
};

/// Changed items; `None` for removed ones.
pub(crate) type Overlay = BTreeMap<ItemName, Option<Item>>;

/// The most items in one change.
const CHANGES_MAX: usize = 10_000;
/// The most items in the directory.
const ITEMS_MAX: usize = 100_000;

/// A change that breaks no rule.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) overlay: Overlay,
    pub(crate) numbers: Numbers,
}

impl Plan {
    /// Plans a change.
    pub(crate) fn of(directory: &Directory, changes: &[Change]) -> Result<Self, Refusal> {
        let (plan, refusals) = Self::with_refusals(directory, changes);
        refusals.into_iter().next().map_or(Ok(plan), Err)
    }

    /// Plans a change as far as it breaks no rule, and returns every rule that it breaks.
    fn with_refusals(directory: &Directory, changes: &[Change]) -> (Self, Vec<Refusal>) {
        if changes.len() > CHANGES_MAX {
            let nothing = Self { numbers: directory.numbers, overlay: Overlay::new() };
            return (nothing, vec![Refusal::TooMany]);
        }
        let mut draft = Draft { directory, numbers: directory.numbers, named: BTreeMap::new() };
        let mut refusals: Vec<Refusal> =
            changes.iter().filter_map(|change| draft.name(change).err()).collect();
        let mut overlay = Overlay::new();
        for change in changes {
            let item = match change {
                Change::Put(put) => draft.item(put).map(Some),
                Change::Remove(name) => draft.removal(name).map(|()| None),
            };
            // What the directory has of a refused item is to be replaced: it is not in the way of other items.
            let item = item.unwrap_or_else(|refusal| {
                refusals.push(refusal);
                None
            });
            overlay.insert(change.name(), item);
        }
        let planned = Planned { directory, overlay: &overlay };
        refusals.extend(planned.dangling(changes));
        refusals.extend(planned.collisions());
        if planned.items().count() > ITEMS_MAX {
            refusals.push(Refusal::TooMany);
        }
        (Self { numbers: draft.numbers, overlay }, refusals)
    }
}

impl View {
    /// Returns every rule that a change would break; [`Directory::apply`] returns the first of them.
    #[must_use]
    pub fn refusals(&self, changes: &[Change]) -> Vec<Refusal> {
        Plan::with_refusals(&Directory::of(self), changes).1
    }
}

impl Directory {
    /// Makes a directory with the items of a view, for checks: its history is not known.
    fn of(view: &View) -> Self {
        let row = |item: &Item| (item.name(), Row { revision: view.revision(), item: item.clone() });
        let last = |kind| {
            let numbers = view.items().filter(|item| item.name().kind == kind).map(number_of);
            numbers.max().unwrap_or_default()
        };
        let numbers =
            Numbers { tenant: last(Kind::Tenant), pool: last(Kind::Pool), source: last(Kind::Source) };
        Self { revision: view.revision(), numbers, rows: view.items().map(row).collect(), ..Self::new() }
    }
}

/// A change being planned.
struct Draft<'a> {
    directory: &'a Directory,
    numbers: Numbers,
    /// The numbers of the items in the change; `None` for removed ones.
    named: BTreeMap<ItemName, Option<u32>>,
}

impl Draft<'_> {
    /// Assigns a number to a new item: to all of them first, so that items can refer to each other in any order.
    fn name(&mut self, change: &Change) -> Result<(), Refusal> {
        let name = change.name();
        let number = match change {
            Change::Remove(_) => None,
            Change::Put(put) => {
                valid::check(put).map_err(|rule| Refusal::Invalid { item: name.clone(), rule })?;
                Some(self.number(&name)?)
            }
        };
        match self.named.insert(name.clone(), number) {
            None => Ok(()),
            Some(_) => Err(Refusal::NamedTwice(name)),
        }
    }

    fn number(&mut self, name: &ItemName) -> Result<u32, Refusal> {
        if let Some(item) = self.directory.item(name) {
            return Ok(number_of(item));
        }
        let last = match name.kind {
            Kind::Tenant => &mut self.numbers.tenant,
            Kind::Pool => &mut self.numbers.pool,
            Kind::Source => &mut self.numbers.source,
            Kind::Credential | Kind::Limits | Kind::Route | Kind::Node | Kind::Suspension => return Ok(0),
        };
        *last = last.checked_add(1).ok_or(Refusal::TooMany)?;
        Ok(*last)
    }

    fn resolve(&self, item: &ItemName, kind: Kind, name: &Arc<str>) -> Result<u32, Refusal> {
        let reference = ItemName::new(kind, name.clone());
        let number = match self.named.get(&reference) {
            Some(number) => *number,
            None => self.directory.item(&reference).map(number_of),
        };
        number.ok_or_else(|| Refusal::MissingReference { item: item.clone(), reference })
    }

    fn item(&self, put: &Put) -> Result<Item, Refusal> {
        let name = put.name();
        let number = self.named.get(&name).copied().flatten().unwrap_or_default();
        Ok(match put {
            Put::Tenant(put) => Item::Tenant(Arc::new(self.tenant(&name, number, put)?)),
            Put::Credential(put) => Item::Credential(Arc::new(self.credential(&name, put)?)),
            Put::Pool(put) => Item::Pool(Arc::new(self.pool(&name, number, put)?)),
            Put::Source(put) => Item::Source(Arc::new(self.source(&name, number, put))),
            Put::Limits(put) => Item::Limits(Arc::new(self.limits(&name, put)?)),
            Put::Route(route) => Item::Route(Arc::new(route.clone())),
            Put::Suspension(put) => Item::Suspension(Arc::new(self.suspension(&name, put)?)),
        })
    }

    fn tenant(&self, name: &ItemName, number: u32, put: &PutTenant) -> Result<Tenant, Refusal> {
        Ok(Tenant {
            id: TenantId(number),
            name: put.name.clone(),
            domains: put.domains.clone(),
            pool: self.resolve(name, Kind::Pool, &put.pool).map(PoolId)?,
            message_size_max: put.message_size_max,
        })
    }

    fn credential(&self, name: &ItemName, put: &PutCredential) -> Result<Credential, Refusal> {
        let networks: BTreeSet<IpNet> = put.networks.iter().map(IpNet::trunc).collect();
        Ok(Credential {
            name: put.name.clone(),
            tenant: self.resolve(name, Kind::Tenant, &put.tenant).map(TenantId)?,
            secret: put.secret.clone(),
            networks: networks.into_iter().collect(),
        })
    }

    fn pool(&self, name: &ItemName, number: u32, put: &PutPool) -> Result<Pool, Refusal> {
        let mut members = BTreeMap::new();
        for (source, weight) in &put.members {
            let id = self.resolve(name, Kind::Source, source).map(SourceId)?;
            if members.insert(id, *weight).is_some() {
                return Err(Refusal::Invalid { item: name.clone(), rule: "expected each source once" });
            }
        }
        Ok(Pool { id: PoolId(number), name: put.name.clone(), members: members.into_iter().collect() })
    }

    fn source(&self, name: &ItemName, number: u32, put: &PutSource) -> Source {
        let (owner, epoch) = match self.directory.item(name) {
            Some(Item::Source(known)) => (known.owner, known.epoch),
            _ => (None, Epoch(0)),
        };
        let nodes: BTreeSet<_> = put.nodes.iter().copied().collect();
        Source {
            id: SourceId(number),
            name: put.name.clone(),
            address: put.address,
            helo: put.helo.clone(),
            nodes: nodes.into_iter().collect(),
            owner,
            epoch,
        }
    }

    fn limits(&self, name: &ItemName, put: &PutLimits) -> Result<Limits, Refusal> {
        let source = put.source.as_ref().map(|source| self.resolve(name, Kind::Source, source));
        Ok(Limits {
            name: put.name.clone(),
            source: source.transpose()?.map(SourceId),
            site: put.site.clone(),
            caps: put.caps.clone(),
        })
    }

    fn suspension(&self, name: &ItemName, put: &PutSuspension) -> Result<Suspension, Refusal> {
        let source = |source| self.resolve(name, Kind::Source, source).map(SourceId);
        let scope = match &put.scope {
            ScopeName::Site(site) => Scope::Site(site.clone()),
            ScopeName::Lane { source: from, site } => {
                Scope::Lane { source: source(from)?, site: site.clone() }
            }
            ScopeName::Source(name) => Scope::Source(source(name)?),
            ScopeName::Pool(pool) => Scope::Pool(self.resolve(name, Kind::Pool, pool).map(PoolId)?),
            ScopeName::Tenant(tenant) => {
                Scope::Tenant(self.resolve(name, Kind::Tenant, tenant).map(TenantId)?)
            }
            ScopeName::Node(node) => Scope::Node(*node),
        };
        let PutSuspension { reason, actor, since, until, .. } = put.clone();
        Ok(Suspension { name: name.name.clone(), scope, reason, actor, since, until })
    }

    fn removal(&self, name: &ItemName) -> Result<(), Refusal> {
        if *name == ItemName::default_limits() {
            return Err(Refusal::Invalid { item: name.clone(), rule: "always exists" });
        }
        if name.kind == Kind::Node {
            return Err(Refusal::Invalid { item: name.clone(), rule: "is removed when its lease ends" });
        }
        Ok(())
    }
}

/// The number by which other items refer to an item; 0 if none can.
fn number_of(item: &Item) -> u32 {
    match item {
        Item::Tenant(tenant) => tenant.id.0,
        Item::Pool(pool) => pool.id.0,
        Item::Source(source) => source.id.0,
        Item::Credential(_) | Item::Limits(_) | Item::Route(_) | Item::Node(_) | Item::Suspension(_) => 0,
    }
}

/// The directory as it would be after the change.
struct Planned<'a> {
    directory: &'a Directory,
    overlay: &'a Overlay,
}

/// A value that only one item may have.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Unique<'a> {
    Login(&'a str),
    ApiKey(&'a [u8; 32]),
    Network(IpNet),
    Scope(Option<SourceId>, Option<&'a str>),
}

impl<'a> Planned<'a> {
    fn items(&self) -> impl Iterator<Item = &'a Item> {
        let overlay = self.overlay;
        let kept = self.directory.rows.iter().filter(|(name, _)| !overlay.contains_key(*name));
        kept.map(|(_, row)| &row.item).chain(overlay.values().flatten())
    }

    /// Refuses to remove an item that another refers to, once for each. References of put items have been resolved already.
    fn dangling(&self, changes: &[Change]) -> Vec<Refusal> {
        let removed = |change: &Change| match change {
            Change::Remove(name) => self.directory.item(name),
            Change::Put(_) => None,
        };
        let mut gone: Vec<&Item> = changes.iter().filter_map(removed).collect();
        let mut refusals = Vec::new();
        for item in self.items() {
            if gone.is_empty() {
                break;
            }
            gone.retain(|gone| {
                let in_use = refers(item, gone);
                if in_use {
                    refusals.push(Refusal::InUse { item: gone.name(), by: item.name() });
                }
                !in_use
            });
        }
        refusals
    }

    /// Refuses values that another item has.
    fn collisions(&self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let of_interest = |name: &ItemName| matches!(name.kind, Kind::Credential | Kind::Limits);
        if !self.overlay.keys().any(of_interest) {
            return refusals;
        }
        let mut seen: BTreeMap<Unique<'_>, &Item> = BTreeMap::new();
        // Put items come last, so that the error names them.
        for item in self.items() {
            for unique in uniques(item) {
                if let Some(by) = seen.insert(unique, item) {
                    refusals.push(Refusal::Conflict { item: item.name(), by: by.name() });
                }
            }
        }
        refusals
    }
}

fn refers(item: &Item, to: &Item) -> bool {
    match (item, to) {
        (Item::Tenant(tenant), Item::Pool(pool)) => tenant.pool == pool.id,
        (Item::Credential(credential), Item::Tenant(tenant)) => credential.tenant == tenant.id,
        (Item::Pool(pool), Item::Source(source)) => pool.members.iter().any(|(id, _)| *id == source.id),
        (Item::Limits(limits), Item::Source(source)) => limits.source == Some(source.id),
        (Item::Suspension(suspension), to) => concerns(&suspension.scope, to),
        _ => false,
    }
}

/// A suspension outlives nothing that it stops: what is created later under the same name is another item.
fn concerns(scope: &Scope, item: &Item) -> bool {
    match (scope, item) {
        (Scope::Source(id) | Scope::Lane { source: id, .. }, Item::Source(source)) => source.id == *id,
        (Scope::Pool(id), Item::Pool(pool)) => pool.id == *id,
        (Scope::Tenant(id), Item::Tenant(tenant)) => tenant.id == *id,
        _ => false,
    }
}

fn uniques(item: &Item) -> Vec<Unique<'_>> {
    match item {
        Item::Credential(credential) => match &credential.secret {
            Secret::Login { login, .. } => vec![Unique::Login(login)],
            Secret::ApiKey { sha256 } => vec![Unique::ApiKey(sha256)],
            Secret::Network { .. } => {
                credential.networks.iter().map(|network| Unique::Network(*network)).collect()
            }
        },
        Item::Limits(limits) => vec![Unique::Scope(limits.source, limits.site.as_deref())],
        _ => Vec::new(),
    }
}
