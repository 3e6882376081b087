//! Calls to the directory's leader: changes by operators, and leases of outbound nodes.

use std::time::Duration;

use postroad_core::{Epoch, GroupId, NodeId, SourceId};
use postroad_directory::{ItemName, Put, ScopeName, Suspension};
use postroad_proto::{
    Malformed,
    directory::wire::{
        ApplyRequest, ApplyResponse, ClaimRequest, OwnedSource, ReleaseRequest, RenewRequest, ResumeRequest,
        SuspendRequest, directory_service_client::DirectoryServiceClient,
    },
};
use tokio::sync::watch;
use tonic::{Code, transport::Channel};

use crate::{
    Endpoints, FRAME_BYTES_MAX, LeaderTable,
    call::{CallError, LeaderCalls},
};

/// Calls the leader of the directory. A clone is cheap.
#[derive(Clone, Debug)]
pub struct DirectoryClient {
    calls: LeaderCalls,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Only return what would change.
    pub dry_run: bool,
    /// Accept the removal of items that do not exist.
    pub ignore_missing: bool,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The directory's revision.
    pub revision: u64,
    /// Items that changed, or would change.
    pub changed: u32,
    /// What was accepted and may not do what was meant, as sentences.
    pub warnings: Vec<String>,
}

/// What an operator suspends, why, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspendOptions {
    /// Why, for people.
    pub reason: String,
    /// Who does it; the leader puts the name in the certificate before it.
    pub actor: String,
    /// How long; `None` until it is resumed.
    pub length: Option<Duration>,
}

/// The result of a suspension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspended {
    /// What is suspended now.
    pub suspensions: Vec<Suspension>,
    /// What was accepted and may not do what was meant, as sentences.
    pub warnings: Vec<String>,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is in force.
    InForce {
        /// At this revision of the directory.
        revision: u64,
        /// The length of the node's lease, counted from when the claim was sent.
        lease: Duration,
    },
    /// Claim again after this: an earlier incarnation of the node may be alive.
    Wait(Duration),
}

/// A renewed lease, counted from when the renewal was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The directory's revision; a node at an earlier one may own sources that it does not know of yet.
    pub revision: u64,
    /// The length of the lease.
    pub lease: Duration,
    /// Sources to release for other nodes, after ending their transactions.
    ///
    /// The request is for this epoch of the source only.
    pub to_release: Vec<(SourceId, Epoch)>,
}

impl DirectoryClient {
    /// Calls the leader among `endpoints`; `leaders` says which node to try first.
    #[must_use]
    pub fn new(endpoints: &Endpoints, leaders: &watch::Receiver<LeaderTable>) -> Self {
        Self { calls: LeaderCalls::new(endpoints, leaders) }
    }

    /// Changes items, all or nothing.
    ///
    /// # Errors
    /// A rule is broken, or no leader answered in time: the change may have been applied, and can be repeated.
    pub async fn apply(
        &self,
        puts: &[Put],
        removals: &[ItemName],
        options: ApplyOptions,
        within: Duration,
    ) -> Result<Applied, CallError> {
        let mut request = ApplyRequest {
            puts: puts.iter().map(Into::into).collect(),
            removals: removals.iter().map(Into::into).collect(),
            dry_run: options.dry_run,
            ignore_missing: options.ignore_missing,
        };
        if !removals.is_empty() && !options.ignore_missing {
            // A call that got no answer is repeated, and may have removed the items: so they are looked for first.
            request.dry_run = true;
            let applied = self.send_apply(&request, within).await?;
            if options.dry_run {
                return Ok(applied);
            }
            (request.dry_run, request.ignore_missing) = (false, true);
        }
        self.send_apply(&request, within).await
    }

    async fn send_apply(&self, request: &ApplyRequest, within: Duration) -> Result<Applied, CallError> {
        let call = |channel| {
            let request = request.clone();
            async move { client(channel).apply(request).await }
        };
        let response = self.calls.call(GroupId::DIRECTORY, within, call).await?.into_inner();
        let ApplyResponse { revision, changed, warnings } = response;
        Ok(Applied { revision, changed, warnings })
    }

    /// Suspends scopes, all or nothing.
    ///
    /// # Errors
    /// A rule is broken, or no leader answered in time: they may be suspended, and the call can be repeated.
    pub async fn suspend(
        &self,
        scopes: &[ScopeName],
        options: &SuspendOptions,
        within: Duration,
    ) -> Result<Suspended, CallError> {
        let millis = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let request = SuspendRequest {
            scopes: scopes.iter().map(Into::into).collect(),
            reason: options.reason.clone(),
            actor: options.actor.clone(),
            for_millis: options.length.map(millis),
        };
        let call = |channel| {
            let request = request.clone();
            async move { client(channel).suspend(request).await }
        };
        let response = self.calls.call(GroupId::DIRECTORY, within, call).await?.into_inner();
        let parsed =
            response.suspensions.into_iter().map(Suspension::try_from).collect::<Result<_, Malformed>>();
        let suspensions = parsed
            .map_err(|error| CallError::Refused { code: Code::Internal, message: error.to_string() })?;
        Ok(Suspended { suspensions, warnings: response.warnings })
    }

    /// Resumes scopes; returns how many of them were suspended.
    ///
    /// # Errors
    /// No leader answered in time: they may be resumed, and the call can be repeated.
    pub async fn resume(
        &self,
        scopes: &[ScopeName],
        actor: &str,
        within: Duration,
    ) -> Result<u32, CallError> {
        let request =
            ResumeRequest { scopes: scopes.iter().map(Into::into).collect(), actor: actor.to_owned() };
        let call = |channel| {
            let request = request.clone();
            async move { client(channel).resume(request).await }
        };
        Ok(self.calls.call(GroupId::DIRECTORY, within, call).await?.into_inner().resumed)
    }

    /// Claims what an earlier incarnation of this node owned; `replaces` is one that has certainly ended.
    ///
    /// # Errors
    /// No leader answered in time, or this node may not claim.
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
        Ok(Claim::InForce { revision: response.revision, lease })
    }

    /// Renews the lease of an incarnation, counted from before the call.
    ///
    /// # Errors
    /// No leader answered in time; or the lease has ended or another incarnation has claimed: then this one must stop using
    /// its sources, and may claim as a new incarnation.
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
            to_release: response
                .to_release
                .iter()
                .map(|own| (SourceId(own.source), Epoch(own.epoch)))
                .collect(),
        })
    }

    /// Releases all sources of an incarnation and ends it.
    ///
    /// # Errors
    /// No leader answered in time: other nodes get the sources when the lease ends.
    pub async fn release(&self, node: NodeId, incarnation: u64, within: Duration) -> Result<(), CallError> {
        self.send_release(ReleaseRequest { node: node.0, incarnation, sources: Vec::new() }, within).await
    }

    /// Releases one source of an incarnation under one epoch.
    ///
    /// # Errors
    /// No leader answered in time: the source may have been released, and the call can be repeated.
    /// If the incarnation has been granted the source again under a later epoch, it keeps it.
    pub async fn release_source(
        &self,
        node: NodeId,
        incarnation: u64,
        (source, epoch): (SourceId, Epoch),
        within: Duration,
    ) -> Result<(), CallError> {
        let sources = vec![OwnedSource { source: source.0, epoch: epoch.0 }];
        self.send_release(ReleaseRequest { node: node.0, incarnation, sources }, within).await
    }

    async fn send_release(&self, request: ReleaseRequest, within: Duration) -> Result<(), CallError> {
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
