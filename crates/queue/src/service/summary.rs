//! How much waits in a ledger group, for whom and why.
//!
//! Counting looks at every row, so that nothing is kept for it. It is done in slices, by one caller at a time; others get
//! the same result while it is new.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_core::{GroupId, PoolId, TenantId, Timestamp};
use postroad_directory::View;
use postroad_ledger::{
    Ledger,
    dispatch::{WaitReason, Waiting},
    summary::{Depth, GroupBy, GroupKey, Summary},
};
use postroad_proto::queue::{self as wire, QueueDepth, SummarizeQueueResponse, WaitCount, WaitKind};
use tokio::{sync::Mutex, task::yield_now};
use tonic::Status;

use super::names;
use crate::{
    clock,
    error::{not_leader, refused},
    ledger::{LedgerGroup, shared::Leading},
    waiting::explain,
};

/// How long a result is new: people who look at the same time cost one count.
const NEW_FOR: Duration = Duration::from_secs(2);

/// A count that took long is new for longer, so that counting never takes more than this part of a processor.
const TIMES_ITS_DURATION: u32 = 20;

/// Reasons that are shown of one row; the deliveries of further ones are counted by kind alone.
const REASONS_MAX: usize = 5;

/// Why queued deliveries wait, besides for their time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// For this, in this pool.
    Exactly(PoolId, WaitReason),
    /// For lanes, of which there may be many, each with its own reason.
    Lanes(WaitKind),
}

/// The latest counts of every group; a clone shares them.
#[derive(Clone, Debug)]
pub(super) struct Summaries {
    rows_max: usize,
    groups: Arc<BTreeMap<GroupId, Mutex<BTreeMap<GroupBy, Counted>>>>,
}

#[derive(Clone, Debug)]
struct Counted {
    summary: Arc<Summary<Why>>,
    /// In which term the group was counted.
    term: u64,
    at: Timestamp,
    new_until: Instant,
}

impl Summaries {
    pub(super) fn new(rows_max: usize, ledgers: &BTreeMap<GroupId, LedgerGroup>) -> Self {
        let groups = ledgers.keys().map(|group| (*group, Mutex::default())).collect();
        Self { rows_max, groups: Arc::new(groups) }
    }

    /// Returns the largest rows of a group that this node leads, from a count that is new.
    pub(super) async fn read(
        &self,
        ledger: &LedgerGroup,
        by: GroupBy,
        rows_max: usize,
    ) -> Result<SummarizeQueueResponse, Status> {
        ledger.group.read_barrier().await.map_err(|error| refused(&error))?;
        let counted = self.counted(ledger, by).await?;
        let view = ledger.views.borrow().clone();
        let (rows, other) = counted.summary.top(rows_max);
        Ok(SummarizeQueueResponse {
            counted_at_millis: counted.at.as_millis(),
            rows: rows.into_iter().map(|(key, depth)| depth_of(name_of(&key, &view), depth, &view)).collect(),
            other: Some(depth_of(String::new(), other, &view)),
        })
    }

    async fn counted(&self, ledger: &LedgerGroup, by: GroupBy) -> Result<Counted, Status> {
        let term = ledger.status().term;
        let Some(group) = self.groups.get(&ledger.id()) else { return Err(not_leader(None)) };
        // Callers that wait here get the result of the one that counts.
        let mut group = group.lock().await;
        if let Some(counted) = group.get(&by).filter(|known| known.term == term && known.is_new()) {
            return Ok(counted.clone());
        }
        let started = postroad_env::now();
        let (summary, at) = (Arc::new(count(ledger, by, self.rows_max).await?), clock::now());
        let new_for = NEW_FOR.max(postroad_env::since(started) * TIMES_ITS_DURATION);
        let counted = Counted { summary, term, at, new_until: postroad_env::now() + new_for };
        group.insert(by, counted.clone());
        Ok(counted)
    }
}

impl Counted {
    fn is_new(&self) -> bool {
        postroad_env::now() < self.new_until
    }
}

async fn count(ledger: &LedgerGroup, by: GroupBy, rows_max: usize) -> Result<Summary<Why>, Status> {
    let mut summary = Summary::new(by, rows_max);
    loop {
        let more = ledger.shared.with_leading(|state, leading| {
            let mut reasons = Reasons { state, leading, by, now: clock::now(), last: None };
            summary.count(state, |waiting| reasons.why(waiting))
        });
        match more {
            None => return Err(not_leader(ledger.status().leader)),
            Some(false) => return Ok(summary),
            Some(true) => yield_now().await,
        }
    }
}

