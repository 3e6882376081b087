//! One message: its envelope, and the state and timeline of each recipient.

use axum::{
    extract::{Path, Query, State as Shared, rejection::PathRejection, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use postroad_cluster::CallError;
use postroad_core::{DeliveryState, MessageId, OutcomeKind, Timestamp};
use postroad_proto::queue::Change;
use postroad_web as web;
use serde::Deserialize;

use super::{Console, id, sender, state, subject};
use crate::history::{Delivery, Message, Step};

/// Recipients on one page.
const PER_PAGE: u32 = 50;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Shown {
    /// The first recipient on the page.
    from: u32,
    /// The result of the change that redirected here; absent without one.
    changed: Option<u32>,
    in_flight: u32,
    ended: u32,
    unchanged: u32,
}

pub(super) async fn page(
    Shared(console): Shared<Console>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Shown>, QueryRejection>,
) -> Response {
    let Some(id) = id(path) else { return console.not_found() };
    let Query(shown) = query.unwrap_or_default();
    let read =
        tokio::try_join!(console.reader.message(id), console.reader.deliveries(id, shown.from, PER_PAGE));
    let (message, deliveries) = match read {
        Ok((None, deliveries)) if deliveries.is_empty() => return console.not_found(),
        Ok(read) => read,
        Err(error) => return console.database_failed(&error),
    };
    let title = message.as_ref().map_or("Message", |message| subject(&message.subject));
    let open = deliveries.iter().any(|delivery| !delivery.state.is_final());
    let body = html! {
        div.split {
            h1 { (title) }
            @if open { (buttons(id, &deliveries)) }
        }
        (change_result(shown))
        (card(&console, id, message.as_ref()))
        @for delivery in &deliveries { (recipient(&console, delivery)) }
        (pager(id, shown.from, &deliveries, message.as_ref()))
    };
    web::page(console.nav, "/messages", title, &body)
}

pub(super) async fn change(
    Shared(console): Shared<Console>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let Some((id, change)) =
        path.ok().and_then(|Path((id, change))| Some((id.parse().ok()?, parse_change(&change)?)))
    else {
        return console.not_found();
    };
    if !web::is_same_origin(&headers) {
        return web::error_page(console.nav, StatusCode::FORBIDDEN, "The form was sent by another site.");
    }
    match console.queue.change(id, change).await {
        Ok(counts) => {
            let query = format!(
                "changed={}&in_flight={}&ended={}&unchanged={}",
                counts.changed, counts.in_flight, counts.ended, counts.unchanged
            );
            tracing::info!(
                message_id = %id,
                change = change.as_str_name(),
                recipients = counts.changed,
                "message changed in the console"
            );
            Redirect::to(&format!("/messages/{id}?{query}")).into_response()
        }
        Err(error) => {
            let (status, why) = failure(&error);
            web::error_page(console.nav, status, &why)
        }
    }
}

/// What is known of a change without a result.
fn failure(error: &CallError) -> (StatusCode, String) {
    match error {
        CallError::Unavailable { .. } => {
            let why = "No answer from the queue in time: the change may have been made. Reload the message's page to see.";
            (StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
        }
        CallError::Refused { code: tonic::Code::NotFound, .. } => {
            let why = "This message is not in the queue: all its recipients have final outcomes, or it never existed.";
            (StatusCode::CONFLICT, why.to_owned())
        }
        CallError::Refused { message, .. } => {
            (StatusCode::CONFLICT, format!("The queue refused the change: {message}."))
        }
    }
}

fn parse_change(change: &str) -> Option<Change> {
    match change {
        "hold" => Some(Change::Hold),
        "release" => Some(Change::Release),
        "retry" => Some(Change::Retry),
        "cancel" => Some(Change::Cancel),
        _ => None,
    }
}

/// The changes that are possible for the recipients without a final outcome.
fn buttons(id: MessageId, deliveries: &[Delivery]) -> Markup {
    let held = deliveries.iter().any(|delivery| delivery.state == DeliveryState::Held);
    let waits = deliveries
        .iter()
        .any(|delivery| matches!(delivery.state, DeliveryState::Queued | DeliveryState::Deferred));
    let button = |change: &str, label: &str| {
        html! {
            form method="post" action={ "/messages/" (id) "/" (change) } { button { (label) } }
        }
    };
    html! {
        div.buttons {
            @if waits { (button("retry", "Retry now")) (button("hold", "Hold")) }
            @if held { (button("release", "Release")) }
            (button("cancel", "Cancel"))
        }
    }
}

/// The result of the change that redirected here.
fn change_result(shown: Shown) -> Markup {
    let counts = [
        (shown.changed.unwrap_or(0), "changed"),
        (shown.in_flight, "sending: changed unless this attempt is final"),
        (shown.ended, "already had a final outcome"),
        (shown.unchanged, "already in that state"),
    ];
    html! {
        @if shown.changed.is_some() {
            p {
                b { "Recipients: " }
                @for (position, (count, what)) in counts.iter().filter(|(count, _)| *count > 0).enumerate() {
                    @if position > 0 { ", " } (count) " " (what)
                }
                "."
            }
        }
    }
}

fn card(console: &Console, id: MessageId, message: Option<&Message>) -> Markup {
    html! {
        dl {
            dt { "Id" } dd.mono { (id) }
            @match message {
                Some(message) => {
                    dt { "Sender" } dd { (sender(&message.sender)) }
                    dt { "Tenant" } dd { (console.tenant(message.tenant)) }
                    dt { "Accepted" }
                    dd { (web::time(message.accepted_at)) span.soft { " UTC from " (message.origin) } }
                    dt { "Size" } dd { (web::size(message.size)) }
                    dt { "Recipients" } dd { (message.recipients) }
                },
                None => {
                    dt { "Accepted" } dd.warn { "unknown: the event is missing from this database; later events are below" }
                },
            }
        }
    }
}

fn recipient(console: &Console, delivery: &Delivery) -> Markup {
    let address = if delivery.address.is_empty() { "(unknown address)" } else { &delivery.address };
    html! {
        h2 {
            (address) " " (state(delivery.state))
            @if let Some(due) = delivery.due_at { span.soft { ", due " (web::time(due)) } }
        }
        @if delivery.steps.is_empty() {
            p.soft { "No attempt yet." }
        } @else {
            div.scroll { table.timeline {
                thead { tr {
                    th.time { "Time (UTC)" } th.event { "Event" } th.source { "Source" } th { "Receiver" }
                    th { "Response" } th.number.took { "Duration" }
                } }
                tbody { @for step in &delivery.steps { (line(console, step)) } }
            } }
        }
    }
}

fn line(console: &Console, step: &Step) -> Markup {
    let new_state = step.new_state.as_deref().and_then(DeliveryState::from_name);
    html! {
        tr {
            td.time { (web::time(step.at)) }
            td {
                @match step.attempt {
                    Some(attempt) => { "attempt " (attempt) ": " },
                    None => (requested(&step.kind)),
                }
                @match new_state {
                    Some(new_state) => (state(new_state)),
                    None if step.attempt.is_some() => span.soft { "late report, changed nothing" },
                    None => span.soft { "sending" },
                }
                @if let Some(actor) = &step.actor { div.soft { "by " (actor) } }
                @if let Some(due) = step.due_at { div.soft { "next attempt " (web::time(due)) } }
            }
            td {
                @if let Some(source) = step.source { (console.source(source)) }
                @if let Some(node) = step.node { div.soft { "node " (node) } }
            }
            td {
                @if let Some(remote) = &step.remote { (remote) }
                @match &step.tls {
                    Some(tls) => div.soft { (tls) },
                    None if step.remote.is_some() => div.soft { "no TLS" },
                    None => "",
                }
            }
            td { (response(step)) }
            td.number { (duration(step.started_at, step.ended_at)) }
        }
    }
}

/// What somebody asked for that does not follow from the new state.
fn requested(kind: &str) -> &'static str {
    match kind {
        "retried" => "retry requested: ",
        "hold_requested" => "hold requested: ",
        "release_requested" => "release requested: ",
        "cancel_requested" => "cancel requested: ",
        _ => "",
    }
}

fn response(step: &Step) -> Markup {
    let outcome = step.outcome.as_deref().filter(|outcome| *outcome != OutcomeKind::Delivered.as_str());
    html! {
        @if let Some(code) = step.code { (code) " " }
        @if let Some(text) = &step.response { (text) }
        @if let Some(outcome) = outcome {
            div.soft { (outcome_text(outcome)) @if let Some(class) = &step.class { ", " (class.replace('_', " ")) } }
            @if let Some(party) = &step.party { div.soft { "about " (party_text(party)) } }
            @if let Some(rule) = &step.rule { div.soft { "rule " code { (rule) } } }
            @if outcome == OutcomeKind::Unknown.as_str() {
                div.warn { "The receiver may have accepted it: a second copy is possible." }
            }
        }
    }
}

/// An outcome that is not a delivery, in words for a person.
fn outcome_text(outcome: &str) -> &str {
    match outcome {
        "hard" => "permanent",
        "soft" | "site_soft" => "temporary",
        "policy_block" => "policy block",
        "internal" => "internal error",
        other => other,
    }
}

/// Whose matter a refusal was, in words for a person.
fn party_text(party: &str) -> &str {
    match party {
        "recipient" => "the recipient",
        "sender" => "the sender address",
        "ip" => "our IP address",
        "domain" => "our domain",
        "content" => "the message",
        "receiver" => "the receiving server",
        other => other,
    }
}

fn duration(started: Option<Timestamp>, ended: Option<Timestamp>) -> String {
    match (started, ended) {
        (Some(started), Some(ended)) => {
            let millis = ended.since(started).as_millis();
            if millis < 10_000 { format!("{millis} ms") } else { format!("{} s", millis / 1000) }
        }
        _ => String::new(),
    }
}

fn pager(id: MessageId, from: u32, deliveries: &[Delivery], message: Option<&Message>) -> Markup {
    let next = deliveries.last().map_or(0, |delivery| delivery.recipient.saturating_add(1));
    let more = message.is_some_and(|message| u64::from(next) < message.recipients);
    html! {
        p {
            @if from > 0 { a href={ "/messages/" (id) "?from=" (from.saturating_sub(PER_PAGE)) } { "Earlier recipients" } " " }
            @if more { a href={ "/messages/" (id) "?from=" (next) } { "More recipients" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::GroupId;
    use tonic::Code;

    use super::*;

    #[test]
    fn a_failed_change_says_what_is_known_of_it() {
        let check = |error, expected: StatusCode, parts: [&str; 2]| {
            let (status, why) = failure(&error);
            assert_eq!(status, expected, "{why}");
            assert!(parts.iter().all(|part| why.contains(part)), "{why}");
        };
        let refused = |code, message: &str| CallError::Refused { code, message: message.to_owned() };
        let silent = CallError::Unavailable { group: GroupId(1), last: "node `2` did not answer".to_owned() };
        check(silent, StatusCode::SERVICE_UNAVAILABLE, ["may have been made", "Reload"]);
        check(refused(Code::NotFound, "gone"), StatusCode::CONFLICT, ["not in the queue", "never existed"]);
        check(refused(Code::PermissionDenied, "role"), StatusCode::CONFLICT, ["refused the change", "role"]);
    }
}
