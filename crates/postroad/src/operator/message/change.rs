//! `postroad message retry`, `hold`, `release` and `cancel`: of messages by id, or of all deliveries that are selected.
//!
//! A selection is listed first, counted and shown. It is changed in batches; a command that was stopped goes on when it
//! is repeated, because what has changed already is not selected again, or changes no more.

use std::collections::BTreeMap;

use postroad_cluster::CallError;
use postroad_core::{GroupId, MessageId};
use postroad_proto::queue::{
    Change, ChangeDeliveriesRequest, ChangeDeliveriesResponse, ChangeMessageRequest, ChangeMessageResponse,
    ChangeResult, DeliveryState, DeliveryView, ListedDelivery, MessageRecipients, MessageView,
};
use tonic::Code;

use super::{Target, state_name};
use crate::{
    cli::message::{MessageChangeArgs, OpenState},
    operator::{Operator, OperatorError, WITHIN, client, confirm, selection::Pages},
    output::line,
};

/// Messages changed by one call.
const BATCH_MESSAGES: usize = 500;

/// Deliveries changed by one call.
const BATCH_DELIVERIES: usize = 5000;

/// Sites named before a change is confirmed.
const SITES_SHOWN: usize = 5;

pub(super) async fn change(args: &MessageChangeArgs, change: Change) -> anyhow::Result<String> {
    if !args.ids.is_empty() {
        let operator = Operator::connect(&args.target)?;
        return change_by_id(operator, &args.ids, change).await;
    }
    if !args.selection.is_given() && !args.all {
        let cause = "expected message ids, a selection such as `--site`, or `--all`".to_owned();
        return Err(OperatorError::CommandLine { cause }.into());
    }
    let operator = Operator::connect(&args.target)?;
    let found = find(&operator, args, change).await?;
    if found.deliveries == 0 {
        return Ok("no delivery is selected: nothing to do\n".to_owned());
    }
    confirm(args.yes, &format!("{}{} them in {}?", found.describe(), question(change), operator.cluster))?;
    change_found(&operator, found, change).await
}

/// Changes messages one by one; one that does not exist does not keep the others from being changed.
async fn change_by_id(operator: Operator, ids: &[MessageId], change: Change) -> anyhow::Result<String> {
    let mut target = Target { id: ids[0], operator };
    let (mut text, mut failed) = (String::new(), None);
    for id in ids {
        target.id = *id;
        match change_message(&target, change).await {
            Ok(lines) if ids.len() == 1 => text += &lines,
            Ok(lines) => text.extend(lines.lines().map(|line| format!("{id}  {line}\n"))),
            Err(error @ OperatorError::NotFound { .. }) if ids.len() > 1 => {
                crate::output::complain(&error.to_string());
                failed = Some(error);
            }
            Err(error) => {
                crate::output::print(&text)?;
                return Err(error.into());
            }
        }
    }
    match failed {
        None => Ok(text),
        Some(error) => {
            crate::output::print(&text)?;
            Err(error.into())
        }
    }
}

async fn change_message(target: &Target, change: Change) -> Result<String, OperatorError> {
    // The response to a change names no recipient: their addresses and states are read first.
    let before = target.view().await?;
    let message_id = postroad_proto::message_id(target.id);
    let actor = target.operator.actor.clone();
    let request = ChangeMessageRequest { message_id, change: change.into(), tenant: 0, actor };
    let call = async |channel| client(channel).change_message(request.clone()).await;
    let response = target.operator.calls().call(target.id.group(), WITHIN, call).await;
    let results = results(&before, response.map(tonic::Response::into_inner));
    let results = results.map_err(|error| target.failed("change", error))?;
    let result = |(delivery, result): (&DeliveryView, &ChangeResult)| {
        format!("{}: {}\n", line(&delivery.recipient), result_text(change, delivery, *result))
    };
    Ok(before.deliveries.iter().zip(&results).map(result).collect())
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
    let changed = changed_words(change);
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

fn changed_words(change: Change) -> &'static str {
    match change {
        Change::Hold => "held",
        Change::Release => "released",
        Change::Retry => "due now",
        Change::Cancel => "cancelled",
        Change::Unspecified => "changed",
    }
}

