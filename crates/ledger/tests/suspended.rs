//! What is suspended is not assigned, and why deliveries wait.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, sync::Arc};

use postroad_core::{
    Address, AttemptNumber, DeliveryId, Epoch, GroupId, MessageId, NodeId, Outcome, OutcomeKind, PoolId,
    Scope, SourceId, TenantId, Timestamp,
};
use postroad_ledger::{
    Dispatcher, Ledger, Limits,
    command::{
        Accept, Action, AttemptId, ChangeRequest, Command, Content, NewRecipient, NextTry, Report,
        SourceGrant, Which,
    },
    dispatch::{WaitReason, Waiting, Weighted, Windows},
    lanes::{LanePause, LaneReport, LaneReports, RateState},
};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const POOL: PoolId = PoolId(1);

fn grant(source: u32) -> SourceGrant {
    SourceGrant { source: SourceId(source), epoch: Epoch(1), node: NodeId(u64::from(source)) }
}

/// A leader whose pool has the sources 1 and 2, each with a node of its own.
struct Leader {
    ledger: Ledger,
    dispatcher: Dispatcher,
    accepted: u64,
}

impl Leader {
    fn new() -> Self {
        let ledger = Ledger::new(Limits { event_bytes_max: 1 << 20, staged_chunks_max: 8 });
        let mut dispatcher = Dispatcher::rebuild(&ledger);
        let member = |source| Weighted { source: SourceId(source), weight: 1 };
        dispatcher.set_pools(&BTreeMap::from([(POOL, vec![member(1), member(2)])]), &[grant(1), grant(2)]);
        for source in 1..=2 {
            dispatcher.set_windows(grant(source), Windows { default: 10, sites: BTreeMap::new() });
        }
        Self { ledger, dispatcher, accepted: 0 }
    }

    fn apply(&mut self, command: Command) {
        let mut effects = Vec::new();
        self.accepted += 1;
        self.ledger.apply(self.accepted, NOW, command, &mut effects);
        effects.iter().for_each(|effect| self.dispatcher.handle(&self.ledger, effect));
    }

    /// Accepts a message of a tenant to a site.
    fn accept(&mut self, tenant: u32, site: &str) -> MessageId {
        let id = MessageId::new(NOW, GroupId(1), self.accepted);
        let recipient = NewRecipient {
            address: Address::parse("a@example.org").unwrap(),
            site: site.into(),
            pool: POOL,
            not_before: NOW,
            grant: None,
        };
        self.apply(Command::Accept(Box::new(Accept {
            id,
            tenant: TenantId(tenant),
            sender: None,
            recipients: vec![recipient],
            content: Content::Slot(0),
            size: 100,
            smtputf8: false,
            eight_bit: false,
            expires_at: Timestamp::MAX,
            subject: "".into(),
            origin: "".into(),
            traceparent: "".into(),
        })));
        id
    }

    fn accept_four(&mut self) {
        for _ in 0..4 {
            self.accept(1, "a");
        }
    }

    fn suspend(&mut self, scopes: &[Scope]) {
        self.dispatcher.set_suspended(&self.ledger, scopes.iter().cloned().collect());
    }

    /// Assigns all that may be assigned; returns the messages, with their sources.
    fn dispatch(&mut self) -> Vec<(MessageId, u32)> {
        let mut assigned = Vec::new();
        loop {
            let work = self.dispatcher.poll(&self.ledger, NOW, 64);
            if work.is_empty() {
                assigned.sort_unstable();
                return assigned;
            }
            for (assign, reservation) in work.assigns {
                assigned.push((assign.delivery.message, assign.grant.source.0));
                self.apply(Command::Assign(assign));
                self.dispatcher.release_reservation(&self.ledger, reservation, false);
            }
        }
    }