/// Finds reasons for one slice; deliveries that follow each other often have the same.
struct Reasons<'a> {
    state: &'a Ledger,
    leading: &'a Leading,
    by: GroupBy,
    now: Timestamp,
    last: Option<(Asked, Option<Why>)>,
}

/// What a reason depends on.
type Asked = (TenantId, PoolId, Arc<str>, bool);

impl Reasons<'_> {
    fn why(&mut self, waiting: Waiting<'_>) -> Option<Why> {
        let Waiting { tenant, pool, site, due } = waiting;
        let asked = (tenant, pool, site.clone(), due <= self.now);
        if let Some((last, why)) = &self.last
            && *last == asked
        {
            return why.clone();
        }
        let reason = self.leading.dispatcher.why_waits(self.state, &self.leading.lanes, self.now, waiting);
        let why = match reason {
            WaitReason::NotDue(_) => None,
            reason if self.by == GroupBy::Site => Some(Why::Exactly(pool, reason)),
            WaitReason::WindowFull { .. } => Some(Why::Lanes(WaitKind::WindowFull)),
            WaitReason::RateUsedUp { .. } => Some(Why::Lanes(WaitKind::RateUsedUp)),
            WaitReason::LanePaused { .. } => Some(Why::Lanes(WaitKind::LanePaused)),
            reason => Some(Why::Exactly(pool, reason)),
        };
        self.last = Some((asked, why.clone()));
        why
    }
}

fn name_of(key: &GroupKey, view: &View) -> String {
    match key {
        GroupKey::Site(site) => site.to_string(),
        GroupKey::SenderDomain(domain) => domain.to_string(),
        GroupKey::Tenant(id) => names::tenant(view, *id),
        GroupKey::Pool(id) => names::pool(view, *id),
        GroupKey::Source(id) => id.map_or_else(String::new, |id| names::source(view, id)),
    }
}

fn depth_of(key: String, depth: Depth<Why>, view: &View) -> QueueDepth {
    let millis = |time: Option<Timestamp>| time.unwrap_or(Timestamp::ZERO).as_millis();
    let waits = waits_of(&key, &depth, view);
    let last = depth.last.as_ref();
    QueueDepth {
        key,
        queued: depth.queued,
        sending: depth.sending,
        deferred: depth.deferred,
        held: depth.held,
        oldest_accepted_at_millis: millis(depth.oldest),
        next_due_at_millis: millis(depth.next_due),
        last_at_millis: millis(last.map(|last| last.at)),
        last_code: last.map_or(0, |last| last.code.into()),
        last_response: last.map_or_else(String::new, |last| last.text.to_string()),
        waits,
    }
}

/// Says what the deliveries of a row wait for, the most frequent first.
fn waits_of(key: &str, depth: &Depth<Why>, view: &View) -> Vec<WaitCount> {
    let of_kind = |kind: WaitKind| wire::WaitReason { kind: kind.into(), ..wire::WaitReason::default() };
    let explained = depth.waiting.iter().map(|(why, count)| match why {
        // Of rows by site the key is the site.
        Why::Exactly(pool, reason) => (explain(view, *pool, reason, key), *count),
        Why::Lanes(kind) => (wire::WaitReason { subject: "lanes".to_owned(), ..of_kind(*kind) }, *count),
    });
    let others = [(of_kind(WaitKind::NotDue), depth.not_due), (of_kind(WaitKind::Held), depth.held)];
    let mut waits: Vec<(wire::WaitReason, u64)> = Vec::new();
    for (reason, count) in explained.chain(others).filter(|(_, count)| *count > 0) {
        add(&mut waits, reason, count);
    }
    waits.sort_by_key(|(_, count)| Reverse(*count));
    for (reason, count) in waits.split_off(REASONS_MAX.min(waits.len())) {
        add(&mut waits, wire::WaitReason { subject: "others".to_owned(), ..of_kind(reason.kind()) }, count);
    }
    waits.into_iter().map(|(reason, deliveries)| WaitCount { reason: Some(reason), deliveries }).collect()
}

fn add(waits: &mut Vec<(wire::WaitReason, u64)>, reason: wire::WaitReason, count: u64) {
    match waits.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, sum)) => *sum += count,
        None => waits.push((reason, count)),
    }
}
