//! Control's calls to the queue: summaries, acknowledged events, and changes to messages.

use std::time::Duration;

use bytes::Bytes;
use postroad_cluster::{CallError, LeaderCalls};
use postroad_core::{GroupId, MessageId};
use postroad_proto::queue::{
    Change, ChangeMessageRequest, ChangeResult, ConsumeRequest, SummaryRequest, SummaryResponse,
    queue_service_client::QueueServiceClient,
};
use tonic::{Status, transport::Channel};

/// Control's name in the queue's cursors.
const CONSUMER: &str = "control";
/// Who changes messages, for the record: the console does not know its users.
const ACTOR: &str = "console";
/// The longest that a page waits for a summary.
const SUMMARY_WITHIN: Duration = Duration::from_secs(1);
const CHANGE_WITHIN: Duration = Duration::from_secs(5);

/// Calls the leaders of ledger groups. A clone is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) calls: LeaderCalls,
}

/// How many recipients a change had which result for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangeCounts {
    pub(crate) changed: u32,
    pub(crate) unchanged: u32,
    pub(crate) in_flight: u32,
    pub(crate) ended: u32,
}

impl Queue {
    pub(crate) async fn summary(&self, group: GroupId) -> Result<SummaryResponse, CallError> {
        let call = move |channel: Channel| async move {
            let request = SummaryRequest { group: u32::from(group.0) };
            QueueServiceClient::new(channel).summary(request).await.map(tonic::Response::into_inner)
        };
        self.calls.call(group, SUMMARY_WITHIN, call).await
    }

    /// Acknowledges events, which the queue may delete then.
    pub(crate) async fn consume(&self, group: GroupId, through: u64) -> Result<(), CallError> {
        let call = move |channel: Channel| async move {
            let request =
                ConsumeRequest { group: u32::from(group.0), consumer: CONSUMER.to_owned(), through };
            QueueServiceClient::new(channel).consume(request).await.map(drop)
        };
        self.calls.call(group, CHANGE_WITHIN, call).await
    }

    /// Cancels, holds or releases every recipient of a message.
    pub(crate) async fn change(&self, message: MessageId, change: Change) -> Result<ChangeCounts, CallError> {
        let call = move |channel: Channel| async move {
            let request = ChangeMessageRequest {
                message_id: Bytes::copy_from_slice(&message.as_u128().to_be_bytes()),
                change: change.into(),
                tenant: 0,
                actor: ACTOR.to_owned(),
            };
            let response = QueueServiceClient::new(channel).change_message(request).await?;
            Ok::<_, Status>(response.into_inner().results)
        };
        let results = self.calls.call(message.group(), CHANGE_WITHIN, call).await?;
        let mut counts = ChangeCounts::default();
        for result in results {
            match ChangeResult::try_from(result).unwrap_or(ChangeResult::Unspecified) {
                ChangeResult::Done => counts.changed += 1,
                ChangeResult::InFlight => counts.in_flight += 1,
                ChangeResult::AlreadyEnded => counts.ended += 1,
                ChangeResult::Unchanged | ChangeResult::Unspecified => counts.unchanged += 1,
            }
        }
        Ok(counts)
    }
}
