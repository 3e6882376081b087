//! One message: its state, and cancel, hold, release and retry.

use postroad_core::{DeliveryState, MessageId, TenantId, Timestamp};
use postroad_ledger::{
    DeliveryView, Ledger, MessageView,
    command::{ChangeRequest, Command, Reply, Which},
    dispatch::{WaitReason, Waiting},
};
use postroad_proto::{
    parse_change,
    queue::{self as wire, Change, ChangeMessageResponse, ChangeResult, SummaryResponse},
};
use tonic::{Response, Status};

use super::invalid;
use crate::{
    clock,
    error::refused,
    ledger::{LedgerGroup, shared::Leading},
    waiting::explain,
};

/// Reads a message once this node has proven that it leads; of `tenant`, or of any tenant where that is 0.
pub(super) async fn read(ledger: &LedgerGroup, id: MessageId, tenant: u32) -> Result<MessageView, Status> {
    ledger.group.read_barrier().await.map_err(|error| refused(&error))?;
    let message = ledger.shared.with_ledger(|state| state.message(id));
    let message = message.filter(|message| tenant == 0 || message.tenant == TenantId(tenant));
    message.ok_or_else(|| not_found(id))
}

/// Adds why each delivery waits, where it does.
pub(super) fn explain_waits(ledger: &LedgerGroup, message: &MessageView, shown: &mut wire::MessageView) {
    let now = clock::now();
    ledger.shared.with_leading(|state, leading| {
        for (delivery, shown) in message.deliveries.iter().zip(&mut shown.deliveries) {
            shown.waits = why_waits(state, leading, now, message.tenant, delivery);
        }
    });
}

/// Returns why a delivery waits; `None` while it is being sent, and when it has ended.
pub(super) fn why_waits(
    state: &Ledger,
    leading: &Leading,
    now: Timestamp,
    tenant: TenantId,
    delivery: &DeliveryView,
) -> Option<wire::WaitReason> {
    let (pool, site) = (delivery.pool, &delivery.site);
    let reason = match (delivery.state, delivery.due_at) {
        (DeliveryState::Held, _) => WaitReason::Held,
        (_, Some(due)) => {
            let waiting = Waiting { tenant, pool, site, due };
            leading.dispatcher.why_waits(state, &leading.lanes, now, waiting)
        }
        _ => return None,
    };
    let explained = explain(&leading.view, pool, &reason, site);
    // Only the delivery knows who holds it.
    let detail = if reason == WaitReason::Held { delivery.actor.to_string() } else { explained.detail };
    Some(wire::WaitReason { detail, ..explained })
}

fn not_found(id: MessageId) -> Status {
    Status::not_found(format!("message `{id}` does not exist or has ended"))
}

pub(super) async fn change(
    ledger: &LedgerGroup,
    id: MessageId,
    tenant: u32,
    change: Change,
    actor: Box<str>,
) -> Result<Response<ChangeMessageResponse>, Status> {
    let action = parse_change(change).map_err(invalid)?;
    read(ledger, id, tenant).await?;
    let request = ChangeRequest { message: id, which: Which::Every, action, actor };
    let reply = ledger.commit_one(Command::Change(Box::new(request))).await;
    let reply = reply.map_err(|error| refused(&error))?;
    // The message may have ended since the read.
    let Reply::Changed(changes) = reply else { return Err(not_found(id)) };
    let results = changes.into_iter().map(|change| ChangeResult::from(change).into()).collect();
    Ok(Response::new(ChangeMessageResponse { results }))
}

/// Returns the group's counts on this node, leader or not.
pub(super) fn summary(ledger: &LedgerGroup) -> SummaryResponse {
    let (applied_index, state_hash) = ledger.group.state_hash();
    let flow = ledger.shared.with_leading(|_, leading| leading.flow.wire());
    let status = ledger.status();
    ledger.shared.with_ledger(|state| {
        let counts = state.counts();
        let (events_first, events_next) = state.event_range();
        SummaryResponse {
            messages: state.message_count() as u64,
            queued: counts.queued,
            sending: counts.sending,
            held: counts.held,
            oldest_accepted_at_millis: state.oldest().unwrap_or(Timestamp::ZERO).as_millis(),
            events_first,
            events_next,
            applied_index,
            state_hash,
            leading: status.leading,
            term: status.term,
            flow,
        }
    })
}
