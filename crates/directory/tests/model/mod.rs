//! A naive directory, without numbers, revisions and indexes.

use std::collections::BTreeMap;

use postroad_core::{Epoch, NodeId};
use postroad_directory::{Change, Command, Item, ItemName, Kind, Put, ScopeName, Secret, View};

/// The owner of a source: a node and its incarnation.
type Incarnation = (NodeId, u64);

/// The items as they were put, and the owners of sources.
#[derive(Clone, Default)]
pub(crate) struct Model {
    items: BTreeMap<ItemName, Put>,
    nodes: BTreeMap<NodeId, u64>,
    owners: BTreeMap<ItemName, Incarnation>,
    /// How often the owner of each source has changed.
    epochs: BTreeMap<ItemName, u64>,
    /// The assigned numbers of sources.
    sources: BTreeMap<u32, ItemName>,
    sources_given: u32,
}

impl Model {
    /// Applies a command; false when it must be refused.
    pub(crate) fn apply(&mut self, command: &Command) -> bool {
        match command {
            Command::Change(changes) => {
                let mut next = self.clone();
                let good = next.change(changes);
                if good {
                    *self = next;
                }
                good
            }
            Command::Claim { node, incarnation } => {
                self.nodes.insert(*node, *incarnation);
                let theirs =
                    self.owners.iter().filter(|(_, owner)| owner.0 == *node && owner.1 != *incarnation);
                let theirs: Vec<ItemName> = theirs.map(|(name, _)| name.clone()).collect();
                theirs.iter().for_each(|name| self.hand_over(name, Some((*node, *incarnation))));
                true
            }
            Command::Grant { source, node, incarnation } => {
                let run = (*node, *incarnation);
                let Some(name) = self.sources.get(&source.0) else { return false };
                let Some(Put::Source(put)) = self.items.get(name) else { return false };
                let may_own = put.nodes.is_empty() || put.nodes.contains(node);
                let free = !self.owners.contains_key(name);
                let latest = self.nodes.get(node) == Some(incarnation);
                if may_own && free && latest {
                    self.hand_over(&name.clone(), Some(run));
                }
                may_own && free && latest
            }
            Command::Revoke { node, incarnation } => {
                let theirs = self.owners.iter().filter(|(_, owner)| **owner == (*node, *incarnation));
                let theirs: Vec<ItemName> = theirs.map(|(name, _)| name.clone()).collect();
                theirs.iter().for_each(|name| self.hand_over(name, None));
                self.nodes.retain(|known, latest| (*known, *latest) != (*node, *incarnation));
                true
            }
            Command::ReleaseSource { source, node, incarnation, epoch } => {
                if let Some(name) = self.sources.get(&source.0).cloned()
                    && self.owners.get(&name) == Some(&(*node, *incarnation))
                    && self.epoch(&name) == *epoch
                {
                    self.hand_over(&name, None);
                }
                true
            }
            Command::EndSuspension { name, until } => {
                let name = ItemName::new(Kind::Suspension, name.clone());
                let ends = |put: &Put| matches!(put, Put::Suspension(put) if put.until == Some(*until));
                if self.items.get(&name).is_some_and(ends) {
                    self.items.remove(&name);
                }
                true
            }
        }
    }

    fn hand_over(&mut self, name: &ItemName, owner: Option<Incarnation>) {
        *self.epochs.entry(name.clone()).or_default() += 1;
        match owner {
            Some(owner) => drop(self.owners.insert(name.clone(), owner)),
            None => drop(self.owners.remove(name)),
        }
    }

    fn epoch(&self, name: &ItemName) -> Epoch {
        Epoch(self.epochs.get(name).copied().unwrap_or_default())
    }