    /// The receiver of a message asks for a later attempt.
    fn defer(&mut self, (message, source): (MessageId, u32)) -> MessageId {
        let delivery = DeliveryId { message, recipient: 0 };
        let id = AttemptId { delivery, attempt: AttemptNumber(1), epoch: grant(source).epoch };
        let outcome = Outcome::new(OutcomeKind::Soft, None, 450, "4.2.0 later");
        let report =
            Report { id, outcome, remote: "".into(), tls: "".into(), started_at: NOW, ended_at: NOW };
        let next_try = NextTry { at: Timestamp::from_millis(NOW.as_millis() + 300_000), copies_max: 4 };
        self.apply(Command::Report(Box::new(report), next_try));
        message
    }

    fn why(&self, lanes: &LaneReports, tenant: u32, site: &str, due: Timestamp) -> WaitReason {
        let site: Arc<str> = site.into();
        let waiting = Waiting { tenant: TenantId(tenant), pool: POOL, site: &site, due };
        self.dispatcher.why_waits(&self.ledger, lanes, NOW, waiting)
    }
}

fn site(name: &str) -> Scope {
    Scope::Site(name.into())
}

fn lane(source: u32, site: &str) -> Scope {
    Scope::Lane { source: SourceId(source), site: site.into() }
}

/// With `scopes` suspended, mail of tenants 1 and 2 to sites `a` and `b` goes out only as `expected` says, as pairs of
/// tenant and site; and all of it when they are resumed.
fn check(scopes: &[Scope], expected: &[(u32, &str)]) {
    let mut leader = Leader::new();
    leader.suspend(scopes);
    let mut ids = BTreeMap::new();
    for (tenant, site) in [(1, "a"), (1, "b"), (2, "a"), (2, "b")] {
        ids.insert(leader.accept(tenant, site), (tenant, site));
    }
    let went = |assigned: Vec<(MessageId, u32)>| {
        let mut went: Vec<(u32, &str)> = assigned.iter().map(|(id, _)| ids[id]).collect();
        went.sort_unstable();
        went
    };
    assert_eq!(went(leader.dispatch()), expected, "{scopes:?}");
    assert_eq!(leader.dispatcher.ready_count(), 4 - expected.len(), "what waits is counted");
    assert_eq!(leader.dispatcher.ready_by_pool().values().sum::<u64>(), 4 - expected.len() as u64);
    assert_eq!(leader.dispatcher.next_wake(NOW), None, "it does not spin");
    leader.suspend(&[]);
    let rest = went(leader.dispatch());
    assert_eq!(rest.len(), 4 - expected.len(), "{scopes:?}: {rest:?}");
}

/// An operator changes every delivery of a message.
fn changed(message: MessageId, action: Action) -> Command {
    Command::Change(Box::new(ChangeRequest { message, which: Which::Every, action, actor: "ann".into() }))
}

#[test]
fn what_is_suspended_waits_and_the_rest_is_sent() {
    let all = &[(1, "a"), (1, "b"), (2, "a"), (2, "b")][..];
    check(&[], all);
    check(&[site("a")], &[(1, "b"), (2, "b")]);
    check(&[site("a"), site("b")], &[]);
    check(&[Scope::Tenant(TenantId(1))], &[(2, "a"), (2, "b")]);
    check(&[Scope::Tenant(TenantId(1)), Scope::Tenant(TenantId(2))], &[]);
    check(&[Scope::Tenant(TenantId(1)), site("a")], &[(2, "b")]);
    check(&[Scope::Pool(POOL)], &[]);
    check(&[Scope::Pool(PoolId(9)), site("c"), Scope::Source(SourceId(9))], all);
    // The other source sends it.
    check(&[Scope::Source(SourceId(1))], all);
    check(&[Scope::Source(SourceId(1)), Scope::Node(NodeId(2))], &[]);
    check(&[lane(1, "a"), lane(2, "a")], &[(1, "b"), (2, "b")]);
}

