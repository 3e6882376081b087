//! `postroad message`: shows and changes one message of the queue.

use std::fmt::Write;

use postroad_cluster::CallError;
use postroad_core::{MessageId, Timestamp};
use postroad_proto::queue::{
    Change, ChangeMessageRequest, ChangeMessageResponse, ChangeResult, DeliveryState, DeliveryView,
    GetMessageRequest, MessageView, WaitReason, queue_service_client::QueueServiceClient,
};
use serde::Serialize;
use tonic::Code;

use super::{Operator, OperatorError, WITHIN};
use crate::{
    cli::{MessageArgs, MessageCommand, MessageGetArgs},
    output::{Screen, Shown, line},
};

/// Runs `postroad message`.
///
/// # Errors
/// The message is not in the queue, or the cluster cannot be reached.
pub async fn message(command: &MessageCommand) -> anyhow::Result<String> {
    match command {
        MessageCommand::Get(args) => get(args).await,
        MessageCommand::Hold(args) => change(args, Change::Hold).await,
        MessageCommand::Release(args) => change(args, Change::Release).await,
        MessageCommand::Retry(args) => change(args, Change::Retry).await,
        MessageCommand::Cancel(args) => change(args, Change::Cancel).await,
    }
}

struct Target {
    id: MessageId,
    operator: Operator,
}

impl Target {
    fn new(args: &MessageArgs) -> anyhow::Result<Self> {
        Ok(Self { id: args.id, operator: Operator::connect(&args.target)? })
    }

    async fn view(&self) -> Result<MessageView, OperatorError> {
        let request = GetMessageRequest { message_id: postroad_proto::message_id(self.id), tenant: 0 };
        let call = async |channel| QueueServiceClient::new(channel).get_message(request.clone()).await;
        let response = self.operator.calls().call(self.id.group(), WITHIN, call).await;
        Ok(response.map_err(|error| self.failed("read", error))?.into_inner())
    }

    fn failed(&self, verb: &str, error: CallError) -> OperatorError {
        match self.operator.failed(&format!("{verb} message `{}`", self.id), error) {
            OperatorError::NotFound { action, cause } => {
                let cause = format!("{cause}; the console shows messages with a final outcome");
                OperatorError::NotFound { action, cause }
            }
            other => other,
        }
    }
}

async fn get(args: &MessageGetArgs) -> anyhow::Result<String> {
    let target = Target::new(&args.message)?;
    args.output.output.show(&ShownMessage::of(target.id, &target.view().await?))
}

/// A message of the queue, and the state of each recipient.
#[derive(Debug, Serialize)]
struct ShownMessage {
    id: String,
    /// Empty for the null sender.
    sender: String,
    size_bytes: u64,
    accepted_at: String,
    expires_at: String,
    deliveries: Vec<ShownDelivery>,
}

#[derive(Debug, Serialize)]
struct ShownDelivery {
    recipient: String,
    state: &'static str,
    /// When the next attempt is due, while it is queued or deferred.
    next_try_at: Option<String>,
    site: String,
    attempts: u32,
    /// What the last attempt ended with; empty before one has ended.
    last_reply: String,
    /// The word for why it waits, such as `suspended`; empty where it does not wait.
    waits: &'static str,
    /// The same as a sentence.
    waits_for: String,
}

impl ShownMessage {
    fn of(id: MessageId, view: &MessageView) -> Self {
        let time = |millis| Timestamp::from_millis(millis).to_string();
        Self {
            id: id.to_string(),
            sender: view.sender.clone().unwrap_or_default(),
            size_bytes: view.size_bytes,
            accepted_at: time(view.accepted_at_millis),
            expires_at: time(view.expires_at_millis),
            deliveries: view.deliveries.iter().map(ShownDelivery::of).collect(),
        }
    }
}

impl ShownDelivery {
    fn of(delivery: &DeliveryView) -> Self {
        let waits = matches!(delivery.state(), DeliveryState::Queued | DeliveryState::Deferred);
        let due = Timestamp::from_millis(delivery.due_at_millis);
        Self {
            recipient: delivery.recipient.clone(),
            state: state_name(delivery),
            next_try_at: waits.then(|| due.to_string()),
            site: delivery.site.clone(),
            attempts: delivery.attempts,
            last_reply: delivery.last_response.clone(),
            waits: delivery.waits.as_ref().map_or("", |reason| reason.kind().word()),
            waits_for: delivery.waits.as_ref().map(WaitReason::sentence).unwrap_or_default(),
        }
    }
}

impl Shown for ShownMessage {
    fn text(&self, _: Screen) -> String {
        let Self { id, sender, size_bytes, accepted_at, expires_at, deliveries } = self;
        let sender = line(sender);
        let mut text =
            format!("{id}  <{sender}>  {size_bytes} bytes  accepted {accepted_at}  expires {expires_at}\n");
        for delivery in deliveries {
            let ShownDelivery { recipient, state, next_try_at, site, attempts, last_reply, .. } = delivery;
            let due = next_try_at.as_ref().map_or_else(String::new, |due| format!("  due {due}"));
            let (recipient, site) = (line(recipient), line(site));
            let _ = writeln!(text, "  {recipient}  {state}{due}  site {site}  attempts {attempts}");
            if !last_reply.is_empty() {
                let _ = writeln!(text, "    {}", line(last_reply));
            }
            // The state says these.
            if !matches!(delivery.waits, "" | "next" | "not_due" | "held") {
                let _ = writeln!(text, "    waits: {}", line(&delivery.waits_for));
            }
        }
        text
    }
}