/// The states that a change is for, where the command line names none.
fn states_for(change: Change) -> &'static [OpenState] {
    match change {
        Change::Retry => &[OpenState::Queued, OpenState::Deferred],
        Change::Hold => &[OpenState::Queued, OpenState::Deferred, OpenState::Sending],
        Change::Release => &[OpenState::Held],
        Change::Cancel | Change::Unspecified => &[],
    }
}

/// Deliveries to change, of each message those of some recipients.
#[derive(Debug, Default)]
struct Found {
    groups: BTreeMap<GroupId, Vec<MessageRecipients>>,
    messages: usize,
    deliveries: usize,
    states: BTreeMap<&'static str, usize>,
    sites: BTreeMap<String, usize>,
}

impl Found {
    fn add(&mut self, group: GroupId, listed: ListedDelivery) {
        let (Some(id), Some(delivery)) = (listed.id, listed.delivery) else { return };
        self.deliveries += 1;
        *self.states.entry(state_name(&delivery)).or_default() += 1;
        *self.sites.entry(delivery.site).or_default() += 1;
        let messages = self.groups.entry(group).or_default();
        // Pages are in the order of messages and recipients.
        match messages.last_mut().filter(|last| last.message_id == id.message_id) {
            Some(last) => last.recipients.push(id.recipient),
            None => {
                self.messages += 1;
                messages.push(MessageRecipients {
                    message_id: id.message_id,
                    every_recipient: false,
                    recipients: vec![id.recipient],
                });
            }
        }
    }

    /// Says how much is selected, and for whom.
    fn describe(&self) -> String {
        let states: Vec<String> =
            self.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let mut sites: Vec<(&String, &usize)> = self.sites.iter().collect();
        sites.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let shown =
            sites.iter().take(SITES_SHOWN).map(|(site, count)| format!("  {count} for {}\n", line(site)));
        let rest = sites.len().saturating_sub(SITES_SHOWN);
        let rest = if rest > 0 { format!("  the others for {rest} more sites\n") } else { String::new() };
        format!(
            "{} deliveries of {} messages: {}\n{}{rest}",
            self.deliveries,
            self.messages,
            states.join(", "),
            shown.collect::<String>()
        )
    }
}

async fn find(operator: &Operator, args: &MessageChangeArgs, change: Change) -> Result<Found, OperatorError> {
    let action = "list messages";
    let mut found = Found::default();
    for group in operator.ledger_groups(action).await? {
        let mut pages = Pages::new(operator, group, args.selection.wire(states_for(change)), None).brief();
        while let Some(page) = pages.next().await.map_err(|error| operator.failed(action, error))? {
            page.into_iter().for_each(|listed| found.add(group, listed));
        }
    }
    Ok(found)
}

fn question(change: Change) -> &'static str {
    match change {
        Change::Hold => "Hold",
        Change::Release => "Release",
        Change::Retry => "Retry",
        Change::Cancel => "Cancel",
        Change::Unspecified => "Change",
    }
}

/// What became of the deliveries that were to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    done: usize,
    in_flight: usize,
    unchanged: usize,
    ended: usize,
}

impl Counts {
    fn add(&mut self, batch: &[MessageRecipients], answer: &ChangeDeliveriesResponse) {
        for (message, change) in batch.iter().zip(&answer.messages) {
            if change.results.is_empty() {
                // The message ended meanwhile.
                self.ended += message.recipients.len();
            }
            for result in change.results() {
                match result {
                    ChangeResult::Done => self.done += 1,
                    ChangeResult::InFlight => self.in_flight += 1,
                    ChangeResult::AlreadyEnded => self.ended += 1,
                    ChangeResult::Unchanged | ChangeResult::Unspecified => self.unchanged += 1,
                }
            }
        }
    }

    fn total(self) -> usize {
        self.done + self.in_flight + self.unchanged + self.ended
    }

