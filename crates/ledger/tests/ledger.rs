//! Random commands on a ledger: no delivery is lost or ends twice, and replicas agree.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::{
    Address, AttemptNumber, BounceClass, DeliveryId, DeliveryState, Epoch, FinalState, GroupId, MessageId,
    NodeId, Outcome, OutcomeKind, Party, PoolId, Retry, SourceId, TenantId, Timestamp,
};
use postroad_ledger::{
    DeliveryView, Dispatcher, FIRST, Ledger, Limits, Selected, Selection,
    command::{
        Accept, Action, Assign, AttemptId, Change, ChangeRequest, Command, Content, Effect, NewRecipient,
        NextTry, Refusal, Reply, Report, SourceGrant, Which,
    },
    dispatch::{Weighted, Windows},
    event::{AttemptEvent, Changed, EventKind, NextState},
    summary::{GroupBy, GroupKey, Summary},
};
use proptest::prelude::*;

const LIMITS: Limits = Limits { event_bytes_max: 1 << 20, staged_chunks_max: 8 };
const START: u64 = 1_800_000_000_000;
const COPIES_MAX: u8 = 3;

/// One random step; numbers pick among what exists at that moment.
#[derive(Clone, Copy, Debug)]
enum Step {
    Accept { recipients: u8, site: u8, assign: bool, ttl: u16 },
    AcceptAgain(u8),
    Assign { pick: u8, epoch: u8 },
    Report { pick: u8, kind: u8, stale: bool },
    ReportAgain(u8),
    Return(u8),
    Reclaim(u8),
    Cancel(u8),
    Hold(u8),
    Release(u8),
    Retry(u8),
    Expire,
    Consume(u8),
    Pass(u16),
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop_oneof![
        4 => (1_u8..4, 0_u8..3, any::<bool>(), 0_u16..200)
            .prop_map(|(recipients, site, assign, ttl)| Accept { recipients, site, assign, ttl }),
        1 => any::<u8>().prop_map(AcceptAgain),
        4 => (any::<u8>(), 0_u8..3).prop_map(|(pick, epoch)| Assign { pick, epoch }),
        5 => (any::<u8>(), 1_u8..8, prop::bool::weighted(0.2)).prop_map(|(pick, kind, stale)| Report { pick, kind, stale }),
        1 => any::<u8>().prop_map(ReportAgain),
        1 => any::<u8>().prop_map(Return),
        1 => (0_u8..4).prop_map(Reclaim),
        1 => any::<u8>().prop_map(Cancel),
        1 => any::<u8>().prop_map(Hold),
        1 => any::<u8>().prop_map(Release),
        1 => any::<u8>().prop_map(Retry),
        1 => Just(Expire),
        1 => any::<u8>().prop_map(Consume),
        2 => (0_u16..100).prop_map(Pass),
        1 => Just(Restore),
    ]
}

fn changing(message: MessageId, which: Which, action: Action, actor: &str) -> Command {
    Command::Change(Box::new(ChangeRequest { message, which, action, actor: actor.into() }))
}

/// Every page of a selection.
fn select_all(ledger: &Ledger, wanted: &Selection, examined: usize, selected: usize) -> Vec<Selected> {
    let (mut found, mut from) = (Vec::new(), Some(FIRST));
    while let Some(next) = from {
        let page = ledger.select(wanted, next, examined, selected);
        assert!(page.selected.len() <= selected && page.examined <= examined);
        found.extend(page.selected);
        from = page.next;
    }
    found
}

/// A delivery that has not ended.
fn view(ledger: &Ledger, id: DeliveryId) -> Option<DeliveryView> {
    let view = ledger.message(id.message)?.deliveries.swap_remove(id.recipient as usize);
    (!view.state.is_final()).then_some(view)
}

/// What people changed: the recipient, what, and who.
fn changes(ledger: &Ledger) -> Vec<(u32, Changed, Box<str>)> {
    let changes = ledger.events(1).filter_map(|event| match &event.kind {
        EventKind::Changed(changed) => {
            Some((changed.delivery.recipient, changed.what, changed.actor.clone()))
        }
        _ => None,
    });
    changes.collect()
}

fn every(message: MessageId, action: Action) -> Command {
    changing(message, Which::Every, action, "ann")
}

