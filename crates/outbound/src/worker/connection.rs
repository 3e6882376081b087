//! Opening a connection to one target, with TLS where it can be had.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_core::{BounceClass, Domain, Outcome, OutcomeKind};
use postroad_directory::Source;
use postroad_net::{ConnectError, connect, smtp::client::Connection};
use postroad_smtp::client::{ClientConfig, Ended, TlsUse};

use super::{Use, Worker};
use crate::{job::Attempted, lane::Signal, metrics::OutboundMetrics, plan::Target, result};

/// A connection and what it may be used for.
pub(super) struct Open {
    pub(super) connection: Connection,
    pub(super) target: Target,
    /// As it was when the connection was made.
    pub(super) source: Arc<Source>,
    /// Mail for this domain goes to this target, as the DNS said then.
    pub(super) planned: (Domain, Instant),
    pub(super) remote: Arc<str>,
    pub(super) tls: Arc<str>,
    pub(super) messages: u32,
    _counted: Counted,
}

/// Counts an open session while it lives.
struct Counted(Arc<OutboundMetrics>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections_open.decrement(1.0);
    }
}

/// Why a target gave no session.
pub(super) struct Failure {
    pub(super) attempted: Attempted,
    pub(super) signal: Signal,
}

impl Open {
    /// Closes the connection, with QUIT where the server still listens.
    pub(super) async fn quit(self) {
        let Self { connection, _counted, .. } = self;
        if connection.is_usable() {
            connection.quit().await;
        }
    }
}

impl Worker {
    /// Opens a session with one target; when TLS fails there, once more without (D-039).
    pub(super) async fn open(
        &self,
        target: &Target,
        going: &Use,
        sessions: &mut usize,
    ) -> Result<Open, Failure> {
        *sessions += 1;
        let remote: Arc<str> = target.remote().into();
        let ended = match self.open_with(target, going, TlsUse::Opportunistic, sessions).await? {
            Ok(connection) => return Ok(self.opened(connection, target, going, remote)),
            Err(ended) => ended,
        };
        let ended = if result::is_tls_failure(&ended) {
            match self.open_with(target, going, TlsUse::Never, sessions).await? {
                Ok(connection) => return Ok(self.opened(connection, target, going, remote)),
                Err(ended) => ended,
            }
        } else {
            ended
        };
        let outcome = result::outcome_of_session(&ended);
        let attempted = Attempted { outcome, remote, tls: "".into() };
        Err(Failure { attempted, signal: result::signal_of_session(&ended) })
    }

    async fn open_with(
        &self,
        target: &Target,
        going: &Use,
        tls: TlsUse,
        sessions: &mut usize,
    ) -> Result<Result<Connection, Ended>, Failure> {
        let workshop = &self.workshop;
        let (from, limit) = (going.source.address, Duration::from_secs(workshop.config.connect_secs));
        let connected = if target.trusted {
            connect::connect_trusted(target.address, from, limit).await
        } else {
            connect::connect(&workshop.guard, target.address, from, limit).await
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => {
                workshop.metrics.not_connected.increment(1);
                // No session was begun.
                *sessions = sessions.saturating_sub(1);
                return Err(not_connected(&error, target));
            }
        };
        workshop.metrics.connected.increment(1);
        let config = ClientConfig { helo: going.source.helo.clone(), tls, timeouts: workshop.timeouts };
        Ok(Connection::open(stream, config, &workshop.tls, &target.host).await)
    }

    fn opened(&self, connection: Connection, target: &Target, going: &Use, remote: Arc<str>) -> Open {
        self.workshop.metrics.connections_open.increment(1.0);
        Open {
            tls: connection.tls().into(),
            connection,
            target: target.clone(),
            source: going.source.clone(),
            planned: (going.domain.clone(), Instant::now()),
            remote,
            messages: 0,
            _counted: Counted(self.workshop.metrics.clone()),
        }
    }
}

fn not_connected(error: &ConnectError, target: &Target) -> Failure {
    let (kind, class) = match error {
        ConnectError::Denied(_) => (OutcomeKind::Hard, BounceClass::BadDomain),
        ConnectError::TimedOut(_) => (OutcomeKind::Soft, BounceClass::Timeout),
        _ if error.is_local() => (OutcomeKind::Internal, BounceClass::Connection),
        _ => (OutcomeKind::Soft, BounceClass::Connection),
    };
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let text = format!("4.4.1 {error}{cause}");
    let outcome = Outcome::new(kind, Some(class), 0, &text);
    let attempted = Attempted { outcome, remote: target.remote().into(), tls: "".into() };
    Failure { attempted, signal: Signal::Failed(text.into()) }
}
