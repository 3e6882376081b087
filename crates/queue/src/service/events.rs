//! Events: streamed from any number on, and dropped once every consumer has consumed them.

use futures::{Stream, stream};
use postroad_ledger::command::{Command, Reply};
use postroad_proto::queue::{ConsumeRequest, ConsumeResponse, Event, EventBatch, EventsRequest, event};
use tokio::sync::watch;
use tonic::{Response, Status};

use crate::{
    error::{not_leader, refused},
    ledger::LedgerGroup,
};

/// Events in one batch.
const BATCH_MAX: usize = 512;

/// A stream of one group's events.
struct Follower {
    ledger: LedgerGroup,
    next: u64,
    batch_max: usize,
    grown: watch::Receiver<u64>,
    status: watch::Receiver<postroad_raft::Status>,
}

/// Streams the events once this node has proven that it leads.
pub(super) async fn follow(
    ledger: LedgerGroup,
    request: &EventsRequest,
) -> Result<impl Stream<Item = Result<EventBatch, Status>> + use<>, Status> {
    ledger.group.read_barrier().await.map_err(|error| refused(&error))?;
    let batch_max = match request.batch_max as usize {
        0 => BATCH_MAX,
        max => max.min(BATCH_MAX),
    };
    let follower = Follower {
        next: request.from.max(1),
        batch_max,
        grown: ledger.shared.subscribe_events(),
        status: ledger.group.status(),
        ledger,
    };
    Ok(stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next_batch().await {
            Ok(batch) => Some((Ok(batch), Some(follower))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl Follower {
    async fn next_batch(&mut self) -> Result<EventBatch, Status> {
        loop {
            let status = self.status.borrow_and_update().clone();
            if !status.leading {
                return Err(not_leader(status.leader));
            }
            self.grown.borrow_and_update();
            let events = self.ledger.shared.events_from(self.next, self.batch_max);
            if let Some(last) = events.last() {
                self.next = through(last) + 1;
                return Ok(EventBatch { group: u32::from(self.ledger.id().0), events });
            }
            let gone = tokio::select! {
                changed = self.grown.changed() => changed.is_err(),
                changed = self.status.changed() => changed.is_err(),
            };
            if gone {
                return Err(Status::unavailable("the group has stopped"));
            }
        }
    }
}

/// The last number that an event covers: a gap covers many.
fn through(event: &Event) -> u64 {
    match &event.kind {
        Some(event::Kind::Gap(gap)) => gap.through,
        _ => event.sequence,
    }
}

pub(super) async fn consume(
    ledger: &LedgerGroup,
    request: ConsumeRequest,
) -> Result<Response<ConsumeResponse>, Status> {
    let command = Command::Consume { consumer: request.consumer.into(), through: request.through };
    match ledger.commit_one(command).await {
        Ok(Reply::Refused(_)) => {
            Err(Status::invalid_argument("too many consumers, or an invalid consumer name"))
        }
        Ok(_) => Ok(Response::new(ConsumeResponse {})),
        Err(error) => Err(refused(&error)),
    }
}
