//! Turns a policy into changes of the directory. Secrets are hashed here, so that only hashes leave this machine.

mod secret;

use std::collections::{HashMap, HashSet};

use postroad_cluster::ApplyOptions;
use postroad_core::Domain;
use postroad_directory::{
    Caps, Change, Item, ItemName, Kind, Pattern, Put, Rate, Refusal, Route, Secret, SenderDomains, View,
    change::{PutCredential, PutLimits, PutPool, PutSource, PutTenant},
};

use self::secret::Given;
use super::{
    CredentialPolicy, LimitsPolicy, Policy, PoolPolicy, RatePolicy, RemovePolicy, RoutePolicy, SourcePolicy,
    TenantPolicy,
    read::{Place, Problem},
};

/// Changes of the directory, applied as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Items to create or replace.
    pub puts: Vec<Put>,
    /// Items to remove.
    pub removals: Vec<ItemName>,
}

/// An item with its place in the file.
type Placed<T> = (Place, T);

impl Policy {
    /// Returns what is wrong with the items by themselves, whatever the cluster has.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen = HashSet::new();
        for (place, put) in self.puts(|given| Ok(given.placeholder())) {
            match put {
                Err(problem) => problems.push(problem),
                Ok(put) => {
                    problems.extend(put.check().err().map(|rule| Problem::new(place.clone(), rule)));
                    problems.extend(named_twice(&mut seen, place, put.name()));
                }
            }
        }
        for (place, name) in self.remove.names() {
            match name {
                Err(expected) => problems.push(Problem::new(place, expected)),
                Ok(name) => problems.extend(named_twice(&mut seen, place, name)),
            }
        }
        problems
    }

    /// Returns the changes that the policy asks for in a cluster that has `stored`.
    ///
    /// # Errors
    /// Every item that the cluster would not accept.
    pub fn changes(&self, stored: &View, options: ApplyOptions) -> Result<Changes, Vec<Problem>> {
        let mut problems = self.missing_references(stored);
        if !options.ignore_missing {
            problems.extend(self.missing_removals(stored));
        }
        let mut puts = Vec::new();
        for (place, put) in self.puts(|given| given.secret(stored)) {
            match put {
                Ok(put) => puts.push((place, put)),
                Err(problem) => problems.push(problem),
            }
        }
        let removals = self.removals();
        problems.extend(refused(stored, &puts, &removals));
        if !problems.is_empty() {
            return Err(problems);
        }
        let puts = puts.into_iter().map(|(_, put)| put).collect();
        let removals = removals.into_iter().map(|(_, name)| name).collect();
        Ok(Changes { puts, removals })
    }

    /// Returns the names of the items to create or replace.
    #[must_use]
    pub fn names(&self) -> Vec<ItemName> {
        let Self { sources, pools, tenants, credentials, limits, routes, remove: _ } = self;
        let mut names = Vec::new();
        names.extend(sources.iter().map(|one| ItemName::new(Kind::Source, one.name.as_str())));
        names.extend(pools.iter().map(|one| ItemName::new(Kind::Pool, one.name.as_str())));
        names.extend(tenants.iter().map(|one| ItemName::new(Kind::Tenant, one.name.as_str())));
        names.extend(credentials.iter().map(|one| ItemName::new(Kind::Credential, one.name.as_str())));
        names.extend(limits.iter().map(|one| ItemName::new(Kind::Limits, one.name.as_str())));
        names.extend(routes.iter().map(|one| {
            let written = || ItemName::new(Kind::Route, one.domain.as_str());
            stored_name(Kind::Route, &one.domain).unwrap_or_else(|_| written())
        }));
        names
    }

    /// The items to remove; a name that no item can have is among the problems.
    fn removals(&self) -> Vec<Placed<ItemName>> {
        self.remove.names().filter_map(|(place, name)| Some((place, name.ok()?))).collect()
    }

    /// Removals of items that the cluster does not have.
    fn missing_removals(&self, stored: &View) -> Vec<Problem> {
        let missing = |(place, name): Placed<ItemName>| {
            let expected = format!("the cluster has no `{name}` to remove (`--ignore-missing` accepts that)");
            stored.item(name.kind, &name.name).is_none().then(|| Problem::new(place, expected))
        };
        self.removals().into_iter().filter_map(missing).collect()
    }

    /// The items to create or replace; `secret` turns what a credential gives into what is stored.
    fn puts(
        &self,
        secret: impl Fn(&Given<'_>) -> Result<Secret, String>,
    ) -> Vec<Placed<Result<Put, Problem>>> {
        let mut puts = Vec::new();
        puts.extend(placed("sources", &self.sources).map(|(place, one)| (place, Ok(source(one)))));
        puts.extend(placed("pools", &self.pools).map(|(place, one)| (place, Ok(pool(one)))));
        puts.extend(placed("tenants", &self.tenants).map(|(place, one)| {
            let put = tenant(one).map_err(|expected| Problem::new(place.key("domains"), expected));
            (place, put)
        }));
        puts.extend(placed("credentials", &self.credentials).map(|(place, one)| {
            let put = credential(one, &place, &secret);
            (place, put)
        }));
        puts.extend(placed("limits", &self.limits).map(|(place, one)| (place, Ok(limits(one)))));
        puts.extend(placed("routes", &self.routes).map(|(place, one)| {
            let put = route(one).map(Put::Route);
            let put = put.map_err(|expected| Problem::new(place.key("domain"), expected));
            (place, put)
        }));
        puts
    }

    /// References to items that neither the file nor the cluster has.
    fn missing_references(&self, stored: &View) -> Vec<Problem> {
        let removed: HashSet<ItemName> = self.removals().into_iter().map(|(_, name)| name).collect();
        let mut names: HashSet<ItemName> =
            stored.items().map(Item::name).filter(|name| !removed.contains(name)).collect();
        names.extend(self.names());
        let missing = |(place, name): Placed<ItemName>| {
            let is_missing = !names.contains(&name);
            is_missing
                .then(|| Problem::new(place, format!("neither the file nor the cluster has a `{name}`")))
        };
        self.references().into_iter().filter_map(missing).collect()
    }

    fn references(&self) -> Vec<Placed<ItemName>> {
        let mut references = Vec::new();
        for (place, pool) in placed("pools", &self.pools) {
            let members = pool.sources.iter().enumerate().map(|(index, member)| {
                let place = place.key("sources").index(index).key("source");
                (place, ItemName::new(Kind::Source, member.source.as_str()))
            });
            references.extend(members);
        }
        references.extend(
            placed("tenants", &self.tenants)
                .map(|(place, tenant)| (place.key("pool"), ItemName::new(Kind::Pool, tenant.pool.as_str()))),
        );
        references.extend(placed("credentials", &self.credentials).map(|(place, credential)| {
            (place.key("tenant"), ItemName::new(Kind::Tenant, credential.tenant.as_str()))
        }));
        references.extend(placed("limits", &self.limits).filter_map(|(place, limits)| {
            let source = limits.source.as_deref()?;
            Some((place.key("source"), ItemName::new(Kind::Source, source)))
        }));
        references
    }
}

