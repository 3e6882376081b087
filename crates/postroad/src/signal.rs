//! Signals that ask the process to end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that is cancelled by SIGINT or SIGTERM; a second one ends the process at once.
///
/// # Errors
/// The system gives no signals to us.
pub(crate) fn shutdown() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let asked = token.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                tracing::warn!("asked twice: leaving at once");
                std::process::exit(130);
            }
            asked.cancel();
        }
    });
    Ok(token)
}
