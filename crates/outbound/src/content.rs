//! Fetches the content of messages that are too large to travel inside an assignment.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use postroad_cluster::{Endpoints, LeaderTable};
use postroad_core::{GroupId, MessageId};
use postroad_proto::queue::{ContentRequest, queue_service_client::QueueServiceClient};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time,
};
use tonic::Status;

/// Where content is fetched from, and how much may be in memory.
#[derive(Debug)]
pub(crate) struct ContentSource {
    endpoints: Endpoints,
    leaders: watch::Receiver<LeaderTable>,
    budget: Arc<Semaphore>,
    budget_bytes: u32,
}

/// The content of one message, and its part of the budget.
#[derive(Debug)]
pub(crate) struct Content {
    /// Header and body, in parts that are not joined.
    pub(crate) parts: Vec<Bytes>,
    /// Whatever keeps the parts in memory keeps this too.
    pub(crate) budget: Option<Arc<OwnedSemaphorePermit>>,
}

impl Content {
    /// Content that came with its assignment, and its part of the budget of those.
    #[must_use]
    pub(crate) fn whole(content: Bytes, budget: Option<Arc<OwnedSemaphorePermit>>) -> Self {
        Self { parts: vec![content], budget }
    }
}

/// How often the content is requested before the message is given back to the queue.
const TRIES: usize = 3;
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The longest wait for any one part.
const PART_WITHIN: Duration = Duration::from_secs(30);

impl ContentSource {
    /// Fetches from the leaders among `endpoints`, `bytes_max` at a time.
    #[must_use]
    pub(crate) fn new(
        endpoints: &Endpoints,
        leaders: &watch::Receiver<LeaderTable>,
        bytes_max: usize,
    ) -> Self {
        let budget_bytes = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        Self {
            endpoints: endpoints.clone(),
            leaders: leaders.clone(),
            budget: Arc::new(Semaphore::new(bytes_max)),
            budget_bytes,
        }
    }

    /// Fetches the content of a message of about `size` bytes once the budget has room for it.
    ///
    /// # Errors
    /// Every request to the leader failed.
    pub(crate) async fn fetch(
        &self,
        group: GroupId,
        message: MessageId,
        size: u64,
    ) -> Result<Content, Status> {
        // A message larger than the whole budget takes all of it.
        let permits = u32::try_from(size).unwrap_or(u32::MAX).min(self.budget_bytes);
        let budget = self.budget.clone().acquire_many_owned(permits).await;
        let budget = budget.map_err(|_| Status::cancelled("the process is stopping"))?;
        let mut last = Status::unavailable("no leader is known");
        for attempt in 0..TRIES {
            if attempt > 0 {
                time::sleep(RETRY_AFTER).await;
            }
            match self.try_fetch(group, message).await {
                Ok(parts) => return Ok(Content { parts, budget: Some(Arc::new(budget)) }),
                Err(status) => last = status,
            }
        }
        Err(last)
    }

    async fn try_fetch(&self, group: GroupId, message: MessageId) -> Result<Vec<Bytes>, Status> {
        let leader = self.leaders.borrow().get(&group).map(|leader| leader.node);
        let channel = leader.and_then(|node| self.endpoints.get(&node)).cloned();
        let channel = channel.ok_or_else(|| Status::unavailable("no leader is known"))?;
        let mut client =
            QueueServiceClient::new(channel).max_decoding_message_size(postroad_cluster::FRAME_BYTES_MAX);
        let message_id = Bytes::copy_from_slice(&message.as_u128().to_be_bytes());
        let late = |_| Status::deadline_exceeded("timed out waiting for the message content");
        let opened = time::timeout(PART_WITHIN, client.content(ContentRequest { message_id }));
        let mut stream = opened.await.map_err(late)??.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = time::timeout(PART_WITHIN, stream.message()).await.map_err(late)?? {
            parts.push(part.data);
        }
        if parts.is_empty() { Err(Status::data_loss("the message content is empty")) } else { Ok(parts) }
    }
}
