//! The API under `/sandbox/v1`: for tests that check what was sent. Errors are problems of RFC 9457.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use postroad_mail::{Mailbox, ParsedMessage};
use postroad_web as web;
use serde::{Deserialize, Serialize};

use crate::{
    capture::Capture,
    store::{Filter, Store},
};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

pub(crate) fn router(store: Arc<Store>) -> Router {
    Router::new()
        .route("/sandbox/v1/messages", get(list).delete(clear))
        .route("/sandbox/v1/messages/{id}", get(one))
        .route("/sandbox/v1/messages/{id}/raw", get(raw))
        .with_state(store)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListQuery {
    to: String,
    subject: String,
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
struct List {
    /// The newest first.
    messages: Vec<Item>,
    /// How many messages the sandbox keeps, listed or not.
    kept: usize,
}

#[derive(Debug, Serialize)]
struct Item {
    id: u64,
    /// Postroad's id of the message; `null` for mail that another server delivered.
    message_id: Option<String>,
    /// The envelope's reverse path, empty for bounces.
    from: String,
    /// The envelope's recipients.
    to: Vec<String>,
    subject: String,
    size: usize,
    received_at: String,
}

#[derive(Debug, Serialize)]
struct Parsed {
    #[serde(flatten)]
    item: Item,
    header_from: Vec<Person>,
    header_to: Vec<Person>,
    header_cc: Vec<Person>,
    date: Option<String>,
    text: Option<String>,
    html: Option<String>,
    attachments: Vec<AttachmentItem>,
    headers: Vec<Field>,
}

#[derive(Debug, Serialize)]
struct Person {
    name: String,
    address: String,
}

#[derive(Debug, Serialize)]
struct AttachmentItem {
    name: String,
    media_type: String,
    size: usize,
}

#[derive(Debug, Serialize)]
struct Field {
    name: String,
    value: String,
}

/// A problem of RFC 9457.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    detail: String,
}

#[derive(Debug, Serialize)]
struct ProblemBody {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

async fn list(
    State(store): State<Arc<Store>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(query) =
        query.map_err(|error| Problem { status: StatusCode::BAD_REQUEST, detail: error.body_text() })?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let filter = Filter { to: query.to, subject: query.subject };
    let messages = store.newest(&filter, limit).iter().map(|capture| Item::from(capture.as_ref())).collect();
    Ok(Json(List { messages, kept: store.kept().0 }))
}

async fn clear(State(store): State<Arc<Store>>) -> StatusCode {
    store.clear();
    StatusCode::NO_CONTENT
}

async fn one(
    State(store): State<Arc<Store>>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<Parsed>, Problem> {
    let capture = find(&store, id)?;
    match postroad_mail::parse(&capture.content) {
        Ok(parsed) => Ok(Json(Parsed::new(&capture, parsed))),
        Err(error) => Err(Problem { status: StatusCode::UNPROCESSABLE_ENTITY, detail: error.to_string() }),
    }
}

async fn raw(
    State(store): State<Arc<Store>>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Response, Problem> {
    let capture = find(&store, id)?;
    let disposition = format!("attachment; filename=\"{}.eml\"", capture.id);
    let headers =
        [(header::CONTENT_TYPE, "message/rfc822".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((web::security_headers(), headers, capture.content.clone()).into_response())
}

fn find(store: &Store, id: Result<Path<u64>, PathRejection>) -> Result<Arc<Capture>, Problem> {
    let found = id.ok().and_then(|Path(id)| store.find(id));
    let detail = || "this message is not in the sandbox".to_owned();
    found.ok_or_else(|| Problem { status: StatusCode::NOT_FOUND, detail: detail() })
}

impl From<&Capture> for Item {
    fn from(capture: &Capture) -> Self {
        Self {
            id: capture.id,
            message_id: capture.message().map(|id| id.to_string()),
            from: capture.sender.as_ref().map(ToString::to_string).unwrap_or_default(),
            to: capture.recipients.iter().map(ToString::to_string).collect(),
            subject: capture.subject().to_owned(),
            size: capture.content.len(),
            received_at: capture.received_at.to_string(),
        }
    }
}

impl Parsed {
    fn new(capture: &Capture, parsed: ParsedMessage) -> Self {
        let people = |mailboxes: Vec<Mailbox>| {
            mailboxes.into_iter().map(|Mailbox { name, address }| Person { name, address }).collect()
        };
        let attachments = parsed.attachments.into_iter().map(|attachment| AttachmentItem {
            name: attachment.name,
            media_type: attachment.media_type,
            size: attachment.bytes,
        });
        Self {
            item: capture.into(),
            header_from: people(parsed.from),
            header_to: people(parsed.to),
            header_cc: people(parsed.cc),
            date: parsed.date.map(|date| date.to_string()),
            text: parsed.text,
            html: parsed.html,
            attachments: attachments.collect(),
            headers: parsed.headers.into_iter().map(|(name, value)| Field { name, value }).collect(),
        }
    }
}
