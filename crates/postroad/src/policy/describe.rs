//! One item with everything that is known about it: its fields, what refers to it, and what follows from it.

use std::fmt::Write;

use postroad_directory::{Item, ItemName, Kind, LaneLimits, Pool, Source, Tenant, View};
use serde::Serialize;
use serde_yaml_ng::{Mapping, Value};

use super::{
    RatePolicy,
    export::{fields, one_line, put_of},
};
use crate::output::{Screen, Shown, line};

/// An item of the policy in force, described.
#[derive(Debug, Serialize)]
pub struct Description {
    kind: String,
    name: String,
    /// As in a policy file.
    fields: Mapping,
    /// What the cluster makes of it.
    facts: Vec<Fact>,
    /// The items that refer to it: while there are any, it cannot be deleted.
    used_by: Vec<String>,
}

/// Something that follows from an item and others.
#[derive(Debug, Serialize)]
struct Fact {
    name: &'static str,
    value: String,
}

impl Description {
    /// Describes an item; `None` where there is none of that name.
    #[must_use]
    pub fn of(name: &ItemName, view: &View) -> Option<Self> {
        let item = view.item(name.kind, &name.name)?;
        let put = put_of(item, view)?;
        Some(Self {
            kind: name.kind.to_string(),
            name: name.name.to_string(),
            fields: fields(&put),
            facts: facts(item, view),
            used_by: view
                .items()
                .filter(|other| refers(other, item))
                .map(|item| item.name().to_string())
                .collect(),
        })
    }
}

fn facts(item: &Item, view: &View) -> Vec<Fact> {
    let fact = |name, value| Fact { name, value };
    match item {
        Item::Tenant(tenant) => vec![fact("sources", sources_of_tenant(tenant, view))],
        Item::Pool(pool) => vec![fact("shares", shares(pool, view))],
        Item::Source(source) => vec![
            fact("owner", owner(source)),
            fact("epoch", source.epoch.0.to_string()),
            fact("limits at most sites", limits_text(&view.lane_limits(source.id, ""))),
        ],
        Item::Limits(limits) => {
            let source = limits.source.and_then(|source| view.source(source));
            let source =
                source.map_or_else(|| "any source".to_owned(), |source| format!("source {}", source.name));
            let site =
                limits.site.as_ref().map_or_else(|| "any site".to_owned(), |site| format!("site {site}"));
            vec![fact(
                "applies to",
                format!("lanes of {source} to {site}, where no narrower item says otherwise"),
            )]
        }
        _ => Vec::new(),
    }
}

/// Returns true when `other` names `item`.
fn refers(other: &Item, item: &Item) -> bool {
    match (other, item) {
        (Item::Tenant(tenant), Item::Pool(pool)) => tenant.pool == pool.id,
        (Item::Credential(credential), Item::Tenant(tenant)) => credential.tenant == tenant.id,
        (Item::Pool(pool), Item::Source(source)) => pool.members.iter().any(|(id, _)| *id == source.id),
        (Item::Limits(limits), Item::Source(source)) => limits.source == Some(source.id),
        _ => false,
    }
}

fn owner(source: &Source) -> String {
    match &source.owner {
        Some(owner) => format!("outbound node {}", owner.node),
        None => "none: mail that needs this source waits".to_owned(),
    }
}

fn sources_of_tenant(tenant: &Tenant, view: &View) -> String {
    view.pool(tenant.pool).map_or_else(|| "none".to_owned(), |pool| shares(pool, view))
}

/// The share of each source of a pool, in per cent.
fn shares(pool: &Pool, view: &View) -> String {
    let total: u64 = pool.members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return "none: every weight is 0, and mail waits".to_owned();
    }
    let share = |(source, weight): &(postroad_core::SourceId, u32)| {
        let name = view.source(*source).map_or_else(|| source.to_string(), |source| source.name.to_string());
        format!("{name} {} %", u64::from(*weight) * 100 / total)
    };
    pool.members.iter().map(share).collect::<Vec<_>>().join(", ")
}

fn limits_text(limits: &LaneLimits) -> String {
    let LaneLimits { connections_max, messages_per_connection_max, window, rates } = limits;
    let rates: Vec<String> =
        rates.iter().map(|rate| RatePolicy { messages: rate.messages, per: rate.per }.to_string()).collect();
    let rates = if rates.is_empty() { "no rates".to_owned() } else { format!("rates {}", rates.join(", ")) };
    format!(
        "{connections_max} connections, {messages_per_connection_max} messages each, window {window}, {rates}"
    )
}

impl Shown for Description {
    fn text(&self, _: Screen) -> String {
        let mut rows: Vec<(String, String)> = Vec::new();
        let named = |key: &Value| matches!(key.as_str(), Some("name"));
        rows.extend(
            self.fields
                .iter()
                .filter(|(key, _)| !named(key))
                .map(|(key, value)| (one_line(key), one_line(value))),
        );
        rows.extend(self.facts.iter().map(|fact| (fact.name.to_owned(), fact.value.clone())));
        let used_by = if self.used_by.is_empty() { "nothing".to_owned() } else { self.used_by.join(", ") };
        if [Kind::Tenant, Kind::Pool, Kind::Source].iter().any(|kind| kind.to_string() == self.kind) {
            rows.push(("used by".to_owned(), used_by));
        }
        let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        let mut text = format!("{} {}\n", self.kind, line(&self.name));
        for (key, value) in rows {
            let _ = writeln!(text, "  {key:width$}  {}", line(&value));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use postroad_cluster::ApplyOptions;
    use postroad_directory::{Change, Command, Directory};

    use super::*;
    use crate::policy::PolicyFile;

    const POLICY: &str = "
sources: [{name: one, helo: mail.example.org}, {name: two, helo: two.example.org, nodes: [21]}]
pools: [{name: main, sources: [{source: one}, {source: two, weight: 3}]}]
tenants: [{name: acme, pool: main}]
credentials: [{name: app, tenant: acme, api_key: 0123456789abcdef}]
limits: [{name: default, connections_max: 7}, {name: slow, source: two, rates: [10/s]}]
";

    fn check(kind: Kind, name: &str, expected: &str) {
        let mut directory = Directory::new();
        let file = PolicyFile::read("policy.yaml", POLICY).unwrap();
        let changes = file.policy.changes(&View::empty(), ApplyOptions::default()).unwrap();
        directory.apply(&Command::Change(changes.puts.into_iter().map(Change::Put).collect())).unwrap();
        let view = View::empty().apply(directory.everything());
        let description = Description::of(&ItemName::new(kind, name), &view).unwrap();
        assert_eq!(description.text(Screen { width: None }), expected);
    }

    #[test]
    fn an_item_is_described_with_what_refers_to_it_and_what_follows_from_it() {
        check(
            Kind::Source,
            "two",
            "source two\n  \
               helo                  two.example.org\n  \
               nodes                 [21]\n  \
               owner                 none: mail that needs this source waits\n  \
               epoch                 0\n  \
               limits at most sites  7 connections, 100 messages each, window 500, rates 10/s\n  \
               used by               pool main, limits slow\n",
        );
        check(
            Kind::Tenant,
            "acme",
            "tenant acme\n  pool     main\n  sources  one 25 %, two 75 %\n  used by  credential app\n",
        );
        check(Kind::Credential, "app", "credential app\n  tenant         acme\n  stored_secret  true\n");
    }
}
