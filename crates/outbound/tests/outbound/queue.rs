//! A fake queue node: sends what a test wants, and records what it receives. Its directory is a real one.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use parking_lot::Mutex;
use postroad_core::{Epoch, NodeId, SourceId};
use postroad_directory::{Change, Command, Directory, Put};
use postroad_net::{MemoryNet, Transport};
use postroad_proto::{
    directory::{update_frames, wire},
    queue::{
        AssignedRecipient, Assignment, Assignments, AttemptId, ContentPart, ContentRequest, GroupLeader,
        Hello, LaneReport, LeaderView, Leading, OutboundFrame, ProbeResult, QueueFrame, RecallAnswer,
        Recalls, Report, ReportAck, Windows, outbound_frame, queue_frame,
    },
};
use postroad_testkit::queue::{Answers, QueueScript, follow, serve_queue};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// The ledger group of every test.
pub(crate) const GROUP: u32 = 1;

/// A handle to the queue node.
#[derive(Clone)]
pub(crate) struct FakeQueue(Arc<Shared>);

struct Shared {
    directory: Mutex<Directory>,
    revision: watch::Sender<u64>,
    term: watch::Sender<u64>,
    session: Mutex<Option<mpsc::Sender<Result<QueueFrame, Status>>>>,
    seen: Mutex<Seen>,
    content: Mutex<HashMap<Bytes, Vec<Bytes>>>,
    acknowledges: AtomicBool,
    renews: AtomicBool,
    to_release: Mutex<Vec<wire::OwnedSource>>,
    lease_millis: AtomicU64,
}

/// What the queue received.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Each with all pages of pending attempts.
    pub(crate) hellos: Vec<Hello>,
    pub(crate) reports: Vec<Report>,
    pub(crate) report_frames: usize,
    pub(crate) windows: Vec<Windows>,
    /// Frames of assignments in this session: sent by the queue, and admitted by the node.
    pub(crate) sent: u64,
    pub(crate) admitted: u64,
    pub(crate) answers: Vec<RecallAnswer>,
    /// The last report of each lane, by source and site.
    pub(crate) lanes: HashMap<(u32, String), LaneReport>,
    pub(crate) probes: Vec<ProbeResult>,
    pub(crate) claims: Vec<wire::ClaimRequest>,
    pub(crate) renewals: usize,
    pub(crate) released: Vec<u64>,
    /// Sources that were released one by one.
    pub(crate) released_sources: Vec<wire::OwnedSource>,
}

impl FakeQueue {
    /// Serves on `net` under the name `queue`.
    pub(crate) async fn start(net: &MemoryNet) -> (Self, JoinHandle<()>) {
        let shared = Shared {
            directory: Mutex::new(Directory::new()),
            revision: watch::channel(0).0,
            term: watch::channel(1).0,
            session: Mutex::default(),
            seen: Mutex::default(),
            content: Mutex::default(),
            acknowledges: AtomicBool::new(true),
            renews: AtomicBool::new(true),
            to_release: Mutex::default(),
            lease_millis: AtomicU64::new(60_000),
        };
        let queue = Self(Arc::new(shared));
        let listener = Transport::Memory(net.clone()).bind("queue").await.unwrap();
        let task = tokio::spawn(serve_queue(listener, queue.clone()));
        (queue, task)
    }

    /// Changes the directory.
    pub(crate) fn put(&self, put: Put) {
        self.apply(&Command::Change(vec![Change::Put(put)]));
    }

    pub(crate) fn apply(&self, command: &Command) {
        let mut directory = self.0.directory.lock();
        directory.apply(command).unwrap();
        self.0.revision.send_replace(directory.revision());
    }