/// A ledger, a replica that is sometimes restored from a snapshot, and what the outside world knows.
struct World {
    ledger: Ledger,
    twin: Ledger,
    index: u64,
    now: u64,
    messages: Vec<Command>,
    /// Every attempt that was ever assigned.
    attempts: Vec<(AttemptId, SourceGrant)>,
    reports: Vec<Command>,
    accepted: BTreeSet<DeliveryId>,
    ended: BTreeMap<DeliveryId, FinalState>,
    next_event: u64,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(LIMITS),
            twin: Ledger::new(LIMITS),
            index: 0,
            now: START,
            messages: Vec::new(),
            attempts: Vec::new(),
            reports: Vec::new(),
            accepted: BTreeSet::new(),
            ended: BTreeMap::new(),
            next_event: 1,
        }
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        let at = Timestamp::from_millis(self.now);
        let (mut effects, mut twin_effects) = (Vec::new(), Vec::new());
        let reply = self.ledger.apply(self.index, at, command.clone(), &mut effects);
        assert_eq!(self.twin.apply(self.index, at, command, &mut twin_effects), reply);
        assert_eq!(self.twin.state_hash(), self.ledger.state_hash());
        for effect in &effects {
            if let Effect::Assigned { id, grant, .. } = effect {
                self.attempts.push((*id, *grant));
            }
        }
        self.check_what_ended_is_known(&effects);
        self.read_events();
        self.check_conservation();
    }

    /// The leader's log names the recipient of everything that ended, though its message may have left the ledger.
    fn check_what_ended_is_known(&self, effects: &[Effect]) {
        for event in self.ledger.events(self.next_event) {
            let delivery = match &event.kind {
                EventKind::Ended(delivery, _) => *delivery,
                EventKind::Changed(changed) => changed.delivery,
                EventKind::Attempt(attempt) => attempt.delivery,
                EventKind::Accepted(_) | EventKind::Gap { .. } => continue,
            };
            let finished = effects.iter().find_map(|effect| match effect {
                Effect::Finished(finished) if finished.id() == delivery.message => Some(finished),
                _ => None,
            });
            let facts = self
                .ledger
                .delivery(delivery)
                .or_else(|| finished.and_then(|finished| finished.delivery(delivery.recipient)));
            let facts = facts.unwrap_or_else(|| panic!("nothing is known of {delivery}"));
            assert!(
                facts.address.starts_with(&format!("r{}@{}", delivery.recipient, facts.site)),
                "{facts:?}"
            );
        }
    }

    /// Reads the events as a consumer would, and checks that they make sense.
    fn read_events(&mut self) {
        for event in self.ledger.events(self.next_event) {
            assert_eq!(event.sequence, self.next_event, "events are gapless");
            self.next_event += 1;
            let ended = match &event.kind {
                EventKind::Accepted(accepted) => {
                    for recipient in (0..).take(accepted.recipients.len()) {
                        let delivery = DeliveryId { message: accepted.message, recipient };
                        assert!(self.accepted.insert(delivery), "accepted once");
                    }
                    None
                }
                EventKind::Attempt(attempt) => {
                    let id = AttemptId {
                        delivery: attempt.delivery,
                        attempt: attempt.attempt,
                        epoch: attempt.epoch,
                    };
                    assert!(
                        self.attempts
                            .iter()
                            .any(|(known, _)| known.delivery == id.delivery && known.attempt == id.attempt)
                    );
                    assert!((1..=attempt.attempt.0).contains(&attempt.number));
                    match attempt.next_state {
                        NextState::Ended(end) => Some((attempt.delivery, end)),
                        NextState::Unchanged => None,
                        NextState::Retry(_) | NextState::Held => {
                            assert!(!self.ended.contains_key(&attempt.delivery), "no event follows the end");
                            None
                        }
                    }
                }
                EventKind::Ended(delivery, end) => Some((*delivery, *end)),
                EventKind::Changed(changed) => {
                    assert!(!self.ended.contains_key(&changed.delivery), "no event follows the end");
                    assert!(!changed.actor.is_empty());
                    let cancelled = changed.what == Changed::Cancelled;
                    cancelled.then_some((changed.delivery, FinalState::Cancelled))
                }
                EventKind::Gap { .. } => panic!("events are dropped only at the bound"),
            };
            if let Some((delivery, end)) = ended {
                assert!(self.accepted.contains(&delivery), "only accepted deliveries end");
                assert_eq!(self.ended.insert(delivery, end), None, "exactly one final state per delivery");
            }
        }
    }

    /// I12: every accepted delivery has ended or is in the ledger, and the counts add up.
    fn check_conservation(&self) {
        let counts = self.ledger.counts();
        let here = counts.queued + counts.sending + counts.held;
        assert_eq!(self.accepted.len() as u64, self.ended.len() as u64 + here);
        let of_tenants: u64 = (1..=3).map(|tenant| self.ledger.messages_of(TenantId(tenant))).sum();
        assert_eq!(of_tenants, self.ledger.message_count() as u64);
        assert_eq!(self.twin.messages_of(TenantId(1)), self.ledger.messages_of(TenantId(1)));
        for ledger in [&self.ledger, &self.twin] {
            assert_eq!(ledger.open_by_site().map(|(_, open)| open).sum::<u64>(), here);
            assert_eq!(ledger.open_by_tenant().map(|(_, open)| open).sum::<u64>(), here);
        }
        for delivery in &self.accepted {
            let view = self.ledger.message(delivery.message);
            let state = view.map(|view| view.deliveries[delivery.recipient as usize].state);
            match (state, self.ended.get(delivery)) {
                (None, Some(_)) => {}
                (Some(DeliveryState::Final(end)), Some(known)) => assert_eq!(end, *known),
                (Some(DeliveryState::Final(_)), None) | (None, None) => panic!("{delivery} is lost"),
                (Some(_), known) => assert_eq!(known, None),
            }
        }
    }

    /// What people are shown is what is there: counted in groups, and selected in pages of any size.
    fn check_queries(&self) {
        let views: Vec<_> =
            self.accepted.iter().filter_map(|id| Some((*id, view(&self.ledger, *id)?))).collect();
        let mut summary = Summary::new(GroupBy::Site, 2);
        while summary.count(&self.twin, |queued| (queued.due.as_millis() <= self.now).then_some("due")) {}
        let (groups, other) = summary.top(1);
        assert!(groups.len() <= 1);
        let counted = groups.iter().map(|(_, depth)| depth.total()).sum::<u64>() + other.total();
        assert_eq!(counted, views.len() as u64);
        for (key, depth) in &groups {
            let GroupKey::Site(site) = key else { panic!("{key:?}") };
            let here = views.iter().map(|(_, view)| view).filter(|view| view.site == *site);
            let count = |state| here.clone().filter(|view| view.state == state).count() as u64;
            assert_eq!(
                [depth.queued, depth.sending, depth.deferred, depth.held],
                [DeliveryState::Queued, DeliveryState::Sending, DeliveryState::Deferred, DeliveryState::Held]
                    .map(count)
            );
            assert_eq!(depth.next_due, here.clone().filter_map(|view| view.due_at).min());
            assert_eq!(
                depth.last.as_ref().map(|last| last.at),
                here.clone().filter_map(|view| view.last_at).max()
            );
            let due = depth.waiting.values().sum::<u64>();
            assert_eq!(due + depth.not_due, depth.queued + depth.deferred);
        }
        let wanted = Selection {
            site: Some("site1.example".into()),
            states: vec![DeliveryState::Queued, DeliveryState::Held],
            sender: Some("s@SENDER.example".into()),
            sender_domain: Some("sender.example".into()),
            tenant: Some(TenantId(1)),
            pool: Some(PoolId(1)),
            ..Selection::default()
        };
        let expected = views
            .iter()
            .filter(|(_, view)| *view.site == *"site1.example" && wanted.states.contains(&view.state));
        let expected: Vec<DeliveryId> = expected.map(|(id, _)| *id).collect();
        for (examined, selected) in [(1, 1), (2, 5), (1000, 1), (1000, 1000)] {
            let found = select_all(&self.twin, &wanted, examined, selected);
            assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), expected);
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Accept { recipients, site, assign, ttl } => {
                let command = self.new_accept(recipients, site, assign, ttl);
                self.messages.push(command.clone());
                self.apply(command);
            }
            Step::AcceptAgain(pick) => {
                if let Some(command) = picked(&self.messages, pick).cloned() {
                    self.apply(command);
                }
            }
            Step::Assign { pick, epoch } => {
                let accepted: Vec<DeliveryId> = self.accepted.iter().copied().collect();
                if let Some(delivery) = picked(&accepted, pick) {
                    let tried = self.attempts.iter().filter(|(id, _)| id.delivery == *delivery).count();
                    let attempt = AttemptNumber(u32::try_from(tried).unwrap() + 1);
                    self.apply(Command::Assign(Assign { delivery: *delivery, attempt, grant: grant(epoch) }));
                }
            }
            Step::Report { pick, kind, stale } => {
                if let Some((id, _)) = picked(&self.attempts, pick).copied() {
                    let epoch = Epoch(id.epoch.0.saturating_sub(u64::from(stale)));
                    let kind = OutcomeKind::from_code(kind).unwrap();
                    let command = self.new_report(AttemptId { epoch, ..id }, kind);
                    self.reports.push(command.clone());
                    self.apply(command);
                }
            }
            Step::ReportAgain(pick) => {
                if let Some(command) = picked(&self.reports, pick).cloned() {
                    self.apply(command);
                }
            }
            Step::Return(pick) => {
                if let Some((id, _)) = picked(&self.attempts, pick).copied() {
                    self.apply(Command::Return(id));
                }
            }
            Step::Reclaim(below) => {
                let next_try = NextTry { at: Timestamp::from_millis(self.now + 10), copies_max: COPIES_MAX };
                let (source, below) = (SourceId(1), Epoch(below.into()));
                let repeated_at = Timestamp::from_millis(self.now + 20);
                self.apply(Command::Reclaim { source, below, next_try, repeated_at });
            }
            Step::Cancel(pick) => self.change(pick, Action::Cancel),
            Step::Hold(pick) => self.change(pick, Action::Hold),
            Step::Release(pick) => self.change(pick, Action::Release),
            Step::Retry(pick) => self.change(pick, Action::Retry),
            Step::Expire => {
                let (found, _) = self.ledger.expired(
                    MessageId::from_u128(0),
                    usize::MAX,
                    Timestamp::from_millis(self.now),
                );
                self.apply(Command::Expire(found));
            }
            Step::Consume(back) => {
                let through = self.next_event.saturating_sub(1 + u64::from(back));
                self.apply(Command::Consume { consumer: "test".into(), through });
            }
            Step::Pass(millis) => self.now += u64::from(millis),
            Step::Restore => {
                self.check_queries();
                let bytes = self.twin.snapshot().encode();
                self.twin = Ledger::restore(LIMITS, &bytes).expect("a snapshot is restored");
                assert_eq!(self.twin.snapshot().encode().len(), bytes.len());
                assert_eq!(self.twin.snapshot().live_bodies(), self.ledger.snapshot().live_bodies());
            }
        }
    }

    /// Changes one delivery, or every one of its message.
    fn change(&mut self, pick: u8, action: Action) {
        let accepted: Vec<DeliveryId> = self.accepted.iter().copied().collect();
        if let Some(delivery) = picked(&accepted, pick) {
            let which = match pick % 2 {
                0 => Which::Every,
                _ => Which::Recipients([delivery.recipient].into()),
            };
            self.apply(changing(delivery.message, which, action, &format!("actor {}", pick % 5)));
        }
    }

    fn new_accept(&self, recipients: u8, site: u8, assign: bool, ttl: u16) -> Command {
        let now = Timestamp::from_millis(self.now);
        let recipient = |number| NewRecipient {
            address: Address::parse(&format!("r{number}@site{site}.example")).unwrap(),
            site: format!("site{site}.example").into(),
            pool: PoolId(1),
            not_before: now,
            grant: assign.then(|| grant(1)),
        };
        Command::Accept(Box::new(Accept {
            id: MessageId::new(now, GroupId(1), self.messages.len() as u64),
            tenant: TenantId(1),
            sender: Some(Address::parse("s@sender.example").unwrap()),
            recipients: (0..recipients).map(recipient).collect(),
            content: Content::Slot(0),
            size: 100,
            smtputf8: false,
            eight_bit: false,
            expires_at: Timestamp::from_millis(self.now + u64::from(ttl)),
            subject: "".into(),
            origin: "".into(),
            traceparent: "".into(),
        }))
    }

    fn new_report(&self, id: AttemptId, kind: OutcomeKind) -> Command {
        let report = Report {
            id,
            outcome: Outcome {
                party: Some(Party::Receiver),
                ..Outcome::new(kind, Some(BounceClass::Other), 0, "as the test has it")
            },
            remote: "".into(),
            tls: "".into(),
            started_at: Timestamp::from_millis(self.now),
            ended_at: Timestamp::from_millis(self.now),
        };
        let next_try = NextTry { at: Timestamp::from_millis(self.now + 5), copies_max: COPIES_MAX };
        Command::Report(Box::new(report), next_try)
    }
}