    fn change(&mut self, changes: &[Change]) -> bool {
        let mut names: Vec<ItemName> = changes.iter().map(Change::name).collect();
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return false;
        }
        for change in changes {
            match change {
                Change::Put(put) => self.put(put),
                Change::Remove(name) if name.kind == Kind::Node || *name == ItemName::default_limits() => {
                    return false;
                }
                Change::Remove(name) => {
                    self.items.remove(name);
                    self.owners.remove(name);
                    self.epochs.remove(name);
                    self.sources.retain(|_, known| known != name);
                }
            }
        }
        self.is_sound()
    }

    fn put(&mut self, put: &Put) {
        let name = put.name();
        if self.items.insert(name.clone(), put.clone()).is_none() && name.kind == Kind::Source {
            self.sources_given += 1;
            self.sources.insert(self.sources_given, name);
        }
    }

    fn is_sound(&self) -> bool {
        let there =
            |kind, name: &std::sync::Arc<str>| self.items.contains_key(&ItemName::new(kind, name.clone()));
        let mut uniques = Vec::new();
        let resolved = self.items.values().all(|put| match put {
            Put::Tenant(put) => there(Kind::Pool, &put.pool),
            Put::Credential(put) => {
                match &put.secret {
                    Secret::Login { login, .. } => uniques.push(format!("login {login}")),
                    Secret::ApiKey { sha256 } => uniques.push(format!("key {sha256:?}")),
                    Secret::Network { .. } => {
                        let mut networks: Vec<_> =
                            put.networks.iter().map(|network| network.trunc()).collect();
                        networks.sort();
                        networks.dedup();
                        uniques.extend(networks.iter().map(ToString::to_string));
                    }
                }
                let somewhere = !matches!(put.secret, Secret::Network { .. }) || !put.networks.is_empty();
                there(Kind::Tenant, &put.tenant) && somewhere
            }
            Put::Pool(put) => put.members.iter().all(|(source, _)| there(Kind::Source, source)),
            Put::Limits(put) => {
                uniques.push(format!("scope {:?} {:?}", put.source, put.site));
                put.source.as_ref().is_none_or(|source| there(Kind::Source, source))
            }
            Put::Suspension(put) => match &put.scope {
                ScopeName::Source(name) | ScopeName::Lane { source: name, .. } => there(Kind::Source, name),
                ScopeName::Pool(name) => there(Kind::Pool, name),
                ScopeName::Tenant(name) => there(Kind::Tenant, name),
                ScopeName::Site(_) | ScopeName::Node(_) => true,
            },
            Put::Source(_) | Put::Route(_) => true,
        });
        // The default limits have the widest scope.
        uniques.push(format!("scope {:?} {:?}", None::<&str>, None::<&str>));
        uniques.sort();
        resolved && uniques.windows(2).all(|pair| pair[0] != pair[1])
    }

    /// Compares with a directory.
    pub(crate) fn check(&self, view: &View) {
        let names: Vec<ItemName> = view.items().map(Item::name).collect();
        let mut expected: Vec<ItemName> = self.items.keys().cloned().collect();
        expected.extend(self.nodes.keys().map(|node| ItemName::node(*node)));
        expected.push(ItemName::default_limits());
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(view.nodes().collect::<BTreeMap<_, _>>(), self.nodes);
        for source in view.sources() {
            let name = ItemName::new(Kind::Source, source.name.clone());
            assert_eq!(
                source.owner.map(|owner| (owner.node, owner.incarnation)),
                self.owners.get(&name).copied()
            );
            assert_eq!(source.epoch, self.epoch(&name));
            assert_eq!(self.sources.get(&source.id.0), Some(&name));
        }
        for put in self.items.values() {
            self.check_item(put, view);
        }
    }

    fn check_item(&self, put: &Put, view: &View) {
        let name = put.name();
        match (put, view.item(name.kind, &name.name).unwrap()) {
            (Put::Tenant(put), Item::Tenant(tenant)) => {
                assert_eq!(view.pool(tenant.pool).unwrap().name, put.pool);
                assert_eq!(tenant.domains, put.domains);
            }
            (Put::Credential(put), Item::Credential(credential)) => {
                assert_eq!(view.tenant(credential.tenant).unwrap().name, put.tenant);
                let found = match &put.secret {
                    Secret::Login { login, .. } => view.login(login),
                    Secret::ApiKey { sha256 } => view.api_key(sha256),
                    Secret::Network { .. } => view.network(put.networks[0].addr()),
                };
                assert_eq!(found, Some(credential));
            }
            (Put::Pool(put), Item::Pool(pool)) => {
                let members =
                    pool.members.iter().map(|(id, weight)| (&view.source(*id).unwrap().name, weight));
                let mut members: Vec<_> = members.collect();
                members.sort();
                assert!(members.into_iter().eq(put.members.iter().map(|(name, weight)| (name, weight))));
            }
            (Put::Limits(put), Item::Limits(limits)) => {
                let source = limits.source.map(|id| view.source(id).unwrap().name.clone());
                assert_eq!((source, &limits.site, &limits.caps), (put.source.clone(), &put.site, &put.caps));
            }
            (Put::Source(put), Item::Source(source)) => assert_eq!(source.helo, put.helo),
            (Put::Route(put), Item::Route(route)) => {
                assert_eq!(**route, *put);
                if let postroad_directory::Pattern::Exact(domain) = &put.pattern {
                    assert_eq!(view.route(domain), Some(route));
                }
            }
            (Put::Suspension(put), Item::Suspension(suspension)) => {
                assert_eq!(*suspension.name, put.scope.to_string());
                assert_eq!((&suspension.reason, suspension.until), (&put.reason, put.until));
                assert_eq!(view.suspension(&suspension.scope), Some(suspension));
            }
            (put, item) => panic!("{put:?} became {item:?}"),
        }
    }
}
