//! Random commands on a directory, compared with a model that knows only names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lives;
mod model;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lives::{changes, life};
use model::Model;
use postroad_core::{Domain, NodeId, Scope, SourceId, TenantId, Timestamp};
use postroad_directory::{
    Caps, Change, Command, Delta, Directory, Item, ItemName, Kind, LaneLimits, Pattern, Put, PutCredential,
    PutLimits, PutPool, PutSource, PutSuspension, PutTenant, Rate, Refusal, Route, ScopeName, Secret,
    SenderDomains, TooOld, View,
};
use proptest::prelude::*;

fn view(directory: &Directory) -> View {
    View::empty().apply(directory.everything())
}

/// Invariants of every directory.
fn check_sound(directory: &Directory) {
    let view = view(directory);
    assert_eq!(view.revision(), directory.revision());
    for item in view.items() {
        match item {
            Item::Tenant(tenant) => assert!(view.pool(tenant.pool).is_some()),
            Item::Credential(credential) => assert!(view.tenant(credential.tenant).is_some()),
            Item::Pool(pool) => assert!(pool.members.iter().all(|(id, _)| view.source(*id).is_some())),
            Item::Limits(limits) => assert!(limits.source.is_none_or(|id| view.source(id).is_some())),
            Item::Source(source) => {
                let latest = source.owner.map(|owner| (view.incarnation(owner.node), owner.incarnation));
                assert!(latest.is_none_or(|(latest, owner)| latest == Some(owner)));
            }
            Item::Suspension(suspension) => assert!(match &suspension.scope {
                Scope::Source(id) | Scope::Lane { source: id, .. } => view.source(*id).is_some(),
                Scope::Pool(id) => view.pool(*id).is_some(),
                Scope::Tenant(id) => view.tenant(*id).is_some(),
                Scope::Site(_) | Scope::Node(_) => true,
            }),
            Item::Route(_) | Item::Node(_) => {}
        }
        assert_eq!(view.item(item.name().kind, &item.name().name), Some(item));
    }
    assert!(view.item(Kind::Limits, "default").is_some());
}

/// The numbers of each kind with their names, and the highest epoch of each source.
#[derive(Default)]
struct History {
    numbers: BTreeMap<(Kind, u32), Arc<str>>,
    epochs: BTreeMap<SourceId, u64>,
    owners: BTreeMap<(SourceId, u64), Option<postroad_directory::Owner>>,
}

