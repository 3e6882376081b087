//! One follower per ledger group: reads its events from its leader, and acknowledges to the queue what is written.

use std::time::Duration;

use postroad_cluster::{Endpoints, FRAME_BYTES_MAX, Leader, LeaderTable};
use postroad_core::GroupId;
use postroad_proto::queue::{
    Event, EventBatch, EventsRequest, SummaryResponse, queue_service_client::QueueServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tonic::{Streaming, transport::Channel};

use crate::{metrics, queue::Queue, write::Incoming};

/// Events in one frame of the stream.
const BATCH_MAX: u32 = 512;
/// How long to wait before the next stream is opened.
const REOPEN_AFTER: Duration = Duration::from_millis(100);
/// How long a leader may take to open a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// Moving a cursor is a command in the group's log: not more often than this.
const CONSUME_EVERY: Duration = Duration::from_millis(500);
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// Follows one group.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) group: GroupId,
    /// The last event that is written.
    pub(crate) cursor: u64,
    pub(crate) endpoints: Endpoints,
    pub(crate) leaders: watch::Receiver<LeaderTable>,
    pub(crate) queue: Queue,
    pub(crate) writer: mpsc::Sender<Incoming>,
}

impl Follower {
    /// Follows until the writer has ended; dropping the future is safe at any point.
    pub(crate) async fn run(self) {
        let (written, progress) = watch::channel(self.cursor);
        let acknowledging = acknowledge(self.group, self.queue.clone(), progress.clone());
        let measuring = measure(self.group, self.queue.clone(), progress);
        tokio::select! {
            () = self.read(written) => {}
            () = acknowledging => {}
            () = measuring => {}
        }
    }

    /// Reads events from the cursor on, from the group's current leader; each goes to the writer once.
    async fn read(mut self, written: watch::Sender<u64>) {
        let mut next = self.cursor + 1;
        loop {
            let Some((leader, channel)) = self.leader() else {
                if self.leaders.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.open(channel, next).await {
                Ok(mut stream) => {
                    while let Some(batch) = self.next_batch(&mut stream, leader).await {
                        let Some(last) = batch.events.last().map(through) else { continue };
                        next = next.max(last.saturating_add(1));
                        let incoming =
                            Incoming { group: self.group, events: batch.events, written: written.clone() };
                        if self.writer.send(incoming).await.is_err() {
                            return;
                        }
                    }
                }
                Err(status) => {
                    tracing::debug!(group = %self.group, node = %leader.node, %status, "cannot read events from the leader")
                }
            }
            time::sleep(REOPEN_AFTER).await;
        }
    }

    fn leader(&mut self) -> Option<(Leader, Channel)> {
        let leader = self.leaders.borrow_and_update().get(&self.group).copied()?;
        Some((leader, self.endpoints.get(&leader.node)?.clone()))
    }

    async fn open(&self, channel: Channel, from: u64) -> Result<Streaming<EventBatch>, tonic::Status> {
        let mut client = QueueServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
        let request = EventsRequest { group: u32::from(self.group.0), from, batch_max: BATCH_MAX };
        let opened = time::timeout(OPEN_WITHIN, client.events(request)).await;
        let opened = opened.map_err(|_| tonic::Status::deadline_exceeded("no answer"))?;
        Ok(opened?.into_inner())
    }

    /// Returns the next batch, or `None` when the stream has ended or another node became leader.
    async fn next_batch(&mut self, stream: &mut Streaming<EventBatch>, leader: Leader) -> Option<EventBatch> {
        loop {
            tokio::select! {
                biased;
                message = stream.message() => return message.ok().flatten(),
                changed = self.leaders.changed() => {
                    changed.ok()?;
                    let now = self.leaders.borrow_and_update().get(&self.group).copied();
                    if now.is_some_and(|now| now.term > leader.term) {
                        return None;
                    }
                }
            }
        }
    }
}

/// The last sequence number that an event covers: a gap covers many.
fn through(event: &Event) -> u64 {
    use postroad_proto::queue::event::Kind;
    match &event.kind {
        Some(Kind::Gap(gap)) => gap.through.max(event.sequence),
        _ => event.sequence,
    }
}

/// Moves the group's cursor in the queue to the last written event; the next move repeats a failed one.
async fn acknowledge(group: GroupId, queue: Queue, mut progress: watch::Receiver<u64>) {
    // The process before this one may have written events without acknowledging them.
    progress.mark_changed();
    while progress.changed().await.is_ok() {
        let through = *progress.borrow_and_update();
        if through > 0
            && let Err(error) = queue.consume(group, through).await
        {
            tracing::debug!(%group, %error, "cannot acknowledge events; trying again");
            progress.mark_changed();
        }
        time::sleep(CONSUME_EVERY).await;
    }
}

/// Only a leader's summary counts: a follower may be behind, most of all when it has just started.
fn is_of_another_cluster(summary: &SummaryResponse, written: u64) -> bool {
    summary.leading && summary.events_next <= written
}

/// Records how far the history is behind the queue, and notices a database of another cluster.
async fn measure(group: GroupId, queue: Queue, progress: watch::Receiver<u64>) {
    let gauge = metrics::lag(group);
    loop {
        if let Ok(summary) = queue.summary(group).await {
            let written = *progress.borrow();
            if is_of_another_cluster(&summary, written) {
                let next = summary.events_next;
                tracing::error!(%group, written, next, "the history database is ahead of the queue: it belongs to another cluster");
            }
            gauge.set(summary.events_next.saturating_sub(1).saturating_sub(written) as f64);
        }
        time::sleep(MEASURE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_another_cluster_is_noticed_by_a_leader_that_is_behind_it() {
        let check = |leading, events_next, written, expected| {
            let summary = SummaryResponse { leading, events_next, ..SummaryResponse::default() };
            assert_eq!(is_of_another_cluster(&summary, written), expected, "{summary:?}");
        };
        check(true, 8, 7, false);
        check(true, 7, 7, true);
        check(false, 7, 7, false);
        check(false, 1, 6771, false);
    }
}
