//! Opens a connection to one target, with TLS if the receiver offers it.

use std::{sync::Arc, time::Instant};

use postroad_core::{BounceClass, Domain, Outcome, OutcomeKind, Retry};
use postroad_directory::Source;
use postroad_net::{ConnectError, smtp::client::Connection};
use postroad_smtp::client::{ClientConfig, Ended, TlsUse};

use super::{AttemptContext, Worker};
use crate::{job::AttemptResult, lane::Signal, metrics::OutboundMetrics, plan::Target, result};

/// An open session with a target.
pub(super) struct OpenConnection {
    pub(super) connection: Connection,
    pub(super) target: Target,
    /// As it was when the connection was opened.
    pub(super) source: Arc<Source>,
    /// DNS named this target for this domain at this time.
    pub(super) planned: (Domain, Instant),
    pub(super) remote: Arc<str>,
    pub(super) tls: Arc<str>,
    pub(super) messages: u32,
    _counted: Counted,
}

/// Counts an open session until dropped.
struct Counted(Arc<OutboundMetrics>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections_open.decrement(1.0);
    }
}

/// Why no session could be opened with a target, or why it did not take the message.
pub(super) struct SessionFailure {
    pub(super) result: AttemptResult,
    pub(super) signal: Signal,
    /// A session was begun, with or without TLS.
    pub(super) connected: bool,
}

impl SessionFailure {
    /// Returns what the failures of two hosts of a site come to: the site is as bad as its better host.
    pub(super) fn and(self, other: Self) -> Self {
        let connected = self.connected || other.connected;
        let result = if other.worth() > self.worth() { other.result } else { self.result };
        Self { result, signal: self.signal.milder(other.signal), connected }
    }

    /// A refusal for good counts only when nothing gives hope, and a fault of this node only when no host that may be
    /// tried again was asked: it would hide, for as long as it lasts, that the site is dead.
    fn worth(&self) -> u8 {
        let outcome = &self.result.outcome;
        match (outcome.retry, outcome.kind) {
            (Retry::Never, _) => 0,
            (_, OutcomeKind::Internal) => 1,
            // A reply of a server tells more than a failed connection.
            _ if outcome.code == 0 => 2,
            _ => 3,
        }
    }
}

impl OpenConnection {
    /// Closes the connection, with QUIT if the server still reads.
    pub(super) async fn quit(self) {
        let Self { connection, _counted, .. } = self;
        _counted.0.irregular_replies.increment(connection.irregular_replies());
        if connection.is_usable() {
            connection.quit().await;
        }
    }
}

impl Worker {
    /// Opens a session with one target; if TLS fails, once more without (D-039).
    pub(super) async fn open(
        &self,
        target: &Target,
        attempt_context: &AttemptContext,
    ) -> Result<OpenConnection, SessionFailure> {
        let remote: Arc<str> = target.remote().into();
        let ended = match self.open_with(target, attempt_context, TlsUse::Opportunistic).await? {
            Ok(connection) => return Ok(self.opened(connection, target, attempt_context, remote)),
            Err(ended) => ended,
        };
        let ended = if result::is_tls_failure(&ended) {
            let opened = self.open_with(target, attempt_context, TlsUse::Never).await;
            match opened.map_err(|failed| SessionFailure { connected: true, ..failed })? {
                Ok(connection) => return Ok(self.opened(connection, target, attempt_context, remote)),
                Err(ended) => ended,
            }
        } else {
            ended
        };
        if ended == Ended::Injected {
            self.context.metrics.starttls_injected.increment(1);
            tracing::warn!(%remote, "plaintext followed the reply to STARTTLS: the connection may be under attack");
        }
        let outcome = result::outcome_of_session(&ended);
        let result = AttemptResult { outcome, remote, tls: "".into() };
        Err(SessionFailure { result, signal: result::signal_of_session(&ended), connected: true })
    }

