//! Random commands on a few names, so that they often collide.

use std::{ops::Range, sync::Arc, time::Duration};

use postroad_core::{Domain, Epoch, NodeId, SourceId, Timestamp};
use postroad_directory::{
    Caps, Change, Command, ItemName, Kind, Pattern, Put, PutCredential, PutLimits, PutPool, PutSource,
    PutSuspension, PutTenant, Rate, Route, ScopeName, Secret, SenderDomains,
};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = Arc<str>> {
    (0..4_u8).prop_map(|number| Arc::from(format!("n{number}")))
}

fn domain() -> impl Strategy<Value = Domain> {
    (0..3_u8).prop_map(|number| Domain::parse(&format!("d{number}.example")).unwrap())
}

fn secret() -> impl Strategy<Value = Secret> {
    let login =
        |number: u8| Secret::Login { login: format!("l{number}").into(), verifier: "$argon2id$x".into() };
    prop_oneof![
        (0..6_u8).prop_map(login),
        (0..6_u8).prop_map(|byte| Secret::ApiKey { sha256: [byte; 32] }),
        any::<bool>().prop_map(|relay| Secret::Network { relay }),
    ]
}

fn caps() -> impl Strategy<Value = Caps> {
    let rates = prop::collection::vec(1..3_u64, 0..2).prop_map(|rates| {
        rates.into_iter().map(|messages| Rate { messages, per: Duration::from_secs(1) }).collect()
    });
    (prop::option::of(1..3_u32), prop::option::of(rates)).prop_map(|(window, rates)| Caps {
        window,
        rates,
        ..Caps::default()
    })
}

fn scope() -> impl Strategy<Value = ScopeName> {
    prop_oneof![
        name().prop_map(ScopeName::Site),
        (name(), name()).prop_map(|(source, site)| ScopeName::Lane { source, site }),
        name().prop_map(ScopeName::Source),
        name().prop_map(ScopeName::Pool),
        name().prop_map(ScopeName::Tenant),
        (1..4_u64).prop_map(|node| ScopeName::Node(NodeId(node))),
    ]
}

fn until() -> impl Strategy<Value = Timestamp> {
    (2..4_u64).prop_map(Timestamp::from_millis)
}

fn put() -> impl Strategy<Value = Put> {
    let domains = prop::option::of(prop::collection::btree_set(domain(), 0..3))
        .prop_map(|only| only.map_or(SenderDomains::Any, SenderDomains::Only));
    let networks = prop::collection::vec(0..3_u8, 0..2).prop_map(|bytes| {
        bytes.into_iter().map(|byte| format!("10.{byte}.0.1/16").parse().unwrap()).collect()
    });
    let nodes = prop::collection::vec((1..4_u64).prop_map(NodeId), 0..3);
    let pattern = prop::option::of(domain()).prop_map(|domain| domain.map_or(Pattern::Any, Pattern::Exact));
    prop_oneof![
        (name(), domains, name(), prop::option::of(1..3_u64)).prop_map(|(name, domains, pool, max)| {
            Put::Tenant(PutTenant { name, domains, pool, message_size_max: max })
        }),
        (name(), name(), secret(), networks).prop_map(|(name, tenant, secret, networks)| {
            Put::Credential(PutCredential { name, tenant, secret, networks })
        }),
        (name(), prop::collection::btree_map(name(), 0..3_u32, 0..3)).prop_map(|(name, members)| {
            Put::Pool(PutPool { name, members: members.into_iter().collect() })
        }),
        (name(), domain(), nodes).prop_map(|(name, helo, nodes)| Put::Source(PutSource {
            name,
            address: None,
            helo,
            nodes
        })),
        (name(), prop::option::of(name()), prop::option::of(name()), caps())
            .prop_map(|(name, source, site, caps)| Put::Limits(PutLimits { name, source, site, caps })),
        (pattern, 1..3_u16).prop_map(|(pattern, port)| Put::Route(Route {
            pattern,
            host: "host.example".into(),
            port
        })),
        (scope(), prop::option::of(until())).prop_map(|(scope, until)| Put::Suspension(PutSuspension {
            scope,
            reason: "maintenance".into(),
            actor: "operator/1".into(),
            since: Timestamp::from_millis(1),
            until
        })),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    prop_oneof![
        3 => put().prop_map(Change::Put),
        1 => (kind, name()).prop_map(|(kind, name)| Change::Remove(ItemName { kind, name })),
        1 => scope().prop_map(|scope| Change::Remove(scope.item())),
    ]
}

/// A change of some items.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 0..4)
}

/// Any command.
fn command() -> impl Strategy<Value = Command> {
    let node = || (1..3_u64).prop_map(NodeId);
    prop_oneof![
        6 => changes().prop_map(Command::Change),
        1 => (node(), 1..4_u64).prop_map(|(node, incarnation)| Command::Claim { node, incarnation }),
        4 => (1..8_u32, node(), 1..4_u64).prop_map(|(source, node, incarnation)| {
            Command::Grant { source: SourceId(source), node, incarnation }
        }),
        1 => (node(), 1..4_u64).prop_map(|(node, incarnation)| Command::Revoke { node, incarnation }),
        4 => (1..8_u32, node(), 1..4_u64, 1..4_u64).prop_map(|(source, node, incarnation, epoch)| {
            Command::ReleaseSource { source: SourceId(source), node, incarnation, epoch: Epoch(epoch) }
        }),
        2 => (scope(), until()).prop_map(|(scope, until)| {
            Command::EndSuspension { name: scope.item().name, until }
        }),
    ]
}

/// Commands for one directory; most begin with items that others can refer to.
pub(crate) fn life(commands: Range<usize>) -> impl Strategy<Value = Vec<Command>> {
    let begun = prop::bool::weighted(0.8);
    (begun, prop::collection::vec(command(), commands)).prop_map(|(begun, commands)| {
        let beginning = begun.then(|| Command::Change(foundation()));
        beginning.into_iter().chain(commands).collect()
    })
}

/// A source, a pool and a tenant of each name.
fn foundation() -> Vec<Change> {
    let of_name = |number: u8| {
        let name: Arc<str> = format!("n{number}").into();
        let source = PutSource {
            name: name.clone(),
            address: None,
            helo: Domain::parse("d0.example").unwrap(),
            nodes: Vec::new(),
        };
        let pool = PutPool { name: name.clone(), members: vec![(name.clone(), 1)] };
        let tenant =
            PutTenant { name: name.clone(), domains: SenderDomains::Any, pool: name, message_size_max: None };
        [Put::Tenant(tenant), Put::Pool(pool), Put::Source(source)].map(Change::Put)
    };
    (0..4).flat_map(of_name).collect()
}
