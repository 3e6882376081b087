//! Round trips of every value on the wire, and kept bytes that the log must always be able to read.

use std::{sync::Arc, time::Duration};

use postroad_core::{Epoch, PoolId, Scope, TenantId};
use postroad_directory::{
    Caps, Credential, Item, ItemName, Kind, Limits, OutboundNode, Owner, Pattern, Pool, Put, PutCredential,
    PutLimits, PutPool, PutSource, PutSuspension, PutTenant, Rate, Route, ScopeName, Secret, SenderDomains,
    Source, Suspension, Tenant,
};

use super::*;

fn some_domain() -> Domain {
    Domain::parse("mail.example").unwrap()
}

fn secrets() -> Vec<Secret> {
    let login = Secret::Login { login: "alice".into(), verifier: "$argon2id$x".into() };
    vec![
        Secret::ApiKey { sha256: [7; 32] },
        login,
        Secret::Network { relay: false },
        Secret::Network { relay: true },
    ]
}

fn sender_domains() -> Vec<SenderDomains> {
    vec![SenderDomains::Any, SenderDomains::Only([].into()), SenderDomains::Only([some_domain()].into())]
}

fn caps() -> Vec<Caps> {
    let rate = Rate { messages: 0, per: Duration::from_millis(1500) };
    let full = Caps {
        connections_max: Some(1),
        messages_per_connection_max: Some(2),
        window: Some(3),
        rates: Some([rate, rate].into()),
    };
    vec![Caps::default(), Caps { rates: Some([].into()), ..Caps::default() }, full]
}

fn routes() -> Vec<Route> {
    let to = |pattern| Route { pattern, host: "::1".into(), port: 65535 };
    vec![to(Pattern::Any), to(Pattern::Exact(some_domain()))]
}

fn sources() -> Vec<Source> {
    let source = Source {
        id: SourceId(5),
        name: "s".into(),
        address: None,
        helo: some_domain(),
        nodes: Vec::new(),
        owner: None,
        epoch: Epoch(0),
    };
    let owned = Source {
        address: Some("2001:db8::1".parse().unwrap()),
        nodes: vec![NodeId(1), NodeId(9)],
        owner: Some(Owner { node: NodeId(9), incarnation: u64::MAX }),
        epoch: Epoch(8),
        ..source.clone()
    };
    vec![source, owned]
}

fn suspensions() -> Vec<(Suspension, PutSuspension)> {
    let scopes = [
        (Scope::Site("x".into()), ScopeName::Site("x".into())),
        (
            Scope::Lane { source: SourceId(5), site: "x".into() },
            ScopeName::Lane { source: "s".into(), site: "x".into() },
        ),
        (Scope::Source(SourceId(5)), ScopeName::Source("s".into())),
        (Scope::Pool(PoolId(2)), ScopeName::Pool("p".into())),
        (Scope::Tenant(TenantId(1)), ScopeName::Tenant("t".into())),
        (Scope::Node(NodeId(9)), ScopeName::Node(NodeId(9))),
    ];
    let (reason, actor) = ("blocked", "operator/1 (eve@laptop)");
    let since = Timestamp::from_millis(1);
    let ends = [None, Some(Timestamp::from_millis(2))].into_iter().cycle();
    let both = |((scope, named), until): ((Scope, ScopeName), Option<Timestamp>)| {
        let (reason, actor) = (reason.into(), actor.into());
        let put = PutSuspension { scope: named, reason, actor, since, until };
        let PutSuspension { scope: named, reason, actor, .. } = put.clone();
        (Suspension { name: named.to_string().into(), scope, reason, actor, since, until }, put)
    };
    scopes.into_iter().zip(ends).map(both).collect()
}

fn items() -> Vec<Item> {
    let tenant = |domains| Tenant {
        id: TenantId(1),
        name: "t".into(),
        domains,
        pool: PoolId(2),
        message_size_max: Some(0),
    };
    let credential = |secret| Credential {
        name: "c".into(),
        tenant: TenantId(1),
        secret,
        networks: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
    };
    let limits = |caps| Limits { name: "l".into(), source: Some(SourceId(5)), site: Some("x".into()), caps };
    let pool = Pool { id: PoolId(2), name: "p".into(), members: vec![(SourceId(5), 0), (SourceId(6), 7)] };
    let tenants = sender_domains().into_iter().map(|domains| Item::Tenant(Arc::new(tenant(domains))));
    tenants
        .chain(secrets().into_iter().map(|secret| Item::Credential(Arc::new(credential(secret)))))
        .chain([Item::Pool(Arc::new(pool))])
        .chain(sources().into_iter().map(|source| Item::Source(Arc::new(source))))
        .chain(caps().into_iter().map(|caps| Item::Limits(Arc::new(limits(caps)))))
        .chain(routes().into_iter().map(|route| Item::Route(Arc::new(route))))
        .chain([Item::Node(OutboundNode { node: NodeId(9), incarnation: u64::MAX })])
        .chain(suspensions().into_iter().map(|(suspension, _)| Item::Suspension(Arc::new(suspension))))
        .collect()
}