    async fn open_with(
        &self,
        target: &Target,
        attempt_context: &AttemptContext,
        tls: TlsUse,
    ) -> Result<Result<Connection, Ended>, SessionFailure> {
        let context = &self.context;
        let stream = match context.connect(target, attempt_context.source.address).await {
            Ok(stream) => stream,
            Err(error) => {
                context.metrics.not_connected.increment(1);
                return Err(not_connected(&error, target));
            }
        };
        context.metrics.connected.increment(1);
        let config =
            ClientConfig { helo: attempt_context.source.helo.clone(), tls, timeouts: context.timeouts };
        Ok(Connection::open(stream, config, &context.tls, &target.host).await)
    }

    fn opened(
        &self,
        connection: Connection,
        target: &Target,
        attempt_context: &AttemptContext,
        remote: Arc<str>,
    ) -> OpenConnection {
        self.context.metrics.connections_open.increment(1.0);
        OpenConnection {
            tls: connection.tls().into(),
            connection,
            target: target.clone(),
            source: attempt_context.source.clone(),
            planned: (attempt_context.domain.clone(), postroad_env::now()),
            remote,
            messages: 0,
            _counted: Counted(self.context.metrics.clone()),
        }
    }
}

fn not_connected(error: &ConnectError, target: &Target) -> SessionFailure {
    let (kind, class) = match error {
        ConnectError::Denied(_) => (OutcomeKind::Hard, BounceClass::BadDomain),
        ConnectError::TimedOut(_) => (OutcomeKind::Soft, BounceClass::Timeout),
        _ if error.is_local() => (OutcomeKind::Internal, BounceClass::Connection),
        _ => (OutcomeKind::Soft, BounceClass::Connection),
    };
    let status = if error.is_local() { "4.3.0" } else { "4.4.1" };
    let text = format!("{status} {}", error.with_cause());
    let outcome = Outcome::new(kind, Some(class), 0, &text);
    let result = AttemptResult { outcome, remote: target.remote().into(), tls: "".into() };
    let signal = if error.is_local() { Signal::Local(text.into()) } else { Signal::Failed(text.into()) };
    SessionFailure { result, signal, connected: false }
}

#[cfg(test)]
mod tests {
    use postroad_core::Reply;
    use postroad_smtp::client::{Lost, Phase};

    use super::*;

    fn ended(ended: &Ended) -> SessionFailure {
        let result = AttemptResult::without_remote(result::outcome_of_session(ended));
        SessionFailure { result, signal: result::signal_of_session(ended), connected: true }
    }

    fn local() -> SessionFailure {
        let outcome = Outcome::new(OutcomeKind::Internal, Some(BounceClass::Connection), 0, "4.3.0 no ports");
        let result = AttemptResult::without_remote(outcome);
        SessionFailure { result, signal: Signal::Local("4.3.0 no ports".into()), connected: false }
    }

    #[test]
    fn d_053_a_fault_of_this_node_does_not_hide_that_another_host_was_asked() {
        let check = |one: fn() -> SessionFailure, other: fn() -> SessionFailure, kind, local: bool| {
            for failure in [one().and(other()), other().and(one())] {
                assert_eq!(failure.result.outcome.kind, kind, "{:?}", failure.result);
                assert_eq!(matches!(failure.signal, Signal::Local(_)), local, "{:?}", failure.signal);
            }
        };
        let refused = || ended(&Ended::Lost(Phase::Greeting, Lost::Closed));
        let greeted = || ended(&Ended::Refused(Phase::Greeting, Reply::plain(421, "busy")));
        let denied = || {
            let outcome = Outcome::new(OutcomeKind::Hard, Some(BounceClass::BadDomain), 0, "5.4.4 denied");
            let result = AttemptResult::without_remote(outcome);
            SessionFailure { result, signal: Signal::Failed("5.4.4 denied".into()), connected: false }
        };
        check(local, local, OutcomeKind::Internal, true);
        check(local, refused, OutcomeKind::Soft, false);
        check(local, greeted, greeted().result.outcome.kind, false);
        // The other host may take the message once this node can ask it.
        check(local, denied, OutcomeKind::Internal, false);
    }
}
