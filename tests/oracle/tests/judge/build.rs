//! Histories written by hand: every step is a millisecond after the one before it.

use std::collections::BTreeMap;

use postroad_core::{
    AttemptNumber, DeliveryId, Epoch, FinalState, GroupId, MessageId, NodeId, OutcomeKind, SourceId,
    TenantId, Timestamp,
};
use postroad_oracle::{History, Micros, Phase, Record, What, history::*};

/// Message `number` of group 1.
pub(crate) fn id(number: u64) -> MessageId {
    MessageId::new(Timestamp::from_millis(1_795_480_496_789), GroupId(1), number)
}

pub(crate) fn delivery(number: u64, recipient: u32) -> DeliveryId {
    DeliveryId { message: id(number), recipient }
}

#[derive(Clone, Default)]
pub(crate) struct Script {
    records: Vec<Record>,
    now: u64,
    sequences: BTreeMap<GroupId, u64>,
}

pub(crate) const DELIVERED: NextState = NextState::Ended(FinalState::Delivered);

/// An attempt at message `number` by node 21, from source 21 in epoch 5.
pub(crate) fn attempt(number: u64, attempt: u32, outcome: OutcomeKind, next: NextState) -> Attempt {
    let (delivery, attempt) = (delivery(number, 0), AttemptNumber(attempt));
    Attempt { delivery, attempt, source: SourceId(21), epoch: Epoch(5), node: NodeId(21), outcome, next }
}

