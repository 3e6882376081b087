//! The session with the leader of one group: assignments and recalls in, outcomes and windows out.
//!
//! All state is in [`GroupAttempts`]: after a break, the next session lists the pending attempts and continues.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use postroad_cluster::{Endpoints, FRAME_BYTES_MAX, Leader, LeaderTable};
use postroad_core::NodeId;
use postroad_proto::{
    LANES_PER_FRAME_MAX, parse_message_id,
    queue::{
        AttemptId, Credit, Hello, LaneReports, OutboundFrame, PendingPage, Probe, RecallAnswers, Windows,
        outbound_frame, queue_frame, queue_service_client::QueueServiceClient,
    },
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{self, Instant},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Streaming;

use crate::{
    assignments::{CREDIT_FRAMES, CreditExceeded, IncomingAssignments},
    context::DeliveryContext,
    group_attempts::GroupAttempts,
    lanes::Lanes,
    pending_attempts::{LISTED_PER_FRAME_MAX, PendingAttempts},
    probe,
};

/// Everything a session needs.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) node: NodeId,
    pub(crate) attempts: Arc<GroupAttempts>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) context: Arc<DeliveryContext>,
    pub(crate) endpoints: Endpoints,
    pub(crate) leaders: watch::Receiver<LeaderTable>,
    /// The incarnation whose claim was granted; `None` without one.
    pub(crate) claimed_incarnation: watch::Receiver<Option<u64>>,
    pub(crate) budget: Arc<Semaphore>,
    /// The number of ledger groups: windows are divided among them.
    pub(crate) groups: watch::Receiver<u32>,
    /// The highest term seen.
    pub(crate) term: u64,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("the stream ended")]
    Stream,
    #[error("the leader refused: {0}")]
    Refused(#[from] tonic::Status),
    #[error("the leader of term `{0}` is not the latest")]
    OldTerm(u64),
    #[error("another node leads, or this incarnation has ended")]
    Superseded,
    #[error("the leader violated the protocol")]
    Protocol,
}

/// The pause before the next session is opened.
const REOPEN_AFTER: Duration = Duration::from_millis(50);
/// How long a leader may take to answer, and how much longer for each further page of pending attempts.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
const PAGE_WITHIN: Duration = Duration::from_secs(1);
/// The shortest time between two frames of windows: many change together, and each frame has all of them.
const WINDOWS_GAP: Duration = Duration::from_millis(50);
/// Windows are sent again without a change: a leader ignores those under an epoch that it does not know yet.
const WINDOWS_EVERY_MIN: Duration = Duration::from_millis(100);
const WINDOWS_EVERY_MAX: Duration = Duration::from_secs(5);
/// Probes that wait, and that are carried out at a time.
const PROBES_MAX: usize = 16;
/// Answers to recalls in one frame.
const ANSWERS_PER_FRAME_MAX: usize = 4096;

