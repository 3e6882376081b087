//! The session with the leader of one group: assignments and recalls in, outcomes and windows out.
//!
//! What a session knows, it knows from its [`Desk`]; when it breaks, the next one says what is held and goes on.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_cluster::{Endpoints, FRAME_BYTES_MAX, Leader, LeaderTable};
use postroad_core::NodeId;
use postroad_proto::{
    parse_message_id,
    queue::{
        AttemptId, HeldPage, Hello, OutboundFrame, RecallAnswers, Taken, Windows, outbound_frame,
        queue_frame, queue_service_client::QueueServiceClient,
    },
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{self, Instant},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Streaming;

use crate::{
    assignments::{FRAMES_AHEAD_MAX, Intake, TooFarAhead},
    context::Workshop,
    group_attempts::Desk,
    lanes::Lanes,
    pending_attempts::LISTED_PER_FRAME_MAX,
};

/// Everything a session needs.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) node: NodeId,
    pub(crate) desk: Arc<Desk>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) endpoints: Endpoints,
    pub(crate) leaders: watch::Receiver<LeaderTable>,
    /// The run whose claim stands.
    pub(crate) tenure: watch::Receiver<Option<u64>>,
    pub(crate) budget: Arc<Semaphore>,
    /// The number of ledger groups: windows are split over them.
    pub(crate) groups: watch::Receiver<u32>,
    /// The highest term seen.
    pub(crate) term: u64,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the stream ended")]
    Stream,
    #[error("the leader refused: {0}")]
    Refused(#[from] tonic::Status),
    #[error("the leader of term `{0}` is not the latest")]
    OldTerm(u64),
    #[error("another node leads, or this run is over")]
    Superseded,
    #[error("the leader does not speak first, or too much")]
    Protocol,
}

/// How long to wait before the next session is opened.
const REOPEN_AFTER: Duration = Duration::from_millis(50);
/// How long a leader may take to begin, and how much longer for each further page of what is held.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
const PAGE_WITHIN: Duration = Duration::from_secs(1);
/// Windows change in swarms when many sites fail together; each statement names all of them.
const WINDOWS_GAP: Duration = Duration::from_millis(50);
/// Windows are stated again even when nothing changed: a leader that heard of a new epoch after us has ignored them.
const WINDOWS_EVERY_MIN: Duration = Duration::from_millis(100);
const WINDOWS_EVERY_MAX: Duration = Duration::from_secs(5);
/// Answers to recalls in one frame.
const ANSWERS_PER_FRAME_MAX: usize = 4096;

