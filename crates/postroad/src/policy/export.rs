//! The policy in force as a policy file, and what a change does to it field by field. Secrets are in neither.

use std::fmt::Write;

use postroad_core::ByteSize;
use postroad_directory::{
    Item, ItemName, Kind, Pattern, Put, Secret, SenderDomains, View,
    change::{PutCredential, PutLimits, PutPool, PutSource, PutTenant},
};
use serde::Serialize;
use serde_yaml_ng::{Mapping, Value};

use super::{
    Changes, CredentialPolicy, LimitsPolicy, MemberPolicy, Policy, PoolPolicy, RatePolicy, RoutePolicy,
    SourcePolicy, TenantPolicy,
};

impl Policy {
    /// Returns the items of a cluster that `wanted` selects, as a policy that can be applied.
    ///
    /// An API key or password is not in it: `stored_secret` keeps the stored one.
    #[must_use]
    pub fn of(view: &View, wanted: impl Fn(&ItemName) -> bool) -> Self {
        let mut policy = Self::default();
        let items = view.items().filter(|item| wanted(&item.name()));
        for put in items.filter_map(|item| put_of(item, view)) {
            policy.add(&put);
        }
        policy
    }

    /// Returns the names of the items of a cluster that operators set.
    pub fn names_of(view: &View) -> impl Iterator<Item = ItemName> {
        view.items().filter(|item| put_of(item, view).is_some()).map(Item::name)
    }

    fn add(&mut self, put: &Put) {
        match put {
            Put::Tenant(tenant) => self.tenants.push(of_tenant(tenant)),
            Put::Credential(credential) => self.credentials.push(of_credential(credential)),
            Put::Pool(pool) => self.pools.push(of_pool(pool)),
            Put::Source(source) => self.sources.push(of_source(source)),
            Put::Limits(limits) => self.limits.push(of_limits(limits)),
            Put::Route(route) => self.routes.push(RoutePolicy {
                domain: pattern_text(&route.pattern),
                host: route.host.to_string(),
                port: route.port,
            }),
            // An operator's command makes and ends it, and no policy file.
            Put::Suspension(_) => {}
        }
    }
}

/// Returns the change that would create the item as it is; `None` for what operators do not set.
pub(super) fn put_of(item: &Item, view: &View) -> Option<Put> {
    Some(match item {
        Item::Tenant(tenant) => Put::Tenant(PutTenant {
            name: tenant.name.clone(),
            domains: tenant.domains.clone(),
            pool: view.pool(tenant.pool)?.name.clone(),
            message_size_max: tenant.message_size_max,
        }),
        Item::Credential(credential) => Put::Credential(PutCredential {
            name: credential.name.clone(),
            tenant: view.tenant(credential.tenant)?.name.clone(),
            secret: credential.secret.clone(),
            networks: credential.networks.clone(),
        }),
        Item::Pool(pool) => Put::Pool(PutPool {
            name: pool.name.clone(),
            members: pool
                .members
                .iter()
                .map(|(source, weight)| Some((view.source(*source)?.name.clone(), *weight)))
                .collect::<Option<_>>()?,
        }),
        Item::Source(source) => Put::Source(PutSource {
            name: source.name.clone(),
            address: source.address,
            helo: source.helo.clone(),
            nodes: source.nodes.clone(),
        }),
        Item::Limits(limits) => Put::Limits(PutLimits {
            name: limits.name.clone(),
            source: match limits.source {
                Some(source) => Some(view.source(source)?.name.clone()),
                None => None,
            },
            site: limits.site.clone(),
            caps: limits.caps.clone(),
        }),
        Item::Route(route) => Put::Route(route.as_ref().clone()),
        Item::Node(_) | Item::Suspension(_) => return None,
    })
}

fn of_tenant(tenant: &PutTenant) -> TenantPolicy {
    TenantPolicy {
        name: tenant.name.to_string(),
        domains: match &tenant.domains {
            SenderDomains::Any => None,
            SenderDomains::Only(domains) => Some(domains.iter().map(ToString::to_string).collect()),
        },
        pool: tenant.pool.to_string(),
        message_size_max: tenant.message_size_max.map(ByteSize),
    }
}

fn of_credential(credential: &PutCredential) -> CredentialPolicy {
    CredentialPolicy {
        name: credential.name.to_string(),
        tenant: credential.tenant.to_string(),
        login: match &credential.secret {
            Secret::Login { login, .. } => Some(login.to_string()),
            Secret::ApiKey { .. } | Secret::Network { .. } => None,
        },
        stored_secret: !matches!(credential.secret, Secret::Network { .. }),
        relay: matches!(credential.secret, Secret::Network { relay: true }),
        networks: credential.networks.clone(),
        ..CredentialPolicy::default()
    }
}

