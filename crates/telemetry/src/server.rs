//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{io, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, render};

/// How long a scrape in progress may hold up the end of the process.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the routes, to be merged into another router or served alone.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || std::future::ready(ready(&health))))
}

/// Serves the routes until `shutdown`.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(listener: TcpListener, health: Health, shutdown: CancellationToken) -> io::Result<()> {
    let stopping = shutdown.clone();
    let server = axum::serve(listener, router(health))
        .with_graceful_shutdown(async move { stopping.cancelled().await })
        .into_future();
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = server => result,
        () = late => Ok(()),
    }
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render())
}

fn ready(health: &Health) -> (StatusCode, String) {
    let waiting = health.waiting();
    if waiting.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", waiting.join(", ")))
}
