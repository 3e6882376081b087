//! Selected deliveries, changes of many, and counts of what waits.

use std::time::Duration;

use postroad_core::{DeliveryId, Timestamp};
use postroad_ledger::{
    Selected, Selection,
    command::{Action, ChangeRequest},
    summary::GroupBy,
};

use crate::{
    convert::{Malformed, message_id, parse_message_id, which},
    queue as wire,
};

/// The most messages of one request that changes deliveries.
pub const CHANGED_MESSAGES_MAX: usize = 1000;

/// The most recipients that are named in one request that changes deliveries.
pub const CHANGED_RECIPIENTS_MAX: usize = 10_000;

impl wire::Selection {
    /// Reads which deliveries are wanted, except of which tenant, pool and source: only the directory knows their names.
    ///
    /// # Errors
    /// It has a state that this version does not know.
    pub fn without_names(&self, now: Timestamp) -> Result<Selection, Malformed> {
        let known = |state: wire::DeliveryState| state.known().ok_or(Malformed("states"));
        let text = |text: &Option<String>| text.as_deref().map(Into::into);
        Ok(Selection {
            site: text(&self.site),
            sender: text(&self.sender),
            sender_domain: text(&self.sender_domain),
            recipient: text(&self.recipient),
            states: self.states().map(known).collect::<Result<_, _>>()?,
            accepted_before: self.older_than_millis.map(|age| now.before(Duration::from_millis(age))),
            ..Selection::default()
        })
    }
}

impl From<DeliveryId> for wire::DeliveryId {
    fn from(id: DeliveryId) -> Self {
        Self { message_id: message_id(id.message), recipient: id.recipient }
    }
}

impl TryFrom<&wire::DeliveryId> for DeliveryId {
    type Error = Malformed;

    fn try_from(id: &wire::DeliveryId) -> Result<Self, Malformed> {
        Ok(Self { message: parse_message_id(&id.message_id)?, recipient: id.recipient })
    }
}

impl From<&Selected> for wire::ListedDelivery {
    fn from(selected: &Selected) -> Self {
        Self {
            id: Some(selected.id.into()),
            tenant: String::new(),
            sender: selected.sender.to_string(),
            size_bytes: selected.size.into(),
            accepted_at_millis: selected.accepted_at.as_millis(),
            expires_at_millis: selected.expires_at.as_millis(),
            delivery: Some((&selected.delivery).into()),
        }
    }
}

impl wire::MessageRecipients {
    /// Reads what is to be done with deliveries of one message, and who asked.
    ///
    /// # Errors
    /// It names no message, or no recipients.
    pub fn change(self, action: Action, actor: &str) -> Result<ChangeRequest, Malformed> {
        let message = parse_message_id(&self.message_id)?;
        let which = which(self.every_recipient, self.recipients)?;
        Ok(ChangeRequest { message, which, action, actor: actor.into() })
    }
}

impl wire::GroupBy {
    /// Returns what is counted by.
    ///
    /// # Errors
    /// This version does not know it.
    pub fn known(self) -> Result<GroupBy, Malformed> {
        match self {
            Self::Unspecified => Err(Malformed("by")),
            Self::Site => Ok(GroupBy::Site),
            Self::Tenant => Ok(GroupBy::Tenant),
            Self::Pool => Ok(GroupBy::Pool),
            Self::Source => Ok(GroupBy::Source),
            Self::SenderDomain => Ok(GroupBy::SenderDomain),
        }
    }
}
