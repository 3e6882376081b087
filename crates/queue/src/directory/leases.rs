//! When a lease has ended and who gets a source, as a value: the time is passed in, and what to propose comes out.
//!
//! It is the memory of one leader in one term. Renewals are not in the log, so a leader begins by holding every node
//! for renewed just now, and what it decides counts only in its term.
//! A run of a node that is about to lose its lease is fenced first: it is told nothing good any more, whatever comes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use postroad_core::{Epoch, SourceId};
use postroad_directory::{Command, Owner, Source, View};

use super::balance::Balance;

/// What directory and owners have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long a renewal counts.
    pub lease: Duration,
    /// How far the clocks may drift apart in that time.
    pub drift: Duration,
    /// How much longer a source stays with an owner that is silent, before others get it.
    pub grace: Duration,
    /// How long no outbound node may have come or gone before sources are moved between those that are there.
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

/// How long a run that is being ended waits before it may claim once more.
const FENCED_WAIT: Duration = Duration::from_millis(500);
/// Sources granted at a time.
const GRANTS_MAX: usize = 1000;

/// What one leader remembers of the outbound nodes.
#[derive(Debug)]
pub struct Leases {
    times: LeaseTimes,
    term: u64,
    since: Instant,
    /// The last claim or renewal of each run that this leader has answered, or will.
    renewed: BTreeMap<Owner, Instant>,
    /// Runs whose end is proposed.
    fenced: BTreeSet<Owner>,
    balance: Balance,
}

/// What is to become of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimDecision {
    /// It stands already.
    Stands,
    /// It is to be proposed.
    Propose,
    /// An earlier run may be alive for so long.
    Wait(Duration),
}

impl Leases {
    /// Begins the memory of a leader that has just taken over.
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

    /// Returns the term in which what it decides counts.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A run asks to go on; returns false when it must not.
    ///
    /// The leader must have proven since the request came that it leads, and `view` must be what it has applied.
    /// Views given to one memory must never go back.
    pub fn renew(&mut self, now: Instant, view: &View, run: Owner) -> bool {
        let latest = view.incarnation(run.node) == Some(run.incarnation);
        if !latest || self.fenced.contains(&run) {
            return false;
        }
        self.renewed.insert(run, now);
        true
    }

    /// A run of a node wants to begin; `replaces` is one that it has proof of being over.
    ///
    /// When the claim is to be proposed, an earlier run is fenced, and the new one counts as renewed.
    pub fn claim(&mut self, now: Instant, view: &View, run: Owner, replaces: Option<u64>) -> ClaimDecision {
        let earlier = view.incarnation(run.node).map(|incarnation| Owner { node: run.node, incarnation });
        match earlier {
            Some(latest) if latest == run => {
                let stands = self.renew(now, view, run);
                return if stands { ClaimDecision::Stands } else { ClaimDecision::Wait(FENCED_WAIT) };
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
        self.renewed.insert(run, now);
        ClaimDecision::Propose
    }

    /// Decides what is to be proposed now: who has lost its lease, and who gets what nobody owns.
    ///
    /// What is proposed is decided again until the view shows it, so a proposal that failed is no loss.
    pub fn decide(&mut self, now: Instant, view: &View) -> Vec<Command> {
        self.forget(now, view);
        let runs: Vec<Owner> = view.nodes().map(|(node, incarnation)| Owner { node, incarnation }).collect();
        let ended = |run: &&Owner| self.left(now, **run, self.times.revoke_after()).is_zero();
        let ended: Vec<Owner> = runs.iter().filter(ended).copied().collect();
        self.fenced.extend(&ended);
        let revoke = |run: &Owner| Command::Revoke { node: run.node, incarnation: run.incarnation };
        let revoked = runs.iter().filter(|run| ended.contains(run)).map(revoke);
        let alive = runs.iter().filter(|run| self.is_alive(now, **run));
        let mut owned: BTreeMap<Owner, usize> =
            alive.map(|run| (*run, view.sources_of(run.node, run.incarnation).count())).collect();
        self.balance.decide(now, view, &runs, &owned);
        let unowned = view.sources().filter(|source| source.owner.is_none());
        let granted = unowned.filter_map(|source| grant(source, &mut owned)).take(GRANTS_MAX);
        revoked.chain(granted).collect()
    }

    /// Returns when [`Leases::decide`] may have something to say without anything having happened.
    #[must_use]
    pub fn next_decision(&self, view: &View) -> Option<Instant> {
        let ends = view.nodes().map(|(node, incarnation)| {
            self.last_renewal(Owner { node, incarnation }) + self.times.revoke_after()
        });
        ends.chain(self.balance.next_decision()).min()
    }

    /// Returns the sources that a run is to let go of, so that others may have them, and under which epochs.
    #[must_use]
    pub fn let_go(&self, run: Owner) -> Vec<(SourceId, Epoch)> {
        self.balance.asked(run).into_iter().collect()
    }

    /// Drops what is remembered of runs that are over. A claim is remembered before the view shows it.
    fn forget(&mut self, now: Instant, view: &View) {
        let latest = |run: &Owner| view.incarnation(run.node) == Some(run.incarnation);
        let kept_for = self.times.revoke_after();
        self.renewed.retain(|run, at| latest(run) || now < *at + kept_for);
        self.fenced.retain(latest);
    }

    /// A run is given sources only if this leader has heard of it.
    fn is_alive(&self, now: Instant, run: Owner) -> bool {
        let heard = self.renewed.get(&run).is_some_and(|at| now < *at + self.times.lease);
        heard && !self.fenced.contains(&run)
    }

    /// One that has not renewed since this leader took over may have done so just before.
    fn last_renewal(&self, run: Owner) -> Instant {
        self.renewed.get(&run).copied().unwrap_or(self.since)
    }

    fn left(&self, now: Instant, run: Owner, after: Duration) -> Duration {
        (self.last_renewal(run) + after).saturating_duration_since(now)
    }
}

/// Gives a source to the node with the fewest, of those that may own it.
fn grant(source: &Source, owned: &mut BTreeMap<Owner, usize>) -> Option<Command> {
    let candidates = owned.iter_mut().filter(|(run, _)| source.may_be_owned_by(run.node));
    let (run, count) = candidates.min_by_key(|(_, count)| **count)?;
    *count += 1;
    Some(Command::Grant { source: source.id, node: run.node, incarnation: run.incarnation })
}

#[cfg(test)]
mod tests;
