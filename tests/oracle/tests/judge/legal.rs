//! Random legal histories: nothing is reported on them.
//!
//! A history is made of plans, one for each message, so that proptest can shrink it to the plans that matter.

use std::collections::BTreeMap;

use postroad_core::{
    AttemptNumber, DeliveryId, Epoch, FinalState, GroupId, MessageId, NodeId, OutcomeKind, SourceId,
    TenantId, Timestamp,
};
use postroad_oracle::{
    Bounds, History, Invariant, Micros, Phase, Record, What, facts::end_of, history::*, judge,
};
use proptest::prelude::*;

use crate::build::no_deliveries;

const SECOND: u64 = 1_000_000;
const HOLD: u64 = 3 * SECOND;

/// What happens to one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryPlan {
    Delivered,
    Deferred {
        times: u8,
    },
    Bounced,
    /// The node dies; the receiver has a copy already or not.
    Unknown {
        copy: bool,
    },
    /// The node's report arrives after the attempt was reclaimed.
    UnknownThenReported,
    Cancelled,
    CancelledDuringAttempt,
    HeldAndReleased,
    HeldDuringAttempt,
    HeldForEver,
    Expired,
}

/// What its client learns of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Submission {
    Accepted,
    Refused,
    Unanswered {
        stored: bool,
    },
    /// 451, and then the client tries again and is answered.
    FailedThenAccepted {
        stored: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    start: u64,
    tenant: u32,
    group: u16,
    deliveries: Vec<DeliveryPlan>,
    submission: Submission,
    id_is_known: bool,
    timed: bool,
}

/// A fault of a queue or outbound node.
#[derive(Clone, Debug)]
pub(crate) struct Kill {
    at: u64,
    node: u64,
    lasts: u64,
}

fn delivery_plan() -> impl Strategy<Value = DeliveryPlan> {
    prop_oneof![
        3 => Just(DeliveryPlan::Delivered),
        1 => (1..4_u8).prop_map(|times| DeliveryPlan::Deferred { times }),
        1 => Just(DeliveryPlan::Bounced),
        2 => any::<bool>().prop_map(|copy| DeliveryPlan::Unknown { copy }),
        1 => Just(DeliveryPlan::UnknownThenReported),
        1 => Just(DeliveryPlan::Cancelled),
        1 => Just(DeliveryPlan::CancelledDuringAttempt),
        1 => Just(DeliveryPlan::HeldAndReleased),
        1 => Just(DeliveryPlan::HeldDuringAttempt),
        1 => Just(DeliveryPlan::HeldForEver),
        1 => Just(DeliveryPlan::Expired),
    ]
}

fn submission() -> impl Strategy<Value = Submission> {
    prop_oneof![
        6 => Just(Submission::Accepted),
        1 => Just(Submission::Refused),
        1 => any::<bool>().prop_map(|stored| Submission::Unanswered { stored }),
        1 => any::<bool>().prop_map(|stored| Submission::FailedThenAccepted { stored }),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let deliveries = prop::collection::vec(delivery_plan(), 1..4);
    (0..30 * SECOND, 1..4_u32, 1..4_u16, deliveries, submission(), any::<bool>(), any::<bool>()).prop_map(
        |(start, tenant, group, deliveries, submission, id_is_known, timed)| Plan {
            start,
            tenant,
            group,
            deliveries,
            submission,
            id_is_known,
            timed,
        },
    )
}

/// Plans of a run: messages, faults, and how many events the consumer reads again.
pub(crate) fn plans() -> impl Strategy<Value = (Vec<Plan>, Vec<Kill>, usize)> {
    let node = prop_oneof![Just(11_u64), Just(12), Just(13), Just(21), Just(22)];
    let kill = (0..30 * SECOND, node, 1..9 * SECOND).prop_map(|(at, node, lasts)| Kill { at, node, lasts });
    (prop::collection::vec(plan(), 1..25), prop::collection::vec(kill, 0..4), 0..9_usize)
}

/// Makes the history of a run.
pub(crate) fn build((plans, kills, read_again): &(Vec<Plan>, Vec<Kill>, usize)) -> History {
    let mut run = Run::default();
    let roles = [
        (1, Role::Ingress),
        (11, Role::Queue),
        (12, Role::Queue),
        (13, Role::Queue),
        (21, Role::Outbound),
        (22, Role::Outbound),
    ];
    for (node, role) in roles {
        run.push(0, What::Node(NodeChange { node: NodeId(node), role, runs: true }));
    }
    let address = "192.0.2.21".into();
    run.push(0, What::Source(SourceAddress { source: SourceId(21), address }));
    run.push(0, What::Phase(Phase::Safety));
    for kill in kills {
        let role = if kill.node < 20 { Role::Queue } else { Role::Outbound };
        let node = |runs| What::Node(NodeChange { node: NodeId(kill.node), role, runs });
        run.push(kill.at, node(false));
        run.push(kill.at + kill.lasts, node(true));
    }
    for plan in plans {
        run.message(plan);
    }
    run.finish(*read_again)
}

/// Records in the making; events get their numbers at the end.
#[derive(Default)]
struct Run {
    records: Vec<Record>,
    numbers: u64,
}

/// One message as it was stored.
#[derive(Clone, Copy)]
struct Stored<'a> {
    id: MessageId,
    plan: &'a Plan,
    token: u64,
    recipients: &'a [String],
}

