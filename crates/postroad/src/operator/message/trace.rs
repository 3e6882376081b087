//! `postroad message trace`: the history of a message, as the API of the control node has it.

use std::fmt::Write;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use bytes::Bytes;
use postroad_settings::HostPort;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{net::TcpStream, time};

use crate::{
    cli::message::MessageTraceArgs,
    http,
    operator::OperatorError,
    output::{Screen, Shown, line},
};

pub(super) async fn trace(args: &MessageTraceArgs) -> anyhow::Result<String> {
    let action = format!("trace message `{}`", args.id);
    let unreachable = |cause: String| OperatorError::Unreachable {
        action: action.clone(),
        addresses: format!("`{}` (`--history`)", args.history),
        cause,
    };
    let path = format!("/api/v1/messages/{}", args.id);
    let answer = time::timeout(http::WITHIN, get(&args.history, &path)).await;
    let answer = answer.map_err(|_| unreachable("it did not answer in time".to_owned()))?;
    let (status, body) = answer.map_err(|error| unreachable(format!("{error:#}")))?;
    match status {
        StatusCode::OK => {
            let value: Value = serde_json::from_slice(&body)?;
            args.output.output.show(&History { value })
        }
        StatusCode::NOT_FOUND => {
            let cause = "it is not in the history of this control node".to_owned();
            Err(OperatorError::NotFound { action, cause }.into())
        }
        status => {
            let text = String::from_utf8_lossy(&body);
            Err(unreachable(format!("it answered {status}: {}", line(text.trim()))).into())
        }
    }
}

/// Makes one request; returns the status and the body.
async fn get(history: &HostPort, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(history.as_str()).await?;
    let request = Request::get(path).header(header::HOST, history.as_str());
    http::request(stream, request.body(Body::empty())?).await
}

/// The history of a message: for programs as the API has it.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct History {
    value: Value,
}

/// What people are shown of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Traced {
    id: String,
    sender: String,
    subject: String,
    origin: String,
    accepted_at: String,
    deliveries: Vec<TracedDelivery>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TracedDelivery {
    address: String,
    state: String,
    timeline: Vec<TracedStep>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TracedStep {
    at: String,
    kind: String,
    actor: Option<String>,
    new_state: Option<String>,
    due_at: Option<String>,
    attempt: Option<u32>,
    outcome: Option<String>,
    rule: Option<String>,
    code: Option<u32>,
    response: Option<String>,
    remote: Option<String>,
}

impl Shown for History {
    fn text(&self, _: Screen) -> String {
        let Ok(traced) = Traced::deserialize(&self.value) else {
            return "the history has a form that this version does not know; `-o json` shows it\n".to_owned();
        };
        let Traced { id, sender, subject, origin, accepted_at, deliveries } = traced;
        let mut text = format!("{id}  <{}>  accepted {accepted_at} from {}\n", line(&sender), line(&origin));
        let _ = writeln!(text, "subject {}", line(&subject));
        for delivery in deliveries {
            let _ = writeln!(text, "{}  {}", line(&delivery.address), delivery.state);
            for step in &delivery.timeline {
                let _ = writeln!(text, "  {}  {}", step.at, step.words());
            }
        }
        text
    }
}

impl TracedStep {
    fn words(&self) -> String {
        let text = |text: &Option<String>| line(text.as_deref().unwrap_or_default());
        let mut words = match self.attempt {
            Some(attempt) => format!("attempt {attempt}: {}", text(&self.outcome)),
            None => self.kind.replace('_', " "),
        };
        let said = match self.code {
            Some(code) => format!("{code} {}", text(&self.response)),
            None => text(&self.response),
        };
        let parts = [
            ("by", text(&self.actor)),
            ("at", text(&self.remote)),
            ("said", said),
            ("rule", text(&self.rule)),
            ("then", text(&self.new_state)),
            ("due", text(&self.due_at)),
        ];
        for (name, part) in parts.iter().filter(|(_, part)| !part.is_empty()) {
            let _ = write!(words, "  {name} {part}");
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_line_by_line() {
        let value = serde_json::json!({
            "id": "01M85FM9W0000G000000000007", "sender": "a@shop.example", "subject": "hello", "origin": "shop",
            "accepted_at": "2026-11-30T22:00:00.000Z",
            "deliveries": [{"address": "b@big.example", "state": "held", "timeline": [
                {"at": "2026-11-30T22:00:01.000Z", "kind": "attempt", "attempt": 1, "outcome": "soft", "code": 451,
                 "response": "later\u{1b}[2J", "remote": "mx [192.0.2.1]", "new_state": "deferred"},
                {"at": "2026-11-30T22:00:02.000Z", "kind": "held", "actor": "ann@ops (operator)", "new_state": "held"},
                {"at": "2026-11-30T22:00:03.000Z", "kind": "hold_requested", "actor": null, "new_state": null},
            ]}],
        });
        let text = History { value }.text(Screen { width: None });
        let expected = "01M85FM9W0000G000000000007  <a@shop.example>  accepted 2026-11-30T22:00:00.000Z from shop\n\
            subject hello\n\
            b@big.example  held\n  \
            2026-11-30T22:00:01.000Z  attempt 1: soft  at mx [192.0.2.1]  said 451 later\\u{1b}[2J  then deferred\n  \
            2026-11-30T22:00:02.000Z  held  by ann@ops (operator)  then held\n  \
            2026-11-30T22:00:03.000Z  hold requested\n";
        assert_eq!(text, expected);
    }
}
