//! The pages under `/sandbox`: the list, and one message in four views.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use maud::{Markup, html};
use postroad_mail::{Mailbox, ParsedMessage};
use postroad_web::{self as web, Nav};
use serde::Deserialize;

use crate::{
    capture::Capture,
    store::{Filter, Store},
};

const LISTED_MAX: usize = 200;
const RELATED_MAX: usize = 50;
/// Recipients of one envelope that a list shows.
const NAMED_MAX: usize = 3;
/// Bytes of a message that the raw view shows; all of it can be downloaded.
const RAW_BYTES_MAX: usize = 1 << 20;
const PATH: &str = "/sandbox";

#[derive(Clone)]
struct Pages {
    store: Arc<Store>,
    nav: Nav,
}

pub(crate) fn router(store: Arc<Store>, nav: Nav) -> Router {
    Router::new()
        .route("/sandbox", get(list))
        .route("/sandbox/clear", post(clear))
        .route("/sandbox/{id}", get(one))
        .with_state(Pages { store, nav })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListQuery {
    to: String,
    subject: String,
}

async fn list(State(pages): State<Pages>, query: Result<Query<ListQuery>, QueryRejection>) -> Response {
    let Query(query) = query.unwrap_or_default();
    let filter = Filter { to: query.to, subject: query.subject };
    let captures = pages.store.newest(&filter, LISTED_MAX);
    let (kept, bytes) = pages.store.kept();
    let body = html! {
        div.split {
            div {
                h1 { "Sandbox" }
                p.soft { (kept) " captured " (if kept == 1 { "message" } else { "messages" }) ", " (web::size(bytes)) }
            }
            form method="post" action="/sandbox/clear" { button { "Delete all" } }
        }
        form {
            label { "Recipient" input name="to" value=(filter.to); }
            label { "Subject" input name="subject" value=(filter.subject); }
            button { "Filter" }
        }
        @if captures.is_empty() {
            p.soft { (if filter.is_empty() { "No message has been captured yet." } else { "No message matches." }) }
        } @else {
            (table(&captures))
        }
        @if captures.len() == LISTED_MAX { p.soft { "Only the newest " (LISTED_MAX) " are listed." } }
    };
    web::page(pages.nav, PATH, "Sandbox", &body)
}

fn table(captures: &[Arc<Capture>]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "Received (UTC)" } th { "Recipients" } th { "Subject" } th { "Sender" } th.number { "Size" } } }
            tbody {
                @for capture in captures {
                    tr {
                        td.time { (web::time(capture.received_at)) }
                        td.address { (recipients(capture)) }
                        td { a href={ "/sandbox/" (capture.id) } { (subject(capture.subject())) } }
                        td.address { (sender(capture)) }
                        td.number { (web::size(capture.content.len() as u64)) }
                    }
                }
            }
        } }
    }
}

fn recipients(capture: &Capture) -> Markup {
    let more = capture.recipients.len().saturating_sub(NAMED_MAX);
    html! {
        @for recipient in capture.recipients.iter().take(NAMED_MAX) { div { (recipient) } }
        @if more > 0 { div.soft { "and " (more) " more" } }
    }
}

fn sender(capture: &Capture) -> Markup {
    html! {
        @match &capture.sender {
            Some(sender) => (sender),
            None => span.soft { "none (a bounce)" },
        }
    }
}

fn subject(text: &str) -> &str {
    if text.is_empty() { "(no subject)" } else { text }
}

async fn clear(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    if !web::is_same_origin(&headers) {
        return web::error_page(pages.nav, StatusCode::FORBIDDEN, "The form was sent by another site.");
    }
    pages.store.clear();
    Redirect::to(PATH).into_response()
}

/// The views of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum View {
    Html,
    Text,
    Headers,
    Raw,
}

#[derive(Debug, Default, Deserialize)]
struct OneQuery {
    view: Option<View>,
}

async fn one(
    State(pages): State<Pages>,
    id: Result<Path<u64>, PathRejection>,
    query: Result<Query<OneQuery>, QueryRejection>,
) -> Response {
    let Some(capture) = id.ok().and_then(|Path(id)| pages.store.find(id)) else {
        return web::error_page(
            pages.nav,
            StatusCode::NOT_FOUND,
            "This message is not in the sandbox: it was deleted, or dropped for newer ones.",
        );
    };
    let Query(query) = query.unwrap_or_default();
    let body = match postroad_mail::parse(&capture.content) {
        Ok(parsed) => {
            let first = if parsed.html.is_some() { View::Html } else { View::Text };
            let view = query.view.unwrap_or(first);
            html! {
                (card(&pages, &capture, Some(&parsed)))
                (tabs(capture.id, view, &parsed))
                (content(&capture, view, &parsed))
            }
        }
        Err(error) => html! {
            (card(&pages, &capture, None))
            p.bad { "Only the raw message is shown: " (error) "." }
            (raw(&capture))
        },
    };
    web::page(pages.nav, PATH, subject(capture.subject()), &body)
}

