//! A fake queue node that leads one ledger group and serves the events that a test adds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_cluster::Endpoints;
use postroad_core::{GroupId, MessageId, NodeId, Timestamp};
use postroad_net::{Expect, MemoryNet, Role, Transport};
use postroad_proto::queue::*;
use postroad_testkit::queue::{Answers, QueueScript, follow, serve_queue};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub(crate) const GROUP: GroupId = GroupId(1);
const NODE: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    /// Events served more than once at the start of every stream.
    repeat: u64,
    consumed: u64,
    requested_from: Vec<u64>,
    changes: Vec<(MessageId, Change)>,
    refuse: Option<Status>,
    /// Answers as a node that is not the leader.
    follows: bool,
}

/// The fake; a clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct FakeQueue {
    state: Arc<Mutex<State>>,
    grown: watch::Sender<()>,
    /// Raised to end every stream.
    term: watch::Sender<u64>,
}

impl FakeQueue {
    /// Serves, and returns how to reach it.
    pub(crate) async fn start() -> (Self, Endpoints) {
        let fake = Self { state: Arc::default(), grown: watch::Sender::new(()), term: watch::Sender::new(1) };
        let transport = Transport::Memory(MemoryNet::new());
        let listener = transport.bind("queue-1").await.unwrap();
        tokio::spawn(serve_queue(listener, fake.clone()));
        let expect = Expect { role: Role::Queue, node: Some(NodeId(NODE)) };
        (fake, BTreeMap::from([(NodeId(NODE), transport.channel("queue-1", expect))]))
    }

    /// Appends an event, and numbers it.
    pub(crate) fn push(&self, message: Option<MessageId>, recipient: Option<u32>, kind: event::Kind) -> u64 {
        let mut state = self.state.lock();
        let sequence = match state.events.last() {
            Some(Event { kind: Some(event::Kind::Gap(gap)), .. }) => gap.through + 1,
            last => last.map_or(1, |last| last.sequence + 1),
        };
        state.events.push(Event {
            sequence,
            at_millis: now().as_millis(),
            message_id: message.map(bytes).unwrap_or_default(),
            recipient,
            kind: Some(kind),
        });
        drop(state);
        self.grown.send_replace(());
        sequence
    }

    pub(crate) fn repeat(&self, count: u64) {
        self.state.lock().repeat = count;
    }

    pub(crate) fn refuse_changes(&self, status: Status) {
        self.state.lock().refuse = Some(status);
    }

    /// From now on summaries are those of a follower.
    pub(crate) fn lead_nothing(&self) {
        self.state.lock().follows = true;
    }

    /// Begins another term: streams end, and control opens new ones.
    pub(crate) fn elect(&self) {
        self.term.send_modify(|term| *term += 1);
    }

    pub(crate) fn requested_from(&self) -> Vec<u64> {
        self.state.lock().requested_from.clone()
    }

    pub(crate) fn changes(&self) -> Vec<(MessageId, Change)> {
        self.state.lock().changes.clone()
    }

    /// Waits until control has acknowledged everything up to `through`.
    pub(crate) async fn wait_consumed(&self, through: u64) {
        wait_until(|| self.state.lock().consumed >= through).await;
    }
}

pub(crate) async fn wait_until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it becomes true in time");
}

pub(crate) fn now() -> Timestamp {
    postroad_env::wall()
}

fn bytes(id: MessageId) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.as_u128().to_be_bytes())
}

#[tonic::async_trait]
impl QueueScript for FakeQueue {
    async fn leaders(&self) -> Result<Answers<LeaderView>, Status> {
        Ok(follow(self.term.subscribe(), |term| {
            let leads = |group| GroupLeader { group, term: *term, leader: NODE };
            vec![LeaderView { node: NODE, groups: vec![leads(0), leads(u32::from(GROUP.0))] }]
        }))
    }

    async fn events(&self, request: EventsRequest) -> Result<Answers<EventBatch>, Status> {
        let EventsRequest { from, batch_max, .. } = request;
        self.state.lock().requested_from.push(from);
        let (batches, stream) = mpsc::channel(1);
        let (fake, mut grown, mut term) = (self.clone(), self.grown.subscribe(), self.term.subscribe());
        tokio::spawn(async move {
            let mut next = from.saturating_sub(fake.state.lock().repeat).max(1);
            loop {
                let events: Vec<Event> = {
                    let state = fake.state.lock();
                    let through = |event: &Event| match &event.kind {
                        Some(event::Kind::Gap(gap)) => gap.through,
                        _ => event.sequence,
                    };
                    let wanted = state.events.iter().filter(|event| through(event) >= next);
                    wanted.take(batch_max as usize).cloned().collect()
                };
                if let Some(last) = events.last() {
                    next = last.sequence + 1;
                    if batches.send(Ok(EventBatch { group: u32::from(GROUP.0), events })).await.is_err() {
                        return;
                    }
                    continue;
                }
                tokio::select! {
                    _ = grown.changed() => {}
                    _ = term.changed() => return,
                    () = batches.closed() => return,
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(stream)))
    }

    async fn consume(&self, request: ConsumeRequest) -> Result<ConsumeResponse, Status> {
        assert_eq!(request.consumer, "control");
        let mut state = self.state.lock();
        state.consumed = state.consumed.max(request.through);
        Ok(ConsumeResponse {})
    }

    async fn change_message(&self, request: ChangeMessageRequest) -> Result<ChangeMessageResponse, Status> {
        let mut state = self.state.lock();
        if let Some(status) = &state.refuse {
            return Err(status.clone());
        }
        let id = postroad_proto::parse_message_id(&request.message_id).unwrap();
        state.changes.push((id, request.change()));
        Ok(ChangeMessageResponse { results: vec![ChangeResult::Done.into()] })
    }

    async fn summary(&self, _: SummaryRequest) -> Result<SummaryResponse, Status> {
        let state = self.state.lock();
        let events_next = state.events.last().map_or(1, |last| last.sequence + 1);
        Ok(SummaryResponse {
            messages: 1234,
            queued: 1200,
            sending: 34,
            held: 2,
            oldest_accepted_at_millis: now().before(Duration::from_secs(3_900)).as_millis(),
            events_first: 1,
            events_next,
            leading: !state.follows,
            ..SummaryResponse::default()
        })
    }
}
