//! Records a run against `postroad dev` for the oracle: what the test's clients learned, what the sink accepted, and the
//! events of the ledger group.
//!
//! The sink's ledger has the time of the final dot and not that of `MAIL`, so a transaction here is a point in time: the
//! oracle cannot judge from it whether two transactions overlap, or whether one began after a cancel.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use postroad_core::{GroupId, NodeId, TenantId};
use postroad_ledger::{
    command::Action,
    event::{AttemptEvent, Changed, Event as LedgerEvent, EventKind as LedgerKind, NextState as LedgerNext},
};
use postroad_oracle::{Bounds, Facts, History, Micros, Phase, Record, What, history::*, judge, story};
use postroad_proto::queue::{ConsumeRequest, EventsRequest, queue_service_client::QueueServiceClient};
use tonic::transport::Channel;

use crate::{
    client::{self, Submitted as Answer},
    sink::{self, Ledger},
};

/// The only ledger group of `postroad dev`.
const GROUP: GroupId = GroupId(1);
/// The name under which events are kept until they were read here.
const CONSUMER: &str = "oracle";
/// How often a group that does not answer is asked again.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Real machines may be slow, and a test does not fail for that.
const ANSWER_WITHIN: Micros = Micros(600_000_000);

/// The records of a run.
#[derive(Debug)]
pub struct Recorder {
    /// Where the queue answers operators.
    queue: SocketAddr,
    started: Instant,
    records: Mutex<Vec<Record>>,
    submissions: AtomicU64,
}

impl Recorder {
    /// Begins to record; the queue keeps its events from now on until they were read.
    ///
    /// # Errors
    /// The queue does not answer.
    pub async fn start(queue: SocketAddr) -> anyhow::Result<Self> {
        let consumer = CONSUMER.to_owned();
        let request = ConsumeRequest { group: GROUP.0.into(), consumer, through: 0 };
        connect(queue).await?.consume(request).await.context("cannot keep the events")?;
        let (started, records) = (Instant::now(), Mutex::default());
        Ok(Self { queue, started, records, submissions: AtomicU64::new(0) })
    }

    fn push_at(&self, at: Instant, what: What) {
        let micros = at.saturating_duration_since(self.started).as_micros();
        let at = Micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.records.lock().push(Record { at, what });
    }

    fn push(&self, what: What) {
        self.push_at(Instant::now(), what);
    }

    /// Submits one message over SMTP, as [`client::submit`] does.
    pub async fn submit(
        &self,
        server: SocketAddr,
        sender: &str,
        recipients: &[&str],
        content: &str,
    ) -> Answer {
        let submission = self.submissions.fetch_add(1, Ordering::Relaxed);
        self.push(What::Submitted(Submitted {
            submission,
            node: None,
            tenant: TenantId(1),
            // The content has no token of its own; the id in the answer names the message.
            token: format!("submission-{submission}"),
            recipients: recipients.iter().map(ToString::to_string).collect(),
            content_hash: None,
            message: None,
            not_before: None,
            deadline: None,
        }));
        let answer = client::submit(server, sender, recipients, content).await;
        self.push(What::SubmitAnswered(SubmitAnswered { submission, answer: answer_of(&answer) }));
        answer
    }

    /// Records that a node was killed or started.
    pub fn node(&self, node: NodeId, role: Role, runs: bool) {
        self.push(What::Node(NodeChange { node, role, runs }));
    }

    /// Reads the events until every acknowledged delivery has ended, adds what the sink accepted, and returns the history.
    ///
    /// After `patience` the history is returned as it is: the oracle says which deliveries have not ended.
    ///
    /// # Errors
    /// The queue sends something that is no event.
    pub async fn finish(self, sink: &Ledger, patience: Duration) -> anyhow::Result<History> {
        let read = tokio::time::timeout(patience, self.read_events()).await;
        read.unwrap_or(Ok(()))?;
        for (transaction, copy) in (0..).zip(sink.records()) {
            self.push_copy(sink.started() + copy.since_start, transaction, &copy);
        }
        self.push(What::Phase(Phase::Quiet));
        Ok(History::new(self.records.into_inner()))
    }

