//! The leader's lines in the mail log: what a committed command ended, held, released or made due.

use std::collections::BTreeMap;

use postroad_core::{DeliveryId, FinalState, MessageId, Outcome};
use postroad_directory::View;
use postroad_ledger::{
    DeliveryFacts, Finished, Ledger,
    command::Effect,
    event::{Changed, Event, EventKind, NextState},
};
use postroad_telemetry::mail_log::{self, Delivery, Mailbox, Said, Secs, Trace};

/// Writes a line for each event from number `from` on that is about the state of a delivery.
///
/// `effects` are those of the command that led to the events: a message that ended is found there.
pub(super) fn write(ledger: &Ledger, view: &View, from: u64, effects: &[Effect]) {
    let mut finished: BTreeMap<MessageId, &Finished> = BTreeMap::new();
    finished.extend(effects.iter().filter_map(|effect| match effect {
        Effect::Finished(message) => Some((message.id(), &**message)),
        _ => None,
    }));
    for event in ledger.events(from) {
        let Some((what, delivery, outcome)) = change_of(event) else { continue };
        let gone =
            || finished.get(&delivery.message).and_then(|message| message.delivery(delivery.recipient));
        if let Some(facts) = ledger.delivery(delivery).or_else(gone) {
            write_one(event, what, delivery, outcome.or(facts.last), &facts, view);
        }
    }
}

/// Returns what an event changed, of which delivery, and the outcome that led to it.
fn change_of(event: &Event) -> Option<(mail_log::Event, DeliveryId, Option<&Outcome>)> {
    match &event.kind {
        EventKind::Attempt(attempt) => {
            let what = match attempt.next_state {
                NextState::Ended(state) => ended(state),
                NextState::Held => mail_log::Event::Held,
                NextState::Retry(_) | NextState::Unchanged => return None,
            };
            Some((what, attempt.delivery, Some(&attempt.outcome)))
        }
        EventKind::Ended(delivery, state) => Some((ended(*state), *delivery, None)),
        EventKind::Changed(event) => {
            let what = match event.what {
                Changed::Cancelled => mail_log::Event::Cancelled,
                Changed::Held => mail_log::Event::Held,
                Changed::Released(_) => mail_log::Event::Released,
                Changed::Retried(_) => mail_log::Event::Retried,
                Changed::Requested(_) => return None,
            };
            Some((what, event.delivery, None))
        }
        EventKind::Accepted(_) | EventKind::Gap { .. } => None,
    }
}

fn ended(state: FinalState) -> mail_log::Event {
    match state {
        FinalState::Delivered => mail_log::Event::Delivered,
        FinalState::Bounced => mail_log::Event::Bounced,
        FinalState::Expired => mail_log::Event::Expired,
        FinalState::Cancelled => mail_log::Event::Cancelled,
        FinalState::Suppressed => mail_log::Event::Suppressed,
    }
}

fn write_one(
    event: &Event,
    what: mail_log::Event,
    delivery: DeliveryId,
    outcome: Option<&Outcome>,
    facts: &DeliveryFacts<'_>,
    view: &View,
) {
    mail_log::write(&Delivery {
        event: what,
        id: delivery.message,
        recipient: delivery.recipient,
        attempts: facts.attempts,
        to: Mailbox::Of(facts.address),
        // A tenant that was removed has no name any longer.
        tenant: view.tenant(facts.tenant).map_or("-", |tenant| &tenant.name),
        site: facts.site,
        outcome: outcome.map(|outcome| outcome.kind.as_str()),
        reply: Said(outcome.map_or("", |outcome| &outcome.text)),
        delay: Secs(event.at.since(facts.accepted_at)),
        trace: Trace(facts.traceparent),
    });
}
