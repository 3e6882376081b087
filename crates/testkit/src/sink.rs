//! A mail receiver that behaves as a script says and records every copy that it accepts.
//!
//! It must be faster than any server under test, so a normal message takes one read and one write for the envelope,
//! and one of each for the content. It parses no more than the script and the ledger need.

mod content;
mod ledger;
mod meter;
mod script;
mod session;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use postroad_net::{ServerTls, tls::Handshaker};
use rand::{SeedableRng, rngs::StdRng};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use content::body_hash;
pub use ledger::{Copies, Ledger, Record, ReplyState, parse_record, read_records};
pub use meter::MeterReport;
pub use script::{Action, Limits, Phase, Rate, Receiver, Rule, Script, ScriptError, Tls};

/// How often records are written to the ledger's file.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// Concurrent connections; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 20_000;

/// The configuration of a sink.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Where to listen; port 0 for a free one.
    pub address: SocketAddr,
    /// Its behaviour.
    pub script: Script,
    /// A file for one line per accepted copy; records are then not kept in memory.
    pub ledger_file: Option<PathBuf>,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), script: Script::default(), ledger_file: None }
    }
}

/// A running sink; it stops when dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

/// What all sessions of a sink share.
#[derive(Debug)]
struct Shared {
    script: RwLock<Arc<Script>>,
    ledger: Ledger,
    meters: meter::Meters,
    greylist: Mutex<std::collections::HashMap<Box<str>, Instant>>,
    random: Mutex<StdRng>,
    tls: Option<Handshaker>,
}

impl Sink {
    /// Listens and serves until [`Sink::stop`], or until it is dropped.
    ///
    /// # Errors
    /// It cannot listen on the address, or open the ledger's file.
    pub async fn start(config: SinkConfig) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.address).await?;
        let address = listener.local_addr()?;
        let tls = match config.script.tls {
            Tls::None => None,
            Tls::Starttls | Tls::Implicit => {
                let names = [config.script.hostname.to_string()];
                Some(ServerTls::self_signed(&names).map_err(std::io::Error::other)?.handshaker())
            }
        };
        let ledger = Ledger::new(config.ledger_file.as_deref())?;
        let shared = Arc::new(Shared {
            random: Mutex::new(StdRng::seed_from_u64(config.script.seed)),
            script: RwLock::new(Arc::new(config.script)),
            ledger,
            meters: meter::Meters::default(),
            greylist: Mutex::default(),
            tls,
        });
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        tracker.spawn(listen(listener, shared.clone(), shutdown.clone(), tracker.clone()));
        tracker.spawn(flush(shared.ledger.clone(), shutdown.clone()));
        tracker.close();
        Ok(Self { address, shared, shutdown, tracker })
    }

    /// Returns where the sink listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the accepted copies; the handle outlives the sink.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger.clone()
    }

    /// Replaces the script from the next command on, except its TLS mode and seed.
    pub fn set_script(&self, script: Script) {
        *self.shared.script.write() = Arc::new(script);
    }

    /// Returns the counts for each client and each domain with limits in the script.
    #[must_use]
    pub fn meters(&self) -> Vec<MeterReport> {
        self.shared.meters.report()
    }

    /// Closes all connections and writes the last records.
    ///
    /// # Errors
    /// The ledger's file cannot be written.
    pub async fn stop(self) -> std::io::Result<()> {
        self.shutdown.cancel();
        self.tracker.wait().await;
        self.shared.ledger.close()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn listen(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let Ok((stream, client)) = accepted else {
            // Most likely out of file descriptors: wait until some are closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while tracker.len() > CONNECTIONS_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (shared, shutdown) = (shared.clone(), shutdown.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = session::serve(stream, client, shared) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn flush(ledger: Ledger, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(FLUSH_INTERVAL) => {}
            () = shutdown.cancelled() => {}
        }
        if ledger.flush().is_err() {
            // With missing records, delivered mail would count as lost.
            std::process::abort();
        }
    }
}
