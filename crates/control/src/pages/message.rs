//! One message: its envelope, where each recipient stands, and what happened to each.

use axum::{
    extract::{Path, Query, State as Shared, rejection::PathRejection, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use postroad_cluster::CallError;
use postroad_core::{MessageId, OutcomeKind, Timestamp};
use postroad_proto::queue::Change;
use postroad_web as web;
use serde::Deserialize;

use super::{Console, id, sender, state, subject};
use crate::{
    history::{Delivery, Message, Step},
    state::State,
};

/// Recipients on one page.
const PER_PAGE: u32 = 50;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Shown {
    /// The first recipient on the page.
    from: u32,
    /// What a change came to, in the order of its four counts.
    done: Option<u32>,
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
        Err(error) => return console.broken(&error),
    };
    let title = message.as_ref().map_or("Message", |message| subject(&message.subject));
    let open = deliveries.iter().any(|delivery| !delivery.state.is_end());
    let body = html! {
        div.split {
            h1 { (title) }
            @if open { (buttons(id, &deliveries)) }
        }
        (outcome(shown))
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
        path.ok().and_then(|Path((id, change))| Some((id.parse().ok()?, known(&change)?)))
    else {
        return console.not_found();
    };
    if !web::is_same_origin(&headers) {
        return web::error_page(console.nav, StatusCode::FORBIDDEN, "The form was sent by another site.");
    }
    match console.queue.change(id, change).await {
        Ok(changed) => {
            let counts = format!(
                "done={}&in_flight={}&ended={}&unchanged={}",
                changed.done, changed.in_flight, changed.ended, changed.unchanged
            );
            tracing::info!(message_id = %id, change = change.as_str_name(), done = changed.done, "changed by console");
            Redirect::to(&format!("/messages/{id}?{counts}")).into_response()
        }
        Err(CallError::Refused { code: tonic::Code::NotFound, .. }) => {
            let why = "The queue holds no such message any more: all its recipients have ended.";
            web::error_page(console.nav, StatusCode::CONFLICT, why)
        }
        Err(error) => {
            let why = format!("The queue did not take the change: {error}.");
            web::error_page(console.nav, StatusCode::SERVICE_UNAVAILABLE, &why)
        }
    }
}

fn known(change: &str) -> Option<Change> {
    match change {
        "hold" => Some(Change::Hold),
        "release" => Some(Change::Release),
        "cancel" => Some(Change::Cancel),
        _ => None,
    }
}

/// What can be done to those recipients that have not ended.
fn buttons(id: MessageId, deliveries: &[Delivery]) -> Markup {
    let held = deliveries.iter().any(|delivery| delivery.state == State::Held);
    let waits = deliveries.iter().any(|delivery| matches!(delivery.state, State::Queued | State::Deferred));
    let button = |change: &str, label: &str| {
        html! {
            form method="post" action={ "/messages/" (id) "/" (change) } { button { (label) } }
        }
    };
    html! {
        div.buttons {
            @if waits { (button("hold", "Hold")) }
            @if held { (button("release", "Release")) }
            (button("cancel", "Cancel"))
        }
    }
}

/// What the change came to that led here.
fn outcome(shown: Shown) -> Markup {
    let counts = [
        (shown.done.unwrap_or(0), "changed"),
        (shown.in_flight, "in flight: changed if the attempt under way does not deliver"),
        (shown.ended, "ended before"),
        (shown.unchanged, "were so already"),
    ];
    html! {
        @if shown.done.is_some() {
            p {
                b { "Recipients: " }
                @for (place, (count, what)) in counts.iter().filter(|(count, _)| *count > 0).enumerate() {
                    @if place > 0 { ", " } (count) " " (what)
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
                    dt { "Accepted" } dd.warn { "in a gap of the events: only what came later is known" }
                },
            }
        }
    }
}

fn recipient(console: &Console, delivery: &Delivery) -> Markup {
    let address = if delivery.address.is_empty() { "(not known)" } else { &delivery.address };
    html! {
        h2 {
            (address) " " (state(delivery.state))
            @if let Some(due) = delivery.due_at { span.soft { ", due " (web::time(due)) } }
        }
        @if delivery.steps.is_empty() {
            p.soft { "Nothing has happened since it was accepted." }
        } @else {
            div.scroll { table.timeline {
                thead { tr {
                    th.time { "Time (UTC)" } th.event { "Event" } th.source { "Source" } th { "Receiver" }
                    th { "Response" } th.number.took { "Took" }
                } }
                tbody { @for step in &delivery.steps { (line(console, step)) } }
            } }
        }
    }
}

fn line(console: &Console, step: &Step) -> Markup {
    let became = step.became.as_deref().and_then(State::parse);
    html! {
        tr {
            td.time { (web::time(step.at)) }
            td {
                @match step.attempt {
                    Some(attempt) => { "attempt " (attempt) ": " },
                    None => "",
                }
                @match became {
                    Some(became) => (state(became)),
                    None => span.soft { "came late, changed nothing" },
                }
                @if let Some(due) = step.due_at { div.soft { "next " (web::time(due)) } }
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
            td.number { (took(step.started_at, step.ended_at)) }
        }
    }
}

fn response(step: &Step) -> Markup {
    let outcome = step.outcome.as_deref().filter(|outcome| *outcome != OutcomeKind::Delivered.as_str());
    html! {
        @if let Some(code) = step.code { (code) " " }
        @if let Some(text) = &step.response { (text) }
        @if let Some(outcome) = outcome {
            div.soft { (outcome) @if let Some(class) = &step.class { ", " (class) } }
            @if outcome == OutcomeKind::Unknown.as_str() {
                div.warn { "The receiver may have taken it: a second copy is possible." }
            }
        }
    }
}

fn took(started: Option<Timestamp>, ended: Option<Timestamp>) -> String {
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
