//! SIGINT and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that is cancelled by SIGINT or SIGTERM; a second one ends the process at once.
///
/// # Errors
/// A signal handler cannot be installed.
pub(crate) fn shutdown() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let shutdown = token.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                tracing::warn!("second signal: exiting without a clean shutdown");
                std::process::exit(130);
            }
            shutdown.cancel();
        }
    });
    Ok(token)
}