/// Sender, recipients, attachments, and other captures of the same message.
fn card(pages: &Pages, capture: &Capture, parsed: Option<&ParsedMessage>) -> Markup {
    let message = capture.message();
    let related = message.map(|id| pages.store.of_message(id, RELATED_MAX)).unwrap_or_default();
    // Without a console in this process there is no timeline to link to.
    let console = pages.nav.iter().any(|(_, path)| *path == "/messages");
    html! {
        h1 { (subject(capture.subject())) }
        dl {
            @if let Some(parsed) = parsed {
                @for (label, mailboxes) in [("From", &parsed.from), ("To", &parsed.to), ("Cc", &parsed.cc)] {
                    @if !mailboxes.is_empty() { dt { (label) } dd { (people(mailboxes)) } }
                }
            }
            dt { "Envelope" }
            dd { (sender(capture)) span.soft { " → " } (joined(capture)) }
            dt { "Received" }
            dd { (web::time(capture.received_at)) span.soft { " UTC, " (web::size(capture.content.len() as u64)) } }
            @if let Some(message) = message {
                dt { "Message" }
                dd {
                    @if console {
                        a.mono href={ "/messages/" (message) } { (message) }
                        span.soft { " shows every attempt" }
                    } @else {
                        span.mono { (message) }
                    }
                }
            }
            @if let Some(parsed) = parsed.filter(|parsed| !parsed.attachments.is_empty()) {
                dt { "Attachments" }
                dd {
                    @for attachment in &parsed.attachments {
                        div {
                            (if attachment.name.is_empty() { "(no name)" } else { &attachment.name })
                            span.soft { " " (attachment.media_type) ", " (web::size(attachment.bytes as u64)) }
                        }
                    }
                }
            }
            @if related.len() > 1 {
                dt { "Same message" }
                dd {
                    @for other in related.iter().filter(|other| other.id != capture.id) {
                        div { a href={ "/sandbox/" (other.id) } { (joined(other)) } }
                    }
                }
            }
        }
    }
}

/// The recipients of an envelope as text, the first ones by address and the rest as a number.
fn joined(capture: &Capture) -> String {
    const NAMED_MAX: usize = 20;
    let named: Vec<_> = capture.recipients.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    match capture.recipients.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn people(mailboxes: &[Mailbox]) -> Markup {
    const NAMED_MAX: usize = 50;
    html! {
        @for (position, mailbox) in mailboxes.iter().take(NAMED_MAX).enumerate() {
            @if position > 0 { ", " }
            @if mailbox.name.is_empty() { (mailbox.address) } @else {
                (mailbox.name) span.soft { " <" (mailbox.address) ">" }
            }
        }
        @if mailboxes.len() > NAMED_MAX { span.soft { " and " (mailboxes.len() - NAMED_MAX) " more" } }
    }
}

fn tabs(id: u64, view: View, parsed: &ParsedMessage) -> Markup {
    let tabs = [
        (View::Html, "html", "HTML", parsed.html.is_some()),
        (View::Text, "text", "Text", parsed.text.is_some()),
        (View::Headers, "headers", "Headers", true),
        (View::Raw, "raw", "Raw", true),
    ];
    html! {
        div.tabs {
            @for (tab, name, label, _) in tabs.iter().filter(|(tab, .., there)| *there || *tab == view) {
                a href={ "/sandbox/" (id) "?view=" (name) } aria-current=[(*tab == view).then_some("page")] { (label) }
            }
        }
    }
}

fn content(capture: &Capture, view: View, parsed: &ParsedMessage) -> Markup {
    html! {
        @match view {
            View::Html => @match &parsed.html {
                // The frame has no origin and runs no scripts; links open a new window.
                Some(html) => iframe title="HTML" sandbox="allow-popups allow-popups-to-escape-sandbox"
                    srcdoc=(postroad_mail::sanitise_html(html)) {},
                None => p.soft { "The message has no HTML." },
            },
            View::Text => @match &parsed.text {
                Some(text) => pre { (text) },
                None => p.soft { "The message has no plain text." },
            },
            View::Headers => div.scroll { table { tbody {
                @for (name, value) in &parsed.headers {
                    tr { th { (name) } td.mono { (value) } }
                }
            } } },
            View::Raw => (raw(capture)),
        }
    }
}

fn raw(capture: &Capture) -> Markup {
    let cut = capture.content.len() > RAW_BYTES_MAX;
    let text = String::from_utf8_lossy(&capture.content[..capture.content.len().min(RAW_BYTES_MAX)]);
    html! {
        p {
            a href={ "/sandbox/v1/messages/" (capture.id) "/raw" } { "Download" }
            @if cut { span.soft { " (only the beginning is shown)" } }
        }
        pre { (text) }
    }
}