#[test]
fn a_suspended_source_or_lane_leaves_its_mail_to_the_other_sources() {
    let mut leader = Leader::new();
    leader.suspend(&[Scope::Source(SourceId(1))]);
    leader.accept_four();
    assert!(leader.dispatch().iter().all(|(_, source)| *source == 2));
    leader.suspend(&[lane(2, "a")]);
    leader.accept_four();
    assert!(leader.dispatch().iter().all(|(_, source)| *source == 1));
    leader.suspend(&[Scope::Node(NodeId(1))]);
    leader.accept_four();
    assert!(leader.dispatch().iter().all(|(_, source)| *source == 2));
}

#[test]
fn a_tenant_that_is_suspended_while_its_mail_waits_loses_none_and_delays_no_other() {
    let mut leader = Leader::new();
    // Nothing has room.
    leader.suspend(&[site("a")]);
    let first: Vec<MessageId> = (0..5).map(|_| leader.accept(1, "a")).collect();
    let other = leader.accept(2, "a");
    leader.dispatch();
    leader.suspend(&[site("a"), Scope::Tenant(TenantId(1))]);
    let late = leader.accept(1, "a");
    leader.dispatch();
    leader.suspend(&[Scope::Tenant(TenantId(1))]);
    assert_eq!(leader.dispatch().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [other]);
    // Another tenant's new mail is assigned as it is accepted.
    assert!(leader.dispatcher.offer(&leader.ledger, TenantId(1), POOL, "a").is_none());
    let offered = leader.dispatcher.offer(&leader.ledger, TenantId(2), POOL, "a");
    let (_, reservation) = offered.unwrap();
    leader.dispatcher.release_reservation(&leader.ledger, reservation, true);
    // A person who asks for a retry does not resume it.
    leader.apply(changed(first[0], Action::Retry));
    leader.apply(changed(first[1], Action::Cancel));
    assert_eq!(leader.dispatch(), []);
    leader.suspend(&[]);
    let sent: Vec<MessageId> = leader.dispatch().into_iter().map(|(id, _)| id).collect();
    let mut expected = [&first[..1], &first[2..], &[late]].concat();
    expected.sort_unstable();
    assert_eq!(sent, expected);
}

#[test]
fn a_retry_of_suspended_mail_goes_first_once_it_is_resumed() {
    let scopes =
        [Scope::Tenant(TenantId(1)), Scope::Pool(POOL), site("a"), lane(1, "a"), Scope::Node(NodeId(1))];
    for scope in scopes {
        let mut leader = Leader::new();
        leader.dispatcher.set_windows(grant(2), Windows::default());
        leader.dispatcher.clear_windows_of(NodeId(2));
        leader.suspend(std::slice::from_ref(&scope));
        let id = leader.accept(1, "a");
        leader.apply(changed(id, Action::Retry));
        assert_eq!(leader.dispatch(), [], "{scope:?}");
        // The lane is paused meanwhile: only a retry passes.
        leader.dispatcher.set_windows(grant(1), Windows::default());
        leader.accept(1, "a");
        leader.suspend(&[]);
        assert_eq!(leader.dispatch(), [(id, 1)], "{scope:?}");
    }
}

#[test]
fn retries_of_suspended_mail_wait_once_however_often_suspensions_change() {
    for scope in [Scope::Tenant(TenantId(1)), Scope::Pool(POOL), site("a")] {
        let mut leader = Leader::new();
        let ids: Vec<MessageId> = (0..3).map(|_| leader.accept(1, "a")).collect();
        let deferred: Vec<MessageId> =
            leader.dispatch().into_iter().map(|assigned| leader.defer(assigned)).collect();
        assert_eq!(deferred, ids);
        leader.suspend(std::slice::from_ref(&scope));
        ids.iter().for_each(|id| leader.apply(changed(*id, Action::Retry)));
        let changes = [vec![scope.clone(), site("x")], vec![scope.clone()]];
        for scopes in changes.iter().cycle().take(6) {
            assert_eq!(leader.dispatch(), [], "{scope:?}");
            assert_eq!(leader.dispatcher.ready_count(), 3, "{scope:?}");
            leader.suspend(scopes);
            // Twice without a poll between.
            leader.suspend(&[scope.clone(), site("y")]);
        }
        leader.apply(changed(ids[0], Action::Cancel));
        leader.dispatch();
        for step in [1, 2, 100] {
            while !leader.dispatcher.drop_stale(&leader.ledger, NOW, step) {}
            assert_eq!(leader.dispatcher.ready_count(), 2, "{scope:?}");
        }
        let steps = (1..).find(|_| leader.dispatcher.drop_stale(&leader.ledger, NOW, 1));
        assert_eq!(steps, Some(5), "{scope:?}: two entries of the queue, its end, and two retries");
        leader.suspend(&[]);
        let sent: Vec<MessageId> = leader.dispatch().into_iter().map(|(id, _)| id).collect();
        assert_eq!(sent, ids[1..], "{scope:?}");
        assert_eq!(leader.dispatcher.ready_count(), 0, "{scope:?}");
    }
}

