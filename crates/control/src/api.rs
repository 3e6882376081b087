//! The API under `/api/v1`: for programs and tests. Errors are problems of RFC 9457.

use axum::{
    Json, Router,
    extract::{Path, State as Shared},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use postroad_core::{MessageId, Timestamp};
use serde::Serialize;

use crate::history::{Delivery, Message, Reader, Step};

/// Recipients in one response; no envelope has more unless an operator raises that bound.
const RECIPIENTS_MAX: u32 = 1000;

pub(crate) fn router(reader: Reader) -> Router {
    Router::new().route("/api/v1/messages/{id}", get(message)).with_state(reader)
}

#[derive(Debug, Serialize)]
struct MessageItem {
    id: String,
    group: u16,
    /// From the event of the acceptance; absent where that event is in a gap.
    #[serde(flatten)]
    accepted: Option<AcceptedItem>,
    deliveries: Vec<DeliveryItem>,
}

#[derive(Debug, Serialize)]
struct AcceptedItem {
    tenant: u32,
    /// Empty for the null reverse path.
    sender: String,
    subject: String,
    origin: String,
    size: u64,
    recipients: u64,
    accepted_at: String,
}

#[derive(Debug, Serialize)]
struct DeliveryItem {
    recipient: u32,
    address: String,
    state: &'static str,
    attempts: u32,
    changed_at: String,
    due_at: Option<String>,
    last_response: String,
    timeline: Vec<StepItem>,
}

#[derive(Debug, Serialize)]
struct StepItem {
    sequence: u64,
    at: String,
    /// `attempt`, `held`, `released`, `retried` or `ended`; `hold_requested`, `release_requested` or `cancel_requested`
    /// while an attempt was under way.
    kind: String,
    /// Who changed it, or asked for it; `null` where nobody did or that is not known.
    actor: Option<String>,
    /// The state after it; `null` for a late outcome that changed nothing.
    new_state: Option<String>,
    due_at: Option<String>,
    #[serde(flatten)]
    attempt: Option<AttemptItem>,
}

#[derive(Debug, Serialize)]
struct AttemptItem {
    attempt: u32,
    source: Option<u32>,
    node: Option<u64>,
    outcome: Option<String>,
    class: Option<String>,
    /// Whose matter a refusal was: recipient, sender, ip, domain, content or receiver.
    party: Option<String>,
    /// The name of the rule that read the reply.
    rule: Option<String>,
    code: Option<u32>,
    response: Option<String>,
    remote: Option<String>,
    tls: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
}

/// RFC 9457.
#[derive(Debug, Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'static str,
}

async fn message(Shared(reader): Shared<Reader>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<MessageId>() else {
        return problem(StatusCode::NOT_FOUND, "a message id has 26 letters and digits");
    };
    match tokio::try_join!(reader.message(id), reader.deliveries(id, 0, RECIPIENTS_MAX)) {
        Ok((None, deliveries)) if deliveries.is_empty() => {
            problem(StatusCode::NOT_FOUND, "this message is not in the history")
        }
        Ok((message, deliveries)) => Json(MessageItem {
            id: id.to_string(),
            group: id.group().0,
            accepted: message.map(Into::into),
            deliveries: deliveries.into_iter().map(Into::into).collect(),
        })
        .into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot read the history database");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "cannot read the history database; try again")
        }
    }
}

fn problem(status: StatusCode, detail: &'static str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let problem = Problem { r#type: "about:blank", title, status: status.as_u16(), detail };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
}

fn text(at: Timestamp) -> String {
    at.to_string()
}

impl From<Message> for AcceptedItem {
    fn from(message: Message) -> Self {
        Self {
            tenant: message.tenant,
            sender: message.sender,
            subject: message.subject,
            origin: message.origin,
            size: message.size,
            recipients: message.recipients,
            accepted_at: text(message.accepted_at),
        }
    }
}

impl From<Delivery> for DeliveryItem {
    fn from(delivery: Delivery) -> Self {
        Self {
            recipient: delivery.recipient,
            address: delivery.address,
            state: delivery.state.as_str(),
            attempts: delivery.attempts,
            changed_at: text(delivery.changed_at),
            due_at: delivery.due_at.map(text),
            last_response: delivery.response,
            timeline: delivery.steps.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Step> for StepItem {
    fn from(step: Step) -> Self {
        Self {
            sequence: step.sequence,
            at: text(step.at),
            kind: step.kind,
            actor: step.actor,
            new_state: step.new_state,
            due_at: step.due_at.map(text),
            attempt: step.attempt.map(|attempt| AttemptItem {
                attempt,
                source: step.source,
                node: step.node,
                outcome: step.outcome,
                class: step.class,
                party: step.party,
                rule: step.rule,
                code: step.code,
                response: step.response,
                remote: step.remote,
                tls: step.tls,
                started_at: step.started_at.map(text),
                ended_at: step.ended_at.map(text),
            }),
        }
    }
}