    fn text(self, change: Change) -> String {
        let changed = changed_words(change);
        let in_flight = match change {
            Change::Retry => "being sent already".to_owned(),
            _ => format!("being sent: {changed} unless this attempt is final"),
        };
        let unchanged = match change {
            Change::Release => "no longer held".to_owned(),
            Change::Retry => "held, or due now already".to_owned(),
            _ => format!("{changed} already"),
        };
        let parts = [
            (self.done, changed.to_owned()),
            (self.in_flight, in_flight),
            (self.unchanged, unchanged),
            (self.ended, "had a final outcome already".to_owned()),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        parts.map(|(count, words)| format!("{count} {words}\n")).collect()
    }
}

async fn change_found(operator: &Operator, found: Found, change: Change) -> anyhow::Result<String> {
    let (total, mut counts) = (found.deliveries, Counts::default());
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    for (group, messages) in found.groups {
        for batch in batches(messages) {
            let changed = tokio::select! {
                biased;
                _ = &mut stop => {
                    crate::output::print(&counts.text(change))?;
                    let cause = format!("stopped after {} of {total} deliveries; repeat the command to go on", counts.total());
                    return Err(OperatorError::Incomplete { cause }.into());
                }
                changed = change_batch(operator, group, &batch, change) => changed,
            };
            let answer = match changed {
                Ok(answer) => answer,
                Err(error) => {
                    crate::output::print(&counts.text(change))?;
                    return Err(operator.failed("change the other deliveries", error).into());
                }
            };
            counts.add(&batch, &answer);
            crate::output::progress(&format!("{} of {total} deliveries", counts.total()));
        }
    }
    crate::output::progress("");
    Ok(counts.text(change))
}

async fn change_batch(
    operator: &Operator,
    group: GroupId,
    batch: &[MessageRecipients],
    change: Change,
) -> Result<ChangeDeliveriesResponse, CallError> {
    let request = ChangeDeliveriesRequest {
        group: group.0.into(),
        change: change.into(),
        messages: batch.to_vec(),
        actor: operator.actor.clone(),
    };
    let call = async |channel| client(channel).change_deliveries(request.clone()).await;
    operator.calls().call(group, WITHIN, call).await.map(tonic::Response::into_inner)
}

/// Divides messages into calls; a message with more recipients than one call takes is divided too.
fn batches(messages: Vec<MessageRecipients>) -> Vec<Vec<MessageRecipients>> {
    let (mut batches, mut batch, mut deliveries) = (Vec::new(), Vec::new(), 0);
    let parts = messages.iter().flat_map(|message| {
        message
            .recipients
            .chunks(BATCH_DELIVERIES)
            .map(|recipients| MessageRecipients { recipients: recipients.to_vec(), ..message.clone() })
    });
    for part in parts {
        let is_full = batch.len() >= BATCH_MESSAGES || deliveries + part.recipients.len() > BATCH_DELIVERIES;
        if is_full && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            deliveries = 0;
        }
        deliveries += part.recipients.len();
        batch.push(part);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use postroad_proto::queue::MessageChange;

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

    #[test]
    fn a_selection_is_changed_in_batches_that_one_call_takes() {
        let message = |number: u8, recipients: u32| MessageRecipients {
            message_id: vec![number; 16].into(),
            every_recipient: false,
            recipients: (0..recipients).collect(),
        };
        let sizes = |messages| -> Vec<(usize, usize)> {
            let size = |batch: &Vec<MessageRecipients>| {
                (batch.len(), batch.iter().map(|message| message.recipients.len()).sum())
            };
            batches(messages).iter().map(size).collect()
        };
        assert_eq!(sizes(vec![]), []);
        assert_eq!(
            sizes((0..=255).chain(0..=250).map(|number| message(number, 1)).collect()),
            [(500, 500), (7, 7)]
        );
        assert_eq!(sizes(vec![message(1, 4000), message(2, 2000)]), [(1, 4000), (1, 2000)]);
        assert_eq!(sizes(vec![message(1, 12_000), message(2, 3)]), [(1, 5000), (1, 5000), (2, 2003)]);
    }

    #[test]
    fn what_became_of_a_selection_is_counted() {
        let message = |recipients: u32| MessageRecipients {
            recipients: (0..recipients).collect(),
            ..MessageRecipients::default()
        };
        let results = |results: &[ChangeResult]| MessageChange {
            results: results.iter().map(|result| (*result).into()).collect(),
        };
        let messages = vec![results(&[ChangeResult::Done, ChangeResult::InFlight]), results(&[])];
        let mut counts = Counts::default();
        counts.add(&[message(2), message(3)], &ChangeDeliveriesResponse { messages });
        assert_eq!(counts, Counts { done: 1, in_flight: 1, unchanged: 0, ended: 3 });
        assert_eq!(
            counts.text(Change::Cancel),
            "1 cancelled\n1 being sent: cancelled unless this attempt is final\n3 had a final outcome already\n"
        );
    }
}