#[test]
fn a_retry_whose_assignment_failed_while_it_was_suspended_again_is_not_lost() {
    let mut leader = Leader::new();
    let id = leader.accept(1, "a");
    let sent = leader.dispatch();
    leader.defer(sent[0]);
    let tenant = Scope::Tenant(TenantId(1));
    leader.suspend(&[tenant.clone(), site("x")]);
    leader.apply(changed(id, Action::Retry));
    assert_eq!(leader.dispatch(), []);
    leader.suspend(&[site("x")]);
    // Its entry in the queue is passed while it is proposed.
    let mut work = leader.dispatcher.poll(&leader.ledger, NOW, 64);
    assert_eq!((work.len(), leader.dispatcher.ready_count()), (1, 0));
    leader.suspend(&[tenant, site("x")]);
    leader.dispatcher.release_reservation(&leader.ledger, work.assigns.remove(0).1, true);
    assert_eq!(leader.dispatch(), []);
    assert_eq!(leader.dispatcher.ready_count(), 1);
    // It is resumed where no lane has room, also for a retry.
    (1..=2).for_each(|node| leader.dispatcher.clear_windows_of(NodeId(node)));
    leader.suspend(&[]);
    assert_eq!(leader.dispatch(), []);
    leader.dispatcher.set_windows(grant(1), Windows { default: 10, sites: BTreeMap::new() });
    assert_eq!(leader.dispatch(), [(id, 1)]);
}

#[test]
fn a_delivery_that_was_tried_while_an_older_entry_of_it_waited_keeps_its_distance() {
    let mut leader = Leader::new();
    leader.suspend(&[Scope::Tenant(TenantId(1))]);
    let id = leader.accept(1, "a");
    leader.dispatch();
    // It waits twice now: with its tenant, and as a retry.
    leader.apply(changed(id, Action::Retry));
    leader.dispatch();
    leader.suspend(&[]);
    let sent = leader.dispatch();
    assert_eq!(sent.len(), 1);
    assert_eq!(leader.defer(sent[0]), id);
    assert_eq!(leader.dispatch(), [], "it is not due yet");
    assert_eq!(leader.dispatcher.ready_count(), 0);
}

/// What is cancelled while it is suspended leaves the queues in bounded steps, and the rest keeps its order.
fn check_stale(scopes: &[Scope], sites: &[&str], step: usize) {
    let mut leader = Leader::new();
    leader.suspend(scopes);
    let accept = |leader: &mut Leader, at: usize| leader.accept(1 + at as u32 % 2, sites[at % sites.len()]);
    let ids: Vec<MessageId> = (0..100).map(|at| accept(&mut leader, at)).collect();
    leader.dispatch();
    let is_kept = |at: usize| at % 10 == 7;
    for (_, id) in ids.iter().enumerate().filter(|(at, _)| !is_kept(*at)) {
        leader.apply(changed(*id, Action::Cancel));
    }
    assert_eq!(leader.dispatcher.ready_count(), 100);
    let mut steps = 1;
    while !leader.dispatcher.drop_stale(&leader.ledger, NOW, step) {
        steps += 1;
    }
    assert!(steps >= 100 / step && steps <= 100 / step + 10, "{scopes:?}: {steps} steps of {step}");
    assert_eq!(leader.dispatcher.ready_count(), 10, "{scopes:?}");
    // The same is found by the next search, which drops nothing.
    while !leader.dispatcher.drop_stale(&leader.ledger, NOW, step) {}
    assert_eq!(leader.dispatcher.ready_count(), 10, "{scopes:?}");
    leader.suspend(&[]);
    let sent: Vec<MessageId> = leader.dispatch().into_iter().map(|(id, _)| id).collect();
    let kept: Vec<MessageId> = (0..100).filter(|at| is_kept(*at)).map(|at| ids[at]).collect();
    assert_eq!(sent, kept, "{scopes:?}");
}

