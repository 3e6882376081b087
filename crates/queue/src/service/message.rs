//! One message: its state, and cancel, hold, release and retry.

use postroad_core::{DeliveryState, MessageId, TenantId, Timestamp};
use postroad_ledger::{
    MessageView,
    command::{Command, Reply},
    dispatch::{WaitReason, Waiting},
};
use postroad_proto::queue::{self as wire, Change, ChangeMessageResponse, ChangeResult, SummaryResponse};
use tonic::{Response, Status};

use crate::{clock, error::refused, ledger::LedgerGroup, waiting::explain};

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
            let reason = match (delivery.state, delivery.due_at) {
                (DeliveryState::Held, _) => WaitReason::Held,
                (_, Some(due)) => {
                    let (tenant, pool, site) = (message.tenant, delivery.pool, &delivery.site);
                    let waiting = Waiting { tenant, pool, site, due };
                    leading.dispatcher.why_waits(state, &leading.lanes, now, waiting)
                }
                _ => continue,
            };
            shown.waits = Some(explain(&leading.view, delivery.pool, &reason, &delivery.site));
        }
    });
}

fn not_found(id: MessageId) -> Status {
    Status::not_found(format!("message `{id}` does not exist or has ended"))
}

pub(super) async fn change(
    ledger: &LedgerGroup,
    id: MessageId,
    tenant: u32,
    change: Change,
) -> Result<Response<ChangeMessageResponse>, Status> {
    let command = match change {
        Change::Cancel => Command::Cancel(id),
        Change::Hold => Command::Hold(id),
        Change::Release => Command::Release(id),
        Change::Retry => Command::Retry(id),
        Change::Unspecified => return Err(Status::invalid_argument("expected a change")),
    };
    read(ledger, id, tenant).await?;
    let reply = ledger.commit_one(command).await.map_err(|error| refused(&error))?;
    // The message may have ended since the read.
    let Reply::Changed(changes) = reply else { return Err(not_found(id)) };
    let results = changes.into_iter().map(|change| ChangeResult::from(change).into()).collect();
    Ok(Response::new(ChangeMessageResponse { results }))
}

/// Returns the group's counts on this node, leader or not.
pub(super) fn summary(ledger: &LedgerGroup) -> SummaryResponse {
    let (applied_index, state_hash) = ledger.group.state_hash();
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
            leading: ledger.status().leading,
        }
    })
}
