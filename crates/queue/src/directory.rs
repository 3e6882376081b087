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

/// Opens group 0, whose changes ask `queued` before they remove a tenant; [`DirectoryHost::run`] manages the leases.
///
/// # Errors
/// See [`OpenError`].
pub async fn start(
    node: &Node,
    times: LeaseTimes,
    queued: QueuedMessages,
) -> Result<DirectoryHost, OpenError> {
    metrics::show_decisions();
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
        closing: closing.clone(),
        queued,
    };
    let lease_manager = LeaseManager { group: group.clone(), view: view.clone(), leases, times, wake };
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
