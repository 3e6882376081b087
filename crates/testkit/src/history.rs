//! Records a run against `postroad dev` for the oracle: what the test's clients learned, what the sink accepted, and the
//! events of the ledger group.
//!
//! The sink's ledger has the time of the final dot and not that of `MAIL`, so a transaction here is a point in time: the
//! oracle cannot judge from it whether two transactions overlap, or whether one began after a cancel. A reply counts as read
//! when the client sends something after it, which Postroad does only once it has the reply.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use postroad_core::{DeliveryId, GroupId, NodeId, TenantId};
use postroad_ledger::{
    command::Action,
    event::{AttemptEvent, Changed, Event as LedgerEvent, EventKind as LedgerKind, NextState as LedgerNext},
};
use postroad_oracle::{
    Bounds, Facts, History, Invariant, Micros, Phase, Record, What,
    facts::{delivery_of, end_of},
    history::*,
    judge, story,
};
use postroad_proto::queue::{ConsumeRequest, EventsRequest, queue_service_client::QueueServiceClient};
use tonic::transport::Channel;

use crate::{
    client::{self, Submitted as Answer},
    sink::{self, Ledger, ReplyState},
};

/// The only ledger group of `postroad dev`.
const GROUP: GroupId = GroupId(1);
/// The name under which events are kept until they were read here.
const CONSUMER: &str = "oracle";
/// How often a group that does not answer is asked again.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Real machines may be slow, and a test does not fail for that.
const ANSWER_WITHIN: Micros = Micros(600_000_000);

