//! A session with an outbound node: sends assignments and recalls, receives reports and windows.

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc};

use futures::{FutureExt, Stream, StreamExt, stream, stream::FuturesOrdered};
use postroad_core::{NodeId, Outcome, OutcomeKind};
use postroad_ledger::command::{AttemptId, Command, Report};
use postroad_proto::{
    LANES_PER_FRAME_MAX, parse_lane_report,
    queue::{
        self as wire, AssignedRecipient, Assignments, Hello, LaneReports, Leading, OutboundFrame,
        PendingPage, QueueFrame, RecallAnswers, Recalls, ReportAck, Reports, Windows, outbound_frame,
        queue_frame,
    },
};
use postroad_raft::ProposeError;
use tokio::sync::{Notify, oneshot, watch};
use tonic::{Status, Streaming};

use super::{QueueService, invalid};
use crate::{
    clock,
    error::{not_leader, refused},
    ledger::{
        CommitResult, LedgerGroup,
        outbox::{Frame, PendingAssignment, Replaced, SourceWindows},
    },
    metrics::ReportMetrics,
};

/// Attempts or reports in one frame.
const ATTEMPTS_PER_FRAME_MAX: usize = 100_000;

/// Commands committed as one request.
const COMMANDS_PER_REQUEST_MAX: usize = 256;

/// Frames of reports being committed at a time; more wait on the stream.
const ACKS_MAX: usize = 64;

/// A frame being committed; reports are acknowledged by number, answers to recalls are not acknowledged.
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
    /// At most one frame. Acknowledgements do not wait for it; recalls do, so that none overtakes its assignment.
    reading: FuturesOrdered<Reading>,
    reports: ReportMetrics,
    is_announced: bool,
}

impl Drop for Session {
    /// Nothing is assigned to a node without a session.
    fn drop(&mut self) {
        self.ledger.shared.with_leading(|_, leading| {
            if leading.outboxes.close(self.node, self.session) {
                leading.dispatcher.clear_windows_of(self.node);
                leading.lanes.forget(self.node);
            }
        });
    }
}

