//! Contents that are too large to be sent inside an assignment.

use futures::{Stream, StreamExt, stream};
use postroad_core::MessageId;
use postroad_proto::queue::ContentPart;
use tonic::Status;

use crate::{error::not_leader, ledger::LedgerGroup};

/// Streams the parts of a message's content, each read when it is needed.
pub(super) fn parts(
    ledger: &LedgerGroup,
    id: MessageId,
) -> Result<impl Stream<Item = Result<ContentPart, Status>> + use<>, Status> {
    let status = ledger.status();
    if !status.leading {
        return Err(not_leader(status.leader));
    }
    let message = ledger.shared.with_ledger(|state| state.message(id));
    let message =
        message.ok_or_else(|| Status::not_found(format!("message `{id}` does not exist or has ended")))?;
    let ledger = ledger.clone();
    Ok(stream::iter(message.content).then(move |part| {
        let ledger = ledger.clone();
        async move {
            let read = ledger.part(part).await;
            let bytes = read.map_err(|error| {
                tracing::error!(message_id = %id, %error, "message body unreadable");
                ledger.shared.metrics.unreadable.increment(1);
                Status::data_loss("message body unreadable")
            })?;
            Ok(ContentPart { data: bytes })
        }
    }))
}
