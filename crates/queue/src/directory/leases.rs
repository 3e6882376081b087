//! Decides when a lease has ended and which node gets a source. Pure: time is passed in, commands to propose come out.
//!
//! A `Leases` belongs to one leader in one term. Renewals are not in the log, so a new leader treats every node as renewed
//! just now, and its decisions count only in its term.
//! An incarnation that is about to lose its lease is fenced first: it is no longer renewed, even if the proposal fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use postroad_core::{Epoch, Scope, SourceId};
use postroad_directory::{Command, Owner, Source, View};

use super::balance::Balance;

/// The times that the directory and the owners of sources agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long a lease lasts after a renewal.
    pub lease: Duration,
    /// How far the clocks may drift apart in that time.
    pub drift: Duration,
    /// How much longer a silent owner keeps its sources.
    pub grace: Duration,
    /// How long no outbound node may have come or gone before sources are moved between nodes.
    pub settle: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(10), drift: seconds(1), grace: seconds(5), settle: seconds(30) }
    }
}

impl LeaseTimes {
    /// Returns how long after a renewal its lease has certainly ended, whatever the owner's clock says.
    #[must_use]
    pub fn certain_end(&self) -> Duration {
        self.lease + self.drift
    }

    /// Returns how long a silent node keeps its sources.
    #[must_use]
    pub fn revoke_after(&self) -> Duration {
        self.certain_end() + self.grace
    }
}

/// How long a fenced incarnation waits before it may claim again.
const FENCED_WAIT: Duration = Duration::from_millis(500);
/// Sources granted in one decision.
const GRANTS_MAX: usize = 1000;

/// What one leader knows about the leases of outbound nodes.
#[derive(Debug)]
pub struct Leases {
    times: LeaseTimes,
    term: u64,
    since: Instant,
    /// The last claim or renewal of each incarnation that this leader has answered, or will.
    renewed: BTreeMap<Owner, Instant>,
    /// Incarnations whose end has been proposed.
    fenced: BTreeSet<Owner>,
    balance: Balance,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimDecision {
    /// It is in force already.
    InForce,
    /// Propose it.
    Propose,
    /// An earlier incarnation may be alive for this long.
    Wait(Duration),
}

impl Leases {
    /// Begins for a new leader.
    #[must_use]
    pub fn new(times: LeaseTimes, term: u64, now: Instant) -> Self {
        Self {
            times,
            term,
            since: now,
            renewed: BTreeMap::new(),
            fenced: BTreeSet::new(),
            balance: Balance::new(times.settle, now),
        }
    }

    /// Returns the term in which its decisions count.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Renews the lease of an incarnation; returns false when it must stop.
    ///
    /// The leader must have proven since the request arrived that it leads, and `view` must be what it has applied.
    /// The views passed in must never go back.
    pub fn renew(&mut self, now: Instant, view: &View, owner: Owner) -> bool {
        let latest = view.incarnation(owner.node) == Some(owner.incarnation);
        if !latest || self.fenced.contains(&owner) {
            return false;
        }
        self.renewed.insert(owner, now);
        true
    }

    /// Answers the claim of a new incarnation; `replaces` is an earlier one that the caller can prove has ended.
    ///
    /// When the claim is to be proposed, the earlier incarnation is fenced, and the new one counts as renewed.
    pub fn claim(&mut self, now: Instant, view: &View, owner: Owner, replaces: Option<u64>) -> ClaimDecision {
        let earlier = view.incarnation(owner.node).map(|incarnation| Owner { node: owner.node, incarnation });
        match earlier {
            Some(latest) if latest == owner => {
                let renewed = self.renew(now, view, owner);
                return if renewed { ClaimDecision::InForce } else { ClaimDecision::Wait(FENCED_WAIT) };
            }
            Some(earlier) => {
                let left = self.left(now, earlier, self.times.certain_end());
                if replaces != Some(earlier.incarnation) && !left.is_zero() {
                    return ClaimDecision::Wait(left);
                }
                self.fenced.insert(earlier);
            }
            None => {}
        }
        self.renewed.insert(owner, now);
        ClaimDecision::Propose
    }