impl Session {
    /// Opens a session from the node's `Hello`.
    pub(super) async fn open(
        service: &QueueService,
        proven: Option<NodeId>,
        mut inbound: Streaming<OutboundFrame>,
    ) -> Result<Self, Status> {
        let first = inbound.message().await?.and_then(|frame| frame.frame);
        let Some(outbound_frame::Frame::Hello(mut hello)) = first else {
            return Err(Status::invalid_argument("the first frame must be `Hello`"));
        };
        let node = NodeId(hello.node);
        if proven.is_some_and(|proven| proven != node) {
            return Err(Status::permission_denied("the certificate belongs to another node"));
        }
        let ledger = service.group_by_number(hello.group)?.clone();
        // A leader that was replaced without noticing must not assign anything.
        ledger.group.read_barrier().await.map_err(|error| refused(&error))?;
        let first = PendingPage { attempts: std::mem::take(&mut hello.pending), more: hello.more_pending };
        let pending = read_pending(&ledger, node, first, &mut inbound).await?;
        let (session, term, wake) = begin_session(&ledger, node, hello, &pending)?;
        tracing::info!(group = %ledger.id(), %node, term, "work session with an outbound node opened");
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
            is_announced: false,
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

    /// Returns the next frame to send, handling frames that arrive meanwhile.
    async fn next_frame(&mut self) -> Result<Option<queue_frame::Frame>, Status> {
        if !std::mem::replace(&mut self.is_announced, true) {
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
                    // A frame of a newer version.
                    Some(OutboundFrame { frame: None }) => {}
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

    /// Merges acknowledgements that are ready: only the highest number counts.
    fn latest(&mut self, first: Option<u64>) -> Result<Option<u64>, Status> {
        let mut through = first;
        while let Some(Some(next)) = self.acks.next().now_or_never() {
            through = next?.or(through);
        }
        Ok(through)
    }

    /// Takes the next frame of the outbox: recalls are sent at once, assignments when their contents have been read.
    fn take_frame(&mut self) -> Result<Option<queue_frame::Frame>, Status> {
        let (node, session) = (self.node, self.session);
        let taken = self
            .ledger
            .shared
            .with_leading(|ledger, leading| leading.outboxes.take_frame(ledger, node, session));
        let frame = match taken {
            None => return Err(not_leader(None)),
            Some(Err(Replaced)) => return Err(Status::aborted("the node has opened a later session")),
            Some(Ok(None)) => return Ok(None),
            Some(Ok(Some(frame))) => frame,
        };
        // There may be more than one frame holds.
        self.wake.notify_one();
        match frame {
            Frame::Recalls(attempts) => Ok(Some(queue_frame::Frame::Recalls(Recalls { attempts }))),
            Frame::Probe(probe) => Ok(Some(queue_frame::Frame::Probe(probe))),
            Frame::Assignments(outbound) => {
                self.reading.push_back(Box::pin(with_contents(self.ledger.clone(), outbound)));
                Ok(None)
            }
        }
    }

    async fn handle(&mut self, frame: outbound_frame::Frame) -> Result<(), Status> {
        match frame {
            outbound_frame::Frame::Hello(_) | outbound_frame::Frame::Pending(_) => Err(
                Status::invalid_argument("`Hello` and its pages of pending attempts may be sent only once"),
            ),
            outbound_frame::Frame::Reports(reports) => self.handle_reports(reports).await,
            outbound_frame::Frame::Windows(windows) => {
                let windows = parse_windows(windows);
                self.ledger.shared.with_leading(|_, leading| {
                    leading.outboxes.set_windows(self.node, self.session, windows, &mut leading.dispatcher);
                });
                self.ledger.shared.wake.notify_one();
                Ok(())
            }
            outbound_frame::Frame::Recalls(answers) => self.handle_recalls(answers).await,
            outbound_frame::Frame::Lanes(reports) => self.handle_lanes(reports),
            outbound_frame::Frame::Probe(result) => {
                self.ledger.shared.with_leading(|_, leading| {
                    leading.outboxes.finish_probe(self.node, self.session, result);
                });
                Ok(())
            }
            outbound_frame::Frame::Credit(credit) => {
                self.ledger.shared.with_leading(|_, leading| {
                    leading.outboxes.return_credit(self.node, self.session, credit.frames);
                });
                Ok(())
            }
        }
    }

    /// Reports are acknowledged once they are committed.
    async fn handle_reports(&mut self, reports: Reports) -> Result<(), Status> {
        if reports.reports.len() > ATTEMPTS_PER_FRAME_MAX {
            return Err(Status::invalid_argument("too many reports in one frame"));
        }
        let parsed = reports.reports.into_iter().map(TryInto::try_into);
        let parsed: Vec<Report> = parsed.collect::<Result<_, _>>().map_err(invalid)?;
        parsed.iter().for_each(|report| self.reports.count(report.outcome.kind));
        let answers = self.enqueue(self.ledger.report_commands(parsed)).await?;
        self.await_commit(answers, Some(reports.sequence));
        Ok(())
    }

    /// A failed commit ends the session: the next one begins with the state of both sides.
    fn await_commit(&mut self, answers: Vec<oneshot::Receiver<CommitResult>>, sequence: Option<u64>) {
        self.acks.push_back(Box::pin(async move {
            for answer in answers {
                let answered = answer.await.unwrap_or(Err(ProposeError::Stopped));
                answered.map_err(|error| refused(&error))?;
            }
            Ok(sequence)
        }));
    }

    async fn handle_recalls(&mut self, answers: RecallAnswers) -> Result<(), Status> {
        if answers.answers.len() > ATTEMPTS_PER_FRAME_MAX {
            return Err(Status::invalid_argument("too many answers in one frame"));
        }
        let commands = answers.answers.into_iter().map(TryInto::try_into);
        let commands: Vec<Command> = commands.collect::<Result<_, _>>().map_err(invalid)?;
        let answers = self.enqueue(commands).await?;
        self.await_commit(answers, None);
        Ok(())
    }

    fn handle_lanes(&self, reports: LaneReports) -> Result<(), Status> {
        if reports.lanes.len() > LANES_PER_FRAME_MAX {
            return Err(Status::invalid_argument("too many lanes in one frame"));
        }
        let now = clock::now();
        let (count, metrics) = (reports.lanes.len(), &self.ledger.shared.metrics);
        let parsed = reports.lanes.into_iter().filter_map(|lane| parse_lane_report(lane, now).ok());
        // Not under the lock.
        let parsed: Vec<_> = parsed.collect();
        // Mail does not stop for a report that is dropped.
        metrics.lanes_malformed.increment((count - parsed.len()) as u64);
        self.ledger.shared.with_leading(|_, leading| {
            // A session that was replaced says nothing about the lanes any longer.
            if leading.outboxes.is_current(self.node, self.session) {
                let kept = |(source, site, report)| leading.lanes.note(self.node, source, site, report);
                metrics
                    .lanes_too_many
                    .increment(parsed.into_iter().map(kept).filter(|kept| !kept).count() as u64);
            }
        });
        Ok(())
    }

    /// Queues commands in requests that fit an entry.
    async fn enqueue(
        &mut self,
        mut commands: Vec<Command>,
    ) -> Result<Vec<oneshot::Receiver<CommitResult>>, Status> {
        let mut answers = Vec::new();
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(COMMANDS_PER_REQUEST_MAX));
            let answer = self.ledger.enqueue(commands, Vec::new()).await;
            answers.push(answer.map_err(|error| refused(&error))?);
            commands = rest;
        }
        Ok(answers)
    }
}

/// Reads the contents; an unreadable one affects only its own message.
async fn with_contents(ledger: LedgerGroup, outbound: Vec<PendingAssignment>) -> Vec<wire::Assignment> {
    let mut assignments = Vec::with_capacity(outbound.len());
    for PendingAssignment { mut assignment, content, message, .. } in outbound {
        if content.is_empty() {
            assignments.push(assignment);
            continue;
        }
        match ledger.content(&content).await {
            Ok(bytes) => {
                assignment.content = bytes;
                assignments.push(assignment);
            }
            // The message ended meanwhile.
            Err(_) if ledger.shared.with_ledger(|ledger| ledger.message(message).is_none()) => {}
            Err(error) => {
                tracing::error!(message_id = %message, %error, "message body unreadable");
                ledger.shared.metrics.unreadable.increment(1);
                report_unreadable(&ledger, &assignment).await;
            }
        }
    }
    assignments
}

/// Ends the attempts as an internal error; they are retried later.
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
            outcome: Outcome::new(OutcomeKind::Internal, None, 0, "message body unreadable"),
            remote: "".into(),
            tls: "".into(),
            started_at: now,
            ended_at: now,
        })
    };
    let commands = ledger.report_commands(assignment.recipients.iter().filter_map(failed).collect());
    // If this fails, the attempts stay assigned and are tried again in the next session.
    let _ = ledger.enqueue(commands, Vec::new()).await;
}

