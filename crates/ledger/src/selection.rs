//! Deliveries that have not ended, selected by what people know of them, in pages of bounded work.

use postroad_core::{DeliveryId, DeliveryState, Domain, MessageId, PoolId, SourceId, TenantId, Timestamp};

use crate::{
    ledger::Ledger,
    query::DeliveryView,
    row::{Message, Recipient, State},
};

/// Which deliveries are wanted; what is left out selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// To this site.
    pub site: Option<Box<str>>,
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Sent from this pool.
    pub pool: Option<PoolId>,
    /// Being sent from this source.
    pub source: Option<SourceId>,
    /// With this envelope sender; empty for the null sender.
    pub sender: Option<Box<str>>,
    /// With an envelope sender in this domain, as [`Domain`] writes it; empty for the null sender.
    pub sender_domain: Option<Box<str>>,
    /// To this mailbox; the case of its domain does not matter.
    pub recipient: Option<Box<str>>,
    /// In one of these states; empty for any.
    pub states: Vec<DeliveryState>,
    /// Of messages that were accepted before this time.
    pub accepted_before: Option<Timestamp>,
}

/// A part of the selected deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of their ids.
    pub selected: Vec<Selected>,
    /// Where the next page begins; `None` at the end. A page may be empty though others follow.
    pub next: Option<DeliveryId>,
    /// How many deliveries were looked at.
    pub examined: usize,
}

/// One selected delivery, and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Its id.
    pub id: DeliveryId,
    /// Whose message it is.
    pub tenant: TenantId,
    /// The reverse path, empty for the null sender.
    pub sender: Box<str>,
    /// Bytes of the content.
    pub size: u32,
    /// When the ledger took responsibility.
    pub accepted_at: Timestamp,
    /// No attempt starts at or after this.
    pub expires_at: Timestamp,
    /// Its state.
    pub delivery: DeliveryView,
}

/// A selection with the numbers that this ledger has for names.
struct Resolved<'a> {
    wanted: &'a Selection,
    /// The slot of the site's name.
    site: Option<u32>,
}

impl Ledger {
    /// Returns the selected deliveries from `from` on: at most `selected_max`, of at most about `examined_max` looked at.
    #[must_use]
    pub fn select(
        &self,
        wanted: &Selection,
        from: DeliveryId,
        examined_max: usize,
        selected_max: usize,
    ) -> Page {
        let mut page = Page::default();
        let site = wanted.site.as_deref().map(|site| self.sites.slot(site));
        // A site that no delivery has.
        if site == Some(None) {
            return page;
        }
        let wanted = Resolved { wanted, site: site.flatten() };
        for (id, slot) in self.index.slots.range(from.message..) {
            let Some(message) = self.messages.get(*slot) else { continue };
            let first = if *id == from.message { from.recipient } else { 0 };
            let is_wanted = wanted.has_message(message);
            for (recipient, row) in (0..).zip(&message.recipients).skip(first as usize) {
                let delivery = DeliveryId { message: *id, recipient };
                if page.examined >= examined_max || page.selected.len() >= selected_max {
                    page.next = Some(delivery);
                    return page;
                }
                page.examined += 1;
                if !is_wanted {
                    break;
                }
                if wanted.has(row) {
                    page.selected.push(self.selected(delivery, message, row));
                }
            }
        }
        page
    }

    fn selected(&self, id: DeliveryId, message: &Message, recipient: &Recipient) -> Selected {
        Selected {
            id,
            tenant: message.tenant,
            sender: message.sender.clone(),
            size: message.size,
            accepted_at: message.accepted_at,
            expires_at: message.expires_at,
            delivery: self.delivery_view(message, recipient),
        }
    }
}

impl Resolved<'_> {
    fn has_message(&self, message: &Message) -> bool {
        let Selection { tenant, sender, sender_domain, accepted_before, .. } = self.wanted;
        tenant.is_none_or(|tenant| message.tenant == tenant)
            && sender.as_ref().is_none_or(|sender| is_same_mailbox(&message.sender, sender))
            && sender_domain.as_ref().is_none_or(|domain| domain_of(&message.sender) == **domain)
            && accepted_before.is_none_or(|before| message.accepted_at < before)
    }

    fn has(&self, recipient: &Recipient) -> bool {
        let Selection { pool, source, recipient: mailbox, states, .. } = self.wanted;
        let is_from = |wanted| matches!(recipient.state, State::Sending { source, .. } if source == wanted);
        recipient.is_open()
            && self.site.is_none_or(|site| recipient.site == site)
            && pool.is_none_or(|pool| recipient.pool == pool)
            && source.is_none_or(is_from)
            && mailbox.as_ref().is_none_or(|mailbox| is_same_mailbox(&recipient.address, mailbox))
            && (states.is_empty() || states.contains(&recipient.delivery_state()))
    }
}

/// Returns the domain of an address as [`Domain`] writes it; empty for the null sender.
pub(crate) fn domain_of(address: &str) -> String {
    let (_, host) = divided(address);
    Domain::parse(host).map_or_else(|_| host.to_ascii_lowercase(), |domain| domain.as_str().to_owned())
}

/// Local parts are compared as they are: only their host may know better (RFC 5321 2.4).
fn is_same_mailbox(one: &str, other: &str) -> bool {
    let ((local, host), (other_local, other_host)) = (divided(one), divided(other));
    local == other_local && (host.eq_ignore_ascii_case(other_host) || domain_of(one) == domain_of(other))
}

/// The local part and the domain or address literal.
fn divided(address: &str) -> (&str, &str) {
    address.rsplit_once('@').unwrap_or((address, ""))
}

/// Where a selection begins.
pub const FIRST: DeliveryId = DeliveryId { message: MessageId::from_u128(0), recipient: 0 };
