//! Converts the queue's view of a message to the messages of the submission service.

use postroad_core::MessageId;
use postroad_proto::{
    queue::{DeliveryStatus, DeliveryView, MessageView},
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
    let status = view.status();
    let due = view.due_at_millis.min(if status == DeliveryStatus::Waiting { u64::MAX } else { 0 });
    Delivery {
        recipient: view.recipient,
        state: state(status).into(),
        attempts: view.attempts,
        due_at: time(due),
        last_response: view.last_response,
    }
}

fn state(status: DeliveryStatus) -> DeliveryState {
    match status {
        DeliveryStatus::Unspecified => DeliveryState::Unspecified,
        DeliveryStatus::Waiting => DeliveryState::Waiting,
        DeliveryStatus::Assigned => DeliveryState::Assigned,
        DeliveryStatus::Held => DeliveryState::Held,
        DeliveryStatus::Delivered => DeliveryState::Delivered,
        DeliveryStatus::Bounced => DeliveryState::Bounced,
        DeliveryStatus::Expired => DeliveryState::Expired,
        DeliveryStatus::Cancelled => DeliveryState::Cancelled,
        DeliveryStatus::Suppressed => DeliveryState::Suppressed,
    }
}

/// Returns `None` for 0, which means unset.
fn time(millis: u64) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(millis / 1000).ok()?;
    let nanos = i32::try_from(millis % 1000 * 1_000_000).ok()?;
    (millis > 0).then_some(prost_types::Timestamp { seconds, nanos })
}