#[test]
fn what_ends_while_it_is_suspended_leaves_the_queues_in_bounded_steps() {
    let both = [Scope::Tenant(TenantId(1)), Scope::Tenant(TenantId(2))];
    for step in [1, 7, 64, 1000] {
        check_stale(&[Scope::Pool(POOL)], &["a"], step);
        check_stale(&[Scope::Pool(POOL)], &["a", "b", "c", "d", "e"], step);
        check_stale(&[site("a"), Scope::Tenant(TenantId(2))], &["a"], step);
        check_stale(&both, &["a", "b", "c"], step);
    }
}

#[test]
fn the_longest_wait_is_that_of_mail_that_may_be_sent() {
    let mut leader = Leader::new();
    // No lane has room.
    for source in 1..=2 {
        leader.dispatcher.set_windows(grant(source), Windows::default());
    }
    let longest_due = |leader: &Leader| leader.dispatcher.longest_due(&leader.ledger);
    assert_eq!(longest_due(&leader), None);
    let first = leader.accept(1, "a");
    assert_eq!(longest_due(&leader), Some(NOW));
    let every_lane = [Scope::Source(SourceId(1)), lane(2, "a")];
    for scopes in [&[site("a")][..], &[Scope::Pool(POOL)], &[Scope::Tenant(TenantId(1))], &every_lane] {
        leader.suspend(scopes);
        assert_eq!(longest_due(&leader), None, "{scopes:?}");
        leader.suspend(&[]);
    }
    leader.suspend(&every_lane[..1]);
    assert_eq!(longest_due(&leader), Some(NOW), "the other source may send it");
    // An entry whose delivery has ended hides no other.
    leader.accept(1, "a");
    leader.apply(changed(first, Action::Cancel));
    assert_eq!(longest_due(&leader), Some(NOW));
}

#[test]
fn a_new_leader_finds_the_suspended_mail() {
    let mut leader = Leader::new();
    leader.suspend(&[Scope::Tenant(TenantId(1))]);
    let id = leader.accept(1, "a");
    leader.dispatch();
    leader.dispatcher = Dispatcher::rebuild(&leader.ledger);
    let member = |source| Weighted { source: SourceId(source), weight: 1 };
    leader.dispatcher.set_pools(&BTreeMap::from([(POOL, vec![member(1)])]), &[grant(1)]);
    leader.dispatcher.set_windows(grant(1), Windows { default: 10, sites: BTreeMap::new() });
    leader.suspend(&[Scope::Tenant(TenantId(1))]);
    assert_eq!(leader.dispatch(), []);
    leader.suspend(&[]);
    assert_eq!(leader.dispatch(), [(id, 1)]);
}