    /// Returns what to propose now: revocations of leases that ended, and grants of sources without an owner.
    ///
    /// The same is returned until the view shows it, so a failed proposal is repeated.
    pub fn decide(&mut self, now: Instant, view: &View) -> Vec<Command> {
        self.forget(now, view);
        let owners: Vec<Owner> =
            view.nodes().map(|(node, incarnation)| Owner { node, incarnation }).collect();
        let ended = |owner: &&Owner| self.left(now, **owner, self.times.revoke_after()).is_zero();
        let ended: Vec<Owner> = owners.iter().filter(ended).copied().collect();
        self.fenced.extend(&ended);
        let revoke = |owner: &Owner| Command::Revoke { node: owner.node, incarnation: owner.incarnation };
        let revoked = owners.iter().filter(|owner| ended.contains(owner)).map(revoke);
        // A suspended node gets no sources, and releases those that it has.
        let in_use: Vec<Owner> =
            owners.iter().filter(|owner| !is_suspended(view, **owner)).copied().collect();
        let alive = in_use.iter().filter(|owner| self.is_alive(now, **owner));
        let mut owned: BTreeMap<Owner, usize> =
            alive.map(|owner| (*owner, view.sources_of(owner.node, owner.incarnation).count())).collect();
        self.balance.decide(now, view, &in_use, &owned);
        let unowned = view.sources().filter(|source| source.owner.is_none());
        let granted = unowned.filter_map(|source| grant(source, &mut owned)).take(GRANTS_MAX);
        revoked.chain(granted).collect()
    }

    /// Returns when [`Leases::decide`] may decide something by the passing of time alone.
    #[must_use]
    pub fn next_decision(&self, view: &View) -> Option<Instant> {
        let ends = view.nodes().map(|(node, incarnation)| {
            self.last_renewal(Owner { node, incarnation }) + self.times.revoke_after()
        });
        ends.chain(self.balance.next_decision()).min()
    }

    /// Returns the sources that an owner is asked to release for other nodes, with their epochs: all while it is suspended.
    #[must_use]
    pub fn to_release(&self, view: &View, owner: Owner) -> Vec<(SourceId, Epoch)> {
        if is_suspended(view, owner) {
            let owned = view.sources_of(owner.node, owner.incarnation);
            return owned.map(|source| (source.id, source.epoch)).collect();
        }
        self.balance.requested_from(owner).into_iter().collect()
    }

    /// Forgets incarnations that have ended. A claim is kept before the view shows it.
    fn forget(&mut self, now: Instant, view: &View) {
        let latest = |owner: &Owner| view.incarnation(owner.node) == Some(owner.incarnation);
        let kept_for = self.times.revoke_after();
        self.renewed.retain(|owner, at| latest(owner) || now < *at + kept_for);
        self.fenced.retain(latest);
    }

    /// Only an incarnation that has renewed with this leader gets sources.
    fn is_alive(&self, now: Instant, owner: Owner) -> bool {
        let renewed = self.renewed.get(&owner).is_some_and(|at| now < *at + self.times.lease);
        renewed && !self.fenced.contains(&owner)
    }

    /// An incarnation that has not renewed with this leader may have renewed just before this leader took over.
    fn last_renewal(&self, owner: Owner) -> Instant {
        self.renewed.get(&owner).copied().unwrap_or(self.since)
    }

    fn left(&self, now: Instant, owner: Owner, after: Duration) -> Duration {
        (self.last_renewal(owner) + after).saturating_duration_since(now)
    }
}

fn is_suspended(view: &View, owner: Owner) -> bool {
    view.suspension(&Scope::Node(owner.node)).is_some()
}

/// Grants a source to the node with the fewest sources, of those that may own it.
fn grant(source: &Source, owned: &mut BTreeMap<Owner, usize>) -> Option<Command> {
    let candidates = owned.iter_mut().filter(|(owner, _)| source.may_be_owned_by(owner.node));
    let (owner, count) = candidates.min_by_key(|(_, count)| **count)?;
    *count += 1;
    Some(Command::Grant { source: source.id, node: owner.node, incarnation: owner.incarnation })
}

#[cfg(test)]
mod tests;
