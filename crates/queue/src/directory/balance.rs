//! Which source changes hands so that every outbound node gets its share: one at a time, and only while all is calm.
//!
//! It is asked for, never taken: the owner ends what is under way, reports it and releases the source,
//! and what nobody owns is granted as ever. An owner that does not answer loses nothing by this;
//! if it is gone, its lease says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use postroad_core::{Epoch, SourceId};
use postroad_directory::{Owner, Source, View};

/// An owner that has not let go within this is not asked any longer, until outbound nodes come or go.
const LET_GO_WITHIN: Duration = Duration::from_secs(120);

/// What the leader remembers of who is there, and of what it has asked for.
#[derive(Debug)]
pub(super) struct Balance {
    settle: Duration,
    runs: Vec<Owner>,
    calm_since: Instant,
    /// At the last look it had been calm for long enough.
    is_calm: bool,
    asked: Option<Asked>,
    /// Runs that have not let go in time: the shares of the others do not wait for them.
    unheeding: BTreeSet<Owner>,
}

/// Who is to be asked, and for what.
type Asking = (Owner, (SourceId, Epoch));

/// An owner is to let go of a source.
#[derive(Clone, Copy, Debug)]
struct Asked {
    owner: Owner,
    source: (SourceId, Epoch),
    since: Instant,
}

impl Balance {
    pub(super) fn new(settle: Duration, now: Instant) -> Self {
        Self {
            settle,
            runs: Vec::new(),
            calm_since: now,
            is_calm: false,
            asked: None,
            unheeding: BTreeSet::new(),
        }
    }

    /// Looks at the runs there are, and at how many sources each of those that were heard of owns.
    ///
    /// While one of them is silent nothing is moved: it may come back and wants its own.
    pub(super) fn decide(
        &mut self,
        now: Instant,
        view: &View,
        runs: &[Owner],
        alive: &BTreeMap<Owner, usize>,
    ) {
        if self.runs != runs {
            self.runs = runs.to_vec();
            self.unheeding.clear();
            self.calm_since = now;
        }
        if alive.len() < runs.len() {
            self.calm_since = now;
        }
        let still_owned = |asked: &Asked| {
            let (source, epoch) = asked.source;
            view.source(source).is_some_and(|s| s.owner == Some(asked.owner) && s.epoch == epoch)
        };
        self.asked = self.asked.filter(still_owned);
        if let Some(late) = self.asked.take_if(|asked| asked.since + LET_GO_WITHIN <= now) {
            self.unheeding.insert(late.owner);
        }
        self.is_calm = self.calm_since + self.settle <= now;
        if !self.is_calm {
            self.asked = None;
        } else if self.asked.is_none() && !view.sources().any(|source| is_free(source, alive)) {
            let gains = view.sources().filter_map(|source| gain(source, alive));
            let heeded = gains.filter(|(_, (owner, _))| !self.unheeding.contains(owner));
            let next = heeded.max_by_key(|(gain, _)| *gain);
            self.asked = next.map(|(_, (owner, source))| Asked { owner, source, since: now });
        }
    }

    /// Returns the source that a run is to let go of, and under which epoch.
    pub(super) fn asked(&self, run: Owner) -> Option<(SourceId, Epoch)> {
        self.asked.filter(|asked| asked.owner == run).map(|asked| asked.source)
    }

    /// Returns when [`Balance::decide`] may decide something without anything having happened.
    pub(super) fn next_decision(&self) -> Option<Instant> {
        let asked_until = self.asked.map(|asked| asked.since + LET_GO_WITHIN);
        asked_until.or_else(|| (!self.is_calm && self.runs.len() > 1).then(|| self.calm_since + self.settle))
    }
}

/// Nobody owns it, and somebody is about to.
fn is_free(source: &Source, alive: &BTreeMap<Owner, usize>) -> bool {
    source.owner.is_none() && alive.keys().any(|run| source.may_be_owned_by(run.node))
}

/// Returns how much fairer it would be if another had the source; `None` where nothing would be won.
///
/// A source whose owner may not own it any more comes first.
fn gain(source: &Source, alive: &BTreeMap<Owner, usize>) -> Option<(usize, Asking)> {
    let owner = source.owner?;
    let owned = *alive.get(&owner)?;
    let others = alive.iter().filter(|(run, _)| **run != owner && source.may_be_owned_by(run.node));
    let fewest = others.map(|(_, count)| *count).min()?;
    if !source.may_be_owned_by(owner.node) {
        return Some((usize::MAX, (owner, (source.id, source.epoch))));
    }
    // One that is one ahead would only change places.
    let gain = owned.saturating_sub(fewest).saturating_sub(1);
    (gain > 0).then_some((gain, (owner, (source.id, source.epoch))))
}