fn grant(epoch: u8) -> SourceGrant {
    SourceGrant { source: SourceId(1), epoch: Epoch(epoch.into()), node: NodeId(7) }
}

fn picked<T>(from: &[T], pick: u8) -> Option<&T> {
    from.get(usize::from(pick) % from.len().max(1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn i1_i3_i12_no_delivery_is_lost_and_none_ends_twice(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        let bytes = world.twin.snapshot().encode();
        let again = Ledger::restore(LIMITS, &bytes).unwrap().snapshot().encode();
        prop_assert!(bytes == again, "a restored ledger is the same ledger");
    }

    #[test]
    fn damaged_snapshots_are_refused_or_restored_but_never_panic(
        steps in prop::collection::vec(step(), 1..40),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        let whole = world.ledger.snapshot().encode();
        let mut bytes = whole.clone();
        for (place, flip) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
        }
        let _ = Ledger::restore(LIMITS, &bytes);
        prop_assert!(Ledger::restore(LIMITS, &whole[..cut.index(whole.len())]).is_err());
    }
}

/// The leader of one group: applies what the dispatcher proposes at once.
struct Leader {
    world: World,
    dispatcher: Dispatcher,
    seen_attempts: usize,
}

impl Leader {
    fn new(window: u32) -> Self {
        let world = World::new();
        let mut dispatcher = Dispatcher::rebuild(&world.ledger);
        let pools = BTreeMap::from([(PoolId(1), vec![Weighted { source: SourceId(1), weight: 1 }])]);
        dispatcher.set_pools(&pools, &[grant(1)]);
        dispatcher.set_windows(grant(1), Windows { default: window, sites: BTreeMap::new() });
        Self { world, dispatcher, seen_attempts: 0 }
    }

    /// Applies a command and shows the dispatcher its effects.
    fn apply(&mut self, command: Command) {
        self.world.index += 1;
        let mut effects = Vec::new();
        let at = Timestamp::from_millis(self.world.now);
        self.world.ledger.apply(self.world.index, at, command.clone(), &mut effects);
        self.world.twin.apply(self.world.index, at, command, &mut Vec::new());
        for effect in &effects {
            self.dispatcher.handle(&self.world.ledger, effect);
            if let Effect::Assigned { id, grant, .. } = effect {
                self.world.attempts.push((*id, *grant));
            }
        }
        self.world.read_events();
        self.world.check_conservation();
    }

    fn dispatch(&mut self) -> usize {
        let now = Timestamp::from_millis(self.world.now);
        let work = self.dispatcher.poll(&self.world.ledger, now, 8);
        let count = work.len();
        for (assign, reservation) in work.assigns {
            self.apply(Command::Assign(assign));
            self.dispatcher.release_reservation(&self.world.ledger, reservation, false);
        }
        if !work.expired.is_empty() {
            self.apply(Command::Expire(work.expired));
        }
        count
    }

    fn report_all(&mut self, kind: OutcomeKind) {
        for place in self.seen_attempts..self.world.attempts.len() {
            let report = self.world.new_report(self.world.attempts[place].0, kind);
            self.apply(report);
        }
        self.seen_attempts = self.world.attempts.len();
    }

    fn assigned_to_site(&self, site: u8) -> usize {
        let views = self.world.accepted.iter().filter_map(|delivery| {
            let view = self.world.ledger.message(delivery.message)?;
            Some(view.deliveries[delivery.recipient as usize].clone())
        });
        let name = format!("site{site}.example");
        views.filter(|view| *view.site == *name && view.state == DeliveryState::Sending).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn windows_are_respected_and_everything_is_sent_in_the_end(
        steps in prop::collection::vec(step(), 1..80), window in 1_u32..4, offer in any::<bool>()
    ) {
        let mut leader = Leader::new(window);
        for step in steps {
            match step {
                Step::Accept { recipients, site, ttl, .. } => {
                    let mut command = leader.world.new_accept(recipients, site, false, ttl.saturating_add(5_000));
                    let mut reserved = Vec::new();
                    let tenant = 1 + leader.world.messages.len() as u32 % 3;
                    if let Command::Accept(accept) = &mut command {
                        (accept.tenant, accept.size) = (TenantId(tenant), 40 << 10);
                    }
                    if let (true, Command::Accept(accept)) = (offer, &mut command) {
                        for recipient in &mut accept.recipients {
                            let offered = leader.dispatcher.offer(&leader.world.ledger, TenantId(tenant), recipient.pool, &recipient.site);
                            recipient.grant = offered.as_ref().map(|(grant, _)| *grant);
                            reserved.extend(offered.map(|(_, reservation)| reservation));
                        }
                    }
                    leader.world.messages.push(command.clone());
                    leader.apply(command);
                    reserved.into_iter().for_each(|r| leader.dispatcher.release_reservation(&leader.world.ledger, r, false));
                }
                Step::Report { kind, .. } => leader.report_all(OutcomeKind::from_code(kind).unwrap()),
                Step::Hold(pick) | Step::Release(pick) | Step::Cancel(pick) => {
                    let accepted: Vec<DeliveryId> = leader.world.accepted.iter().copied().collect();
                    if let Some(delivery) = picked(&accepted, pick) {
                        leader.apply(match step {
                            Step::Hold(_) => every(delivery.message, Action::Hold),
                            Step::Release(_) => every(delivery.message, Action::Release),
                            _ => every(delivery.message, Action::Cancel),
                        });
                    }
                }
                Step::Pass(millis) => leader.world.now += u64::from(millis),
                Step::Restore => {
                    // A new leader finds its work in the state.
                    let fresh = Leader::new(window);
                    leader.dispatcher = fresh.dispatcher;
                    let mut dispatcher = Dispatcher::rebuild(&leader.world.ledger);
                    let pools = BTreeMap::from([(PoolId(1), vec![Weighted { source: SourceId(1), weight: 1 }])]);
                    dispatcher.set_pools(&pools, &[grant(1)]);
                    dispatcher.set_windows(grant(1), Windows { default: window, sites: BTreeMap::new() });
                    leader.dispatcher = dispatcher;
                }
                _ => drop(leader.dispatch()),
            }
            for site in 0..3 {
                prop_assert!(leader.assigned_to_site(site) <= window as usize, "the window of site {} is respected", site);
            }
        }
        // Deliveries that are neither held nor ended are delivered once the receivers accept.
        for _ in 0..2_000 {
            leader.world.now += 10;
            if leader.dispatch() == 0 && leader.seen_attempts == leader.world.attempts.len() {
                let counts = leader.world.ledger.counts();
                if counts.queued == 0 { break; }
            }
            leader.report_all(OutcomeKind::Delivered);
        }
        let counts = leader.world.ledger.counts();
        prop_assert_eq!((counts.queued, counts.sending), (0, 0), "nothing starves");
    }
}

#[test]
fn a_retry_is_assigned_before_its_time_and_while_its_window_is_closed() {
    let mut leader = Leader::new(1);
    let accept = leader.world.new_accept(2, 0, false, 60_000);
    leader.apply(accept);
    leader.dispatch();
    leader.report_all(OutcomeKind::Soft);
    leader.dispatch();
    leader.report_all(OutcomeKind::Soft);
    leader.dispatcher.set_windows(grant(1), Windows { default: 0, sites: BTreeMap::new() });
    assert_eq!(leader.dispatch(), 0, "both are deferred, and the lane is paused");
    let message = leader.world.attempts[0].0.delivery.message;
    leader.apply(every(message, Action::Retry));
    leader.apply(every(message, Action::Retry));
    assert_eq!(
        leader.dispatcher.next_wake(Timestamp::from_millis(leader.world.now)).map(|at| at.as_millis()),
        Some(leader.world.now)
    );
    // A new leader finds the wish in the state.
    let mut fresh = Dispatcher::rebuild(&leader.world.ledger);
    let pools = BTreeMap::from([(PoolId(1), vec![Weighted { source: SourceId(1), weight: 1 }])]);
    fresh.set_pools(&pools, &[grant(1)]);
    fresh.set_windows(grant(1), Windows::default());
    leader.dispatcher = fresh;
    assert_eq!(leader.dispatch(), 2);
    let view = leader.world.ledger.message(message).unwrap();
    assert!(view.deliveries.iter().all(|delivery| delivery.state == DeliveryState::Sending));
    let retried = changes(&leader.world.ledger).into_iter().map(|(_, what, _)| what);
    let deferred = retried.filter(|what| matches!(what, Changed::Retried(retried) if retried.deferred));
    assert_eq!(deferred.count(), 2, "asked for twice, recorded once");
    // The next attempt waits like any other.
    leader.report_all(OutcomeKind::Soft);
    assert_eq!(leader.dispatch(), 0);
}

#[test]
fn the_longest_wait_for_a_lane_with_room_is_that_of_the_delivery_due_first() {
    let mut leader = Leader::new(1);
    let mut due = Vec::new();
    for site in [0, 1] {
        due.push(leader.world.now);
        let accept = leader.world.new_accept(2, site, false, 60_000);
        leader.apply(accept);
        leader.world.now += 500;
    }
    assert_eq!(leader.dispatch(), 2, "each lane has room for one");
    let longest = |leader: &Leader| leader.dispatcher.longest_due(&leader.world.ledger);
    assert_eq!(longest(&leader).map(|due| due.as_millis()), Some(due[0]));
    for _ in 0..4 {
        leader.report_all(OutcomeKind::Delivered);
        leader.dispatch();
    }
    assert_eq!(longest(&leader), None);
}

#[test]
fn the_record_and_a_held_delivery_name_who_asked() {
    let mut world = World::new();
    world.apply(world.new_accept(3, 0, false, 60_000));
    let (message, now) = (world.accepted.first().unwrap().message, Timestamp::from_millis(world.now));
    let id = |recipient| DeliveryId { message, recipient };
    let of = |world: &World, recipient| {
        let view = view(&world.twin, id(recipient)).unwrap();
        (view.state, view.actor.to_string())
    };
    let some = |recipients: &[u32]| Which::Recipients(recipients.into());
    world.apply(Command::Assign(Assign { delivery: id(2), attempt: AttemptNumber(1), grant: grant(1) }));
    world.apply(changing(message, some(&[0, 2]), Action::Hold, "ann"));
    world.run(Step::Restore);
    assert_eq!(of(&world, 0), (DeliveryState::Held, "ann".to_owned()));
    assert_eq!(of(&world, 1), (DeliveryState::Queued, String::new()), "it was not named");
    assert_eq!(of(&world, 2), (DeliveryState::Sending, "ann".to_owned()));
    let (attempt, _) = world.attempts[0];
    world.apply(Command::Return(attempt));
    assert_eq!(of(&world, 2), (DeliveryState::Held, "ann".to_owned()));
    world.apply(changing(message, some(&[0]), Action::Release, "bob"));
    assert_eq!(of(&world, 0), (DeliveryState::Queued, String::new()));
    world.apply(changing(message, Which::Every, Action::Cancel, "carol"));
    let actors: Vec<_> = changes(&world.ledger);
    let expected = [
        (0, Changed::Held, "ann"),
        (2, Changed::Requested(Action::Hold), "ann"),
        (2, Changed::Held, "ann"),
        (0, Changed::Released(now), "bob"),
        (0, Changed::Cancelled, "carol"),
        (1, Changed::Cancelled, "carol"),
        (2, Changed::Cancelled, "carol"),
    ];
    assert_eq!(actors, expected.map(|(recipient, what, actor)| (recipient, what, actor.into())));
}

#[test]
fn a_change_that_names_no_recipient_or_one_that_does_not_exist_changes_nothing() {
    let mut ledger = Ledger::new(LIMITS);
    let world = World::new();
    let mut apply = |command| ledger.apply(1, Timestamp::from_millis(START), command, &mut Vec::new());
    let accept = world.new_accept(2, 0, false, 60_000);
    let Command::Accept(accepted) = &accept else { unreachable!() };
    let id = accepted.id;
    apply(accept);
    let invalid = Reply::Refused(Refusal::Invalid);
    let some = |recipients: &[u32]| Which::Recipients(recipients.into());
    assert_eq!(apply(changing(id, some(&[]), Action::Cancel, "ann")), invalid);
    assert_eq!(apply(changing(id, some(&[0, 2]), Action::Cancel, "ann")), invalid);
    assert_eq!(apply(changing(id, Which::Every, Action::Cancel, &"a".repeat(129))), invalid);
    assert_eq!(apply(changing(id, some(&[1]), Action::Cancel, "")), Reply::Changed(vec![Change::Done]));
    assert_eq!(ledger.counts().queued, 1);
}

/// A tenant whose share was empty and fills again must not get two turns.
#[test]
fn a_tenant_that_returns_before_its_turn_gets_one_turn() {
    let mut leader = Leader::new(1);
    let accept = |leader: &mut Leader, number: u64, tenant: u32| {
        let Command::Accept(mut accept) = leader.world.new_accept(1, 0, false, 60_000) else {
            unreachable!()
        };
        accept.id = MessageId::new(Timestamp::from_millis(leader.world.now), GroupId(1), 1_000 + number);
        (accept.tenant, accept.size) = (TenantId(tenant), 8 << 10);
        leader.apply(Command::Accept(accept));
    };
    for number in 0..20 {
        accept(&mut leader, number, 2);
    }
    for number in 20..60 {
        accept(&mut leader, number, 1);
        leader.dispatch();
        leader.report_all(OutcomeKind::Delivered);
    }
    while leader.dispatch() > 0 {
        leader.report_all(OutcomeKind::Delivered);
    }
    assert_eq!(leader.world.ledger.counts().queued, 0);
}

#[test]
fn tenants_take_turns_by_bytes() {
    let mut leader = Leader::new(4);
    for (number, tenant) in (0_u64..).zip([1, 1, 1, 1, 1, 1, 1, 1, 2, 2]) {
        let Command::Accept(mut accept) = leader.world.new_accept(1, 0, false, 60_000) else {
            unreachable!()
        };
        accept.id = MessageId::new(Timestamp::from_millis(leader.world.now), GroupId(1), 1_000 + number);
        accept.tenant = TenantId(tenant);
        accept.size = 64 << 10;
        leader.apply(Command::Accept(accept));
    }
    leader.dispatch();
    let tenants: Vec<u32> = leader
        .world
        .attempts
        .iter()
        .map(|(id, _)| leader.world.ledger.message(id.delivery.message).unwrap().tenant.0)
        .collect();
    assert_eq!(tenants.iter().filter(|tenant| **tenant == 2).count(), 2, "{tenants:?}");
}

#[test]
fn unread_events_are_dropped_at_the_bound_and_leave_one_gap() {
    let limits = Limits { event_bytes_max: 20_000, ..LIMITS };
    let mut ledger = Ledger::new(limits);
    let mut world = World::new();
    for number in 0..2_000 {
        let command = world.new_accept(1, 0, false, 100);
        world.messages.push(command.clone());
        ledger.apply(number, Timestamp::from_millis(START), command, &mut Vec::new());
    }
    assert!(ledger.event_bytes() <= limits.event_bytes_max);
    let events: Vec<_> = ledger.events(1).collect();
    let EventKind::Gap { through } = events[0].kind else { panic!("the first thing read is the gap") };
    assert_eq!(events[0].sequence, 1);
    assert!(events[1..].iter().zip(through + 1..).all(|(event, sequence)| event.sequence == sequence));
    assert_eq!(events.last().unwrap().sequence, 2_000);
    let restored = Ledger::restore(limits, &ledger.snapshot().encode()).unwrap();
    assert!(restored.events(1).eq(ledger.events(1)));
}

#[test]
fn an_id_is_kept_until_it_is_too_old_to_be_proposed() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept.clone());
    let (id, _) = world.attempts[0];
    let report = world.new_report(id, OutcomeKind::Delivered);
    world.apply(report);
    // Proposed again after its end: nothing happens.
    world.apply(accept.clone());
    assert_eq!((world.ledger.message_count(), world.accepted.len()), (0, 1));
    world.now += 16 * 60 * 1000;
    let reply = world.ledger.apply(99, Timestamp::from_millis(world.now), accept, &mut Vec::new());
    assert_eq!(reply, postroad_ledger::command::Reply::Refused(postroad_ledger::command::Refusal::TooOld));
}

