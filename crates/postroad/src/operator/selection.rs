//! Which deliveries a command is about, and the pages in which the queue returns them.

use postroad_cluster::CallError;
use postroad_core::{Address, Domain, GroupId};
use postroad_proto::queue::{
    self as wire, DeliveryId, ListDeliveriesRequest, ListDeliveriesResponse, ListedDelivery, Selection,
};

use super::{Operator, WITHIN, client};
use crate::cli::message::{OpenState, SelectionArgs};

/// Deliveries of one page.
const PAGE_MAX: u32 = 2000;

impl SelectionArgs {
    /// Returns true when it selects less than everything.
    pub(super) fn is_given(&self) -> bool {
        *self != Self::default()
    }

    /// Returns what the queue is asked for; where no state is given, these.
    pub(super) fn wire(&self, states: &[OpenState]) -> Selection {
        let states = if self.states.is_empty() { states } else { &self.states };
        Selection {
            site: self.site.as_ref().map(|site| site.to_ascii_lowercase()),
            tenant: self.tenant.clone(),
            pool: self.pool.clone(),
            source: self.source.clone(),
            sender: self.sender.clone(),
            sender_domain: self.sender_domain.clone(),
            recipient: self.recipient.clone(),
            states: states.iter().map(|state| state.wire().into()).collect(),
            older_than_millis: self
                .older_than
                .map(|age| u64::try_from(age.0.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl OpenState {
    fn wire(self) -> wire::DeliveryState {
        match self {
            Self::Queued => wire::DeliveryState::Queued,
            Self::Deferred => wire::DeliveryState::Deferred,
            Self::Sending => wire::DeliveryState::Sending,
            Self::Held => wire::DeliveryState::Held,
        }
    }
}

/// Reads an envelope sender; `<>` is the null sender.
pub(crate) fn parse_sender(text: &str) -> Result<String, String> {
    if matches!(text, "" | "<>") { Ok(String::new()) } else { parse_mailbox(text) }
}

/// Reads a mailbox.
pub(crate) fn parse_mailbox(text: &str) -> Result<String, String> {
    let address = Address::parse(text).map_err(|error| format!("expected an address: {error}"))?;
    Ok(address.as_str().to_owned())
}

/// Reads the domain of envelope senders; `<>` is the null sender.
pub(crate) fn parse_sender_domain(text: &str) -> Result<String, String> {
    if matches!(text, "" | "<>") {
        return Ok(String::new());
    }
    let domain = Domain::parse(text).map_err(|error| format!("expected a domain: {error}"))?;
    Ok(domain.as_str().to_owned())
}

/// The pages of one ledger group.
pub(super) struct Pages<'a> {
    operator: &'a Operator,
    request: ListDeliveriesRequest,
    is_at_end: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(
        operator: &'a Operator,
        group: GroupId,
        selection: Selection,
        from: Option<DeliveryId>,
    ) -> Self {
        let request = ListDeliveriesRequest {
            group: group.0.into(),
            selection: Some(selection),
            from,
            deliveries_max: PAGE_MAX,
            brief: false,
        };
        Self { operator, request, is_at_end: false }
    }

    /// Asks for ids, states and sites only.
    pub(super) fn brief(mut self) -> Self {
        self.request.brief = true;
        self
    }

    /// Returns the next deliveries; `None` at the end. There may be none in a page before it.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<ListedDelivery>>, CallError> {
        if self.is_at_end {
            return Ok(None);
        }
        let group = GroupId(u16::try_from(self.request.group).unwrap_or_default());
        let call = async |channel| client(channel).list_deliveries(self.request.clone()).await;
        let answer = self.operator.calls().call(group, WITHIN, call).await?;
        let ListDeliveriesResponse { deliveries, next } = answer.into_inner();
        self.is_at_end = next.is_none();
        self.request.from = next;
        Ok(Some(deliveries))
    }
}