fn of_pool(pool: &PutPool) -> PoolPolicy {
    let member = |(source, weight): &(std::sync::Arc<str>, u32)| MemberPolicy {
        source: source.to_string(),
        weight: *weight,
    };
    PoolPolicy { name: pool.name.to_string(), sources: pool.members.iter().map(member).collect() }
}

fn of_source(source: &PutSource) -> SourcePolicy {
    SourcePolicy {
        name: source.name.to_string(),
        address: source.address,
        helo: source.helo.clone(),
        nodes: source.nodes.iter().map(|node| node.0).collect(),
    }
}

fn of_limits(limits: &PutLimits) -> LimitsPolicy {
    let rates = limits.caps.rates.as_ref();
    let rate = |rate: &postroad_directory::Rate| RatePolicy { messages: rate.messages, per: rate.per };
    LimitsPolicy {
        name: limits.name.to_string(),
        source: limits.source.as_deref().map(str::to_owned),
        site: limits.site.as_deref().map(str::to_owned),
        connections_max: limits.caps.connections_max,
        messages_per_connection_max: limits.caps.messages_per_connection_max,
        window: limits.caps.window,
        rates: rates.map(|rates| rates.iter().map(rate).collect()),
    }
}

fn pattern_text(pattern: &Pattern) -> String {
    pattern.to_string()
}

/// Says what `changes` do to a cluster that has `stored`, one line for each item that changes.
#[must_use]
pub fn describe(changes: &Changes, stored: &View, dry_run: bool) -> String {
    let mut text = String::new();
    let would = if dry_run { "would be " } else { "" };
    for put in &changes.puts {
        let name = put.name();
        let before = stored.item(name.kind, &name.name).and_then(|item| put_of(item, stored));
        match before {
            None => {
                let _ = writeln!(text, "{would}created: {name}{}", fields_of(put));
            }
            Some(before) if before == *put => {}
            Some(before) => {
                let _ = writeln!(text, "{would}changed: {name}{}", differences(&before, put));
            }
        }
    }
    for name in changes.removals.iter().filter(|name| stored.item(name.kind, &name.name).is_some()) {
        let _ = writeln!(text, "{would}removed: {name}");
    }
    text
}

fn fields_of(put: &Put) -> String {
    let fields = fields(put);
    let fields = fields.iter().filter(|(key, _)| !is_name(key));
    fields.map(|(key, value)| format!("\n  {}: {}", one_line(key), one_line(value))).collect()
}

fn differences(before: &Put, after: &Put) -> String {
    let (old, new) = (fields(before), fields(after));
    let mut text = String::new();
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    for key in keys.filter(|key| old.get(*key) != new.get(*key)) {
        let value = |fields: &Mapping| fields.get(key).map_or_else(|| "none".to_owned(), one_line);
        let _ = write!(text, "\n  {}: {} -> {}", one_line(key), value(&old), value(&new));
    }
    if let (Put::Credential(before), Put::Credential(after)) = (before, after)
        && before.secret != after.secret
    {
        text.push_str("\n  key or password: changed (not shown)");
    }
    text
}

/// The fields of an item as a policy file has them.
pub(super) fn fields(put: &Put) -> Mapping {
    let mut policy = Policy::default();
    policy.add(put);
    let value = match put {
        Put::Tenant(_) => value(policy.tenants.first()),
        Put::Credential(_) => value(policy.credentials.first()),
        Put::Pool(_) => value(policy.pools.first()),
        Put::Source(_) => value(policy.sources.first()),
        Put::Limits(_) => value(policy.limits.first()),
        Put::Route(_) => value(policy.routes.first()),
        Put::Suspension(_) => Value::Null,
    };
    match value {
        Value::Mapping(fields) => fields,
        _ => Mapping::new(),
    }
}

fn value(item: Option<&impl Serialize>) -> Value {
    serde_yaml_ng::to_value(item).unwrap_or_default()
}

fn is_name(key: &Value) -> bool {
    matches!(key.as_str(), Some("name" | "domain" | "stored_secret"))
}