/// Submission `number`: one recipient, and nothing special.
pub(crate) fn submitted(number: u64) -> Submitted {
    Submitted {
        submission: number,
        node: Some(NodeId(1)),
        tenant: TenantId(1),
        token: format!("t{number}"),
        recipients: vec!["a@x.test".into()],
        content_hash: Some(number),
        message: None,
        not_before: None,
        deadline: None,
    }
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn history(self) -> History {
        History::new(self.records)
    }

    pub(crate) fn push(mut self, what: What) -> Self {
        self.now += 1000;
        self.records.push(Record { at: Micros(self.now), what });
        self
    }

    pub(crate) fn wait_secs(mut self, seconds: u64) -> Self {
        self.now += seconds * 1_000_000;
        self
    }

    pub(crate) fn submit(self, number: u64) -> Self {
        self.push(What::Submitted(submitted(number)))
    }

    pub(crate) fn answer(self, submission: u64, answer: SubmitAnswer) -> Self {
        self.push(What::SubmitAnswered(SubmitAnswered { submission, answer }))
    }

    /// Submission `number` was acknowledged as message `number`.
    pub(crate) fn accept(self, number: u64) -> Self {
        self.answer(number, SubmitAnswer::Accepted { message: id(number) })
    }

    pub(crate) fn refuse(self, number: u64) -> Self {
        self.answer(number, SubmitAnswer::Refused { reply: "550 no".into() })
    }

    pub(crate) fn fail(self, number: u64) -> Self {
        self.answer(number, SubmitAnswer::Failed { reply: "451 later".into() })
    }

    pub(crate) fn event(self, kind: EventKind) -> Self {
        self.event_of(GroupId(1), kind)
    }

    pub(crate) fn event_of(mut self, group: GroupId, kind: EventKind) -> Self {
        let sequence = self.sequences.entry(group).or_default();
        *sequence += 1;
        let sequence = *sequence;
        self.numbered_event(group, sequence, kind)
    }

    pub(crate) fn numbered_event(self, group: GroupId, sequence: u64, kind: EventKind) -> Self {
        self.push(What::Event(Event { node: NodeId(11), group, sequence, ledger_millis: 7, kind }))
    }

    pub(crate) fn accepted(self, number: u64) -> Self {
        let recipients = vec!["a@x.test".into()];
        self.event(EventKind::Accepted { message: id(number), tenant: TenantId(1), recipients })
    }

    pub(crate) fn attempt(self, number: u64, which: u32, outcome: OutcomeKind, next: NextState) -> Self {
        self.event(EventKind::Attempt(attempt(number, which, outcome, next)))
    }

    pub(crate) fn delivered(self, number: u64, which: u32) -> Self {
        self.attempt(number, which, OutcomeKind::Delivered, DELIVERED)
    }

    /// Submitted, acknowledged, and its event read.
    pub(crate) fn stored(self, number: u64) -> Self {
        self.submit(number).accepted(number).accept(number)
    }

    pub(crate) fn mail(self, transaction: u64, node: u64) -> Self {
        self.mail_from(transaction, node, &format!("192.0.2.{node}"))
    }

    pub(crate) fn mail_from(self, transaction: u64, node: u64, source: &str) -> Self {
        let source = source.to_owned();
        self.push(What::Mail(Mail { transaction, source, node: Some(NodeId(node)), message: None }))
    }

    pub(crate) fn rcpt(self, transaction: u64) -> Self {
        self.push(What::Rcpt(Rcpt { transaction, recipient: "a@x.test".into(), code: 250 }))
    }

    pub(crate) fn message(self, transaction: u64, number: u64, code: u16) -> Self {
        let (message, token) = (Some(id(number)), Some(format!("t{number}")));
        self.push(What::Message(Message { transaction, message, token, content_hash: Some(number), code }))
    }

    pub(crate) fn reply(self, transaction: u64, read: bool) -> Self {
        self.push(What::Reply(Reply { transaction, read }))
    }

    /// A whole transaction from node 21 whose reply was read.
    pub(crate) fn copy(self, transaction: u64, number: u64) -> Self {
        self.mail(transaction, 21)
            .rcpt(transaction)
            .message(transaction, number, 250)
            .reply(transaction, true)
    }

    pub(crate) fn ask(self, request: u64, number: u64, change: Change) -> Self {
        let (message, recipients) = (id(number), vec![0]);
        self.push(What::ChangeRequested(ChangeRequested { request, message, recipients, change }))
    }

    pub(crate) fn result(self, request: u64, result: ChangeResult) -> Self {
        self.change_answer(request, ChangeAnswer::Results(vec![result]))
    }

    pub(crate) fn change_answer(self, request: u64, answer: ChangeAnswer) -> Self {
        self.push(What::ChangeAnswered(ChangeAnswered { request, answer }))
    }

    pub(crate) fn cancelled(self, number: u64) -> Self {
        self.event(EventKind::Ended { delivery: delivery(number, 0), state: FinalState::Cancelled })
    }

    pub(crate) fn node(self, node: u64, role: Role, runs: bool) -> Self {
        self.push(What::Node(NodeChange { node: NodeId(node), role, runs }))
    }

    pub(crate) fn fault(self, nodes: &[u64], on: bool) -> Self {
        let nodes = nodes.iter().copied().map(NodeId).collect();
        self.push(What::Fault(Fault { name: "partition".into(), nodes, on }))
    }

    pub(crate) fn phase(self, phase: Phase) -> Self {
        self.push(What::Phase(phase))
    }

    pub(crate) fn quiet(self) -> Self {
        self.phase(Phase::Quiet)
    }

    pub(crate) fn hash(self, (group, index): (u16, u64), node: u64, hash: u64) -> Self {
        self.push(What::StateHash(StateHash { group: GroupId(group), index, node: NodeId(node), hash }))
    }

    /// What replica `node` of group 1 counts as open for tenant 1 after its event `event`.
    pub(crate) fn open(self, node: u64, event: u64, open: u64) -> Self {
        let tenants = vec![OpenOfTenant { tenant: TenantId(1), open }];
        self.push(What::Open(OpenDeliveries { group: GroupId(1), node: NodeId(node), event, tenants }))
    }

    /// Accepted, open and delivered; nothing ended otherwise.
    pub(crate) fn counts(self, by: Counter, [accepted, open, delivered]: [u64; 3]) -> Self {
        self.push(What::Counts(Counts { accepted, open, delivered, ..no_deliveries(by, TenantId(1)) }))
    }
}

/// The counts of a tenant without deliveries.
pub(crate) const fn no_deliveries(by: Counter, tenant: TenantId) -> Counts {
    Counts {
        by,
        tenant,
        accepted: 0,
        open: 0,
        delivered: 0,
        bounced: 0,
        expired: 0,
        cancelled: 0,
        suppressed: 0,
    }
}