impl Session {
    /// Follows the leader until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let (leader, incarnation) = self.wait_for_leader().await;
            let ended = self.serve(leader, incarnation).await;
            tracing::debug!(group = %self.desk.group, node = %leader.node, reason = %ended, "work session ended");
            time::sleep(REOPEN_AFTER).await;
        }
    }

    async fn wait_for_leader(&mut self) -> (Leader, u64) {
        loop {
            let leader = self.leaders.borrow_and_update().get(&self.desk.group).copied();
            let tenure = *self.tenure.borrow_and_update();
            if let (Some(leader), Some(incarnation)) = (leader, tenure)
                && leader.term >= self.term
            {
                return (leader, incarnation);
            }
            tokio::select! {
                Ok(()) = self.leaders.changed() => {}
                Ok(()) = self.tenure.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    async fn serve(&mut self, leader: Leader, incarnation: u64) -> Ended {
        match self.open(leader, incarnation).await {
            Ok((outgoing, frames)) => {
                let (taken, watch_taken) = watch::channel(0);
                let intake = Intake {
                    desk: &self.desk,
                    lanes: &self.lanes,
                    workshop: &self.workshop,
                    budget: &self.budget,
                    waiting: Mutex::default(),
                    arrived: Notify::new(),
                    taken,
                };
                let writer = Writer {
                    desk: &self.desk,
                    lanes: &self.lanes,
                    outgoing,
                    windows: self.lanes.windows_watch(),
                    groups: self.groups.clone(),
                    taken: watch_taken,
                };
                let (leaders, tenure) = (self.leaders.clone(), self.tenure.clone());
                let this = &*self;
                tokio::select! {
                    ended = this.read(frames, &intake) => ended,
                    () = intake.run() => Ended::Stream,
                    ended = writer.run() => ended,
                    ended = this.watch(leaders, tenure, incarnation) => ended,
                }
            }
            Err(ended) => ended,
        }
    }

    /// Opens the stream and checks that whoever answers leads, in no lower term than was seen.
    async fn open(
        &mut self,
        leader: Leader,
        incarnation: u64,
    ) -> Result<(mpsc::Sender<OutboundFrame>, Streaming<postroad_proto::queue::QueueFrame>), Ended> {
        let channel = self.endpoints.get(&leader.node).cloned().ok_or(Ended::Superseded)?;
        let mut client = QueueServiceClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let held = self.desk.with(crate::pending_attempts::Held::begin_session);
        let (first, pages) = pages(held, LISTED_PER_FRAME_MAX);
        let within = OPEN_WITHIN + PAGE_WITHIN * u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let hello = Hello {
            group: u32::from(self.desk.group.0),
            node: self.node.0,
            incarnation,
            term: self.term,
            held: first.attempts,
            windows: Some(Windows { sources: self.lanes.windows(*self.groups.borrow()) }),
            more_held: first.more,
            assignments_ahead_max: FRAMES_AHEAD_MAX,
        };
        let begin = std::iter::once(outbound_frame::Frame::Hello(hello))
            .chain(pages.into_iter().map(outbound_frame::Frame::Held));
        let begin = begin.map(|frame| OutboundFrame { frame: Some(frame) });
        let (outgoing, receiver) = mpsc::channel(4);
        let opening = async {
            let said = tokio_stream::iter(begin).chain(ReceiverStream::new(receiver));
            let mut frames = client.work(said).await?.into_inner();
            let first = frames.message().await?.and_then(|frame| frame.frame);
            let Some(queue_frame::Frame::Leading(leading)) = first else { return Err(Ended::Protocol) };
            Ok((leading.term, frames))
        };
        let (term, frames) = time::timeout(within, opening).await.map_err(|_| Ended::Stream)??;
        if term < self.term {
            return Err(Ended::OldTerm(term));
        }
        self.term = term;
        tracing::info!(group = %self.desk.group, node = %leader.node, term, "work session begun");
        Ok((outgoing, frames))
    }

    /// Takes frames until the stream ends; contents that find no room wait aside.
    async fn read(
        &self,
        mut frames: Streaming<postroad_proto::queue::QueueFrame>,
        intake: &Intake<'_>,
    ) -> Ended {
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame.frame,
                Ok(None) => return Ended::Stream,
                Err(status) => return Ended::Refused(status),
            };
            match frame {
                Some(queue_frame::Frame::Assignments(assignments)) => match intake.put(assignments) {
                    Ok(()) => {}
                    Err(TooFarAhead) => return Ended::Protocol,
                },
                Some(queue_frame::Frame::ReportAck(ack)) => {
                    self.desk.with(|held| held.acknowledged(ack.through));
                    self.desk.ring();
                }
                Some(queue_frame::Frame::Recalls(recalls)) => {
                    for id in &recalls.attempts {
                        if !intake.recall(id) {
                            self.recall(id);
                        }
                    }
                    self.desk.ring();
                }
                Some(queue_frame::Frame::Leading(_)) => return Ended::Protocol,
                // A frame of a newer version.
                None => {}
            }
        }
    }

    fn recall(&self, id: &AttemptId) {
        // What is not held, or has ended, needs no answer: it is reported, or was given back.
        let Some(lane) = self.desk.with(|held| held.lane_of(id)) else { return };
        let Ok(message) = parse_message_id(&id.message_id) else { return };
        let taken = self.lanes.recall(&lane, message, id.recipient, id.attempt);
        self.desk.with(
            |held| {
                if taken { held.give_back(id, lane.source) } else { held.keep(id, lane.source) }
            },
        );
    }

    /// Waits until a higher term has a leader, or until this run is over.
    async fn watch(
        &self,
        mut leaders: watch::Receiver<LeaderTable>,
        mut tenure: watch::Receiver<Option<u64>>,
        incarnation: u64,
    ) -> Ended {
        loop {
            let known = leaders.borrow_and_update().get(&self.desk.group).copied();
            if known.is_some_and(|leader| leader.term > self.term)
                || *tenure.borrow_and_update() != Some(incarnation)
            {
                return Ended::Superseded;
            }
            tokio::select! {
                Ok(()) = leaders.changed() => {}
                Ok(()) = tenure.changed() => {}
                else => return Ended::Superseded,
            }
        }
    }
}

