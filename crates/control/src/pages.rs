//! The console: an overview, a list of messages, and one message with its timeline.

mod list;
mod message;
mod overview;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, rejection::PathRejection},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use maud::{Markup, html};
use postroad_cluster::LeaderTable;
use postroad_core::{DeliveryState, FinalState, MessageId, SourceId, TenantId};
use postroad_directory::View;
use postroad_web::{self as web, Nav};
use tokio::sync::watch;

use crate::{history::Reader, queue::Queue};

/// What every page needs.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    pub(crate) reader: Reader,
    pub(crate) queue: Queue,
    pub(crate) ledger_groups: u16,
    pub(crate) leaders: watch::Receiver<LeaderTable>,
    pub(crate) directory: watch::Receiver<Arc<View>>,
    pub(crate) nav: Nav,
}

pub(crate) fn router(console: Console) -> Router {
    Router::new()
        .route("/", get(overview::page))
        .route("/messages", get(list::page))
        .route("/messages/{id}", get(message::page))
        .route("/messages/{id}/{change}", post(message::change))
        .with_state(console)
}

impl Console {
    /// The tenant's name, or its number while the directory is not known.
    fn tenant(&self, id: u32) -> String {
        let directory = self.directory.borrow();
        directory.tenant(TenantId(id)).map_or_else(|| id.to_string(), |tenant| tenant.name.to_string())
    }

    /// The source's name, or its number while the directory is not known.
    fn source(&self, id: u32) -> String {
        let directory = self.directory.borrow();
        directory.source(SourceId(id)).map_or_else(|| id.to_string(), |source| source.name.to_string())
    }

    fn database_failed(&self, error: &sqlx::Error) -> Response {
        tracing::error!(%error, "cannot read the history database");
        let why = "The history database cannot be read. The log of this node says why.";
        web::error_page(self.nav, StatusCode::INTERNAL_SERVER_ERROR, why)
    }

    fn not_found(&self) -> Response {
        web::error_page(self.nav, StatusCode::NOT_FOUND, "This message is not in the history.")
    }
}

/// Reads the id in a path.
fn id(path: Result<Path<String>, PathRejection>) -> Option<MessageId> {
    path.ok()?.0.parse().ok()
}

/// A state, in its colour.
fn state(state: DeliveryState) -> Markup {
    let colour = match state {
        DeliveryState::Queued | DeliveryState::Sending => "",
        DeliveryState::Deferred | DeliveryState::Held => "warn",
        DeliveryState::Final(FinalState::Delivered) => "good",
        DeliveryState::Final(FinalState::Bounced | FinalState::Expired) => "bad",
        DeliveryState::Final(FinalState::Cancelled | FinalState::Suppressed) => "soft",
    };
    html! { span class={ "tag " (colour) } { (state.as_str()) } }
}

/// An address, or a note for the null reverse path.
fn sender(address: &str) -> Markup {
    html! { @if address.is_empty() { span.soft { "none (a bounce)" } } @else { (address) } }
}

fn subject(text: &str) -> &str {
    if text.is_empty() { "(no subject)" } else { text }
}