fn state_name(delivery: &DeliveryView) -> &'static str {
    delivery.state().known().map_or("unknown", |state| state.as_str())
}

async fn change(args: &MessageArgs, change: Change) -> anyhow::Result<String> {
    let target = Target::new(args)?;
    // The response to a change names no recipient: their addresses and states are read first.
    let before = target.view().await?;
    let message_id = postroad_proto::message_id(target.id);
    let request = ChangeMessageRequest { message_id, change: change.into(), tenant: 0 };
    let call = async |channel| QueueServiceClient::new(channel).change_message(request.clone()).await;
    let response = target.operator.calls().call(target.id.group(), WITHIN, call).await;
    let results = results(&before, response.map(tonic::Response::into_inner));
    let results = results.map_err(|error| target.failed("change", error))?;
    let line = |(delivery, result): (&DeliveryView, &ChangeResult)| {
        format!("{}: {}\n", delivery.recipient, result_text(change, delivery, *result))
    };
    Ok(before.deliveries.iter().zip(&results).map(line).collect())
}

/// Returns the result for each recipient of a message that was in the queue when the command began.
///
/// A call without an answer is repeated: the message may have ended since, also by the first call.
fn results(
    before: &MessageView,
    response: Result<ChangeMessageResponse, CallError>,
) -> Result<Vec<ChangeResult>, CallError> {
    match response {
        Ok(response) => Ok(response.results().collect()),
        Err(CallError::Refused { code: Code::NotFound, .. }) => {
            Ok(vec![ChangeResult::AlreadyEnded; before.deliveries.len()])
        }
        Err(error) => Err(error),
    }
}

fn result_text(change: Change, before: &DeliveryView, result: ChangeResult) -> String {
    let changed = match change {
        Change::Hold => "held",
        Change::Release => "released",
        Change::Retry => "due now",
        Change::Cancel => "cancelled",
        Change::Unspecified => "changed",
    };
    match (result, before.state()) {
        (ChangeResult::Unspecified, _) => "unknown result: use the same version as the cluster".to_owned(),
        (ChangeResult::Done, _) => changed.to_owned(),
        (ChangeResult::InFlight, _) if change == Change::Retry => {
            "sending: an attempt is under way".to_owned()
        }
        (ChangeResult::InFlight, _) => format!("sending; {changed} unless this attempt is final"),
        (ChangeResult::Unchanged, _) if change == Change::Release => {
            "not held; `postroad message retry` tries it now".to_owned()
        }
        (ChangeResult::Unchanged, DeliveryState::Held) if change == Change::Retry => {
            "held; `postroad message release` makes it due now".to_owned()
        }
        (ChangeResult::Unchanged, _) => format!("already {changed}"),
        (
            ChangeResult::AlreadyEnded,
            DeliveryState::Unspecified
            | DeliveryState::Queued
            | DeliveryState::Sending
            | DeliveryState::Deferred
            | DeliveryState::Held,
        ) => "final outcome since this command began; see the console".to_owned(),
        (ChangeResult::AlreadyEnded, _) => format!("already {}", state_name(before)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_ends_while_the_command_runs_is_not_a_missing_one() {
        let delivery = |state: DeliveryState| DeliveryView { state: state.into(), ..DeliveryView::default() };
        let before = MessageView {
            deliveries: vec![delivery(DeliveryState::Queued), delivery(DeliveryState::Delivered)],
            ..MessageView::default()
        };
        let refused = |code| Err(CallError::Refused { code, message: "no".to_owned() });
        let ended = results(&before, refused(Code::NotFound)).unwrap();
        let text = |index: usize| result_text(Change::Cancel, &before.deliveries[index], ended[index]);
        assert_eq!(text(0), "final outcome since this command began; see the console");
        assert_eq!(text(1), "already delivered");
        let denied = refused(Code::PermissionDenied);
        assert_eq!(results(&before, denied.clone()), denied.map(|_: ChangeMessageResponse| Vec::new()));
    }

    #[test]
    fn the_result_of_a_change_names_the_state() {
        let check = |change, state: DeliveryState, result, expected: &str| {
            let before = DeliveryView { state: state.into(), ..DeliveryView::default() };
            assert_eq!(result_text(change, &before, result), expected);
        };
        check(Change::Hold, DeliveryState::Queued, ChangeResult::Done, "held");
        check(Change::Hold, DeliveryState::Held, ChangeResult::Unchanged, "already held");
        check(
            Change::Release,
            DeliveryState::Deferred,
            ChangeResult::Unchanged,
            "not held; `postroad message retry` tries it now",
        );
        check(Change::Retry, DeliveryState::Deferred, ChangeResult::Done, "due now");
        check(Change::Retry, DeliveryState::Deferred, ChangeResult::Unchanged, "already due now");
        check(
            Change::Retry,
            DeliveryState::Held,
            ChangeResult::Unchanged,
            "held; `postroad message release` makes it due now",
        );
        check(
            Change::Retry,
            DeliveryState::Sending,
            ChangeResult::InFlight,
            "sending: an attempt is under way",
        );
        check(Change::Cancel, DeliveryState::Delivered, ChangeResult::AlreadyEnded, "already delivered");
        check(
            Change::Cancel,
            DeliveryState::Sending,
            ChangeResult::InFlight,
            "sending; cancelled unless this attempt is final",
        );
    }
}
