//! The list of messages, newest first.

use axum::{
    extract::{Query, State as Shared, rejection::QueryRejection},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use postroad_core::{DeliveryState, MessageId};
use postroad_web as web;
use serde::Deserialize;

use super::{Console, sender, state, subject};
use crate::history::{Filter, MessageSummary};

const PER_PAGE: usize = 50;
const PATH: &str = "/messages";

/// The form; every field may be empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Form {
    recipient: String,
    sender: String,
    id: String,
    state: String,
    before: String,
}

impl Form {
    fn filter(&self) -> Filter {
        Filter {
            recipient: self.recipient.trim().to_owned(),
            sender: self.sender.trim().to_owned(),
            state: DeliveryState::from_name(&self.state),
            before: self.before.parse().ok(),
        }
    }

    fn is_filtered(&self) -> bool {
        self.filter() != Filter::default()
    }
}

pub(super) async fn page(
    Shared(console): Shared<Console>,
    query: Result<Query<Form>, QueryRejection>,
) -> Response {
    let Query(form) = query.unwrap_or_default();
    if let Ok(id) = form.id.trim().parse::<MessageId>() {
        return Redirect::to(&format!("/messages/{id}")).into_response();
    }
    let limit = u32::try_from(PER_PAGE + 1).unwrap_or(u32::MAX);
    let mut messages = match console.reader.messages(&form.filter(), limit).await {
        Ok(messages) => messages,
        Err(error) => return console.database_failed(&error),
    };
    let more = messages.len() > PER_PAGE;
    messages.truncate(PER_PAGE);
    let body = html! {
        h1 { "Messages" }
        (fields(&form))
        @if !form.id.trim().is_empty() { p.bad { "A message id has 26 letters and digits." } }
        @if messages.is_empty() {
            p.soft { (if form.is_filtered() { "No message matches." } else { "No message has been accepted yet." }) }
        } @else {
            (table(&messages))
        }
        @if let Some(last) = messages.last().filter(|_| more) { (older(&form, last.id)) }
    };
    web::page(console.nav, PATH, "Messages", &body)
}

fn fields(form: &Form) -> Markup {
    html! {
        form {
            label { "Recipient" input name="recipient" value=(form.recipient) placeholder="address or part of it"; }
            label { "Sender" input name="sender" value=(form.sender); }
            label { "State"
                select name="state" {
                    option value="" { "any" }
                    // The history has no event of the start of an attempt.
                    @for state in DeliveryState::ALL.into_iter().filter(|state| *state != DeliveryState::Sending) {
                        option selected[state.as_str() == form.state] { (state.as_str()) }
                    }
                }
            }
            label { "Id" input.mono name="id" value=(form.id) size="28"; }
            button { "Filter" }
            @if form.is_filtered() { a href=(PATH) { "Clear" } }
        }
    }
}

fn table(messages: &[MessageSummary]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th { "Accepted (UTC)" } th { "Recipient" } th { "Subject" } th { "Sender" } th { "State" }
            } }
            tbody {
                @for message in messages {
                    tr {
                        td.time { (web::time(message.accepted_at)) }
                        td.address {
                            (message.recipient)
                            @if message.recipients > 1 { span.soft { " and " (message.recipients - 1) " more" } }
                        }
                        td { a href={ "/messages/" (message.id) } { (subject(&message.subject)) } }
                        td.address { (sender(&message.sender)) }
                        td.tag { (states(message)) }
                    }
                }
            }
        } }
    }
}

/// The states of a message's recipients, with counts where there are several recipients.
fn states(message: &MessageSummary) -> Markup {
    html! {
        @for (found, count) in &message.states {
            div { (state(*found)) @if message.recipients > 1 { span.soft { " " (count) } } }
        }
    }
}

/// A form rather than a link, so that the filter needs no escaping into a URL.
fn older(form: &Form, last: MessageId) -> Markup {
    html! {
        form {
            input type="hidden" name="recipient" value=(form.recipient);
            input type="hidden" name="sender" value=(form.sender);
            input type="hidden" name="state" value=(form.state);
            input type="hidden" name="before" value=(last);
            button { "Older" }
        }
    }
}
