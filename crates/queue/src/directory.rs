//! Group 0: the directory as a replicated machine, its service, and the leases of outbound nodes.
//!
//! The crate `directory` decides what a change does, [`leases`] when a lease has ended; this module connects both to the
//! log, the wire and the clock.

mod balance;
mod barrier;
mod lease_manager;
pub mod leases;
mod machine;
pub mod metrics;
mod service;
mod suspensions;

use std::sync::Arc;

use parking_lot::Mutex;
use postroad_core::GroupId;
use postroad_directory::View;
use postroad_proto::{FRAME_BYTES_MAX, directory::wire::directory_service_server::DirectoryServiceServer};
use postroad_raft::{Group, Node, OpenError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use leases::LeaseTimes;
pub use machine::DirectoryMachine;
pub use service::{DirectoryApi, QueuedMessages};

use barrier::Barrier;
use lease_manager::{LeaseManager, SharedLeases};
use suspensions::SuspensionEnds;

/// The directory on this node.
#[derive(Debug)]
pub struct DirectoryHost {
    /// The directory as this node has applied it.
    pub view: watch::Receiver<Arc<View>>,
    /// Group 0.
    pub group: Group<DirectoryMachine>,
    api: DirectoryApi,
    lease_manager: LeaseManager,
    barriers: barrier::Worker<DirectoryMachine>,
    closing: CancellationToken,
}

/// Tells whether this node's clock may be right: what the clocks of the other queue nodes say.
#[derive(Clone)]
pub struct ClockCheck(Arc<dyn Fn() -> bool + Send + Sync>);

impl ClockCheck {
    /// Asks `may_be_right`.
    pub fn new(may_be_right: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(may_be_right))
    }

    fn may_be_right(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for ClockCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClockCheck").finish_non_exhaustive()
    }
}

/// Opens group 0, whose changes ask `queued` before they remove a tenant, and whose leader asks `clock` before it ends a
/// suspension; [`DirectoryHost::run`] manages the leases.
///
/// # Errors
/// See [`OpenError`].
pub async fn start(
    node: &Node,
    times: LeaseTimes,
    queued: QueuedMessages,
    clock: ClockCheck,
) -> Result<DirectoryHost, OpenError> {
    metrics::show_counters();
    let (machine, state) = DirectoryMachine::new();
    let view = state.view.clone();
    let group = node.open_group(GroupId::DIRECTORY, machine).await?;
    let leases: SharedLeases = Arc::new(Mutex::new(None));
    let wake = Arc::new(Notify::new());
    let (barrier, barriers) = Barrier::new(group.clone());
    let closing = CancellationToken::new();
    let api = DirectoryApi {
        group: group.clone(),
        state,
        barrier,
        leases: leases.clone(),
        times,
        wake: wake.clone(),
        suspending: Arc::default(),
        closing: closing.clone(),
        queued,
    };
    let ends = SuspensionEnds::new(clock);
    let lease_manager = LeaseManager { group: group.clone(), view: view.clone(), leases, times, wake, ends };
    Ok(DirectoryHost { view, group, api, lease_manager, barriers, closing })
}

impl DirectoryHost {
    /// Returns the gRPC service.
    #[must_use]
    pub fn server(&self) -> DirectoryServiceServer<DirectoryApi> {
        DirectoryServiceServer::new(self.api.clone())
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX)
    }

    /// Manages the leases while this node leads, until shutdown; then ends every watch.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { lease_manager, barriers, closing, .. } = self;
        let _closing = closing.drop_guard();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = lease_manager.run() => {}
            () = barriers.run() => {}
        }
    }
}