#[test]
fn d_064_what_has_expired_is_neither_assigned_nor_queued_again() {
    const TTL: u16 = 100;
    let accepted = || {
        let mut leader = Leader::new(5);
        let accept = leader.world.new_accept(1, 0, false, TTL);
        leader.apply(accept);
        leader
    };
    let check = |mut leader: Leader, attempts: usize| {
        leader.dispatch();
        let ends: Vec<FinalState> = leader.world.ended.values().copied().collect();
        assert_eq!((&ends[..], leader.world.attempts.len()), (&[FinalState::Expired][..], attempts));
    };
    // It waits for its first attempt.
    let mut leader = accepted();
    leader.world.now += u64::from(TTL);
    check(leader, 0);
    // It waits for its next attempt.
    let mut leader = accepted();
    leader.dispatch();
    leader.report_all(OutcomeKind::Soft);
    leader.world.now += u64::from(TTL);
    check(leader, 1);
    // An attempt that has begun ends or is given back.
    for given_back in [false, true] {
        let mut leader = accepted();
        leader.dispatch();
        leader.world.now += u64::from(TTL);
        let (id, _) = leader.world.attempts[0];
        if given_back {
            leader.apply(Command::Return(id))
        } else {
            leader.report_all(OutcomeKind::Soft)
        }
        check(leader, 1);
    }
}

