//! A message and where it stands, as it is shown.

use postroad_core::Timestamp;
use postroad_ledger::{DeliveryView, MessageView, Status, command::Change, event::End};

use crate::{convert::message_id, queue as wire};

impl From<&MessageView> for wire::MessageView {
    fn from(message: &MessageView) -> Self {
        Self {
            message_id: message_id(message.id),
            tenant: message.tenant.0,
            sender: message.sender.as_ref().map(ToString::to_string),
            size_bytes: u64::from(message.size),
            accepted_at_millis: message.accepted_at.as_millis(),
            expires_at_millis: message.expires_at.as_millis(),
            deliveries: message.deliveries.iter().map(Into::into).collect(),
        }
    }
}

impl From<&DeliveryView> for wire::DeliveryView {
    fn from(delivery: &DeliveryView) -> Self {
        use wire::DeliveryStatus as Wire;
        let (status, due, source) = match delivery.status {
            Status::Waiting(due) => (Wire::Waiting, due, 0),
            Status::Assigned(_, lane) => (Wire::Assigned, Timestamp::ZERO, lane.source.0),
            Status::Held => (Wire::Held, Timestamp::ZERO, 0),
            Status::Ended(end) => (end.into(), Timestamp::ZERO, 0),
        };
        Self {
            recipient: delivery.address.to_string(),
            status: status.into(),
            attempts: delivery.attempts,
            due_at_millis: due.as_millis(),
            last_response: delivery.last.as_ref().map_or_else(String::new, |last| last.text.to_string()),
            site: delivery.site.to_string(),
            pool: delivery.pool.0,
            source,
        }
    }
}

impl From<End> for wire::DeliveryStatus {
    fn from(end: End) -> Self {
        match end {
            End::Delivered => Self::Delivered,
            End::Bounced => Self::Bounced,
            End::Expired => Self::Expired,
            End::Cancelled => Self::Cancelled,
            End::Suppressed => Self::Suppressed,
        }
    }
}

impl From<Change> for wire::ChangeResult {
    fn from(change: Change) -> Self {
        match change {
            Change::Done => Self::Done,
            Change::Unchanged => Self::Unchanged,
            Change::AlreadyEnded => Self::AlreadyEnded,
            Change::InFlight => Self::InFlight,
        }
    }
}