fn named_twice(seen: &mut HashSet<ItemName>, place: Place, name: ItemName) -> Option<Problem> {
    let problem = Problem::new(place, format!("`{name}` is in the file twice"));
    (!seen.insert(name)).then_some(problem)
}

/// What the directory would refuse, where the file says it. Missing references have places of their own.
fn refused(stored: &View, puts: &[Placed<Put>], removals: &[Placed<ItemName>]) -> Vec<Problem> {
    let put_places = puts.iter().map(|(place, put)| (put.name(), colliding(place, put)));
    let places = put_places.chain(removals.iter().map(|(place, name)| (name.clone(), place.clone())));
    let places: HashMap<ItemName, Place> = places.collect();
    let changes = puts.iter().map(|(_, put)| Change::Put(put.clone()));
    let changes: Vec<Change> =
        changes.chain(removals.iter().map(|(_, name)| Change::Remove(name.clone()))).collect();
    let problem = |refusal: Refusal| {
        let (item, expected) = match refusal {
            Refusal::MissingReference { .. } => return None,
            Refusal::Conflict { item, by } => {
                let what =
                    if item.kind == Kind::Limits { "source and site" } else { "login, key or network" };
                (Some(item), format!("`{by}` has the same {what}"))
            }
            Refusal::Invalid { item, rule } => (Some(item), rule.to_owned()),
            Refusal::InUse { ref item, .. } | Refusal::NamedTwice(ref item) => {
                (Some(item.clone()), refusal.to_string())
            }
            other => (None, other.to_string()),
        };
        let place = item.and_then(|item| places.get(&item).cloned()).unwrap_or_default();
        Some(Problem::new(place, expected))
    };
    stored.refusals(&changes).into_iter().filter_map(problem).collect()
}