#[test]
fn i7_a_cancelled_delivery_that_is_returned_is_never_sent() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    let (id, _) = world.attempts[0];
    world.apply(every(id.delivery.message, Action::Cancel));
    world.apply(Command::Return(id));
    assert_eq!(world.ended.get(&id.delivery), Some(&FinalState::Cancelled));
}

#[test]
fn a_delivery_that_was_given_back_counts_as_no_attempt() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    let (id, given) = world.attempts[0];
    let attempts = |world: &World| world.ledger.message(id.delivery.message).unwrap().deliveries[0].attempts;
    assert_eq!(attempts(&world), 0, "it waits in a lane and may still be given back");
    world.apply(Command::Return(id));
    world.apply(Command::Return(id));
    let again = Assign { delivery: id.delivery, attempt: AttemptNumber(2), grant: given };
    world.apply(Command::Assign(again));
    let (id, _) = world.attempts[1];
    let report = world.new_report(id, OutcomeKind::Soft);
    world.apply(report);
    assert_eq!(attempts(&world), 1);
    let numbers: Vec<u32> = world
        .ledger
        .events(1)
        .filter_map(|event| match &event.kind {
            EventKind::Attempt(attempt) => Some(attempt.number),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [1], "the record counts as the ledger does");
}

#[test]
fn a_late_report_of_delivered_ends_a_delivery_that_would_be_retried() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    let (id, _) = world.attempts[0];
    world.apply(Command::Reclaim {
        source: SourceId(1),
        below: Epoch(2),
        next_try: NextTry { at: Timestamp::from_millis(START), copies_max: 0 },
        repeated_at: Timestamp::from_millis(START),
    });
    assert_eq!(world.ledger.counts().queued, 1, "an unknown attempt is retried");
    let report = world.new_report(id, OutcomeKind::Delivered);
    world.apply(report.clone());
    assert_eq!(world.ended.get(&id.delivery), Some(&FinalState::Delivered));
    world.apply(report);
}

