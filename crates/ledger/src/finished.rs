//! What is known of a delivery for the log: looked up in the ledger, or in the message that has just left it.

use std::sync::Arc;

use postroad_core::{DeliveryId, MessageId, Outcome, TenantId, Timestamp};

use crate::{
    Ledger,
    row::{Message, Recipient},
};

/// A message that ended for every recipient and has left the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub(crate) message: Message,
    /// The names of the sites of its recipients, in the order of the envelope.
    pub(crate) sites: Box<[Arc<str>]>,
}

/// What is known of a delivery, whether it has ended or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryFacts<'a> {
    /// Whose message it is.
    pub tenant: TenantId,
    /// The mailbox.
    pub address: &'a str,
    /// The normalised MX set, or the domain.
    pub site: &'a str,
    /// When the ledger took responsibility.
    pub accepted_at: Timestamp,
    /// Attempts that count.
    pub attempts: u32,
    /// How the last attempt ended.
    pub last: Option<&'a Outcome>,
    /// W3C traceparent, empty without a trace.
    pub traceparent: &'a str,
}

impl Finished {
    /// Returns the message's id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.message.id
    }

    /// Returns what is known of the delivery to one recipient.
    #[must_use]
    pub fn delivery(&self, recipient: u32) -> Option<DeliveryFacts<'_>> {
        let place = recipient as usize;
        Some(facts(&self.message, self.message.recipients.get(place)?, self.sites.get(place)?))
    }
}

impl Ledger {
    /// Returns what is known of a delivery whose message has not ended.
    #[must_use]
    pub fn delivery(&self, id: DeliveryId) -> Option<DeliveryFacts<'_>> {
        let key = self.key(id)?;
        let message = self.messages.get(key.slot)?;
        let recipient = message.recipients.get(key.recipient as usize)?;
        Some(facts(message, recipient, self.sites.name(recipient.site)))
    }
}

fn facts<'a>(message: &'a Message, recipient: &'a Recipient, site: &'a str) -> DeliveryFacts<'a> {
    DeliveryFacts {
        tenant: message.tenant,
        address: &recipient.address,
        site,
        accepted_at: message.accepted_at,
        attempts: recipient.counted,
        last: recipient.last.as_deref(),
        traceparent: &message.traceparent,
    }
}
