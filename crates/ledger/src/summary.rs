//! How much waits, for whom and why: counted by looking at every row in slices, so that nothing more is kept for each
//! delivery.
//!
//! Between two slices the ledger goes on: a summary is of a time, not of a moment.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use postroad_core::{OutcomeKind, PoolId, SourceId, TenantId, Timestamp};

use crate::{
    dispatch::Waiting,
    ledger::Ledger,
    row::{Message, Recipient, State},
    selection::domain_of,
};

/// Deliveries in one slice, unless one message has more: some milliseconds.
const SLICE_DELIVERIES: usize = 4096;

/// What deliveries are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupBy {
    /// The site that they go to.
    Site,
    /// Whose they are.
    Tenant,
    /// The pool that they are sent from.
    Pool,
    /// The source that is sending them.
    Source,
    /// The domain of the envelope sender.
    SenderDomain,
}

/// What deliveries that are counted together have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupKey {
    /// The site that they go to.
    Site(Arc<str>),
    /// Whose they are.
    Tenant(TenantId),
    /// The pool that they are sent from.
    Pool(PoolId),
    /// The source that is sending them; `None` for those that are not being sent.
    Source(Option<SourceId>),
    /// The domain of the envelope sender; empty for the null sender.
    SenderDomain(Box<str>),
}

/// Deliveries that have not ended, counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth<W> {
    /// Waiting for the first attempt.
    pub queued: u64,
    /// With an outbound node.
    pub sending: u64,
    /// Waiting for another attempt.
    pub deferred: u64,
    /// Held.
    pub held: u64,
    /// When the oldest of their messages was accepted.
    pub oldest: Option<Timestamp>,
    /// When the first of those that are queued or deferred is due, which may be past.
    pub next_due: Option<Timestamp>,
    /// How the latest of their attempts ended.
    pub last: Option<LastOutcome>,
    /// Those that are queued or deferred and wait for their time.
    pub not_due: u64,
    /// Those that are queued or deferred and wait for something else, by what that is.
    pub waiting: BTreeMap<W, u64>,
}

/// How the latest attempt ended at a delivery that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastOutcome {
    /// When.
    pub at: Timestamp,
    /// How.
    pub kind: OutcomeKind,
    /// The reply code, 0 without a reply.
    pub code: u16,
    /// The reply, or what happened.
    pub text: Box<str>,
}

/// The deliveries of a ledger that have not ended, counted in groups; `W` says what queued ones wait for.
#[derive(Clone, Debug)]
pub struct Summary<W> {
    by: GroupBy,
    groups_max: usize,
    groups: BTreeMap<GroupKey, Depth<W>>,
    other: Depth<W>,
    /// The slot of the next message to look at; `None` when all were.
    next: Option<u32>,
}

impl<W> Default for Depth<W> {
    fn default() -> Self {
        Self {
            queued: 0,
            sending: 0,
            deferred: 0,
            held: 0,
            oldest: None,
            next_due: None,
            last: None,
            not_due: 0,
            waiting: BTreeMap::new(),
        }
    }
}

impl<W: Ord + Clone> Depth<W> {
    /// Returns how many deliveries there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.queued + self.sending + self.deferred + self.held
    }

    /// Adds the deliveries of another group.
    pub fn add(&mut self, other: &Self) {
        self.queued += other.queued;
        self.sending += other.sending;
        self.deferred += other.deferred;
        self.held += other.held;
        self.oldest = earlier(self.oldest, other.oldest);
        self.next_due = earlier(self.next_due, other.next_due);
        if other.last.as_ref().map(|last| last.at) > self.last.as_ref().map(|last| last.at) {
            self.last.clone_from(&other.last);
        }
        self.not_due += other.not_due;
        for (why, count) in &other.waiting {
            *self.waiting.entry(why.clone()).or_default() += count;
        }
    }
}

/// The earlier of two times, where there are any.
fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    [one, other].into_iter().flatten().min()
}