/// Assigns the only delivery again and again and reports `outcome`; returns the number of attempts and the last event.
fn attempts_until_it_stops(outcome: &Outcome) -> (usize, AttemptEvent) {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    loop {
        let (id, _) = *world.attempts.last().unwrap();
        let Command::Report(mut report, next_try) = world.new_report(id, outcome.kind) else {
            unreachable!()
        };
        report.outcome = outcome.clone();
        let next = world.next_event;
        world.apply(Command::Report(report, next_try));
        let last = world.ledger.events(next).last().unwrap().kind.clone();
        let EventKind::Attempt(event) = last else { panic!("{last:?}") };
        if !matches!(event.next_state, NextState::Retry(_)) {
            return (world.attempts.len(), *event);
        }
        world.now += 10;
        let attempt = AttemptNumber(u32::try_from(world.attempts.len()).unwrap() + 1);
        world.apply(Command::Assign(Assign { delivery: id.delivery, attempt, grant: grant(1) }));
    }
}

#[test]
fn a_refusal_by_policy_ends_the_delivery_or_is_tried_a_few_times_as_its_rule_says() {
    let block = |retry| {
        let outcome = Outcome::new(OutcomeKind::PolicyBlock, Some(BounceClass::SpamBlock), 550, "blocked");
        Outcome { retry, ..outcome }
    };
    let bounced = NextState::Ended(FinalState::Bounced);
    let (attempts, last) = attempts_until_it_stops(&block(Retry::Never));
    assert_eq!((attempts, last.next_state), (1, bounced));
    let distant = Retry::Distant { tries_max: 3.try_into().unwrap() };
    let (attempts, last) = attempts_until_it_stops(&block(distant));
    assert_eq!((attempts, last.next_state, last.outcome.class), (4, bounced, Some(BounceClass::SpamBlock)));
}

