//! A session with an outbound node: assignments and recalls out, outcomes and windows in.

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc};

use futures::{FutureExt, Stream, StreamExt, stream, stream::FuturesOrdered};
use postroad_core::{NodeId, Outcome, OutcomeKind, Timestamp};
use postroad_ledger::command::{AttemptId, Command, Report};
use postroad_proto::queue::{
    self as wire, AssignedRecipient, Assignments, HeldPage, Hello, Leading, OutboundFrame, QueueFrame,
    RecallAnswers, Recalls, ReportAck, Reports, Windows, outbound_frame, queue_frame,
};
use postroad_raft::ProposeError;
use tokio::sync::{Notify, oneshot, watch};
use tonic::{Status, Streaming};

use super::{QueueService, invalid};
use crate::{
    clock,
    error::{not_leader, refused},
    ledger::{
        Answer, LedgerGroup,
        outbox::{Frame, Outbound, Replaced, Stated},
    },
    metrics::ReportMetrics,
};

/// Attempts or outcomes a node may list in one frame.
const LISTED_MAX: usize = 100_000;

/// Outcomes and answers that are committed together.
const PIECE_MAX: usize = 256;

/// Frames of outcomes whose commit is awaited; more wait on the stream.
const ACKS_MAX: usize = 64;

/// A frame whose commit is awaited; outcomes are acknowledged by number, answers to recalls are not.
type Ack = Pin<Box<dyn Future<Output = Result<Option<u64>, Status>> + Send>>;

/// Assignments whose contents are being read.
type Reading = Pin<Box<dyn Future<Output = Vec<wire::Assignment>> + Send>>;

/// One node's session with the leader of one group, in one term.
pub(super) struct Session {
    ledger: LedgerGroup,
    node: NodeId,
    session: u64,
    term: u64,
    inbound: Streaming<OutboundFrame>,
    wake: Arc<Notify>,
    status: watch::Receiver<postroad_raft::Status>,
    acks: FuturesOrdered<Ack>,
    /// At most one frame: acknowledgements do not wait for it, and recalls do, so that none overtakes its assignment.
    reading: FuturesOrdered<Reading>,
    reports: ReportMetrics,
    greeted: bool,
}

impl Drop for Session {
    /// Nothing is assigned to a node that cannot be reached.
    fn drop(&mut self) {
        self.ledger.core.with_leading(|_, leading| {
            if leading.outboxes.close(self.node, self.session) {
                leading.dispatcher.clear_windows_of(self.node);
            }
        });
    }
}