impl Session {
    /// Keeps a session with the leader until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let (leader, incarnation) = self.wait_for_leader().await;
            let ended = self.serve(leader, incarnation).await;
            tracing::debug!(group = %self.attempts.group, node = %leader.node, reason = %ended, "work session ended");
            time::sleep(REOPEN_AFTER).await;
        }
    }

    async fn wait_for_leader(&mut self) -> (Leader, u64) {
        loop {
            let leader = self.leaders.borrow_and_update().get(&self.attempts.group).copied();
            let claimed_incarnation = *self.claimed_incarnation.borrow_and_update();
            if let (Some(leader), Some(incarnation)) = (leader, claimed_incarnation)
                && leader.term >= self.term
            {
                return (leader, incarnation);
            }
            tokio::select! {
                Ok(()) = self.leaders.changed() => {}
                Ok(()) = self.claimed_incarnation.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    async fn serve(&mut self, leader: Leader, incarnation: u64) -> SessionEnd {
        match self.open(leader, incarnation).await {
            Ok((outgoing, frames)) => {
                let (admitted, watch_admitted) = watch::channel(0);
                let incoming = IncomingAssignments {
                    attempts: &self.attempts,
                    lanes: &self.lanes,
                    context: &self.context,
                    budget: &self.budget,
                    waiting: Mutex::default(),
                    arrived: Notify::new(),
                    admitted,
                };
                let results = outgoing.clone();
                let writer = Writer {
                    attempts: &self.attempts,
                    lanes: &self.lanes,
                    outgoing,
                    windows: self.lanes.windows_watch(),
                    groups: self.groups.clone(),
                    admitted: watch_admitted,
                    observed: self.lanes.observed.watch(),
                    lanes_sent: 0,
                };
                let (leaders, claimed_incarnation) = (self.leaders.clone(), self.claimed_incarnation.clone());
                let this = &*self;
                let (probes, asked) = mpsc::channel(PROBES_MAX);
                tokio::select! {
                    ended = this.read(frames, &incoming, &probes) => ended,
                    ended = this.run_probes(asked, results) => ended,
                    () = incoming.run() => SessionEnd::Stream,
                    ended = writer.run() => ended,
                    ended = this.watch(leaders, claimed_incarnation, incarnation) => ended,
                }
            }
            Err(ended) => ended,
        }
    }

    /// Opens the stream and checks that the node leads, in a term no lower than seen before.
    async fn open(
        &mut self,
        leader: Leader,
        incarnation: u64,
    ) -> Result<(mpsc::Sender<OutboundFrame>, Streaming<postroad_proto::queue::QueueFrame>), SessionEnd> {
        let channel = self.endpoints.get(&leader.node).cloned().ok_or(SessionEnd::Superseded)?;
        let mut client = QueueServiceClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let pending = self.attempts.with(PendingAttempts::begin_session);
        let (first, pages) = pages(pending, LISTED_PER_FRAME_MAX);
        let within = OPEN_WITHIN + PAGE_WITHIN * u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let hello = Hello {
            group: u32::from(self.attempts.group.0),
            node: self.node.0,
            incarnation,
            term: self.term,
            pending: first.attempts,
            windows: Some(Windows { sources: self.lanes.windows(*self.groups.borrow()) }),
            more_pending: first.more,
            credit_frames: CREDIT_FRAMES,
        };
        let begin = std::iter::once(outbound_frame::Frame::Hello(hello))
            .chain(pages.into_iter().map(outbound_frame::Frame::Pending));
        let begin = begin.map(|frame| OutboundFrame { frame: Some(frame) });
        let (outgoing, receiver) = mpsc::channel(4);
        let opening = async {
            let outgoing = tokio_stream::iter(begin).chain(ReceiverStream::new(receiver));
            let mut frames = client.work(outgoing).await?.into_inner();
            let first = frames.message().await?.and_then(|frame| frame.frame);
            let Some(queue_frame::Frame::Leading(leading)) = first else { return Err(SessionEnd::Protocol) };
            Ok((leading.term, frames))
        };
        let (term, frames) = time::timeout(within, opening).await.map_err(|_| SessionEnd::Stream)??;
        if term < self.term {
            return Err(SessionEnd::OldTerm(term));
        }
        self.term = term;
        tracing::info!(group = %self.attempts.group, node = %leader.node, term, "work session started");
        Ok((outgoing, frames))
    }

    /// Reads frames until the stream ends; assignments wait elsewhere for the content budget.
    async fn read(
        &self,
        mut frames: Streaming<postroad_proto::queue::QueueFrame>,
        incoming: &IncomingAssignments<'_>,
        probes: &mpsc::Sender<Probe>,
    ) -> SessionEnd {
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame.frame,
                Ok(None) => return SessionEnd::Stream,
                Err(status) => return SessionEnd::Refused(status),
            };
            match frame {
                Some(queue_frame::Frame::Assignments(assignments)) => match incoming.push(assignments) {
                    Ok(()) => {}
                    Err(CreditExceeded) => return SessionEnd::Protocol,
                },
                Some(queue_frame::Frame::ReportAck(ack)) => {
                    self.attempts.with(|pending| pending.acknowledged(ack.through));
                    self.attempts.notify();
                }
                Some(queue_frame::Frame::Recalls(recalls)) => {
                    for id in &recalls.attempts {
                        if !incoming.recall(id) {
                            self.recall(id);
                        }
                    }
                    self.attempts.notify();
                }
                // A leader that asks for more at a time than this node carries out gets no answer to the rest.
                Some(queue_frame::Frame::Probe(probe)) => drop(probes.try_send(probe)),
                Some(queue_frame::Frame::Leading(_)) => return SessionEnd::Protocol,
                // A frame of a newer version.
                None => {}
            }
        }
    }

    /// Carries out probes beside each other, and sends their results.
    async fn run_probes(
        &self,
        mut asked: mpsc::Receiver<Probe>,
        results: mpsc::Sender<OutboundFrame>,
    ) -> SessionEnd {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(probe) = asked.recv(), if running.len() < PROBES_MAX => {
                    running.push(Box::pin(probe::run(&self.context, &self.lanes, probe)));
                }
                Some(result) = running.next(), if !running.is_empty() => {
                    let frame = Some(outbound_frame::Frame::Probe(result));
                    if results.send(OutboundFrame { frame }).await.is_err() {
                        return SessionEnd::Stream;
                    }
                }
                else => return SessionEnd::Stream,
            }
        }
    }

    fn recall(&self, id: &AttemptId) {
        // An attempt that is not pending or has an outcome needs no answer: it is reported, or was given back.
        let Some(lane) = self.attempts.with(|pending| pending.lane_of(id)) else { return };
        let Ok(message) = parse_message_id(&id.message_id) else { return };
        let recalled = self.lanes.recall(&lane, message, id.recipient, id.attempt);
        self.attempts.with(|pending| {
            if recalled { pending.give_back(id, lane.source) } else { pending.refuse_recall(id, lane.source) }
        });
    }

    /// Waits until a higher term has a leader, or until this incarnation has ended.
    async fn watch(
        &self,
        mut leaders: watch::Receiver<LeaderTable>,
        mut claimed_incarnation: watch::Receiver<Option<u64>>,
        incarnation: u64,
    ) -> SessionEnd {
        loop {
            let known = leaders.borrow_and_update().get(&self.attempts.group).copied();
            if known.is_some_and(|leader| leader.term > self.term)
                || *claimed_incarnation.borrow_and_update() != Some(incarnation)
            {
                return SessionEnd::Superseded;
            }
            tokio::select! {
                Ok(()) = leaders.changed() => {}
                Ok(()) = claimed_incarnation.changed() => {}
                else => return SessionEnd::Superseded,
            }
        }
    }
}