#[test]
fn d_046_a_receiver_that_loses_every_reply_gets_no_more_copies_than_allowed() {
    let lost =
        Outcome::new(OutcomeKind::Unknown, Some(BounceClass::Connection), 0, "after the final dot: closed");
    let by_receiver = Outcome { party: Some(Party::Receiver), ..lost.clone() };
    let (attempts, last) = attempts_until_it_stops(&by_receiver);
    assert_eq!((attempts, last.next_state), (COPIES_MAX.into(), NextState::Ended(FinalState::Bounced)));
    let (kind, class) = (last.outcome.kind, last.outcome.class);
    assert_eq!((kind, class), (OutcomeKind::Unknown, Some(BounceClass::Unconfirmed)));
    // Where our own nodes aborted, perhaps nothing was sent: a person decides.
    let (attempts, last) = attempts_until_it_stops(&lost);
    assert_eq!((attempts, last.next_state), (COPIES_MAX.into(), NextState::Held));
}

#[test]
fn d_046_a_node_that_crashes_again_and_again_repeats_a_delivery_at_long_distance() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    let mut waits = Vec::new();
    for crash in 1..=COPIES_MAX {
        let (id, _) = *world.attempts.last().unwrap();
        let next = world.next_event;
        world.apply(Command::Reclaim {
            source: SourceId(1),
            below: Epoch(u64::from(crash) + 1),
            next_try: NextTry { at: Timestamp::from_millis(world.now), copies_max: COPIES_MAX },
            repeated_at: Timestamp::from_millis(world.now + 1_000),
        });
        let last = world.ledger.events(next).last().unwrap().kind.clone();
        let EventKind::Attempt(event) = last else { panic!("{last:?}") };
        waits.push(match event.next_state {
            NextState::Retry(due) => Some(due.as_millis() - world.now),
            NextState::Held => None,
            other => panic!("{other:?}"),
        });
        world.now += 2_000;
        let (attempt, grant) = (AttemptNumber(u32::from(crash) + 1), grant(crash + 1));
        world.apply(Command::Assign(Assign { delivery: id.delivery, attempt, grant }));
    }
    // At last a person decides: the receiver may have as many copies as are allowed.
    assert_eq!(waits, [Some(0), Some(1_000), None]);
}