/// Where the value of an item is that no other item may have.
fn colliding(place: &Place, put: &Put) -> Place {
    match put {
        Put::Credential(PutCredential { secret: Secret::Login { .. }, .. }) => place.key("login"),
        Put::Credential(PutCredential { secret: Secret::Network { .. }, .. }) => place.key("networks"),
        _ => place.clone(),
    }
}

fn placed<'p, T>(section: &'static str, items: &'p [T]) -> impl Iterator<Item = Placed<&'p T>> {
    items.iter().enumerate().map(move |(index, item)| (Place::item(section, index), item))
}

impl RemovePolicy {
    /// Returns the names of the items to remove, those that refer to others first; or what was expected of a name.
    fn names(&self) -> impl Iterator<Item = Placed<Result<ItemName, &'static str>>> {
        let kinds = [
            (Kind::Route, "routes", &self.routes),
            (Kind::Limits, "limits", &self.limits),
            (Kind::Credential, "credentials", &self.credentials),
            (Kind::Tenant, "tenants", &self.tenants),
            (Kind::Pool, "pools", &self.pools),
            (Kind::Source, "sources", &self.sources),
        ];
        kinds.into_iter().flat_map(|(kind, key, names)| {
            let place = Place::default().key("remove").key(key);
            names.iter().enumerate().map(move |(index, name)| (place.index(index), stored_name(kind, name)))
        })
    }
}

/// Returns the name under which the directory keeps an item that a person names: a route by its domain in any spelling.
///
/// # Errors
/// What is expected where no item can have the name.
pub(crate) fn stored_name(kind: Kind, written: &str) -> Result<ItemName, &'static str> {
    match kind {
        Kind::Route => Ok(ItemName::new(kind, pattern(written)?.to_string())),
        _ => Ok(ItemName::new(kind, written)),
    }
}

fn source(source: &SourcePolicy) -> Put {
    Put::Source(PutSource {
        name: source.name.as_str().into(),
        address: source.address,
        helo: source.helo.clone(),
        nodes: source.owners(),
    })
}

fn pool(pool: &PoolPolicy) -> Put {
    let members = pool.sources.iter().map(|member| (member.source.as_str().into(), member.weight)).collect();
    Put::Pool(PutPool { name: pool.name.as_str().into(), members })
}

fn tenant(tenant: &TenantPolicy) -> Result<Put, String> {
    let domains = match tenant.sender_domains()? {
        None => SenderDomains::Any,
        Some(domains) => SenderDomains::Only(domains),
    };
    Ok(Put::Tenant(PutTenant {
        name: tenant.name.as_str().into(),
        domains,
        pool: tenant.pool.as_str().into(),
        message_size_max: tenant.message_size_max.map(|size| size.0),
    }))
}

fn credential(
    credential: &CredentialPolicy,
    place: &Place,
    secret: impl Fn(&Given<'_>) -> Result<Secret, String>,
) -> Result<Put, Problem> {
    let given = Given::of(credential, place)?;
    let secret = secret(&given).map_err(|expected| Problem::new(place.clone(), expected))?;
    Ok(Put::Credential(PutCredential {
        name: credential.name.as_str().into(),
        tenant: credential.tenant.as_str().into(),
        secret,
        networks: credential.networks.iter().map(ipnet::IpNet::trunc).collect(),
    }))
}

fn limits(limits: &LimitsPolicy) -> Put {
    let rate = |rate: &RatePolicy| Rate { messages: rate.messages, per: rate.per };
    Put::Limits(PutLimits {
        name: limits.name.as_str().into(),
        source: limits.source.as_deref().map(Into::into),
        site: limits.site.as_deref().map(Into::into),
        caps: Caps {
            connections_max: limits.connections_max,
            messages_per_connection_max: limits.messages_per_connection_max,
            window: limits.window,
            rates: limits.rates.as_ref().map(|rates| rates.iter().map(rate).collect()),
        },
    })
}

fn route(route: &RoutePolicy) -> Result<Route, &'static str> {
    Ok(Route { pattern: pattern(&route.domain)?, host: route.host.as_str().into(), port: route.port })
}