/// Splits the pending attempts into pages: the one in `Hello`, and those that follow it.
fn pages(mut pending: Vec<AttemptId>, per_page: usize) -> (PendingPage, Vec<PendingPage>) {
    let mut pages = VecDeque::new();
    while pending.len() > per_page {
        let attempts = pending.split_off(pending.len() - per_page);
        pages.push_front(PendingPage { attempts, more: !pages.is_empty() });
    }
    let first = PendingPage { attempts: pending, more: !pages.is_empty() };
    (first, pages.into())
}

/// Sends outcomes at once, windows at a bounded rate, and recall answers after the windows that belong to them.
struct Writer<'a> {
    attempts: &'a GroupAttempts,
    lanes: &'a Lanes,
    outgoing: mpsc::Sender<OutboundFrame>,
    windows: watch::Receiver<u64>,
    groups: watch::Receiver<u32>,
    /// How many frames of assignments were admitted.
    admitted: watch::Receiver<u64>,
    /// Sees when lanes have changed.
    observed: watch::Receiver<u64>,
    /// The last change of a lane that was sent.
    lanes_sent: u64,
}

impl Writer<'_> {
    async fn run(mut self) -> SessionEnd {
        // This leader has no lane yet.
        self.observed.mark_changed();
        let mut sent_at = Instant::now();
        let mut resend_every = WINDOWS_EVERY_MIN;
        loop {
            // Lets workers add their outcomes to the next frame.
            tokio::task::yield_now().await;
            while let Some(reports) = self.attempts.with(PendingAttempts::next_reports) {
                if self.send(outbound_frame::Frame::Reports(reports)).await.is_err() {
                    return SessionEnd::Stream;
                }
            }
            if self.admitted.has_changed().unwrap_or(false) {
                let frames = *self.admitted.borrow_and_update();
                if self.send(outbound_frame::Frame::Credit(Credit { frames })).await.is_err() {
                    return SessionEnd::Stream;
                }
            }
            if self.observed.has_changed().unwrap_or(false) && self.send_lanes().await.is_err() {
                return SessionEnd::Stream;
            }
            let changed =
                self.windows.has_changed().unwrap_or(false) || self.groups.has_changed().unwrap_or(false);
            let due = if changed { WINDOWS_GAP } else { resend_every };
            if sent_at.elapsed() >= due {
                resend_every =
                    if changed { WINDOWS_EVERY_MIN } else { (resend_every * 2).min(WINDOWS_EVERY_MAX) };
                sent_at = Instant::now();
                if self.send_windows().await.is_err() {
                    return SessionEnd::Stream;
                }
            } else if !changed && self.send_recall_answers().await.is_err() {
                return SessionEnd::Stream;
            }
            tokio::select! {
                () = self.attempts.notified() => {}
                Ok(()) = self.admitted.changed() => self.admitted.mark_changed(),
                Ok(()) = self.observed.changed() => self.observed.mark_changed(),
                // After a change only the timer is awaited.
                Ok(()) = self.windows.changed(), if !changed => self.windows.mark_changed(),
                Ok(()) = self.groups.changed(), if !changed => self.groups.mark_changed(),
                () = time::sleep_until(sent_at + due) => {}
            }
        }
    }

    async fn send_windows(&mut self) -> Result<(), ()> {
        self.windows.borrow_and_update();
        let groups = *self.groups.borrow_and_update();
        let sources = self.lanes.windows(groups);
        self.send(outbound_frame::Frame::Windows(Windows { sources })).await?;
        self.send_recall_answers().await
    }

    /// Sends one frame of lanes that changed; the rest follow behind outcomes.
    async fn send_lanes(&mut self) -> Result<(), ()> {
        self.observed.borrow_and_update();
        let changed =
            self.lanes.observed.changed_since(postroad_env::now(), self.lanes_sent, LANES_PER_FRAME_MAX);
        let (lanes, last) = changed;
        if lanes.is_empty() {
            return Ok(());
        }
        self.lanes_sent = last;
        if lanes.len() == LANES_PER_FRAME_MAX {
            self.observed.mark_changed();
        }
        self.send(outbound_frame::Frame::Lanes(LaneReports { lanes })).await
    }

    /// Sends the answers about attempts given back. Their lanes' windows were sent before, so they are not assigned again at once.
    async fn send_recall_answers(&self) -> Result<(), ()> {
        let mut answers = self.attempts.with(PendingAttempts::take_answers);
        while !answers.is_empty() {
            let rest = answers.split_off(answers.len().min(ANSWERS_PER_FRAME_MAX));
            self.send(outbound_frame::Frame::Recalls(RecallAnswers { answers })).await?;
            answers = rest;
        }
        Ok(())
    }

    async fn send(&self, frame: outbound_frame::Frame) -> Result<(), ()> {
        self.outgoing.send(OutboundFrame { frame: Some(frame) }).await.map_err(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_list_each_attempt_once_and_the_last_says_so() {
        let id = |recipient| AttemptId { recipient, ..AttemptId::default() };
        for count in [0, 1, 9, 10, 11, 20, 95] {
            let all: Vec<AttemptId> = (0..count).map(id).collect();
            let (first, rest) = pages(all.clone(), 10);
            let listed: Vec<PendingPage> = std::iter::once(first).chain(rest).collect();
            assert!(listed.iter().all(|page| page.attempts.len() <= 10));
            let (last, before) = listed.split_last().unwrap();
            assert!(!last.more && before.iter().all(|page| page.more), "{count}");
            assert_eq!(listed.iter().flat_map(|page| page.attempts.clone()).collect::<Vec<_>>(), all);
        }
    }
}