/// Lists what is held: the page that goes with `Hello`, and those that follow it.
fn pages(mut held: Vec<AttemptId>, per_page: usize) -> (HeldPage, Vec<HeldPage>) {
    let mut pages = VecDeque::new();
    while held.len() > per_page {
        let attempts = held.split_off(held.len() - per_page);
        pages.push_front(HeldPage { attempts, more: !pages.is_empty() });
    }
    let first = HeldPage { attempts: held, more: !pages.is_empty() };
    (first, pages.into())
}

/// Says what is to be said: outcomes at once, windows within bounds, and answers after the windows they go with.
struct Writer<'a> {
    desk: &'a Desk,
    lanes: &'a Lanes,
    outgoing: mpsc::Sender<OutboundFrame>,
    windows: watch::Receiver<u64>,
    groups: watch::Receiver<u32>,
    /// How many frames of assignments have found room.
    taken: watch::Receiver<u64>,
}

impl Writer<'_> {
    async fn run(mut self) -> Ended {
        let mut stated = Instant::now();
        let mut state_every = WINDOWS_EVERY_MIN;
        loop {
            // Workers that have an answer can still come along.
            tokio::task::yield_now().await;
            while let Some(reports) = self.desk.with(crate::pending_attempts::Held::next_reports) {
                if self.send(outbound_frame::Frame::Reports(reports)).await.is_err() {
                    return Ended::Stream;
                }
            }
            if self.taken.has_changed().unwrap_or(false) {
                let frames = *self.taken.borrow_and_update();
                if self.send(outbound_frame::Frame::Taken(Taken { frames })).await.is_err() {
                    return Ended::Stream;
                }
            }
            let changed =
                self.windows.has_changed().unwrap_or(false) || self.groups.has_changed().unwrap_or(false);
            let due = if changed { WINDOWS_GAP } else { state_every };
            if stated.elapsed() >= due {
                state_every =
                    if changed { WINDOWS_EVERY_MIN } else { (state_every * 2).min(WINDOWS_EVERY_MAX) };
                stated = Instant::now();
                if self.state_windows().await.is_err() {
                    return Ended::Stream;
                }
            } else if !changed && self.answer().await.is_err() {
                return Ended::Stream;
            }
            tokio::select! {
                () = self.desk.rung() => {}
                Ok(()) = self.taken.changed() => self.taken.mark_changed(),
                // What has changed already is waited for by time alone.
                Ok(()) = self.windows.changed(), if !changed => self.windows.mark_changed(),
                Ok(()) = self.groups.changed(), if !changed => self.groups.mark_changed(),
                () = time::sleep_until(stated + due) => {}
            }
        }
    }

    async fn state_windows(&mut self) -> Result<(), ()> {
        self.windows.borrow_and_update();
        let groups = *self.groups.borrow_and_update();
        let sources = self.lanes.windows(groups);
        self.send(outbound_frame::Frame::Windows(Windows { sources })).await?;
        self.answer().await
    }

    /// Tells of attempts given back. Their lanes' windows have been stated, so they do not come back at once.
    async fn answer(&self) -> Result<(), ()> {
        let mut answers = self.desk.with(crate::pending_attempts::Held::take_answers);
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
    fn what_is_held_is_listed_once_and_its_last_page_says_so() {
        let id = |recipient| AttemptId { recipient, ..AttemptId::default() };
        for count in [0, 1, 9, 10, 11, 20, 95] {
            let all: Vec<AttemptId> = (0..count).map(id).collect();
            let (first, rest) = pages(all.clone(), 10);
            let listed: Vec<HeldPage> = std::iter::once(first).chain(rest).collect();
            assert!(listed.iter().all(|page| page.attempts.len() <= 10));
            let (last, before) = listed.split_last().unwrap();
            assert!(!last.more && before.iter().all(|page| page.more), "{count}");
            assert_eq!(listed.iter().flat_map(|page| page.attempts.clone()).collect::<Vec<_>>(), all);
        }
    }
}