fn pattern(domain: &str) -> Result<Pattern, &'static str> {
    match domain {
        "*" => Ok(Pattern::Any),
        name => Domain::parse(name).map(Pattern::Exact).map_err(|_| "expected a domain or `*`"),
    }
}

#[cfg(test)]
mod tests {
    use postroad_directory::{Command, Directory};

    use super::*;
    use crate::policy::{PolicyError, PolicyFile};

    fn changes_in(stored: &View, text: &str, options: ApplyOptions) -> Result<Changes, PolicyError> {
        let file = PolicyFile::read("policy.yaml", text)?;
        file.policy.changes(stored, options).map_err(|problems| file.error(problems))
    }

    /// A cluster that has applied a policy.
    fn cluster(text: &str) -> View {
        let mut directory = Directory::new();
        let stored = View::empty().apply(directory.everything());
        let Changes { puts, .. } = changes_in(&stored, text, ApplyOptions::default()).unwrap();
        directory.apply(&Command::Change(puts.into_iter().map(Change::Put).collect())).unwrap();
        View::empty().apply(directory.everything())
    }

    fn check(text: &str, expected: Result<(usize, usize), &str>) {
        let options = ApplyOptions { ignore_missing: true, ..ApplyOptions::default() };
        match (changes_in(&View::empty(), text, options), expected) {
            (Ok(Changes { puts, removals, .. }), Ok(count)) => {
                assert_eq!((puts.len(), removals.len()), count);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (seen, expected) => panic!("{seen:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_policy_becomes_changes() {
        check(
            "
            sources: [{name: one, helo: mail.example.org, nodes: [21]}]
            pools: [{name: default, sources: [{source: one}]}]
            tenants: [{name: acme, pool: default, domains: [acme.example], message_size_max: 10MiB}]
            credentials:
              - {name: app, tenant: acme, api_key: 0123456789abcdef}
              - {name: people, tenant: acme, login: acme, password: correct horse}
              - {name: hall, tenant: acme, networks: [192.0.2.0/24]}
              - {name: gateway, tenant: acme, networks: [192.0.3.1/32], relay: true}
            limits: [{name: slow, site: receiver.example, rates: [10/s, 1000/h]}]
            routes: [{domain: '*', host: relay.example, port: 25}]
            remove: {sources: [old]}
            ",
            Ok((9, 1)),
        );
    }

    #[test]
    fn a_credential_is_one_of_key_login_or_networks() {
        let wrong = "expected one of";
        let tenant = |credential: &str| {
            format!(
                "sources: [{{name: s, helo: s.example}}]\npools: [{{name: p, sources: [{{source: s}}]}}]\n\
                tenants: [{{name: t, pool: p}}]\ncredentials: [{{name: a, tenant: t{credential}}}]"
            )
        };
        let check = |credential: &str, expected| check(&tenant(credential), Err(expected));
        check(", api_key: 0123456789abcdef, login: b", wrong);
        check(", login: b", "policy.yaml:4: `credentials[0].login` = `b`: expected a `password` with it");
        check("", "`credentials[0]`: expected one of");
        check(", api_key: short", "at least 16");
        check(", api_key_sha256: zz", "64 hexadecimal");
        check(", password_hash: zz, login: b", "PHC");
        check(", stored_secret: true", "has no key or password for this credential");
        check(", stored_secret: true, password: x, login: y", wrong);
    }

    #[test]
    fn every_reference_that_is_missing_is_named() {
        let text = "pools:\n- name: p\n  sources:\n  - source: one\ntenants:\n- {name: t, pool: q}\n";
        check(
            text,
            Err(
                "policy.yaml:4: `pools[0].sources[0].source` = `one`: neither the file nor the cluster has a `source one`",
            ),
        );
        check(
            text,
            Err("policy.yaml:6: `tenants[0].pool` = `q`: neither the file nor the cluster has a `pool q`"),
        );
    }

    const STORED: &str = "
sources: [{name: one, helo: mail.example.org}]
pools: [{name: default, sources: [{source: one}]}]
tenants: [{name: acme, pool: default}]
credentials:
- {name: people, tenant: acme, login: acme, password: battery staple}
- {name: hall, tenant: acme, networks: [192.0.2.0/24]}
limits: [{name: slow, site: receiver.example, window: 5}]
routes: [{domain: Partner.Example, host: relay.example, port: 25}, {domain: bücher.example, host: relay.example, port: 25}]
";

    #[test]
    fn everything_that_the_directory_would_refuse_is_named_with_its_line_and_key() {
        let text = "tenants:
- {name: beta, pool: nowhere}
credentials:
- {name: others, tenant: acme, login: acme, password: correct horse}
- {name: office, tenant: acme, networks: [192.0.2.9/24]}
- {name: app, tenant: acme, api_key: 0123456789abcdef}
- {name: too, tenant: acme, api_key: 0123456789abcdef}
limits:
- {name: careful, site: receiver.example, window: 1}
remove:
  routes:
  - x.example
  - y.example
  limits: [default]
  pools: [default]
";
        let error = changes_in(&cluster(STORED), text, ApplyOptions::default()).unwrap_err().to_string();
        let expected = "the policy has 9 problems; nothing was changed
  policy.yaml:2: `tenants[0].pool` = `nowhere`: neither the file nor the cluster has a `pool nowhere`
  policy.yaml:4: `credentials[0].login` = `acme`: `credential people` has the same login, key or network
  policy.yaml:5: `credentials[1].networks`: `credential hall` has the same login, key or network
  policy.yaml:7: `credentials[3]`: `credential app` has the same login, key or network
  policy.yaml:9: `limits[0]`: `limits slow` has the same source and site
  policy.yaml:12: `remove.routes[0]` = `x.example`: the cluster has no `route x.example` to remove (`--ignore-missing` accepts that)
  policy.yaml:13: `remove.routes[1]` = `y.example`: the cluster has no `route y.example` to remove (`--ignore-missing` accepts that)
  policy.yaml:14: `remove.limits[0]` = `default`: always exists
  policy.yaml:15: `remove.pools[0]` = `default`: `pool default` cannot be removed: `tenant acme` refers to it";
        assert_eq!(error, expected);
    }

    #[test]
    fn items_have_names_also_where_the_cluster_would_refuse_them() {
        let named = |text: &str| PolicyFile::read("policy.yaml", text).unwrap().policy.names();
        let stored = cluster(STORED);
        let mut names = named(STORED);
        names.retain(|name| stored.item(name.kind, &name.name).is_none());
        assert_eq!(names, [], "as the cluster calls them");
        let refused = "tenants: [{name: beta, pool: nowhere}]";
        assert!(changes_in(&stored, refused, ApplyOptions::default()).is_err());
        assert_eq!(named(refused), [ItemName::new(Kind::Tenant, "beta")]);
    }

    #[test]
    fn a_route_is_named_by_its_domain_in_any_spelling() {
        let text = "remove: {routes: [Partner.Example, xn--bcher-kva.example]}";
        let stored = cluster(STORED);
        let changes = changes_in(&stored, text, ApplyOptions::default()).unwrap();
        assert!(changes.removals.iter().all(|name| stored.item(name.kind, &name.name).is_some()));
        let names = |written| stored_name(Kind::Route, written).map(|name| name.name.to_string());
        assert_eq!(names("BÜCHER.example").as_deref(), Ok("xn--bcher-kva.example"));
        assert_eq!(names("*").as_deref(), Ok("*"));
        check(
            "remove: {routes: [a.example, A.EXAMPLE]}",
            Err("policy.yaml:1: `remove.routes[1]` = `A.EXAMPLE`: `route a.example` is in the file twice"),
        );
        check(
            "remove: {routes: ['a b']}",
            Err("policy.yaml:1: `remove.routes[0]` = `a b`: expected a domain or `*`"),
        );
    }

    #[test]
    fn a_removal_that_may_be_missing_is_no_problem() {
        let options = ApplyOptions { ignore_missing: true, ..ApplyOptions::default() };
        let changes = changes_in(&cluster(STORED), "remove: {routes: [x.example]}", options).unwrap();
        assert_eq!(changes.removals, [ItemName::new(Kind::Route, "x.example")]);
    }

    #[test]
    fn an_item_is_in_a_file_once() {
        check(
            "limits:\n- {name: a}\n- {name: a}\n",
            Err("policy.yaml:3: `limits[1]`: `limits a` is in the file twice"),
        );
    }
}
