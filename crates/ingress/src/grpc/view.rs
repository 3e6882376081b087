//! Converts the queue's view of a message to the messages of the submission service.

use postroad_core::MessageId;
use postroad_proto::{
    queue::{self, DeliveryView, MessageView},
    submission::{Delivery, DeliveryState, Message},
};

pub(super) fn message(id: MessageId, view: MessageView) -> Message {
    Message {
        message_id: id.to_string(),
        accepted_at: time(view.accepted_at_millis),
        expires_at: time(view.expires_at_millis),
        sender: view.sender.unwrap_or_default(),
        size_bytes: view.size_bytes,
        deliveries: view.deliveries.into_iter().map(delivery).collect(),
    }
}

fn delivery(view: DeliveryView) -> Delivery {
    let found = view.state();
    let waits = matches!(found, queue::DeliveryState::Queued | queue::DeliveryState::Deferred);
    let due = if waits { view.due_at_millis } else { 0 };
    Delivery {
        recipient: view.recipient,
        state: state(found).into(),
        attempts: view.attempts,
        due_at: time(due),
        last_response: view.last_response,
    }
}

fn state(found: queue::DeliveryState) -> DeliveryState {
    match found {
        queue::DeliveryState::Unspecified => DeliveryState::Unspecified,
        queue::DeliveryState::Queued => DeliveryState::Queued,
        queue::DeliveryState::Sending => DeliveryState::Sending,
        queue::DeliveryState::Deferred => DeliveryState::Deferred,
        queue::DeliveryState::Held => DeliveryState::Held,
        queue::DeliveryState::Delivered => DeliveryState::Delivered,
        queue::DeliveryState::Bounced => DeliveryState::Bounced,
        queue::DeliveryState::Expired => DeliveryState::Expired,
        queue::DeliveryState::Cancelled => DeliveryState::Cancelled,
        queue::DeliveryState::Suppressed => DeliveryState::Suppressed,
    }
}

/// Returns `None` for 0, which means unset.
fn time(millis: u64) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(millis / 1000).ok()?;
    let nanos = i32::try_from(millis % 1000 * 1_000_000).ok()?;
    (millis > 0).then_some(prost_types::Timestamp { seconds, nanos })
}