    async fn read_events(&self) -> anyhow::Result<()> {
        let mut next = 1;
        while !self.all_have_ended()? {
            // A group that was restarted answers after a moment.
            if self.read_from(&mut next).await?.is_none() {
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Reads events until all deliveries have ended; `None` when the queue does not answer, or stops to.
    async fn read_from(&self, next: &mut u64) -> anyhow::Result<Option<()>> {
        let Ok(mut client) = connect(self.queue).await else { return Ok(None) };
        let request = EventsRequest { group: GROUP.0.into(), from: *next, batch_max: 0 };
        let Ok(events) = client.events(request).await else { return Ok(None) };
        let mut events = events.into_inner();
        while !self.all_have_ended()? {
            let Ok(Some(batch)) = events.message().await else { return Ok(None) };
            for event in batch.events {
                let event = LedgerEvent::try_from(event).context("the queue sent a malformed event")?;
                *next = through(&event) + 1;
                self.push(What::Event(event_of(&event)));
            }
        }
        Ok(Some(()))
    }

    fn all_have_ended(&self) -> anyhow::Result<bool> {
        let history = History::new(self.records.lock().clone());
        let facts = Facts::new(&history)?;
        let expected: usize =
            facts.acknowledged.keys().filter_map(|id| Some(facts.recipients(*id)?.len())).sum();
        let acknowledged = |message| facts.acknowledged.contains_key(&message);
        let ended =
            facts.deliveries.iter().filter(|(id, of)| acknowledged(id.message) && of.ends().next().is_some());
        Ok(ended.count() >= expected)
    }

    fn push_copy(&self, at: Instant, transaction: u64, copy: &sink::Record) {
        let (source, recipient) = (copy.source.to_string(), copy.recipient.to_string());
        self.push_at(at, What::Mail(Mail { transaction, source, node: None, message: copy.message }));
        self.push_at(at, What::Rcpt(Rcpt { transaction, recipient, code: 250 }));
        self.push_at(
            at,
            What::Message(Message {
                transaction,
                message: copy.message,
                token: None,
                content_hash: Some(copy.body_hash),
                code: 250,
            }),
        );
        // What was written may have been read or not.
        if copy.reply_written == Some(false) {
            self.push_at(at, What::Reply(Reply { transaction, read: false }));
        }
    }
}

/// Fails with the verdict and the story of the first violation.
///
/// # Errors
/// An invariant is violated, or the history contradicts itself.
pub fn require_no_violation(history: &History) -> anyhow::Result<()> {
    let bounds = Bounds { answer_within: ANSWER_WITHIN, p99_within: ANSWER_WITHIN, ..Bounds::default() };
    let verdict = judge(history, &bounds)?;
    let lines: Vec<String> = verdict.judgements.iter().map(ToString::to_string).collect();
    let first = verdict.violations().next().map(|violation| story::of_violation(history, violation));
    ensure!(first.is_none(), "{}\n\n{}", lines.join("\n"), first.unwrap_or_default());
    Ok(())
}

async fn connect(server: SocketAddr) -> anyhow::Result<QueueServiceClient<Channel>> {
    let endpoint = Channel::from_shared(format!("http://{server}")).context("an address is a URI")?;
    Ok(QueueServiceClient::new(endpoint.connect().await?))
}

fn answer_of(answer: &Answer) -> SubmitAnswer {
    match answer {
        Answer::Acknowledged(message) => SubmitAnswer::Accepted { message: message.id },
        Answer::Refused(code) if *code >= 500 => SubmitAnswer::Refused { reply: code.to_string() },
        Answer::Refused(code) => SubmitAnswer::Failed { reply: code.to_string() },
        Answer::Rejected(code) => SubmitAnswer::Failed { reply: code.to_string() },
        Answer::Unknown => SubmitAnswer::ConnectionLost,
    }
}

fn through(event: &LedgerEvent) -> u64 {
    match event.kind {
        LedgerKind::Gap { through } => through,
        _ => event.sequence,
    }
}

fn event_of(event: &LedgerEvent) -> Event {
    let kind = match &event.kind {
        LedgerKind::Accepted(accepted) => EventKind::Accepted {
            message: accepted.message,
            tenant: accepted.tenant,
            recipients: accepted.recipients.iter().map(|address| address.as_str().to_owned()).collect(),
        },
        LedgerKind::Attempt(attempt) => EventKind::Attempt(attempt_of(attempt)),
        LedgerKind::Ended(delivery, state) => EventKind::Ended { delivery: *delivery, state: *state },
        LedgerKind::Changed(changed) => {
            let delivery = changed.delivery;
            match changed.what {
                Changed::Cancelled => {
                    EventKind::Ended { delivery, state: postroad_core::FinalState::Cancelled }
                }
                Changed::Held => EventKind::Held { delivery },
                Changed::Released(_) => EventKind::Released { delivery },
                Changed::Retried(_) => EventKind::Retried { delivery },
                Changed::Requested(action) => EventKind::Requested { delivery, change: change_of(action) },
            }
        }
        LedgerKind::Gap { through } => EventKind::Gap { through: *through },
    };
    let ledger_millis = event.at.as_millis();
    Event { node: NodeId(1), group: GROUP, sequence: event.sequence, ledger_millis, kind }
}

fn attempt_of(event: &AttemptEvent) -> Attempt {
    Attempt {
        delivery: event.delivery,
        attempt: event.attempt,
        source: event.source,
        epoch: event.epoch,
        node: event.node,
        outcome: event.outcome.kind,
        next: match event.next_state {
            LedgerNext::Retry(_) => NextState::Retry,
            LedgerNext::Ended(state) => NextState::Ended(state),
            LedgerNext::Held => NextState::Held,
            LedgerNext::Unchanged => NextState::Unchanged,
        },
    }
}

fn change_of(action: Action) -> Change {
    match action {
        Action::Cancel => Change::Cancel,
        Action::Hold => Change::Hold,
        Action::Release => Change::Release,
        Action::Retry => Change::Retry,
    }
}