    pub(crate) fn set_lease(&self, lease: Duration) {
        self.0.lease_millis.store(lease.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_renews(&self, renews: bool) {
        self.0.renews.store(renews, Ordering::Relaxed);
    }

    pub(crate) fn set_acknowledges(&self, acknowledges: bool) {
        self.0.acknowledges.store(acknowledges, Ordering::Relaxed);
    }

    /// Asks the node to release these sources, in the answer to each renewal.
    pub(crate) fn request_release(&self, sources: &[(SourceId, u64)]) {
        let own = |(source, epoch): &(SourceId, u64)| wire::OwnedSource { source: source.0, epoch: *epoch };
        *self.0.to_release.lock() = sources.iter().map(own).collect();
    }

    /// Becomes leader in another term, and ends the session.
    pub(crate) fn set_term(&self, term: u64) {
        self.0.term.send_replace(term);
        self.break_session();
    }

    /// Ends the session.
    pub(crate) fn break_session(&self) {
        *self.0.session.lock() = None;
    }

    /// Forgets all claims, as a directory that has revoked the node.
    pub(crate) fn forget_claims(&self) {
        self.0.seen.lock().claims.clear();
    }

    pub(crate) fn set_content(&self, message: u128, parts: Vec<Bytes>) {
        self.0.content.lock().insert(message_id(message), parts);
    }

    /// Sends a frame on the current session, waiting for one.
    pub(crate) async fn send(&self, frame: queue_frame::Frame) {
        let session = self.until("a session", |_| self.0.session.lock().clone()).await;
        session.send(Ok(QueueFrame { frame: Some(frame) })).await.unwrap();
    }

    /// Sends a frame of assignments, as soon as the node's credit allows.
    pub(crate) async fn assign(&self, assignments: Vec<Assignment>) {
        let may_send = |seen: &Seen| {
            let ahead_max = u64::from(seen.hellos.last()?.credit_frames);
            (seen.sent.saturating_sub(seen.admitted) < ahead_max).then_some(())
        };
        self.until("credit", may_send).await;
        self.send(queue_frame::Frame::Assignments(Assignments { assignments })).await;
        self.0.seen.lock().sent += 1;
    }

    pub(crate) async fn recall(&self, attempts: Vec<AttemptId>) {
        self.send(queue_frame::Frame::Recalls(Recalls { attempts })).await;
    }

    /// Reads what was received.
    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.0.seen.lock())
    }

    /// Waits until `look` finds something.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&Seen) -> Option<T>) -> T {
        let found = time::timeout(Duration::from_secs(20), async {
            loop {
                if let Some(found) = look(&self.0.seen.lock()) {
                    return found;
                }
                time::sleep(Duration::from_millis(5)).await;
            }
        });
        let Ok(found) = found.await else { panic!("no {what}: {:?}", self.0.seen.lock()) };
        found
    }

    /// Waits for the report of an attempt.
    pub(crate) async fn report(&self, message: u128, recipient: u32) -> Report {
        let is_it = |report: &&Report| {
            let id = report.attempt.as_ref().unwrap();
            (&id.message_id, id.recipient) == (&message_id(message), recipient)
        };
        self.until("report", |seen| seen.reports.iter().find(is_it).cloned()).await
    }

    /// Waits for a window of a source for a site that is as `wanted`; returns the source's epoch and the window.
    pub(crate) async fn window(&self, source: u32, site: &str, wanted: impl Fn(u32) -> bool) -> (u64, u32) {
        self.until("window", |seen| {
            let sent = seen.windows.last()?.sources.iter().find(|sent| sent.source == source)?;
            let of_site = sent.sites.iter().find(|window| window.site == site);
            let window = of_site.map_or(sent.default_window, |window| window.window);
            wanted(window).then_some((sent.epoch, window))
        })
        .await
    }

    fn note(&self, frame: OutboundFrame) {
        let mut seen = self.0.seen.lock();
        match frame.frame.unwrap() {
            outbound_frame::Frame::Hello(hello) => {
                (seen.sent, seen.admitted) = (0, 0);
                seen.hellos.push(hello);
            }
            outbound_frame::Frame::Pending(page) => {
                let hello = seen.hellos.last_mut().unwrap();
                hello.pending.extend(page.attempts);
                hello.more_pending = page.more;
            }
            outbound_frame::Frame::Windows(windows) => seen.windows.push(windows),
            outbound_frame::Frame::Credit(taken) => seen.admitted = taken.frames,
            outbound_frame::Frame::Recalls(recalls) => seen.answers.extend(recalls.answers),
            outbound_frame::Frame::Lanes(reports) => {
                let named = |lane: LaneReport| ((lane.source, lane.site.clone()), lane);
                seen.lanes.extend(reports.lanes.into_iter().map(named));
            }
            outbound_frame::Frame::Probe(result) => seen.probes.push(result),
            outbound_frame::Frame::Reports(reports) => {
                seen.reports.extend(reports.reports);
                seen.report_frames += 1;
                let session = self.0.session.lock().clone();
                if let Some(session) = session.filter(|_| self.0.acknowledges.load(Ordering::Relaxed)) {
                    let frame = queue_frame::Frame::ReportAck(ReportAck { through: reports.sequence });
                    let _ = session.try_send(Ok(QueueFrame { frame: Some(frame) }));
                }
            }
        }
    }
}

pub(crate) fn message_id(message: u128) -> Bytes {
    Bytes::copy_from_slice(&message.to_be_bytes())
}

pub(crate) fn attempt_id(message: u128, recipient: u32, epoch: u64) -> AttemptId {
    AttemptId { message_id: message_id(message), recipient, attempt: 1, epoch }
}

