//! A message and the state of its deliveries, as it is shown.

use postroad_core::{DeliveryState, FinalState, Timestamp};
use postroad_ledger::{DeliveryView, MessageView, command::Change};

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
            tenant_name: String::new(),
        }
    }
}

impl From<&DeliveryView> for wire::DeliveryView {
    fn from(delivery: &DeliveryView) -> Self {
        Self {
            recipient: delivery.address.to_string(),
            state: wire::DeliveryState::from(delivery.state).into(),
            attempts: delivery.attempts,
            due_at_millis: delivery.due_at.unwrap_or(Timestamp::ZERO).as_millis(),
            last_response: delivery.last.as_ref().map_or_else(String::new, |last| last.text.to_string()),
            site: delivery.site.to_string(),
            pool: delivery.pool.0,
            source: delivery.grant.map_or(0, |grant| grant.source.0),
            actor: delivery.actor.to_string(),
            last_at_millis: delivery.last_at.unwrap_or(Timestamp::ZERO).as_millis(),
            last_code: delivery.last.as_ref().map_or(0, |last| last.code.into()),
            waits: None,
            pool_name: String::new(),
            source_name: String::new(),
        }
    }
}

impl From<DeliveryState> for wire::DeliveryState {
    fn from(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Queued => Self::Queued,
            DeliveryState::Sending => Self::Sending,
            DeliveryState::Deferred => Self::Deferred,
            DeliveryState::Held => Self::Held,
            DeliveryState::Final(FinalState::Delivered) => Self::Delivered,
            DeliveryState::Final(FinalState::Bounced) => Self::Bounced,
            DeliveryState::Final(FinalState::Expired) => Self::Expired,
            DeliveryState::Final(FinalState::Cancelled) => Self::Cancelled,
            DeliveryState::Final(FinalState::Suppressed) => Self::Suppressed,
        }
    }
}

impl wire::DeliveryState {
    /// Returns the state; `None` for one that this version does not know.
    #[must_use]
    pub fn known(self) -> Option<DeliveryState> {
        DeliveryState::ALL.into_iter().find(|state| Self::from(*state) == self)
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