/// Reads the pages of attempts that a node has pending.
///
/// Only attempts assigned to the node are kept, however many it lists.
/// An assignment is committed before it is sent, so a leader that has passed a read barrier knows it.
async fn read_pending(
    ledger: &LedgerGroup,
    node: NodeId,
    first: PendingPage,
    inbound: &mut Streaming<OutboundFrame>,
) -> Result<BTreeSet<AttemptId>, Status> {
    let (mut pending, mut page) = (BTreeSet::new(), first);
    loop {
        if page.attempts.len() > ATTEMPTS_PER_FRAME_MAX {
            return Err(Status::invalid_argument("too many attempts in one frame"));
        }
        let attempts = page.attempts.into_iter().map(TryInto::try_into);
        let attempts: Vec<AttemptId> = attempts.collect::<Result<_, _>>().map_err(invalid)?;
        ledger.shared.with_ledger(|ledger| {
            let is_assigned = |id: &AttemptId| {
                let assigned = ledger.key(id.delivery).and_then(|key| ledger.assigned(key));
                assigned.is_some_and(|assigned| assigned.id == *id && assigned.grant.node == node)
            };
            pending.extend(attempts.into_iter().filter(is_assigned));
        });
        if !page.more {
            return Ok(pending);
        }
        let next = inbound.message().await?.and_then(|frame| frame.frame);
        let Some(outbound_frame::Frame::Pending(next)) = next else {
            return Err(Status::invalid_argument("expected the next page of pending attempts"));
        };
        page = next;
    }
}

/// Checks the node's incarnation, and opens its outbox.
fn begin_session(
    ledger: &LedgerGroup,
    node: NodeId,
    mut hello: Hello,
    pending: &BTreeSet<AttemptId>,
) -> Result<(u64, u64, Arc<Notify>), Status> {
    let view = ledger.views.borrow().clone();
    if view.incarnation(node) != Some(hello.incarnation) {
        // This node's view of the directory may lag behind.
        return Err(Status::unavailable("this incarnation of the node is unknown here, or not the latest"));
    }
    let windows = parse_windows(hello.windows.take().unwrap_or_default());
    let opened = ledger.shared.with_leading(|state, leading| {
        if hello.term > leading.term {
            return None;
        }
        let opened = leading.outboxes.open(state, &view, node, &hello, pending);
        leading.outboxes.set_windows(node, opened.session, windows, &mut leading.dispatcher);
        leading.lanes.forget(node);
        Some((opened.session, leading.term, opened.wake))
    });
    ledger.shared.wake.notify_one();
    opened.flatten().ok_or_else(|| not_leader(ledger.status().leader))
}

fn parse_windows(windows: Windows) -> SourceWindows {
    windows.sources.into_iter().map(Into::into).collect()
}