fn puts() -> Vec<Put> {
    let tenant = |domains| PutTenant { name: "t".into(), domains, pool: "p".into(), message_size_max: None };
    let credential = |secret| PutCredential {
        name: "c".into(),
        tenant: "t".into(),
        secret,
        networks: vec!["10.0.0.1/8".parse().unwrap()],
    };
    let limits = |caps| PutLimits { name: "l".into(), source: Some("s".into()), site: None, caps };
    let pool = PutPool { name: "p".into(), members: vec![("s".into(), 7), ("t".into(), 0)] };
    let source = PutSource {
        name: "s".into(),
        address: Some("192.0.2.1".parse().unwrap()),
        helo: some_domain(),
        nodes: vec![NodeId(9)],
    };
    let tenants = sender_domains().into_iter().map(|domains| Put::Tenant(tenant(domains)));
    tenants
        .chain(secrets().into_iter().map(|secret| Put::Credential(credential(secret))))
        .chain([Put::Pool(pool), Put::Source(source)])
        .chain(caps().into_iter().map(|caps| Put::Limits(limits(caps))))
        .chain(routes().into_iter().map(Put::Route))
        .chain(suspensions().into_iter().map(|(_, put)| Put::Suspension(put)))
        .collect()
}

fn commands() -> Vec<Command> {
    let removals = Kind::ALL.map(|kind| Change::Remove(ItemName::new(kind, "x")));
    let (node, incarnation) = (NodeId(9), 0x0123_4567_89ab_cdef);
    vec![
        Command::Change(puts().into_iter().map(Change::Put).chain(removals).collect()),
        Command::Claim { node, incarnation },
        Command::Grant { source: SourceId(5), node, incarnation },
        Command::Revoke { node, incarnation },
        Command::ReleaseSource { source: SourceId(5), node, incarnation, epoch: Epoch(3) },
        Command::EndSuspension { name: "site x".into(), until: Timestamp::from_millis(2) },
    ]
}

#[test]
fn items_round_trip() {
    for item in items() {
        assert_eq!(Item::try_from(wire::Item::from(&item)), Ok(item));
    }
}

#[test]
fn commands_round_trip() {
    for term in [None, Some(7)] {
        let entry = Entry { commands: commands(), term };
        assert_eq!(Entry::decode(entry.encode()), Ok(entry));
    }
}

#[test]
fn an_entry_of_the_first_version_can_still_be_read() {
    let mut entry = Entry { commands: commands(), term: Some(7) };
    // Commands and values added later are not in it.
    let is_later =
        |command: &Command| matches!(command, Command::ReleaseSource { .. } | Command::EndSuspension { .. });
    entry.commands.retain(|command| !is_later(command));
    for command in &mut entry.commands {
        if let Command::Change(changes) = command {
            changes.retain(|change| !has_relay_network(change) && change.name().kind != Kind::Suspension);
        }
    }
    assert_eq!(Entry::decode(Bytes::from_static(include_bytes!("entry-v1.bin"))), Ok(entry));
}

fn has_relay_network(change: &Change) -> bool {
    let Change::Put(Put::Credential(put)) = change else { return false };
    put.secret == Secret::Network { relay: true }
}

#[test]
fn unknown_values_are_errors_and_not_skipped() {
    let refused = |commands| {
        let head = wire::Entry { commands, term: 0 }.encode_to_vec();
        Entry::decode(head.into()).unwrap_err()
    };
    let unknown = wire::Command { command: None };
    assert_eq!(refused(vec![unknown]), BatchError::Malformed(Malformed("command")));
    let change = |change| {
        let changes = wire::Changes { changes: vec![wire::Change { change }] };
        vec![wire::Command { command: Some(wire::command::Command::Change(changes)) }]
    };
    assert_eq!(refused(change(None)), BatchError::Malformed(Malformed("change")));
    let put = Some(wire::change::Change::Put(wire::Put { put: None }));
    assert_eq!(refused(change(put)), BatchError::Malformed(Malformed("put")));
    let name = wire::ItemName { kind: 99, name: "x".into() };
    let remove = Some(wire::change::Change::Remove(name));
    assert_eq!(refused(change(remove)), BatchError::Malformed(Malformed("kind")));
}

#[test]
fn a_large_update_is_split_into_frames_and_reassembled() {
    let domain = |number: u32| Domain::parse(&format!("{number}.{}.example", "x".repeat(60))).unwrap();
    let tenant = |number: u32| {
        Item::Tenant(Arc::new(Tenant {
            id: TenantId(number),
            name: number.to_string().into(),
            domains: SenderDomains::Only((0..2000).map(domain).collect()),
            pool: PoolId(1),
            message_size_max: None,
        }))
    };
    let removed = vec![ItemName::new(Kind::Pool, "gone")];
    let delta = Delta { revision: 9, full: true, items: (0..20).map(tenant).collect(), removed };
    let frames = update_frames(&delta);
    assert!(frames.len() > 2);
    assert!(frames.iter().all(|frame| frame.encoded_len() <= FRAME_BYTES + 1024));
    let mut reader = UpdateReader::default();
    let mut whole: Vec<Delta> = frames.into_iter().filter_map(|frame| reader.read(frame).unwrap()).collect();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole.remove(0), delta);
    let nothing = Delta { revision: 9, ..Delta::default() };
    let frames = update_frames(&nothing);
    assert_eq!(frames.len(), 1);
    assert_eq!(reader.read(frames[0].clone()), Ok(Some(nothing)));
}
