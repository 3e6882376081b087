//! Moves sources so that every outbound node gets its share: one at a time, and only while no node comes or goes.
//!
//! The owner is asked to release the source, which is never taken away: it finishes its transactions, reports them and
//! releases, and the free source is granted as usual. An owner that does not answer keeps the source until its lease ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use postroad_core::{Epoch, SourceId};
use postroad_directory::{Owner, Source, View};

/// An owner that has not released a source within this is not asked again until outbound nodes come or go.
const RELEASE_WITHIN: Duration = Duration::from_secs(120);

/// The outbound nodes the leader knows, and the release it has asked for.
#[derive(Debug)]
pub(super) struct Balance {
    settle: Duration,
    owners: Vec<Owner>,
    stable_since: Instant,
    /// No node had come or gone for long enough, at the last decision.
    is_stable: bool,
    pending: Option<PendingRelease>,
    /// Owners that did not release in time: others are asked instead.
    unresponsive: BTreeSet<Owner>,
}

/// An owner, and the source it is asked to release under this epoch.
type ReleaseRequest = (Owner, (SourceId, Epoch));

/// A release that was asked for and has not happened yet.
#[derive(Clone, Copy, Debug)]
struct PendingRelease {
    owner: Owner,
    source: (SourceId, Epoch),
    since: Instant,
}

impl Balance {
    pub(super) fn new(settle: Duration, now: Instant) -> Self {
        Self {
            settle,
            owners: Vec::new(),
            stable_since: now,
            is_stable: false,
            pending: None,
            unresponsive: BTreeSet::new(),
        }
    }

    /// Takes all owners, and how many sources each owner that is alive owns.
    ///
    /// Nothing is moved while one is silent: it may come back for its sources.
    pub(super) fn decide(
        &mut self,
        now: Instant,
        view: &View,
        owners: &[Owner],
        alive: &BTreeMap<Owner, usize>,
    ) {
        if self.owners != owners {
            self.owners = owners.to_vec();
            self.unresponsive.clear();
            self.stable_since = now;
        }
        if alive.len() < owners.len() {
            self.stable_since = now;
        }
        let still_owned = |pending: &PendingRelease| {
            let (source, epoch) = pending.source;
            view.source(source).is_some_and(|s| s.owner == Some(pending.owner) && s.epoch == epoch)
        };
        self.pending = self.pending.filter(still_owned);
        if let Some(late) = self.pending.take_if(|pending| pending.since + RELEASE_WITHIN <= now) {
            self.unresponsive.insert(late.owner);
        }
        self.is_stable = self.stable_since + self.settle <= now;
        if !self.is_stable {
            self.pending = None;
        } else if self.pending.is_none() && !view.sources().any(|source| is_free(source, alive)) {
            let gains = view.sources().filter_map(|source| gain(source, alive));
            let responsive = gains.filter(|(_, (owner, _))| !self.unresponsive.contains(owner));
            let next = responsive.max_by_key(|(gain, _)| *gain);
            self.pending = next.map(|(_, (owner, source))| PendingRelease { owner, source, since: now });
        }
    }

    /// Returns the source that an owner is asked to release, and its epoch.
    pub(super) fn requested_from(&self, owner: Owner) -> Option<(SourceId, Epoch)> {
        self.pending.filter(|pending| pending.owner == owner).map(|pending| pending.source)
    }

    /// Returns when [`Balance::decide`] may decide something by the passing of time alone.
    pub(super) fn next_decision(&self) -> Option<Instant> {
        let release_until = self.pending.map(|pending| pending.since + RELEASE_WITHIN);
        release_until
            .or_else(|| (!self.is_stable && self.owners.len() > 1).then(|| self.stable_since + self.settle))
    }
}

/// Returns true when the source has no owner and is about to get one.
fn is_free(source: &Source, alive: &BTreeMap<Owner, usize>) -> bool {
    source.owner.is_none() && alive.keys().any(|owner| source.may_be_owned_by(owner.node))
}

/// Returns by how many sources the shares would be fairer if another node owned this one; `None` if they would not.
///
/// A source whose owner is no longer allowed to own it comes first.
fn gain(source: &Source, alive: &BTreeMap<Owner, usize>) -> Option<(usize, ReleaseRequest)> {
    let owner = source.owner?;
    let owned = *alive.get(&owner)?;
    let others = alive.iter().filter(|(other, _)| **other != owner && source.may_be_owned_by(other.node));
    let fewest = others.map(|(_, count)| *count).min()?;
    if !source.may_be_owned_by(owner.node) {
        return Some((usize::MAX, (owner, (source.id, source.epoch))));
    }
    // With a difference of one the two would only swap places.
    let gain = owned.saturating_sub(fewest).saturating_sub(1);
    (gain > 0).then_some((gain, (owner, (source.id, source.epoch))))
}