impl Run {
    fn push(&mut self, at: u64, what: What) {
        self.records.push(Record { at: Micros(at), what });
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn message(&mut self, plan: &Plan) {
        let token = self.number();
        let recipients: Vec<String> =
            (0..plan.deliveries.len()).map(|place| format!("r{place}.{token}@x.test")).collect();
        let retries = matches!(plan.submission, Submission::FailedThenAccepted { .. });
        let tries = if retries { 2 } else { 1 };
        for which in 1..=tries {
            let start = plan.start + (which - 1) * SECOND;
            let id = MessageId::new(Timestamp::from_millis(start / 1000), GroupId(plan.group), self.number());
            let stored = Stored { id, plan, token, recipients: &recipients };
            let is_stored = match plan.submission {
                Submission::Refused => false,
                Submission::Unanswered { stored } => stored,
                Submission::FailedThenAccepted { stored } => stored || which == 2,
                Submission::Accepted => true,
            };
            self.submit(start, stored, which == tries);
            if is_stored {
                self.store(start, stored);
            }
        }
    }

    fn submit(&mut self, start: u64, stored: Stored<'_>, is_last: bool) {
        let Stored { id, plan, token, recipients } = stored;
        let submission = self.number();
        let begun = Submitted {
            submission,
            node: Some(NodeId(1)),
            tenant: TenantId(plan.tenant),
            token: format!("t{token}"),
            recipients: recipients.to_vec(),
            content_hash: Some(token),
            message: plan.id_is_known.then_some(id),
            not_before: plan.timed.then_some(Micros(start + 1000)),
            deadline: plan.timed.then_some(Micros(start + 60 * SECOND)),
        };
        self.push(start, What::Submitted(begun));
        let answer = match plan.submission {
            Submission::Refused => SubmitAnswer::Refused { reply: "550 no".into() },
            Submission::Unanswered { .. } => SubmitAnswer::ConnectionLost,
            Submission::FailedThenAccepted { .. } if !is_last => {
                SubmitAnswer::Failed { reply: "451 later".into() }
            }
            _ => SubmitAnswer::Accepted { message: id },
        };
        self.push(start + 200, What::SubmitAnswered(SubmitAnswered { submission, answer }));
    }

    fn store(&mut self, start: u64, stored: Stored<'_>) {
        let Stored { id, plan, recipients, .. } = stored;
        let (tenant, recipients) = (TenantId(plan.tenant), recipients.to_vec());
        self.event(start + 100, id, EventKind::Accepted { message: id, tenant, recipients });
        for (recipient, delivery_plan) in (0..).zip(&plan.deliveries) {
            self.deliver(start + 2000, stored, recipient, *delivery_plan);
        }
    }

    fn event(&mut self, at: u64, id: MessageId, kind: EventKind) {
        let event =
            Event { node: NodeId(11), group: id.group(), sequence: 0, ledger_millis: at / 1000, kind };
        self.push(at, What::Event(event));
    }

    fn deliver(&mut self, at: u64, stored: Stored<'_>, recipient: u32, delivery_plan: DeliveryPlan) {
        let delivery = DeliveryId { message: stored.id, recipient };
        let delivered = |run: &mut Self, at, which| {
            run.transaction(at, stored, recipient, 21, 250, Some(true));
            run.attempt(
                at + 100,
                delivery,
                which,
                OutcomeKind::Delivered,
                NextState::Ended(FinalState::Delivered),
            );
        };
        match delivery_plan {
            DeliveryPlan::Delivered => delivered(self, at, 1),
            DeliveryPlan::Deferred { times } => {
                for which in 1..=u32::from(times) {
                    let at = at + u64::from(which) * 10_000;
                    self.transaction(at, stored, recipient, 21, 451, Some(true));
                    self.attempt(at + 100, delivery, which, OutcomeKind::Soft, NextState::Retry);
                }
                delivered(self, at + 100_000, u32::from(times) + 1);
            }
            DeliveryPlan::Bounced => {
                self.transaction(at, stored, recipient, 22, 550, Some(true));
                self.attempt(at + 100, delivery, 1, OutcomeKind::Hard, NextState::Ended(FinalState::Bounced));
            }
            DeliveryPlan::Unknown { copy } => {
                let (code, read) = if copy { (250, Some(false)) } else { (421, None) };
                self.transaction(at, stored, recipient, 22, code, read);
                self.attempt(at + 20_000, delivery, 1, OutcomeKind::Unknown, NextState::Retry);
                delivered(self, at + 50_000, 2);
            }
            DeliveryPlan::UnknownThenReported => {
                self.transaction(at, stored, recipient, 22, 250, Some(true));
                self.attempt(at + 20_000, delivery, 1, OutcomeKind::Unknown, NextState::Retry);
                let end = NextState::Ended(FinalState::Delivered);
                self.attempt(at + 30_000, delivery, 1, OutcomeKind::Delivered, end);
            }
            DeliveryPlan::Cancelled => {
                self.change(at, delivery, Change::Cancel, ChangeResult::Done);
                self.event(at + 20, stored.id, EventKind::Ended { delivery, state: FinalState::Cancelled });
            }
            DeliveryPlan::CancelledDuringAttempt => {
                self.change(at + 15, delivery, Change::Cancel, ChangeResult::InFlight);
                self.event(at + 30, stored.id, EventKind::Requested { delivery, change: Change::Cancel });
                delivered(self, at, 1);
            }
            DeliveryPlan::HeldAndReleased => {
                self.change(at, delivery, Change::Hold, ChangeResult::Done);
                self.event(at + 20, stored.id, EventKind::Held { delivery });
                self.change(at + HOLD, delivery, Change::Release, ChangeResult::Done);
                self.event(at + HOLD + 20, stored.id, EventKind::Released { delivery });
                delivered(self, at + HOLD + 1000, 1);
            }
            DeliveryPlan::HeldDuringAttempt => {
                self.transaction(at, stored, recipient, 21, 451, Some(true));
                self.change(at + 15, delivery, Change::Hold, ChangeResult::InFlight);
                self.event(at + 30, stored.id, EventKind::Requested { delivery, change: Change::Hold });
                self.attempt(at + 100, delivery, 1, OutcomeKind::Soft, NextState::Held);
                self.change(at + HOLD, delivery, Change::Release, ChangeResult::Done);
                self.event(at + HOLD + 20, stored.id, EventKind::Released { delivery });
                delivered(self, at + HOLD + 1000, 2);
            }
            DeliveryPlan::HeldForEver => {
                self.change(at, delivery, Change::Hold, ChangeResult::Done);
                self.event(at + 20, stored.id, EventKind::Held { delivery });
            }
            DeliveryPlan::Expired => {
                self.transaction(at, stored, recipient, 21, 451, Some(true));
                self.attempt(at + 100, delivery, 1, OutcomeKind::Soft, NextState::Retry);
                self.event(at + SECOND, stored.id, EventKind::Ended { delivery, state: FinalState::Expired });
            }
        }
    }

    fn transaction(
        &mut self,
        at: u64,
        stored: Stored<'_>,
        recipient: u32,
        node: u64,
        code: u16,
        read: Option<bool>,
    ) {
        let transaction = self.number();
        let (source, node) = (format!("192.0.2.{node}"), Some(NodeId(node)));
        self.push(at, What::Mail(Mail { transaction, source, node, message: None }));
        let address = stored.recipients[recipient as usize].clone();
        self.push(at + 10, What::Rcpt(Rcpt { transaction, recipient: address, code: 250 }));
        let (message, token) = (Some(stored.id), Some(format!("t{}", stored.token)));
        let content_hash = Some(stored.token);
        self.push(at + 50, What::Message(Message { transaction, message, token, content_hash, code }));
        if let Some(read) = read {
            self.push(at + 60, What::Reply(Reply { transaction, read }));
        }
    }

    /// Epochs rise with time; an attempt that nobody reported may be of an old one.
    fn attempt(&mut self, at: u64, delivery: DeliveryId, which: u32, outcome: OutcomeKind, next: NextState) {
        let epoch = at / SECOND + 2 - u64::from(outcome == OutcomeKind::Unknown);
        let (attempt, source) = (AttemptNumber(which), SourceId(21));
        let attempt =
            Attempt { delivery, attempt, source, epoch: Epoch(epoch), node: NodeId(21), outcome, next };
        self.event(at, delivery.message, EventKind::Attempt(attempt));
    }

    fn change(&mut self, at: u64, delivery: DeliveryId, change: Change, result: ChangeResult) {
        let request = self.number();
        let DeliveryId { message, recipient } = delivery;
        self.push(
            at,
            What::ChangeRequested(ChangeRequested { request, message, recipients: vec![recipient], change }),
        );
        let answer = ChangeAnswer::Results(vec![result]);
        self.push(at + 40, What::ChangeAnswered(ChangeAnswered { request, answer }));
    }

    fn finish(mut self, read_again: usize) -> History {
        let mut history = History::new(std::mem::take(&mut self.records));
        number_events(&mut history);
        let mut end = history.records.last().map_or(0, |record| record.at.0);
        let mut push = |what| {
            end += SECOND;
            history.records.push(Record { at: Micros(end), what });
        };
        push(What::Phase(Phase::Liveness { within: Micros(60 * SECOND) }));
        let events: Vec<Event> = events(&history.records).cloned().collect();
        let mut push = |what| {
            end += SECOND;
            history.records.push(Record { at: Micros(end), what });
        };
        // The consumer starts again, and reads from another node.
        for event in &events[events.len().saturating_sub(read_again)..] {
            push(What::Event(Event { node: NodeId(12), ..event.clone() }));
        }
        for node in [11, 12, 13] {
            push(What::StateHash(StateHash { group: GroupId(1), index: 77, node: NodeId(node), hash: 5 }));
        }
        for _ in 0..7 {
            push(What::PolicyChanged(PolicyChanged { revision: 1, what: "nothing".into() }));
        }
        push(What::Phase(Phase::Quiet));
        for group in (1..4).map(GroupId) {
            let of_group: Vec<Event> = events.iter().filter(|event| event.group == group).cloned().collect();
            let tenants = counts(&of_group).into_iter().map(|(tenant, [accepted, ended @ ..])| {
                OpenOfTenant { tenant, open: accepted - ended.iter().sum::<u64>() }
            });
            let event = of_group.iter().map(|event| event.sequence).max().unwrap_or(0);
            push(What::Open(OpenDeliveries { group, node: NodeId(11), event, tenants: tenants.collect() }));
        }
        for (tenant, [accepted, delivered, bounced, expired, cancelled]) in counts(&events) {
            let open = accepted - delivered - bounced - expired - cancelled;
            for by in [Counter::Ledger, Counter::Metrics] {
                let none = no_deliveries(by, tenant);
                push(What::Counts(Counts { accepted, open, delivered, bounced, expired, cancelled, ..none }));
            }
        }
        history
    }
}

fn number_events(history: &mut History) {
    let mut sequences = BTreeMap::<GroupId, u64>::new();
    for record in &mut history.records {
        if let What::Event(event) = &mut record.what {
            let sequence = sequences.entry(event.group).or_default();
            *sequence += 1;
            event.sequence = *sequence;
        }
    }
}

pub(crate) fn events(records: &[Record]) -> impl Iterator<Item = &Event> {
    records.iter().filter_map(|record| match &record.what {
        What::Event(event) => Some(event),
        _ => None,
    })
}

fn counts(events: &[Event]) -> BTreeMap<TenantId, [u64; 5]> {
    let mut tenants = BTreeMap::new();
    let mut counts = BTreeMap::<TenantId, [u64; 5]>::new();
    for event in events {
        if let EventKind::Accepted { message, tenant, recipients } = &event.kind {
            tenants.insert(*message, *tenant);
            counts.entry(*tenant).or_default()[0] += recipients.len() as u64;
        }
        let place = match end_of(&event.kind) {
            Some(FinalState::Delivered) => 1,
            Some(FinalState::Bounced) => 2,
            Some(FinalState::Expired) => 3,
            Some(FinalState::Cancelled) => 4,
            Some(FinalState::Suppressed) | None => continue,
        };
        let message = postroad_oracle::facts::message_of(&event.kind).expect("an end is of a message");
        counts.entry(tenants[&message]).or_default()[place] += 1;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_reported_on_a_legal_history(plans in plans()) {
        let history = build(&plans);
        let verdict = judge(&history, &Bounds::default()).expect("it does not contradict itself");
        prop_assert!(verdict.holds(), "{:?}", verdict.violations().next());
        let judged = |invariant: Invariant| verdict.judgements.iter().any(|of| of.invariant == invariant && of.judged > 0);
        prop_assert!(judged(Invariant::Answered) && judged(Invariant::Agreement));
    }

    /// What is only known later is no violation before.
    #[test]
    fn nothing_is_reported_on_the_beginning_of_a_legal_history(plans in plans(), part in 0.0..1.0_f64) {
        let mut history = build(&plans);
        let length = (history.records.len() as f64 * part) as usize;
        history.records.truncate(length);
        let verdict = judge(&history, &Bounds::default()).expect("it does not contradict itself");
        prop_assert!(verdict.holds(), "{:?}", verdict.violations().next());
    }
}