/// How far the events were read.
#[derive(Debug)]
struct Reading {
    /// The number of the next event.
    next: u64,
    /// Acknowledged deliveries whose end was not read yet.
    open: BTreeSet<DeliveryId>,
    /// Why the last attempt to read them ended.
    problem: Option<String>,
}

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
        let (started, records) = (postroad_env::now(), Mutex::default());
        Ok(Self { queue, started, records, submissions: AtomicU64::new(0) })
    }

    fn push_at(&self, at: Instant, what: What) {
        let micros = at.saturating_duration_since(self.started).as_micros();
        let at = Micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.records.lock().push(Record { at, what });
    }

    fn push(&self, what: What) {
        self.push_at(postroad_env::now(), what);
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
    /// The queue sends no event at all, or something that is no event.
    pub async fn finish(self, sink: &Ledger, patience: Duration) -> anyhow::Result<History> {
        let mut reading = Reading { next: 1, open: self.acknowledged()?, problem: None };
        match tokio::time::timeout(patience, self.read_events(&mut reading)).await {
            Ok(read) => read?,
            Err(_) if reading.next == 1 => {
                let problem = reading.problem.as_deref().unwrap_or("the queue has not answered");
                bail!("no event was read within {patience:?}: {problem}");
            }
            Err(_) => {}
        }
        for (transaction, copy) in (0..).zip(sink.records()) {
            self.push_copy(sink.started() + copy.since_start, transaction, &copy);
        }
        self.push(What::Phase(Phase::Quiet));
        Ok(History::new(self.records.into_inner()))
    }

    /// Returns every delivery of every acknowledged message.
    fn acknowledged(&self) -> anyhow::Result<BTreeSet<DeliveryId>> {
        let history = History::new(self.records.lock().clone());
        let facts = Facts::new(&history)?;
        let mut deliveries = BTreeSet::new();
        for message in facts.acknowledged.keys().copied() {
            let recipients = facts.recipients(message).unwrap_or_default();
            deliveries.extend((0..).zip(recipients).map(|(recipient, _)| DeliveryId { message, recipient }));
        }
        Ok(deliveries)
    }

    async fn read_events(&self, reading: &mut Reading) -> anyhow::Result<()> {
        while !reading.open.is_empty() {
            self.read_from(reading).await?;
            if !reading.open.is_empty() {
                // A group that was restarted answers after a moment.
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Reads events until all deliveries have ended, or the queue does not answer or stops to.
    async fn read_from(&self, reading: &mut Reading) -> anyhow::Result<()> {
        let request = EventsRequest { group: GROUP.0.into(), from: reading.next, batch_max: 0 };
        let opened = async { anyhow::Ok(connect(self.queue).await?.events(request).await?.into_inner()) };
        let mut events = match opened.await {
            Ok(events) => events,
            Err(error) => {
                reading.problem = Some(format!("{error:#}"));
                return Ok(());
            }
        };
        while !reading.open.is_empty() {
            let batch = match events.message().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ok(()),
                Err(status) => {
                    reading.problem = Some(status.to_string());
                    return Ok(());
                }
            };
            for event in batch.events {
                let event = LedgerEvent::try_from(event).context("the queue sent a malformed event")?;
                reading.next = through(&event) + 1;
                let event = event_of(&event, NodeId(1), GROUP);
                if end_of(&event.kind).is_some()
                    && let Some(delivery) = delivery_of(&event.kind)
                {
                    reading.open.remove(&delivery);
                }
                self.push(What::Event(event));
            }
        }
        Ok(())
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
        let read = match copy.reply {
            ReplyState::Read => true,
            ReplyState::Lost => false,
            // It may have been read or not.
            ReplyState::Open | ReplyState::Written => return,
        };
        self.push_at(at, What::Reply(Reply { transaction, read }));
    }
}

/// Invariants of which something must have been judged.
const JUDGED: [Invariant; 2] = [Invariant::NoLoss, Invariant::OneEnd];
/// Invariants of which nothing may be undecided.
const DECIDED: [Invariant; 2] = [Invariant::NoLoss, Invariant::ExplainedCopies];

/// Fails with the verdict and the story of the first violation, and where too little was recorded to judge.
///
/// # Errors
/// An invariant is violated, messages or their events are missing, or the history contradicts itself.
pub fn require_no_violation(history: &History) -> anyhow::Result<()> {
    let bounds = Bounds { answer_within: ANSWER_WITHIN, p99_within: ANSWER_WITHIN, ..Bounds::default() };
    let verdict = judge(history, &bounds)?;
    let lines: Vec<String> = verdict.judgements.iter().map(ToString::to_string).collect();
    let first = verdict.violations().next().map(|violation| story::of_violation(history, violation));
    ensure!(first.is_none(), "{}\n\n{}", lines.join("\n"), first.unwrap_or_default());
    let is_enough = verdict.judgements.iter().all(|judgement| {
        let is_judged = judgement.judged > 0 || !JUDGED.contains(&judgement.invariant);
        is_judged && (judgement.undecided == 0 || !DECIDED.contains(&judgement.invariant))
    });
    ensure!(is_enough, "the history lacks records:\n{}", lines.join("\n"));
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

/// Returns the number of the last event that an event says something about.
#[must_use]
pub fn through(event: &LedgerEvent) -> u64 {
    match event.kind {
        LedgerKind::Gap { through } => through,
        _ => event.sequence,
    }
}

/// Returns an event of a group as a history has it, read from a node.
#[must_use]
pub fn event_of(event: &LedgerEvent, node: NodeId, group: GroupId) -> Event {
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
    Event { node, group, sequence: event.sequence, ledger_millis, kind }
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

#[cfg(test)]
mod tests {
    use postroad_core::{FinalState, MessageId, Timestamp};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{Sink, SinkConfig};

    fn message() -> MessageId {
        MessageId::new(Timestamp::from_millis(1_795_480_496_789), GROUP, 1)
    }

    fn recorder(queue: SocketAddr) -> Recorder {
        let (started, records, submissions) = (postroad_env::now(), Mutex::default(), AtomicU64::new(0));
        Recorder { queue, started, records, submissions }
    }

    fn submit(recorder: &Recorder, answer: SubmitAnswer) {
        recorder.push(What::Submitted(Submitted {
            submission: 0,
            node: None,
            tenant: TenantId(1),
            token: "submission-0".to_owned(),
            recipients: vec!["a@x.test".to_owned()],
            content_hash: None,
            message: None,
            not_before: None,
            deadline: None,
        }));
        recorder.push(What::SubmitAnswered(SubmitAnswered { submission: 0, answer }));
    }

    #[tokio::test]
    async fn a_run_of_which_no_event_can_be_read_is_an_error() {
        let queue = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let sink = Sink::start(SinkConfig::default()).await.unwrap();
        let recorder = recorder(queue);
        submit(&recorder, SubmitAnswer::Accepted { message: message() });
        let finished = recorder.finish(&sink.ledger(), 3 * ASK_EVERY).await;
        let error = finished.expect_err("nothing was read").to_string();
        assert!(error.contains("no event was read") && error.contains("transport error"), "{error}");
    }

    #[tokio::test]
    async fn a_reply_counts_as_read_when_the_client_goes_on() {
        let sink = Sink::start(SinkConfig::default()).await.unwrap();
        let recorder = recorder(sink.address());
        let mut client = BufReader::new(TcpStream::connect(sink.address()).await.unwrap());
        for (say, replies) in [
            ("MAIL FROM:<>\r\nRCPT TO:<a@x.test>\r\nDATA\r\n", 4),
            ("\r\n.\r\n", 1),
            ("MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n", 3),
            ("\r\n.\r\n", 1),
        ] {
            client.write_all(say.as_bytes()).await.unwrap();
            for _ in 0..replies {
                client.read_line(&mut String::new()).await.unwrap();
            }
        }
        let history = recorder.finish(&sink.ledger(), Duration::ZERO).await.unwrap();
        let replies = history.records.iter().filter_map(|record| match &record.what {
            What::Reply(reply) => Some((reply.transaction, reply.read)),
            _ => None,
        });
        assert_eq!(replies.collect::<Vec<_>>(), [(0, true)], "of the second it is not known");
    }

    #[test]
    fn a_history_that_lacks_records_is_not_good() {
        #[derive(Clone, Copy)]
        struct Run {
            is_accepted: bool,
            has_events: bool,
            copies: u64,
        }
        #[track_caller]
        fn check(run: Run, expected: Option<&str>) {
            let recorder = recorder(SocketAddr::from(([127, 0, 0, 1], 1)));
            let (message, recipient) = (message(), "a@x.test".to_owned());
            let refused = SubmitAnswer::Refused { reply: "550".to_owned() };
            submit(&recorder, if run.is_accepted { SubmitAnswer::Accepted { message } } else { refused });
            let (delivery, tenant) = (DeliveryId { message, recipient: 0 }, TenantId(1));
            let accepted = EventKind::Accepted { message, tenant, recipients: vec![recipient.clone()] };
            let ended = EventKind::Ended { delivery, state: FinalState::Delivered };
            for (sequence, kind) in (1..).zip([accepted, ended]).filter(|_| run.has_events) {
                let event = Event { node: NodeId(1), group: GROUP, sequence, ledger_millis: 7, kind };
                recorder.push(What::Event(event));
            }
            for transaction in 0..run.copies {
                let (source, message) = ("192.0.2.1".to_owned(), Some(message));
                recorder.push(What::Mail(Mail { transaction, source, node: None, message }));
                recorder.push(What::Rcpt(Rcpt { transaction, recipient: recipient.clone(), code: 250 }));
                let (token, content_hash) = (None, None);
                let copy = Message { transaction, message, token, content_hash, code: 250 };
                recorder.push(What::Message(copy));
            }
            recorder.push(What::Phase(Phase::Quiet));
            let judged = require_no_violation(&History::new(recorder.records.into_inner()));
            let error = judged.err().map(|error| error.to_string());
            let is_expected = match (&error, expected) {
                (Some(error), Some(part)) => error.contains(part),
                (error, part) => error.is_none() && part.is_none(),
            };
            assert!(is_expected, "{error:?}");
        }
        let good = Run { is_accepted: true, has_events: true, copies: 1 };
        check(good, None);
        check(Run { is_accepted: false, has_events: false, copies: 0 }, Some("lacks records"));
        // No event: the receiver has a copy, but nothing says how the delivery ended.
        check(Run { has_events: false, ..good }, Some("lacks records"));
        check(Run { has_events: false, copies: 2, ..good }, Some("lacks records"));
        // Delivered, and no receiver was recorded.
        check(Run { copies: 0, ..good }, Some("lacks records"));
        check(Run { copies: 2, ..good }, Some("VIOLATED"));
    }
}
