//! What others ask of the directory's leader: changes by operators, and leases by outbound nodes.

use std::time::Duration;

use postroad_core::{Epoch, GroupId, NodeId, SourceId};
use postroad_directory::{ItemName, Put};
use postroad_proto::directory::wire::{
    ApplyRequest, ClaimRequest, OwnedSource, ReleaseRequest, RenewRequest,
    directory_service_client::DirectoryServiceClient,
};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::{
    Endpoints, FRAME_BYTES_MAX, LeaderTable,
    call::{CallError, LeaderCalls},
};

/// Asks the leader of the directory. A clone is cheap.
#[derive(Clone, Debug)]
pub struct DirectoryClient {
    calls: LeaderCalls,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The directory's revision.
    pub revision: u64,
    /// Items that are not what they were, or would not be.
    pub changed: u32,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It stands.
    Stands {
        /// At this revision of the directory.
        revision: u64,
        /// From when the claim was sent, the node has a lease of this length.
        lease: Duration,
    },
    /// It does not: an earlier run of the node may be alive.
    Wait(Duration),
}

/// A lease that runs anew from when its renewal was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The directory's revision: a node that knows an earlier one may own more than it knows.
    pub revision: u64,
    /// How long the lease is.
    pub lease: Duration,
    /// Sources that others are to have: the node ends what is under way with them, and releases them.
    ///
    /// Each with the epoch under which it is asked for; one that is owned under another is not meant.
    pub release: Vec<(SourceId, Epoch)>,
}

impl DirectoryClient {
    /// Asks the leader among `endpoints`; `leaders` says whom to try first.
    #[must_use]
    pub fn new(endpoints: &Endpoints, leaders: &watch::Receiver<LeaderTable>) -> Self {
        Self { calls: LeaderCalls::new(endpoints, leaders) }
    }

    /// Makes items what they are said to be, all or nothing; with `dry_run` only tells what it would come to.
    ///
    /// # Errors
    /// It breaks a rule, or nobody answered within the time; it may then have been applied, and can be said again.
    pub async fn apply(
        &self,
        puts: &[Put],
        removals: &[ItemName],
        dry_run: bool,
        within: Duration,
    ) -> Result<Applied, CallError> {
        let request = ApplyRequest {
            puts: puts.iter().map(Into::into).collect(),
            removals: removals.iter().map(Into::into).collect(),
            dry_run,
        };
        let call = |channel| {
            let request = request.clone();
            async move { client(channel).apply(request).await }
        };
        let response = self.calls.call(GroupId::DIRECTORY, within, call).await?.into_inner();
        Ok(Applied { revision: response.revision, changed: response.changed })
    }

    /// Claims what an earlier run of this node owned; `replaces` is a run that is certainly over.
    ///
    /// # Errors
    /// Nobody answered within the time, or this node may not claim.
    pub async fn claim(
        &self,
        node: NodeId,
        incarnation: u64,
        replaces: Option<u64>,
        within: Duration,
    ) -> Result<Claim, CallError> {
        let request = ClaimRequest { node: node.0, incarnation, replaces };
        let call = |channel| async move { client(channel).claim(request).await };
        let response = self.calls.call(GroupId::DIRECTORY, within, call).await?.into_inner();
        if response.wait_millis > 0 {
            return Ok(Claim::Wait(Duration::from_millis(response.wait_millis)));
        }
        let lease = Duration::from_millis(response.lease_millis);
        Ok(Claim::Stands { revision: response.revision, lease })
    }

    /// Says that this run of a node is there. Its lease counts from before the call.
    ///
    /// # Errors
    /// Nobody answered within the time; or the refusal of a run whose lease has ended or that another has followed:
    /// it must use nothing any more, and may claim as a new run.
    pub async fn renew(
        &self,
        node: NodeId,
        incarnation: u64,
        within: Duration,
    ) -> Result<Renewed, CallError> {
        let request = RenewRequest { node: node.0, incarnation };
        let call = |channel| async move { client(channel).renew(request).await };
        let response = self.calls.call(GroupId::DIRECTORY, within, call).await?.into_inner();
        Ok(Renewed {
            revision: response.revision,
            lease: Duration::from_millis(response.lease_millis),
            release: response.release.iter().map(|own| (SourceId(own.source), Epoch(own.epoch))).collect(),
        })
    }

    /// Says that this run of a node will use none of its sources any more.
    ///
    /// # Errors
    /// Nobody answered within the time: others get the sources when the lease is over.
    pub async fn release(&self, node: NodeId, incarnation: u64, within: Duration) -> Result<(), CallError> {
        self.release_those(ReleaseRequest { node: node.0, incarnation, sources: Vec::new() }, within).await
    }

    /// Says that this run of a node will not use a source under an epoch any more, and goes on with the others.
    ///
    /// # Errors
    /// Nobody answered within the time: it may have been released, and can be said again.
    /// Should the run have been given the source anew meanwhile, it keeps it.
    pub async fn release_source(
        &self,
        node: NodeId,
        incarnation: u64,
        (source, epoch): (SourceId, Epoch),
        within: Duration,
    ) -> Result<(), CallError> {
        let sources = vec![OwnedSource { source: source.0, epoch: epoch.0 }];
        self.release_those(ReleaseRequest { node: node.0, incarnation, sources }, within).await
    }

    async fn release_those(&self, request: ReleaseRequest, within: Duration) -> Result<(), CallError> {
        let call = |channel| {
            let request = request.clone();
            async move { client(channel).release(request).await }
        };
        self.calls.call(GroupId::DIRECTORY, within, call).await.map(drop)
    }
}

pub(crate) fn client(channel: Channel) -> DirectoryServiceClient<Channel> {
    DirectoryServiceClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX)
}