#[test]
fn every_reason_for_waiting_is_named_and_the_nearest_source_decides() {
    let mut leader = Leader::new();
    let mut lanes = LaneReports::default();
    let report = LaneReport {
        connections: 0,
        connections_max: 5,
        waiting: 0,
        delivered: 0,
        failed: 0,
        pause: None,
        rate: RateState::Ready,
    };
    let later = Timestamp::from_millis(NOW.as_millis() + 60_000);
    let source = SourceId(1);
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::Next);
    assert_eq!(leader.why(&lanes, 1, "a", later), WaitReason::NotDue(later));
    // One source has no room, and the other has.
    let closed = || Windows { default: 0, sites: BTreeMap::new() };
    leader.dispatcher.set_windows(grant(1), closed());
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::Next);
    leader.dispatcher.clear_windows_of(NodeId(2));
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::WindowFull { source });
    let mut note = |report: LaneReport| {
        lanes.note(NodeId(1), source, "a".into(), Some(report));
        leader.why(&lanes, 1, "a", NOW)
    };
    assert_eq!(note(report.clone()), WaitReason::WindowFull { source });
    let rated = |rate| LaneReport { rate, ..report.clone() };
    assert_eq!(note(rated(RateState::Never)), WaitReason::RateUsedUp { until: None, source });
    assert_eq!(note(rated(RateState::From(later))), WaitReason::RateUsedUp { until: Some(later), source });
    assert_eq!(note(rated(RateState::From(NOW))), WaitReason::WindowFull { source }, "it is over");
    let pause = |until| Some(LanePause { until, reason: "421 busy".into() });
    let paused = LaneReport { pause: pause(later), ..report.clone() };
    let expected = WaitReason::LanePaused { until: later, source, reason: "421 busy".into() };
    assert_eq!(note(paused), expected);
    assert_eq!(note(LaneReport { pause: pause(NOW), ..report.clone() }), WaitReason::WindowFull { source });
    // Of two lanes that wait, the one that is free first decides; one with a rate of 0 comes last.
    let soon = Timestamp::from_millis(NOW.as_millis() + 10_000);
    leader.dispatcher.set_windows(grant(2), closed());
    lanes.note(NodeId(1), source, "a".into(), Some(LaneReport { pause: pause(soon), ..report.clone() }));
    for rate in [RateState::Never, RateState::From(later)] {
        lanes.note(NodeId(2), SourceId(2), "a".into(), Some(LaneReport { rate, ..report.clone() }));
        let why = leader.why(&lanes, 1, "a", NOW);
        assert!(matches!(why, WaitReason::LanePaused { until, .. } if until == soon), "{why:?}");
    }
    leader.dispatcher.clear_windows_of(NodeId(1));
    leader.dispatcher.clear_windows_of(NodeId(2));
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::NotConnected);
    let suspended = |leader: &mut Leader, scopes: &[Scope]| {
        leader.suspend(scopes);
        leader.why(&lanes, 1, "a", NOW)
    };
    let both = [Scope::Source(SourceId(1)), lane(2, "a")];
    assert_eq!(suspended(&mut leader, &both[..1]), WaitReason::NotConnected, "the other one is nearer");
    assert_eq!(suspended(&mut leader, &both), WaitReason::Suspended(both[0].clone()));
    assert_eq!(
        leader.why(&lanes, 1, "a", later),
        WaitReason::Suspended(both[0].clone()),
        "it is not sent then"
    );
    for scope in [site("a"), Scope::Tenant(TenantId(1)), Scope::Pool(POOL)] {
        assert_eq!(
            suspended(&mut leader, std::slice::from_ref(&scope)),
            WaitReason::Suspended(scope.clone())
        );
        assert_eq!(leader.why(&lanes, 1, "a", later), WaitReason::Suspended(scope), "whenever it is due");
    }
    leader.suspend(&[]);
    let member = Weighted { source, weight: 1 };
    leader.dispatcher.set_pools(&BTreeMap::from([(POOL, vec![member])]), &[]);
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::NoOwner);
    let unused = Weighted { weight: 0, ..member };
    leader.dispatcher.set_pools(&BTreeMap::from([(POOL, vec![unused])]), &[grant(1)]);
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::NoSource);
    leader.dispatcher.set_pools(&BTreeMap::new(), &[]);
    assert_eq!(leader.why(&lanes, 1, "a", NOW), WaitReason::NoSource);
}
