//! Contents that are too large to travel inside an assignment.

use futures::{Stream, StreamExt, stream};
use postroad_core::MessageId;
use postroad_proto::queue::ContentPart;
use tonic::Status;

use crate::{error::not_leader, ledger::LedgerGroup};

/// Returns the parts of a message's content, read one after the other as they are taken.
pub(super) fn parts(
    ledger: &LedgerGroup,
    id: MessageId,
) -> Result<impl Stream<Item = Result<ContentPart, Status>> + use<>, Status> {
    let status = ledger.status();
    if !status.leading {
        return Err(not_leader(status.leader));
    }
    let message = ledger.core.with_ledger(|state| state.message(id));
    let message =
        message.ok_or_else(|| Status::not_found(format!("message `{id}` is not here, or has ended")))?;
    let ledger = ledger.clone();
    Ok(stream::iter(message.content).then(move |part| {
        let ledger = ledger.clone();
        async move {
            let read = ledger.part(part).await;
            let bytes = read.map_err(|error| {
                tracing::error!(message_id = %id, %error, "a content cannot be read");
                ledger.core.metrics.unreadable.increment(1);
                Status::data_loss("the content cannot be read")
            })?;
            Ok(ContentPart { data: bytes })
        }
    }))
}
