//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{io, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, render};

/// How long a scrape in progress may delay the shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the routes, for another router or for [`serve`].
pub fn router(health: Health) -> Router {
    let shown = health.clone();
    Router::new()
        .route("/metrics", get(move || std::future::ready(metrics(&shown))))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || std::future::ready(ready(&health))))
}

/// Serves the routes until `shutdown`.
///
/// # Errors
/// The listener failed permanently.
pub fn serve(
    listener: TcpListener,
    health: Health,
    shutdown: CancellationToken,
) -> BoxFuture<'static, io::Result<()>> {
    Box::pin(serve_routes(listener, health, shutdown))
}

async fn serve_routes(listener: TcpListener, health: Health, shutdown: CancellationToken) -> io::Result<()> {
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

fn metrics(health: &Health) -> impl IntoResponse + use<> {
    let mut text = render();
    health.render_into(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn ready(health: &Health) -> (StatusCode, String) {
    let not_ready = health.not_ready();
    if not_ready.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", not_ready.join(", ")))
}
