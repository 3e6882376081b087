//! A scripted outbound node: it claims, opens sessions, and reports what the test says.

use std::time::Duration;

use postroad_cluster::Claim;
use postroad_core::{NodeId, OutcomeKind};
use postroad_proto::queue::{
    Assignment, AttemptId, Credit, Hello, LaneReport, LaneReports, OutboundFrame, PendingPage, QueueFrame,
    RecallAnswer, RecallAnswers, Report, Reports, SiteWindow, SourceWindows, Windows,
    outbound_frame::Frame as Out, queue_frame::Frame as In,
};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Cluster, GROUP, PATIENCE};

/// Pending attempts listed in one frame.
const PENDING_PER_FRAME_MAX: usize = 2000;

/// One incarnation of an outbound node.
pub struct Outbound {
    pub node: NodeId,
    pub incarnation: u64,
    /// As in its `Hello`.
    pub credit_frames: u32,
}

/// A session with the leader of the group.
pub struct Session {
    pub term: u64,
    frames: mpsc::Sender<OutboundFrame>,
    inbound: Streaming<QueueFrame>,
    reports: u64,
}

impl Outbound {
    /// Claims, and waits until it owns the source.
    pub async fn start(cluster: &Cluster, node: u64, incarnation: u64, replaces: Option<u64>) -> Self {
        let outbound = Self { node: NodeId(node), incarnation, credit_frames: 0 };
        loop {
            match cluster.directory.claim(outbound.node, incarnation, replaces, PATIENCE).await.unwrap() {
                Claim::InForce { .. } => break,
                Claim::Wait(wait) => time::sleep(wait).await,
            }
        }
        let mut views = cluster.views.clone();
        let owns = |view: &_| outbound.owns(view);
        time::timeout(PATIENCE, views.wait_for(|view| owns(view))).await.unwrap().unwrap();
        outbound
    }

    fn owns(&self, view: &postroad_directory::View) -> bool {
        view.sources_of(self.node, self.incarnation).next().is_some()
    }

    /// Windows of `window` for every site of every source it owns.
    pub fn windows(&self, cluster: &Cluster, window: u32) -> Windows {
        let view = cluster.views.borrow().clone();
        let stated = view.sources_of(self.node, self.incarnation).map(|source| SourceWindows {
            source: source.id.0,
            epoch: source.epoch.0,
            default_window: window,
            sites: vec![SiteWindow { site: "other.example".to_owned(), window: 1 }],
        });
        Windows { sources: stated.collect() }
    }