impl<W: Ord + Clone> Summary<W> {
    /// Starts to count; deliveries beyond `groups_max` groups are counted together.
    #[must_use]
    pub fn new(by: GroupBy, groups_max: usize) -> Self {
        Self { by, groups_max, groups: BTreeMap::new(), other: Depth::default(), next: Some(0) }
    }

    /// Counts the next slice of a ledger; returns true while there are more.
    ///
    /// `why` says what a queued delivery waits for besides its time; `None` when only for that.
    pub fn count(&mut self, ledger: &Ledger, mut why: impl FnMut(Waiting<'_>) -> Option<W>) -> bool {
        let Some(from) = self.next.take() else { return false };
        let mut counted = 0;
        for (slot, message) in ledger.messages.iter_from(from) {
            if counted >= SLICE_DELIVERIES {
                self.next = Some(slot);
                return true;
            }
            counted += message.recipients.len();
            for recipient in message.recipients.iter().filter(|recipient| recipient.is_open()) {
                let site = ledger.sites.name(recipient.site);
                let key = self.key(message, recipient, site);
                let depth = self.depth(key);
                depth.count(message, recipient);
                if let State::Queued { due } = recipient.state {
                    let (tenant, pool) = (message.tenant, recipient.pool);
                    depth.count_waiting(due, why(Waiting { tenant, pool, site, due }));
                }
            }
        }
        false
    }

    fn key(&self, message: &Message, recipient: &Recipient, site: &Arc<str>) -> GroupKey {
        match self.by {
            GroupBy::Site => GroupKey::Site(site.clone()),
            GroupBy::Tenant => GroupKey::Tenant(message.tenant),
            GroupBy::Pool => GroupKey::Pool(recipient.pool),
            GroupBy::Source => GroupKey::Source(match recipient.state {
                State::Sending { source, .. } => Some(source),
                _ => None,
            }),
            GroupBy::SenderDomain => GroupKey::SenderDomain(domain_of(&message.sender).into()),
        }
    }

    fn depth(&mut self, key: GroupKey) -> &mut Depth<W> {
        if self.groups.len() >= self.groups_max && !self.groups.contains_key(&key) {
            return &mut self.other;
        }
        self.groups.entry(key).or_default()
    }

    /// Returns the groups with the most deliveries, those first, at most `groups_max`, and all others counted together.
    #[must_use]
    pub fn top(&self, groups_max: usize) -> (Vec<(GroupKey, Depth<W>)>, Depth<W>) {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, depth)| Reverse(depth.total()));
        let rest = groups.split_off(groups_max.min(groups.len()));
        let mut other = self.other.clone();
        rest.into_iter().for_each(|(_, depth)| other.add(depth));
        (groups.into_iter().map(|(key, depth)| (key.clone(), depth.clone())).collect(), other)
    }
}

impl<W: Ord + Clone> Depth<W> {
    fn count(&mut self, message: &Message, recipient: &Recipient) {
        match recipient.state {
            State::Queued { .. } if recipient.last.is_none() => self.queued += 1,
            State::Queued { .. } => self.deferred += 1,
            State::Sending { .. } => self.sending += 1,
            State::Held { .. } => self.held += 1,
            State::Ended(_) => {}
        }
        self.oldest = earlier(self.oldest, Some(message.accepted_at));
        let at = recipient.last_at(message.accepted_at);
        if let Some(outcome) = &recipient.last
            && self.last.as_ref().is_none_or(|last| last.at < at)
        {
            let (kind, code, text) = (outcome.kind, outcome.code, (&*outcome.text).into());
            self.last = Some(LastOutcome { at, kind, code, text });
        }
    }

    fn count_waiting(&mut self, due: Timestamp, why: Option<W>) {
        self.next_due = earlier(self.next_due, Some(due));
        match why {
            Some(why) => *self.waiting.entry(why).or_default() += 1,
            None => self.not_due += 1,
        }
    }
}