impl History {
    fn note(&mut self, directory: &Directory, existed: &dyn Fn(&ItemName) -> bool) {
        for item in directory.items() {
            let number = match item {
                Item::Tenant(tenant) => tenant.id.0,
                Item::Pool(pool) => pool.id.0,
                Item::Source(source) => source.id.0,
                _ => continue,
            };
            let name = item.name();
            let is_new = !existed(&name);
            let known = self.numbers.insert((name.kind, number), name.name.clone());
            assert!(known.is_none() || !is_new, "number {number} was given twice: {name}");
            assert!(known.is_none_or(|known| known == name.name));
            if let Item::Source(source) = item {
                let epoch = self.epochs.entry(source.id).or_default();
                assert!(source.epoch.0 >= *epoch, "the epoch of {name} fell");
                *epoch = source.epoch.0;
                let owner = self.owners.entry((source.id, source.epoch.0)).or_insert(source.owner);
                assert_eq!(*owner, source.owner, "one epoch of {name} had two owners");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_directory_agrees_with_the_model(commands in life(1..60)) {
        let (mut directory, mut model, mut history) = (Directory::new(), Model::default(), History::default());
        let mut follower = View::empty();
        for command in &commands {
            let before = directory.clone();
            let reply = directory.apply(command);
            prop_assert_eq!(reply.is_ok(), model.apply(command), "{:?}: {:?}", command, reply);
            match reply {
                Ok(done) => {
                    prop_assert_eq!(done.revision, directory.revision());
                    let rose = directory.revision() - before.revision();
                    prop_assert_eq!(rose, u64::from(done.changed > 0));
                    prop_assert_eq!(done.changed == 0, directory == before);
                }
                Err(_) => prop_assert_eq!(&directory, &before),
            }
            model.check(&view(&directory));
            check_sound(&directory);
            history.note(&directory, &|name| before.item(name).is_some());
            // The follower misses some revisions.
            if directory.revision() % 3 != 0 {
                follower = follower.apply(directory.changes_since(follower.revision()).unwrap());
                prop_assert_eq!(&follower, &view(&directory));
            }
        }
    }

    #[test]
    fn a_restored_snapshot_equals_the_directory(commands in life(0..40), more in changes()) {
        let mut directory = Directory::new();
        for command in &commands {
            let _ = directory.apply(command);
        }
        let bytes = directory.encode();
        let mut restored = Directory::restore(&bytes).unwrap();
        prop_assert_eq!(&restored, &directory);
        prop_assert_eq!(restored.state_hash(), directory.state_hash());
        let command = Command::Change(more);
        prop_assert_eq!(restored.apply(&command), directory.apply(&command));
        prop_assert_eq!(restored.encode(), directory.encode());
        for len in 0..bytes.len() {
            prop_assert!(Directory::restore(&bytes[..len]).is_err(), "cut at {}", len);
        }
    }

    #[test]
    fn a_check_predicts_the_result_of_a_change(
        commands in life(0..20), changes in changes()
    ) {
        let mut directory = Directory::new();
        for command in &commands {
            let _ = directory.apply(command);
        }
        let checked = directory.check(&changes);
        let refusals = view(&directory).refusals(&changes);
        prop_assert_eq!(refusals.first(), checked.as_ref().err());
        let applied = directory.apply(&Command::Change(changes.clone()));
        prop_assert_eq!(checked.map(|done| done.changed), applied.clone().map(|done| done.changed));
        // Repeating it changes nothing.
        if applied.is_ok() {
            let again = directory.apply(&Command::Change(changes)).unwrap();
            prop_assert_eq!((again.changed, again.revision), (0, directory.revision()));
        }
    }

    #[test]
    fn damaged_snapshots_do_not_panic(mut bytes in Just(full().encode()), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Directory::restore(&bytes);
    }
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn source(name: &str) -> Change {
    Change::Put(Put::Source(PutSource {
        name: name.into(),
        address: Some("192.0.2.1".parse().unwrap()),
        helo: domain("mail.example"),
        nodes: vec![NodeId(2), NodeId(1), NodeId(2)],
    }))
}

fn pool(name: &str, source: &str) -> Change {
    Change::Put(Put::Pool(PutPool { name: name.into(), members: vec![(source.into(), 3)] }))
}

fn tenant(name: &str, pool: &str) -> Change {
    let domains = SenderDomains::Only([domain("a.example"), domain("b.example")].into());
    Change::Put(Put::Tenant(PutTenant {
        name: name.into(),
        domains,
        pool: pool.into(),
        message_size_max: Some(1000),
    }))
}

fn credential(name: &str, secret: Secret, networks: &[&str]) -> Change {
    let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    Change::Put(Put::Credential(PutCredential { name: name.into(), tenant: "t".into(), secret, networks }))
}

const NETWORK: Secret = Secret::Network { relay: false };

fn login(login: &str) -> Secret {
    Secret::Login { login: login.into(), verifier: "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA".into() }
}

fn limits(name: &str, source: Option<&str>, site: Option<&str>, caps: Caps) -> Change {
    let (source, site) = (source.map(Into::into), site.map(Into::into));
    Change::Put(Put::Limits(PutLimits { name: name.into(), source, site, caps }))
}

fn route(pattern: Pattern, host: &str) -> Change {
    Change::Put(Put::Route(Route { pattern, host: host.into(), port: 2525 }))
}

/// A directory with an item of every kind, and every field in use.
fn full() -> Directory {
    let mut directory = Directory::new();
    let rates = [Rate { messages: 5, per: Duration::from_secs(60) }];
    let caps = Caps { window: Some(7), rates: Some(rates.into()), ..Caps::default() };
    let changes = vec![
        tenant("t", "p"),
        credential("c1", login("alice"), &[]),
        credential("c2", Secret::ApiKey { sha256: [7; 32] }, &["10.0.0.0/8"]),
        credential("c3", NETWORK, &["127.0.0.9/8", "::1/128", "127.1.0.0/16"]),
        pool("p", "s"),
        source("s"),
        limits("site", None, Some("slow.example"), caps),
        limits(
            "source",
            Some("s"),
            None,
            Caps { connections_max: Some(2), window: Some(9), ..Caps::default() },
        ),
        limits("lane", Some("s"), Some("slow.example"), Caps { connections_max: Some(1), ..Caps::default() }),
        route(Pattern::Exact(domain("sink.example")), "127.0.0.1"),
        route(Pattern::Any, "relay.example"),
        Change::Remove(ItemName::new(Kind::Pool, "absent")),
    ];
    directory.apply(&Command::Change(changes)).unwrap();
    directory.apply(&Command::Claim { node: NodeId(1), incarnation: 11 }).unwrap();
    let grant = Command::Grant { source: SourceId(1), node: NodeId(1), incarnation: 11 };
    directory.apply(&grant).unwrap();
    directory
}

#[test]
fn a_view_answers_every_lookup() {
    let view = view(&full());
    let name = |found: Option<&Arc<postroad_directory::Credential>>| found.map(|c| c.name.to_string());
    assert_eq!(name(view.login("alice")).as_deref(), Some("c1"));
    assert_eq!(name(view.login("bob")), None);
    assert_eq!(name(view.api_key(&[7; 32])).as_deref(), Some("c2"));
    for (client, expected) in [
        ("127.0.0.1", Some("c3")),
        ("127.1.2.3", Some("c3")),
        ("::ffff:127.0.0.1", Some("c3")),
        ("::1", Some("c3")),
        ("::2", None),
        ("192.0.2.1", None),
    ] {
        assert_eq!(name(view.network(client.parse().unwrap())).as_deref(), expected, "{client}");
    }
    let key = view.api_key(&[7; 32]).unwrap();
    assert!(key.counts_at("10.1.1.1".parse().unwrap()) && !key.counts_at("11.1.1.1".parse().unwrap()));
    let tenant = view.tenant(key.tenant).unwrap();
    assert!(tenant.domains.allows(&domain("a.example")) && !tenant.domains.allows(&domain("x.a.example")));
    assert_eq!(view.pool(tenant.pool).unwrap().members, [(SourceId(1), 3)]);
    assert_eq!(view.sources_of(NodeId(1), 11).map(|source| source.epoch.0).collect::<Vec<_>>(), [1]);
    assert_eq!(view.sources_of(NodeId(1), 12).count(), 0);
    assert_eq!(view.route(&domain("sink.example")).unwrap().site(), "route:127.0.0.1:2525");
    assert_eq!(&*view.route(&domain("other.example")).unwrap().host, "relay.example");
}

/// An open relay that an earlier version stored is closed by the upgrade.
#[test]
fn a_stored_network_that_is_too_wide_admits_nobody() {
    let stored = postroad_directory::Credential {
        name: "open".into(),
        tenant: TenantId(1),
        secret: Secret::Network { relay: true },
        networks: vec!["0.0.0.0/0".parse().unwrap(), "192.0.2.0/24".parse().unwrap()],
    };
    let items = vec![Item::Credential(Arc::new(stored))];
    let view = View::empty().apply(Delta { revision: 1, full: true, items, removed: Vec::new() });
    assert!(view.network("198.51.100.1".parse().unwrap()).is_none());
    assert!(view.network("192.0.2.1".parse().unwrap()).is_some());
}

#[test]
fn each_cap_comes_from_the_narrowest_scope_that_sets_it() {
    let view = view(&full());
    let lane = |source, site| {
        let LaneLimits { connections_max, window, rates, .. } = view.lane_limits(SourceId(source), site);
        (connections_max, window, rates.len())
    };
    assert_eq!(lane(9, "other.example"), (20, 500, 0));
    assert_eq!(lane(1, "other.example"), (2, 9, 0));
    assert_eq!(lane(9, "slow.example"), (20, 7, 1));
    assert_eq!(lane(1, "slow.example"), (1, 7, 1));
    assert_eq!(View::empty().lane_limits(SourceId(1), "x"), LaneLimits::default());
}

/// A directory with an item of every kind refuses `change` with this error.
fn refused(change: Change) -> Refusal {
    let mut directory = full();
    directory.apply(&Command::Change(vec![change])).unwrap_err()
}

#[test]
fn a_change_that_breaks_a_rule_is_refused_with_the_rule() {
    let check = |change, expected: &str| assert_eq!(refused(change).to_string(), expected);
    check(tenant("u", "nowhere"), "`tenant u` refers to `pool nowhere`, which does not exist");
    check(
        Change::Remove(ItemName::new(Kind::Source, "s")),
        "`source s` cannot be removed: `pool p` refers to it",
    );
    check(Change::Remove(ItemName::default_limits()), "`limits default`: always exists");
    check(Change::Remove(ItemName::node(NodeId(1))), "`node 1`: is removed when its lease ends");
    check(credential("new", login("alice"), &[]), "`credential new` collides with `credential c1`");
    check(credential("new", NETWORK, &["127.0.0.0/8"]), "`credential new` collides with `credential c3`");
    check(credential("new", NETWORK, &[]), "`credential new`: expected at least one network");
    for wide in ["0.0.0.0/0", "0.0.0.0/7", "::/0", "2000::/15"] {
        for secret in [NETWORK, login("wide")] {
            check(
                credential("new", secret, &["10.0.0.0/8", wide]),
                "`credential new`: expected networks no wider than /8 (IPv4) or /16 (IPv6): a wider one admits strangers",
            );
        }
    }
    check(limits("x", Some("s"), None, Caps::default()), "`limits x` collides with `limits source`");
    check(
        limits("default", Some("s"), None, Caps::default()),
        "`limits default`: expected the default limits to be for every lane",
    );
    check(
        tenant("two words", "p"),
        "`tenant two words`: expected a name of 1 to 64 letters, digits, `-`, `_`, `.` and `@`",
    );
    check(
        route(Pattern::Any, "UPPER.example"),
        "`route *`: expected a host name in lower case, or an address",
    );
}

#[test]
fn every_rule_that_a_change_breaks_is_named_and_the_directory_refuses_it_by_the_first() {
    let changes = [
        Change::Remove(ItemName::new(Kind::Source, "s")),
        Change::Remove(ItemName::new(Kind::Tenant, "t")),
        tenant("u", "nowhere"),
        credential("one", login("alice"), &[]),
        credential("two", NETWORK, &["127.0.0.0/8"]),
    ];
    let mut directory = full();
    let refusals = view(&directory).refusals(&changes);
    let named: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    let expected = [
        "`tenant u` refers to `pool nowhere`, which does not exist",
        "`credential one` refers to `tenant t`, which does not exist",
        "`credential two` refers to `tenant t`, which does not exist",
        "`tenant t` cannot be removed: `credential c1` refers to it",
        "`source s` cannot be removed: `pool p` refers to it",
    ];
    assert_eq!(named, expected);
    let first = directory.apply(&Command::Change(changes.to_vec())).unwrap_err();
    assert_eq!(Some(&first), refusals.first());

    let collisions = &changes[3..];
    let named: Vec<String> = view(&directory).refusals(collisions).iter().map(ToString::to_string).collect();
    let expected =
        ["`credential one` collides with `credential c1`", "`credential two` collides with `credential c3`"];
    assert_eq!(named, expected);
}

#[test]
fn a_source_is_granted_once_and_only_to_the_latest_incarnation() {
    let mut directory = full();
    let grant = |node, incarnation| Command::Grant { source: SourceId(1), node: NodeId(node), incarnation };
    directory.apply(&Command::Claim { node: NodeId(2), incarnation: 22 }).unwrap();
    directory.apply(&Command::Claim { node: NodeId(3), incarnation: 33 }).unwrap();
    assert_eq!(directory.apply(&grant(2, 22)), Err(Refusal::NotGrantable), "it has an owner");
    directory.apply(&Command::Revoke { node: NodeId(1), incarnation: 11 }).unwrap();
    assert_eq!(
        directory.apply(&grant(1, 11)),
        Err(Refusal::Superseded),
        "a revoked incarnation gets nothing"
    );
    assert_eq!(directory.apply(&grant(2, 21)), Err(Refusal::Superseded));
    assert_eq!(directory.apply(&grant(3, 33)), Err(Refusal::NotGrantable), "it may not own it");
    directory.apply(&grant(2, 22)).unwrap();
    assert_eq!(view(&directory).source(SourceId(1)).unwrap().epoch.0, 3);
}

fn suspension(scope: ScopeName, until: Option<u64>) -> PutSuspension {
    PutSuspension {
        scope,
        reason: "blocked: ticket 7".into(),
        actor: "operator/1 (eve@laptop)".into(),
        since: Timestamp::from_millis(1000),
        until: until.map(Timestamp::from_millis),
    }
}

fn suspend(put: PutSuspension) -> Change {
    Change::Put(Put::Suspension(put))
}

#[test]
fn a_suspension_names_its_scope_and_is_in_force_until_it_is_removed() {
    let mut directory = full();
    let scopes = [
        (ScopeName::Site("slow.example".into()), Scope::Site("slow.example".into()), "site slow.example"),
        (
            ScopeName::Lane { source: "s".into(), site: "route:sink:2525".into() },
            Scope::Lane { source: SourceId(1), site: "route:sink:2525".into() },
            "lane s/route:sink:2525",
        ),
        (ScopeName::Source("s".into()), Scope::Source(SourceId(1)), "source s"),
        (ScopeName::Pool("p".into()), Scope::Pool(postroad_core::PoolId(1)), "pool p"),
        (ScopeName::Tenant("t".into()), Scope::Tenant(TenantId(1)), "tenant t"),
        (ScopeName::Node(NodeId(7)), Scope::Node(NodeId(7)), "node 7"),
    ];
    for (name, scope, text) in scopes {
        let put = Command::Change(vec![suspend(suspension(name.clone(), None))]);
        assert_eq!(directory.apply(&put).unwrap().changed, 1);
        let held = view(&directory).suspension(&scope).cloned().unwrap();
        assert_eq!((&*held.name, &*held.reason, held.until), (text, "blocked: ticket 7", None));
        assert_eq!(Directory::restore(&directory.encode()).unwrap(), directory);
        directory.apply(&Command::Change(vec![Change::Remove(name.item())])).unwrap();
        assert_eq!(view(&directory).suspensions().count(), 0);
    }
}

#[test]
fn a_suspension_that_was_prolonged_does_not_end_at_its_first_end() {
    let mut directory = full();
    let site = ScopeName::Site("slow.example".into());
    let put = |until| Command::Change(vec![suspend(suspension(site.clone(), until))]);
    let end = |until| Command::EndSuspension { name: site.item().name, until: Timestamp::from_millis(until) };
    directory.apply(&put(Some(2000))).unwrap();
    directory.apply(&put(Some(3000))).unwrap();
    assert_eq!(directory.apply(&end(2000)).unwrap().changed, 0);
    directory.apply(&put(None)).unwrap();
    assert_eq!(directory.apply(&end(3000)).unwrap().changed, 0, "it has no end now");
    directory.apply(&put(Some(4000))).unwrap();
    assert_eq!(directory.apply(&end(4000)).unwrap().changed, 1);
    assert_eq!(directory.apply(&end(4000)).unwrap().changed, 0, "repeated");
}

#[test]
fn a_suspension_that_breaks_a_rule_is_refused_with_the_rule() {
    let check = |put, expected: &str| assert_eq!(refused(suspend(put)).to_string(), expected);
    let site = || suspension(ScopeName::Site("slow.example".into()), None);
    check(
        suspension(ScopeName::Source("x".into()), None),
        "`suspension source x` refers to `source x`, which does not exist",
    );
    check(
        suspension(ScopeName::Lane { source: "x".into(), site: "y".into() }, None),
        "`suspension lane x/y` refers to `source x`, which does not exist",
    );
    check(
        suspension(ScopeName::Site("Slow.example".into()), None),
        "`suspension site Slow.example`: expected a site of 1 to 255 characters in lower case",
    );
    check(
        suspension(ScopeName::Site("slow.example".into()), Some(1000)),
        "`suspension site slow.example`: expected an end after its beginning",
    );
    for reason in ["", "  ", "two\nlines", &*"x".repeat(257)] {
        check(
            PutSuspension { reason: reason.into(), ..site() },
            "`suspension site slow.example`: expected a reason of 1 to 256 bytes, in one line",
        );
    }
    check(
        PutSuspension { actor: "".into(), ..site() },
        "`suspension site slow.example`: expected the name of who suspends it, of 1 to 128 bytes, in one line",
    );
}

#[test]
fn what_is_suspended_cannot_be_removed_before_it_is_resumed() {
    let check = |item: ItemName, scope: ScopeName, expected: &str| {
        let mut directory = full();
        let changes = vec![tenant("u", "p"), source("x"), suspend(suspension(scope.clone(), None))];
        directory.apply(&Command::Change(changes)).unwrap();
        let remove = Command::Change(vec![Change::Remove(item)]);
        assert_eq!(directory.apply(&remove).unwrap_err().to_string(), expected);
        directory.apply(&Command::Change(vec![Change::Remove(scope.item())])).unwrap();
        directory.apply(&remove).unwrap();
    };
    check(
        ItemName::new(Kind::Tenant, "u"),
        ScopeName::Tenant("u".into()),
        "`tenant u` cannot be removed while `tenant u` is suspended",
    );
    check(
        ItemName::new(Kind::Source, "x"),
        ScopeName::Lane { source: "x".into(), site: "slow.example".into() },
        "`source x` cannot be removed while `lane x/slow.example` is suspended",
    );
}

#[test]
fn a_reader_that_missed_too_much_gets_everything() {
    let mut directory = full();
    let start = directory.revision();
    for _ in 0..2100 {
        directory.apply(&Command::Change(vec![source("x"), source("y")])).unwrap();
        let gone = ["x", "y"].map(|name| Change::Remove(ItemName::new(Kind::Source, name)));
        directory.apply(&Command::Change(gone.into())).unwrap();
    }
    assert_eq!(directory.changes_since(start), Err(TooOld));
    let delta = directory.changes_since(directory.revision() - 1).unwrap();
    assert_eq!((delta.items.len(), delta.removed.len()), (0, 2));
    assert!(directory.changes_since(directory.revision() + 5).unwrap().is_empty());
    assert_eq!(Directory::restore(&directory.encode()).unwrap(), directory);
}

#[test]
fn a_snapshot_of_the_first_version_can_still_be_read() {
    let kept = include_bytes!("snapshot-v1.bin");
    assert_eq!(Directory::restore(kept).unwrap(), full());
    assert_eq!(full().encode(), kept);
}