    /// Opens a session, and again until a leader accepts it.
    pub async fn connect(&self, cluster: &Cluster, pending: Vec<AttemptId>, window: u32) -> Session {
        let begin = async {
            loop {
                match self.try_connect(cluster, pending.clone(), window).await {
                    Ok(session) => return session,
                    Err(_) => time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        time::timeout(PATIENCE, begin).await.unwrap()
    }

    pub async fn try_connect(
        &self,
        cluster: &Cluster,
        pending: Vec<AttemptId>,
        window: u32,
    ) -> Result<Session, Status> {
        let (frames, receiver) = mpsc::channel(64);
        let mut pages = pending.chunks(PENDING_PER_FRAME_MAX).map(<[AttemptId]>::to_vec);
        let first = pages.next().unwrap_or_default();
        let hello = Hello {
            group: GROUP.0.into(),
            node: self.node.0,
            incarnation: self.incarnation,
            term: 0,
            pending: first,
            windows: Some(self.windows(cluster, window)),
            more_pending: pages.len() > 0,
            credit_frames: self.credit_frames,
        };
        frames.send(OutboundFrame { frame: Some(Out::Hello(hello)) }).await.unwrap();
        while let Some(attempts) = pages.next() {
            let page = PendingPage { attempts, more: pages.len() > 0 };
            frames.send(OutboundFrame { frame: Some(Out::Pending(page)) }).await.unwrap();
        }
        let leader = cluster.leader(GROUP).await;
        let mut inbound = cluster.client(leader).work(ReceiverStream::new(receiver)).await?.into_inner();
        match inbound.message().await?.and_then(|frame| frame.frame) {
            Some(In::Leading(leading)) => Ok(Session { term: leading.term, frames, inbound, reports: 0 }),
            other => panic!("the first frame is {other:?}"),
        }
    }
}

impl Session {
    /// The next frame; an error when the session has ended.
    pub async fn next(&mut self) -> Result<In, Status> {
        let next = time::timeout(PATIENCE, self.inbound.message()).await.unwrap()?;
        next.and_then(|frame| frame.frame).ok_or_else(|| Status::unavailable("the stream ended"))
    }

    /// The next assignments, skipping other frames.
    pub async fn assignments(&mut self) -> Result<Vec<Assignment>, Status> {
        loop {
            if let In::Assignments(assignments) = self.next().await? {
                return Ok(assignments.assignments);
            }
        }
    }

    /// The next assignment, which must be the only one.
    pub async fn assignment(&mut self) -> Assignment {
        let mut assignments = self.assignments().await.unwrap();
        assert_eq!(assignments.len(), 1);
        assignments.remove(0)
    }

    /// Returns true when no frame arrives for a while.
    pub async fn is_quiet(&mut self) -> bool {
        time::timeout(Duration::from_millis(300), self.inbound.message()).await.is_err()
    }

    /// Reports attempts and returns the number of the report.
    pub async fn report(&mut self, attempts: Vec<AttemptId>, kind: OutcomeKind) -> u64 {
        self.reports += 1;
        let report = |attempt| Report {
            attempt: Some(attempt),
            kind: kind.code().into(),
            code: 250,
            text: "2.0.0 noted".to_owned(),
            remote: "mx.receiver.example [192.0.2.1]".to_owned(),
            started_at_millis: 1,
            ended_at_millis: 2,
            ..Default::default()
        };
        let reports = attempts.into_iter().map(report).collect();
        let frame = Out::Reports(Reports { sequence: self.reports, reports });
        // A lost leader is noticed when reading.
        let _ = self.frames.send(OutboundFrame { frame: Some(frame) }).await;
        self.reports
    }

    /// Waits until a report is acknowledged.
    pub async fn acknowledged(&mut self, sequence: u64) -> Result<(), Status> {
        loop {
            if let In::ReportAck(ack) = self.next().await?
                && ack.through >= sequence
            {
                return Ok(());
            }
        }
    }

    pub async fn answer_recall(&mut self, attempt: AttemptId, started: bool) {
        let answers = vec![RecallAnswer { attempt: Some(attempt), source: 1, started }];
        let frame = Out::Recalls(RecallAnswers { answers });
        self.frames.send(OutboundFrame { frame: Some(frame) }).await.unwrap();
    }

    /// Returns the credit of this many frames of assignments.
    pub async fn take(&mut self, frames: u64) {
        self.frames.send(OutboundFrame { frame: Some(Out::Credit(Credit { frames })) }).await.unwrap();
    }

    pub async fn send_lanes(&mut self, lanes: Vec<LaneReport>) {
        self.frames.send(OutboundFrame { frame: Some(Out::Lanes(LaneReports { lanes })) }).await.unwrap();
    }

    /// Sends a frame of a kind that this version does not know.
    pub async fn send_unknown(&mut self) {
        self.frames.send(OutboundFrame { frame: None }).await.unwrap();
    }

    pub async fn send_windows(&mut self, windows: Windows) {
        self.frames.send(OutboundFrame { frame: Some(Out::Windows(windows)) }).await.unwrap();
    }
}

/// The attempts an assignment asks for.
pub fn attempts(assignment: &Assignment) -> Vec<AttemptId> {
    let attempt = |recipient: &postroad_proto::queue::AssignedRecipient| AttemptId {
        message_id: assignment.message_id.clone(),
        recipient: recipient.recipient,
        attempt: recipient.attempt,
        epoch: assignment.epoch,
    };
    assignment.recipients.iter().map(attempt).collect()
}