/// A message of some text for some recipients.
pub(crate) fn assignment(
    message: u128,
    source: SourceId,
    epoch: u64,
    site: &str,
    recipients: &[&str],
) -> Assignment {
    let recipient = |(number, address): (u32, &&str)| AssignedRecipient {
        recipient: number,
        attempt: 1,
        address: (*address).to_owned(),
    };
    let content = Bytes::from(format!("Subject: {message}\r\n\r\nhello\r\n"));
    Assignment {
        message_id: message_id(message),
        tenant: 1,
        source: source.0,
        epoch,
        site: site.to_owned(),
        sender: Some("sender@postroad.example".to_owned()),
        recipients: (0..).zip(recipients).map(recipient).collect(),
        size_bytes: content.len() as u64,
        content,
        ..Assignment::default()
    }
}

#[tonic::async_trait]
impl QueueScript for FakeQueue {
    async fn leaders(&self) -> Result<Answers<LeaderView>, Status> {
        Ok(follow(self.0.term.subscribe(), |term| {
            let leads = |group| GroupLeader { group, term: *term, leader: 1 };
            vec![LeaderView { node: 1, groups: [0, GROUP].map(leads).to_vec() }]
        }))
    }

    async fn work(&self, mut frames: Streaming<OutboundFrame>) -> Result<Answers<QueueFrame>, Status> {
        let hello = frames.message().await?.unwrap();
        self.note(hello);
        let (session, outgoing) = mpsc::channel(1000);
        let leading = queue_frame::Frame::Leading(Leading { term: *self.0.term.borrow() });
        session.try_send(Ok(QueueFrame { frame: Some(leading) })).unwrap();
        *self.0.session.lock() = Some(session);
        let queue = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                queue.note(frame);
            }
        });
        Ok(Box::pin(ReceiverStream::new(outgoing)))
    }

    async fn content(&self, request: ContentRequest) -> Result<Answers<ContentPart>, Status> {
        let parts = self.0.content.lock().get(&request.message_id).cloned();
        let parts = parts.ok_or_else(|| Status::not_found("no such message"))?;
        let parts = parts.into_iter().map(|data| Ok(ContentPart { data }));
        Ok(Box::pin(stream::iter(parts.collect::<Vec<_>>())))
    }

    async fn watch_directory(&self, _: wire::WatchRequest) -> Result<Answers<wire::Update>, Status> {
        let shared = self.0.clone();
        let everything = move |_: &u64| update_frames(&shared.directory.lock().everything());
        Ok(follow(self.0.revision.subscribe(), everything))
    }

    async fn claim(&self, claim: wire::ClaimRequest) -> Result<wire::ClaimResponse, Status> {
        let (node, incarnation) = (NodeId(claim.node), claim.incarnation);
        self.apply(&Command::Claim { node, incarnation });
        let unowned: Vec<SourceId> = {
            let directory = self.0.directory.lock();
            let sources = directory.items().filter_map(|item| match item {
                postroad_directory::Item::Source(source) => Some(source.clone()),
                _ => None,
            });
            sources.filter(|source| source.owner.is_none()).map(|source| source.id).collect()
        };
        for source in unowned {
            self.apply(&Command::Grant { source, node, incarnation });
        }
        self.0.seen.lock().claims.push(claim);
        let (revision, lease_millis) =
            (*self.0.revision.borrow(), self.0.lease_millis.load(Ordering::Relaxed));
        Ok(wire::ClaimResponse { revision, lease_millis, wait_millis: 0 })
    }

    async fn renew(&self, renew: wire::RenewRequest) -> Result<wire::RenewResponse, Status> {
        if !self.0.renews.load(Ordering::Relaxed) {
            return Err(Status::unavailable("no leader"));
        }
        self.0.seen.lock().renewals += 1;
        let latest = self.0.seen.lock().claims.last().map(|claim| claim.incarnation);
        if latest != Some(renew.incarnation) {
            return Err(Status::failed_precondition("another incarnation has claimed"));
        }
        let (revision, lease_millis) =
            (*self.0.revision.borrow(), self.0.lease_millis.load(Ordering::Relaxed));
        let to_release = self.0.to_release.lock().clone();
        Ok(wire::RenewResponse { revision, lease_millis, to_release })
    }

    async fn release(&self, request: wire::ReleaseRequest) -> Result<wire::ReleaseResponse, Status> {
        let wire::ReleaseRequest { node, incarnation, sources } = request;
        if sources.is_empty() {
            self.0.seen.lock().released.push(incarnation);
        }
        for own in sources {
            let (source, epoch) = (SourceId(own.source), Epoch(own.epoch));
            self.apply(&Command::ReleaseSource { source, node: NodeId(node), incarnation, epoch });
            self.0.seen.lock().released_sources.push(own);
        }
        Ok(wire::ReleaseResponse { revision: *self.0.revision.borrow() })
    }
}