impl Session {
    /// Begins a session with what the node says of itself.
    pub(super) async fn open(
        service: &QueueService,
        proven: Option<NodeId>,
        mut inbound: Streaming<OutboundFrame>,
    ) -> Result<Self, Status> {
        let first = inbound.message().await?.and_then(|frame| frame.frame);
        let Some(outbound_frame::Frame::Hello(mut hello)) = first else {
            return Err(Status::invalid_argument("the first frame is `Hello`"));
        };
        let node = NodeId(hello.node);
        if proven.is_some_and(|proven| proven != node) {
            return Err(Status::permission_denied("the certificate is of another node"));
        }
        let ledger = service.numbered(hello.group)?.clone();
        // A leader that was replaced and has not noticed must not assign anything.
        ledger.group.read_barrier().await.map_err(|error| refused(&error))?;
        let first = HeldPage { attempts: std::mem::take(&mut hello.held), more: hello.more_held };
        let held = listed(&ledger, node, first, &mut inbound).await?;
        let (session, term, wake) = greet(&ledger, node, hello, &held)?;
        tracing::info!(group = %ledger.id(), %node, term, "an outbound node takes work");
        Ok(Self {
            status: ledger.group.status(),
            ledger,
            node,
            session,
            term,
            inbound,
            wake,
            acks: FuturesOrdered::new(),
            reading: FuturesOrdered::new(),
            reports: service.reports.clone(),
            greeted: false,
        })
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<QueueFrame, Status>> {
        stream::unfold(Some(self), |session| async {
            let mut session = session?;
            match session.next_frame().await {
                Ok(Some(frame)) => Some((Ok(QueueFrame { frame: Some(frame) }), Some(session))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    /// Returns what is sent next; takes in what arrives until there is something.
    async fn next_frame(&mut self) -> Result<Option<queue_frame::Frame>, Status> {
        if !std::mem::replace(&mut self.greeted, true) {
            return Ok(Some(queue_frame::Frame::Leading(Leading { term: self.term })));
        }
        loop {
            tokio::select! {
                biased;
                Some(ack) = self.acks.next(), if !self.acks.is_empty() => {
                    if let Some(through) = self.latest(ack?)? {
                        return Ok(Some(queue_frame::Frame::ReportAck(ReportAck { through })));
                    }
                }
                frame = self.inbound.message(), if self.acks.len() < ACKS_MAX => match frame? {
                    Some(OutboundFrame { frame: Some(frame) }) => self.handle(frame).await?,
                    Some(_) => return Err(Status::invalid_argument("an empty frame")),
                    None => return Ok(None),
                },
                Some(assignments) = self.reading.next(), if !self.reading.is_empty() => {
                    return Ok(Some(queue_frame::Frame::Assignments(Assignments { assignments })));
                }
                () = self.wake.notified(), if self.reading.is_empty() => {
                    if let Some(recalls) = self.take_frame()? {
                        return Ok(Some(recalls));
                    }
                }
                changed = self.status.changed() => {
                    let status = self.status.borrow_and_update().clone();
                    if changed.is_err() || !status.leading || status.term != self.term {
                        return Err(not_leader(status.leader));
                    }
                }
            }
        }
    }

    /// Acknowledgements that are ready too are one: they say how far, not what.
    fn latest(&mut self, first: Option<u64>) -> Result<Option<u64>, Status> {
        let mut through = first;
        while let Some(Some(next)) = self.acks.next().now_or_never() {
            through = next?.or(through);
        }
        Ok(through)
    }

    /// Takes what is sent next: recalls at once, assignments when their contents have been read.
    fn take_frame(&mut self) -> Result<Option<queue_frame::Frame>, Status> {
        let (node, session) = (self.node, self.session);
        let taken = self
            .ledger
            .core
            .with_leading(|ledger, leading| leading.outboxes.take_frame(ledger, node, session));
        let frame = match taken {
            None => return Err(not_leader(None)),
            Some(Err(Replaced)) => return Err(Status::aborted("the node has begun a later session")),
            Some(Ok(None)) => return Ok(None),
            Some(Ok(Some(frame))) => frame,
        };
        // There may be more than one frame holds.
        self.wake.notify_one();
        match frame {
            Frame::Recalls(attempts) => Ok(Some(queue_frame::Frame::Recalls(Recalls { attempts }))),
            Frame::Assignments(outbound) => {
                self.reading.push_back(Box::pin(with_contents(self.ledger.clone(), outbound)));
                Ok(None)
            }
        }
    }

    async fn handle(&mut self, frame: outbound_frame::Frame) -> Result<(), Status> {
        match frame {
            outbound_frame::Frame::Hello(_) | outbound_frame::Frame::Held(_) => {
                Err(Status::invalid_argument("`Hello` and what is held are said once"))
            }
            outbound_frame::Frame::Reports(reports) => self.handle_reports(reports).await,
            outbound_frame::Frame::Windows(windows) => {
                let stated = stated(windows);
                self.ledger.core.with_leading(|_, leading| {
                    leading.outboxes.state_windows(self.node, self.session, stated, &mut leading.dispatcher);
                });
                self.ledger.core.wake.notify_one();
                Ok(())
            }
            outbound_frame::Frame::Recalls(answers) => self.handle_recalls(answers).await,
            outbound_frame::Frame::Taken(taken) => {
                self.ledger.core.with_leading(|_, leading| {
                    leading.outboxes.taken(self.node, self.session, taken.frames);
                });
                Ok(())
            }
        }
    }

    /// Outcomes are acknowledged once they are committed.
    async fn handle_reports(&mut self, reports: Reports) -> Result<(), Status> {
        if reports.reports.len() > LISTED_MAX {
            return Err(Status::invalid_argument("too many reports in one frame"));
        }
        let parsed = reports.reports.into_iter().map(TryInto::try_into);
        let mut parsed: Vec<Report> = parsed.collect::<Result<_, _>>().map_err(invalid)?;
        self.ledger.schedule(&mut parsed);
        parsed.iter().for_each(|report| self.reports.count(report.outcome.kind));
        let commands = parsed.into_iter().map(|report| Command::Report(Box::new(report))).collect();
        let answers = self.enqueue(commands).await?;
        self.await_commit(answers, Some(reports.sequence));
        Ok(())
    }

    /// A commit that fails ends the session: with the next one both sides say again what they know.
    fn await_commit(&mut self, answers: Vec<oneshot::Receiver<Answer>>, sequence: Option<u64>) {
        self.acks.push_back(Box::pin(async move {
            for answer in answers {
                let answered = answer.await.unwrap_or(Err(ProposeError::Stopped));
                answered.map_err(|error| refused(&error))?;
            }
            Ok(sequence)
        }));
    }

    async fn handle_recalls(&mut self, answers: RecallAnswers) -> Result<(), Status> {
        if answers.answers.len() > LISTED_MAX {
            return Err(Status::invalid_argument("too many answers in one frame"));
        }
        let commands = answers.answers.into_iter().map(TryInto::try_into);
        let commands: Vec<Command> = commands.collect::<Result<_, _>>().map_err(invalid)?;
        let answers = self.enqueue(commands).await?;
        self.await_commit(answers, None);
        Ok(())
    }

    /// Hands over commands in pieces that fit an entry.
    async fn enqueue(
        &mut self,
        mut commands: Vec<Command>,
    ) -> Result<Vec<oneshot::Receiver<Answer>>, Status> {
        let mut answers = Vec::new();
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(PIECE_MAX));
            let answer = self.ledger.enqueue(commands, Vec::new()).await;
            answers.push(answer.map_err(|error| refused(&error))?);
            commands = rest;
        }
        Ok(answers)
    }
}

/// Fetches the contents; one that cannot be read holds back its own message only.
async fn with_contents(ledger: LedgerGroup, outbound: Vec<Outbound>) -> Vec<wire::Assignment> {
    let mut assignments = Vec::with_capacity(outbound.len());
    for Outbound { mut assignment, content, message, .. } in outbound {
        if content.is_empty() {
            assignments.push(assignment);
            continue;
        }
        match ledger.content(&content).await {
            Ok(bytes) => {
                assignment.content = bytes;
                assignments.push(assignment);
            }
            // It ended while it was looked for.
            Err(_) if ledger.core.with_ledger(|ledger| ledger.message(message).is_none()) => {}
            Err(error) => {
                tracing::error!(message_id = %message, %error, "a content cannot be read");
                ledger.core.metrics.unreadable.increment(1);
                report_unreadable(&ledger, &assignment).await;
            }
        }
    }
    assignments
}

/// The attempts end as our own fault, and are made again later.
async fn report_unreadable(ledger: &LedgerGroup, assignment: &wire::Assignment) {
    let failed = |recipient: &AssignedRecipient| {
        let id = wire::AttemptId {
            message_id: assignment.message_id.clone(),
            recipient: recipient.recipient,
            attempt: recipient.attempt,
            epoch: assignment.epoch,
        };
        let now = clock::now();
        Some(Report {
            id: id.try_into().ok()?,
            outcome: Outcome::new(OutcomeKind::Internal, None, 0, "the content cannot be read"),
            retry_at: Timestamp::ZERO,
            remote: "".into(),
            tls: "".into(),
            started_at: now,
            ended_at: now,
        })
    };
    let mut reports: Vec<Report> = assignment.recipients.iter().filter_map(failed).collect();
    ledger.schedule(&mut reports);
    let commands = reports.into_iter().map(|report| Command::Report(Box::new(report))).collect();
    // Without a commit the attempts stay assigned, and are looked at again in the next session.
    let _ = ledger.enqueue(commands, Vec::new()).await;
}

/// Takes what a node says it holds, page by page.
///
/// Only what is assigned to it is kept: so much it may hold, however much it lists.
/// What it holds was committed before it was sent, so a leader that has passed a barrier knows of it.
async fn listed(
    ledger: &LedgerGroup,
    node: NodeId,
    first: HeldPage,
    inbound: &mut Streaming<OutboundFrame>,
) -> Result<BTreeSet<AttemptId>, Status> {
    let (mut held, mut page) = (BTreeSet::new(), first);
    loop {
        if page.attempts.len() > LISTED_MAX {
            return Err(Status::invalid_argument("too many attempts in one frame"));
        }
        let attempts = page.attempts.into_iter().map(TryInto::try_into);
        let attempts: Vec<AttemptId> = attempts.collect::<Result<_, _>>().map_err(invalid)?;
        ledger.core.with_ledger(|ledger| {
            let is_assigned = |id: &AttemptId| {
                let assigned = ledger.key(id.delivery).and_then(|key| ledger.assigned(key));
                assigned.is_some_and(|assigned| assigned.id == *id && assigned.lane.node == node)
            };
            held.extend(attempts.into_iter().filter(is_assigned));
        });
        if !page.more {
            return Ok(held);
        }
        let next = inbound.message().await?.and_then(|frame| frame.frame);
        let Some(outbound_frame::Frame::Held(next)) = next else {
            return Err(Status::invalid_argument("another page of what is held was announced"));
        };
        page = next;
    }
}

/// Checks who the node says it is, and puts up its outbox.
fn greet(
    ledger: &LedgerGroup,
    node: NodeId,
    mut hello: Hello,
    held: &BTreeSet<AttemptId>,
) -> Result<(u64, u64, Arc<Notify>), Status> {
    let view = ledger.views.borrow().clone();
    if view.incarnation(node) != Some(hello.incarnation) {
        // What this node knows may lag behind what the directory has told the run.
        return Err(Status::unavailable("this run of the node is not known here, or not the latest"));
    }
    let windows = stated(hello.windows.take().unwrap_or_default());
    let opened = ledger.core.with_leading(|state, leading| {
        if hello.term > leading.term {
            return None;
        }
        let opened = leading.outboxes.open(state, &view, node, &hello, held);
        leading.outboxes.state_windows(node, opened.session, windows, &mut leading.dispatcher);
        Some((opened.session, leading.term, opened.wake))
    });
    ledger.core.wake.notify_one();
    opened.flatten().ok_or_else(|| not_leader(ledger.status().leader))
}

fn stated(windows: Windows) -> Stated {
    windows.sources.into_iter().map(Into::into).collect()
}