#[test]
fn a_late_report_that_nothing_was_delivered_ends_the_long_wait() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    for epoch in [2, 3] {
        world.apply(Command::Reclaim {
            source: SourceId(1),
            below: Epoch(epoch),
            next_try: NextTry { at: Timestamp::from_millis(world.now), copies_max: COPIES_MAX },
            repeated_at: Timestamp::from_millis(world.now + 30_000),
        });
        if epoch == 2 {
            let (id, _) = world.attempts[0];
            let (attempt, grant) = (AttemptNumber(2), grant(2));
            world.apply(Command::Assign(Assign { delivery: id.delivery, attempt, grant }));
        }
    }
    let (id, _) = world.attempts[1];
    let next = world.next_event;
    let report = world.new_report(id, OutcomeKind::Soft);
    world.apply(report);
    let last = world.ledger.events(next).last().unwrap().kind.clone();
    let EventKind::Attempt(event) = last else { panic!("{last:?}") };
    assert_eq!(event.next_state, NextState::Retry(Timestamp::from_millis(world.now + 5)));
}

#[test]
fn d_053_an_internal_fault_is_no_attempt() {
    let mut world = World::new();
    let accept = world.new_accept(1, 0, true, 60_000);
    world.apply(accept);
    let (id, _) = world.attempts[0];
    let report = world.new_report(id, OutcomeKind::Internal);
    world.apply(report);
    assert_eq!(world.ledger.attempts(id.delivery).unwrap().counted, 0);
}