pub(super) fn one_line(value: &Value) -> String {
    match value {
        Value::Sequence(items) => format!("[{}]", items.iter().map(one_line).collect::<Vec<_>>().join(", ")),
        Value::Mapping(fields) => {
            let field = |(key, value): (&Value, &Value)| format!("{}: {}", one_line(key), one_line(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => text.clone(),
        other => serde_yaml_ng::to_string(other).unwrap_or_default().trim().to_owned(),
    }
}

/// Returns a policy as text that `postroad apply` takes.
///
/// # Errors
/// A value is not YAML, which none is.
pub fn to_yaml(policy: &Policy, revision: u64) -> Result<String, serde_yaml_ng::Error> {
    let text = serde_yaml_ng::to_string(policy)?;
    Ok(format!(
        "# The policy in force at revision {revision}, without keys and passwords:\n\
         # `stored_secret: true` keeps the one that the cluster has.\n{text}"
    ))
}

impl super::PolicyKind {
    /// Returns the kind of the directory's items.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Sources => Kind::Source,
            Self::Pools => Kind::Pool,
            Self::Tenants => Kind::Tenant,
            Self::Credentials => Kind::Credential,
            Self::Limits => Kind::Limits,
            Self::Routes => Kind::Route,
        }
    }
}

#[cfg(test)]
mod tests {
    use postroad_cluster::ApplyOptions;
    use postroad_directory::{Change, Command, Directory};

    use super::*;
    use crate::policy::PolicyFile;

    const POLICY: &str = "
sources: [{name: one, address: 192.0.2.1, helo: mail.example.org}]
pools: [{name: default, sources: [{source: one, weight: 2}]}]
tenants: [{name: acme, pool: default, domains: [acme.example], message_size_max: 10MiB}]
credentials:
- {name: app, tenant: acme, api_key: 0123456789abcdef}
- {name: people, tenant: acme, login: acme, password: correct horse, networks: [203.0.113.7/24]}
- {name: hall, tenant: acme, networks: [192.0.2.0/24]}
limits: [{name: slow, site: receiver.example, source: one, rates: [10/s, 1000/h, 7/90s], window: 5}]
routes: [{domain: '*', host: relay.example, port: 25}, {domain: a.example, host: 192.0.2.9, port: 2525}]
";

    fn changes(text: &str, stored: &View) -> Changes {
        let file = PolicyFile::read("policy.yaml", text).unwrap();
        file.policy.changes(stored, ApplyOptions::default()).unwrap()
    }

    /// Applies a policy; returns how many items changed, and the view.
    fn apply(directory: &mut Directory, text: &str) -> (u32, View) {
        let view = View::empty().apply(directory.everything());
        let Changes { puts, removals, .. } = changes(text, &view);
        let changes = puts.into_iter().map(Change::Put).chain(removals.into_iter().map(Change::Remove));
        let done = directory.apply(&Command::Change(changes.collect())).unwrap();
        (done.changed, View::empty().apply(directory.everything()))
    }

    #[test]
    fn a_policy_applied_twice_changes_nothing() {
        let mut directory = Directory::new();
        let (changed, view) = apply(&mut directory, POLICY);
        assert_eq!(changed, 9);
        assert_eq!(describe(&changes(POLICY, &view), &view, true), "");
        assert_eq!(apply(&mut directory, POLICY).0, 0);
        let other = POLICY.replace("correct horse", "battery staple");
        assert_eq!(apply(&mut directory, &other).0, 1);
    }

    #[test]
    fn the_exported_policy_can_be_applied_and_has_no_secrets() {
        let mut directory = Directory::new();
        let (_, view) = apply(&mut directory, POLICY);
        let text = to_yaml(&Policy::of(&view, |_| true), view.revision()).unwrap();
        for secret in ["0123456789abcdef", "correct horse", "$argon2", "sha256"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert_eq!(describe(&changes(&text, &view), &view, true), "", "{text}");
        assert_eq!(apply(&mut directory, &text).0, 0, "{text}");
        let one = Policy::of(&view, |name| name.kind == Kind::Route && &*name.name == "*");
        assert_eq!((one.routes.len(), one.tenants.len(), one.limits.len()), (1, 0, 0));
    }

    #[test]
    fn a_change_is_named_field_by_field_without_secrets() {
        let mut directory = Directory::new();
        let (_, view) = apply(&mut directory, POLICY);
        let text = "
tenants: [{name: acme, pool: default, domains: [acme.example, acme.test]}]
credentials: [{name: people, tenant: acme, login: acme, password: other, networks: [203.0.113.0/24]}]
limits: [{name: slow, site: receiver.example, source: one, rates: [20/s], window: 5}]
routes: [{domain: b.example, host: mx.example, port: 25}]
remove: {routes: [a.example]}
";
        assert_eq!(
            describe(&changes(text, &view), &view, true),
            "would be changed: tenant acme\n  domains: [acme.example] -> [acme.example, acme.test]\n  message_size_max: 10MiB -> none\n\
             would be changed: credential people\n  key or password: changed (not shown)\n\
             would be changed: limits slow\n  rates: [10/s, 1000/h, 7/90s] -> [20/s]\n\
             would be created: route b.example\n  host: mx.example\n  port: 25\n\
             would be removed: route a.example\n"
        );
    }
}
