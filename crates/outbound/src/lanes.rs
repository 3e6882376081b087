//! All lanes of the sources that this process owns: finds them, starts their workers and runs their timers.
//!
//! [`crate::lane`] decides what a lane does; this module has the locks, timers and notifications.
//! Locks are taken in this order: the map of sources, one lane, the timers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use postroad_core::{Epoch, MessageId, SourceId};
use postroad_directory::{Item, Source, View};
use postroad_proto::queue::{SiteWindow, SourceWindows};
use postroad_telemetry::Tallied;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    context::DeliveryContext,
    job::Job,
    journal::Journal,
    lane::{Lane, LaneConfig, Next, Observation, Signal, Wake, window_of},
    metrics::{LaneMetrics, OutboundMetrics},
    observed::ObservedLanes,
    pending_attempts::LaneName,
    source_addresses::SourceAddresses,
    suspension::{stops_job, stops_lane, stops_source},
    worker,
};

mod timers;

#[cfg(test)]
mod tests;

/// How long a job that is assigned although it is suspended is kept: its leader has an older directory than this node, or
/// a newer one, and would assign it again at once, in two commits each time.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// The lanes of this process.
#[derive(Debug)]
pub(crate) struct Lanes {
    config: LaneConfig,
    sources: Mutex<HashMap<SourceId, OwnedSource>>,
    addresses: Mutex<SourceAddresses>,
    timers: Mutex<BTreeSet<(Instant, LaneId)>>,
    timer_moved: Notify,
    next_id: AtomicU64,
    draining: AtomicBool,
    /// Counts up whenever the windows must be sent again.
    windows_changed: watch::Sender<u64>,
    pub(crate) observed: ObservedLanes,
    workers: TaskTracker,
    /// Jobs that came although they are suspended, oldest first, each with the time when it is given back.
    refused: Mutex<VecDeque<(Instant, Job)>>,
    journal: Journal,
    metrics: Arc<OutboundMetrics>,
}

type LaneId = (u64, SourceId, Arc<str>);

/// A source that this process owns.
#[derive(Debug)]
struct OwnedSource {
    source: Arc<Source>,
    /// Since when it is owned.
    since: Instant,
    default_window: u32,
    /// The windows of sites with their own limits.
    site_windows: BTreeMap<Arc<str>, u32>,
    /// False without a lease, and once its release has begun.
    open: bool,
    /// It is being released: it is not used again under this epoch.
    releasing: bool,
    lanes: HashMap<Arc<str>, Arc<LaneHandle>>,
}

/// One lane, shared by its workers.
#[derive(Debug)]
pub(crate) struct LaneHandle {
    id: u64,
    /// The source's number.
    pub(crate) source: SourceId,
    /// The site.
    pub(crate) site: Arc<str>,
    pub(crate) metrics: Arc<LaneMetrics>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    lane: Lane,
    source: Arc<Source>,
    /// Cancelled when the source may no longer be used.
    abort: CancellationToken,
    /// When its timer fires.
    timer: Option<Instant>,
    /// Counts the lane among the paused ones.
    paused: Option<Tallied>,
}

/// A lane's connection that is no worker's; dropping this frees it.
pub(crate) struct TakenConnection {
    lanes: Arc<Lanes>,
    context: Arc<DeliveryContext>,
    handle: Arc<LaneHandle>,
}

impl TakenConnection {
    /// Returns the token that is cancelled when the source may no longer be used.
    pub(crate) fn abort(&self) -> CancellationToken {
        self.handle.source().1
    }
}

impl Drop for TakenConnection {
    fn drop(&mut self) {
        self.lanes.connection_closed(&self.context, &self.handle, Lane::return_connection);
    }
}

/// Why no connection of a lane was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// The source is not owned under this epoch, or is being released.
    #[error("this node no longer owns the source")]
    NotOwned,
    /// It has as many as it may.
    #[error("all connections of the lane are in use: none was made")]
    InUse,
}

impl Lanes {
    /// Starts without sources.
    #[must_use]
    pub(crate) fn new(config: LaneConfig, journal: Journal, metrics: Arc<OutboundMetrics>) -> Self {
        Self {
            config,
            sources: Mutex::default(),
            addresses: Mutex::default(),
            timers: Mutex::default(),
            timer_moved: Notify::new(),
            next_id: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            windows_changed: watch::channel(0).0,
            observed: ObservedLanes::new(),
            workers: TaskTracker::new(),
            refused: Mutex::default(),
            journal,
            metrics,
        }
    }

    /// Sets which sources are owned, under which epochs and limits, and what is suspended.
    ///
    /// For a source that is no longer owned, attempts in progress are aborted and waiting jobs given back; for what is
    /// suspended, attempts in progress finish.
    pub(crate) fn set_sources(&self, view: &View, owned: &[Arc<Source>]) {
        let without_address = self.addresses.lock().check(owned);
        self.metrics.sources_without_address.set(without_address as f64);
        let mut sources = self.sources.lock();
        let kept = |id: &SourceId, before: &OwnedSource| {
            owned.iter().any(|source| source.id == *id && source.epoch == before.source.epoch)
        };
        for (_, before) in sources.extract_if(|id, before| !kept(id, before)) {
            self.close(&before);
        }
        // A draining process starts nothing.
        let usable = if self.draining.load(Ordering::Relaxed) { &[][..] } else { owned };
        for source in usable {
            let owned = sources.entry(source.id).or_insert_with(|| OwnedSource::new(source.clone()));
            owned.source = source.clone();
            let is_stopped = stops_source(view, source);
            let window = |site| {
                let open = window_of(&view.lane_limits(source.id, site), self.config.wait_max);
                if is_stopped { 0 } else { open }
            };
            owned.default_window = window("");
            owned.site_windows = limited_sites(view).map(|site| (site.clone(), window(site))).collect();
            let reopened = !owned.releasing && !std::mem::replace(&mut owned.open, true);
            for handle in owned.lanes.values() {
                self.update_lane(view, handle, source, reopened);
            }
        }
        self.count_lanes(&sources);
        drop(sources);
        self.windows_changed();
    }

    fn update_lane(&self, view: &View, handle: &LaneHandle, source: &Arc<Source>, reopened: bool) {
        let mut state = handle.state.lock();
        state.source = source.clone();
        state.lane.set_limits(view.lane_limits(source.id, &handle.site));
        let mut back = state.lane.set_suspended(stops_lane(view, source, &handle.site));
        back.extend(state.lane.remove_jobs(|job| stops_job(view, job)));
        if reopened {
            // No other node had the source meanwhile: the rates keep their counts.
            state.lane.reopen();
            state.abort = CancellationToken::new();
        }
        self.set_timer(handle, &mut state);
        drop(state);
        // The rates may have changed for a waiting worker, or it is to exit.
        handle.wake.notify_waiters();
        self.give_back(back);
    }

    fn add_lane(&self, view: &View, owned: &mut OwnedSource, site: &Arc<str>) -> Arc<LaneHandle> {
        let limits = view.lane_limits(owned.source.id, site);
        let name = LaneName { source: owned.source.id, site: site.clone() };
        let rates = self.journal.rates(&name, &limits, owned.source.epoch, owned.since);
        let mut lane = Lane::new(self.config, limits, rates, postroad_env::now());
        lane.set_suspended(stops_lane(view, &owned.source, site));
        let (source, abort) = (owned.source.clone(), CancellationToken::new());
        let metrics = LaneMetrics::new(self.metrics.clone(), &source.name, site);
        let state = State { lane, source, abort, timer: None, paused: None };
        let handle = Arc::new(LaneHandle {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            source: owned.source.id,
            site: site.clone(),
            metrics: Arc::new(metrics),
            state: Mutex::new(state),
            wake: Notify::new(),
        });
        self.set_timer(&handle, &mut handle.state.lock());
        owned.lanes.insert(site.clone(), handle.clone());
        if handle.with(|lane| lane.is_suspended()) {
            // Its leader counts with the default window.
            self.windows_changed();
        }
        handle
    }

    /// Aborts all attempts and stops using every source: the lease has ended, or the process stops.
    pub(crate) fn abort_all(&self) {
        let mut sources = self.sources.lock();
        for owned in sources.values_mut() {
            self.close(owned);
            owned.open = false;
        }
        drop(sources);
        self.windows_changed();
    }

    /// Gives back waiting jobs and lets transactions finish: the process is about to stop.
    pub(crate) fn drain(&self) {
        let mut sources = self.sources.lock();
        self.draining.store(true, Ordering::Relaxed);
        sources.values_mut().for_each(|owned| self.stop_starting(owned));
        drop(sources);
        self.windows_changed();
    }

    /// Gives back waiting jobs of a source and lets its transactions finish: it is about to be released.
    ///
    /// Returns false when it is not owned under this epoch, or is being released already.
    pub(crate) fn stop_source(&self, source: SourceId, epoch: Epoch) -> bool {
        let mut sources = self.sources.lock();
        let owned = sources.get_mut(&source).filter(|owned| owned.source.epoch == epoch && !owned.releasing);
        let Some(owned) = owned else { return false };
        owned.releasing = true;
        self.stop_starting(owned);
        drop(sources);
        self.windows_changed();
        true
    }

    /// Aborts the transactions of a source that is being released, and writes its lanes to the journal.
    pub(crate) fn abort_source(&self, source: SourceId, epoch: Epoch) {
        let sources = self.sources.lock();
        let is_it = |owned: &&OwnedSource| owned.source.epoch == epoch && owned.releasing;
        if let Some(owned) = sources.get(&source).filter(is_it) {
            self.close(owned);
        }
    }

    /// Returns true while a connection from a source may be open, if it is still owned under this epoch.
    pub(crate) fn is_used(&self, source: SourceId, epoch: Epoch) -> bool {
        let sources = self.sources.lock();
        let owned = sources.get(&source).filter(|owned| owned.source.epoch == epoch);
        owned.is_some_and(|owned| owned.lanes.values().any(|handle| handle.with(|lane| lane.is_connected())))
    }

    fn stop_starting(&self, owned: &mut OwnedSource) {
        owned.open = false;
        self.return_refused(None);
        for handle in owned.lanes.values() {
            let back = handle.state.lock().lane.close();
            handle.wake.notify_waiters();
            self.give_back(back);
        }
    }

    fn close(&self, owned: &OwnedSource) {
        self.return_refused(None);
        for handle in owned.lanes.values() {
            let back = {
                let mut state = handle.state.lock();
                state.abort.cancel();
                state.lane.close()
            };
            self.write_journal(std::slice::from_ref(handle), true);
            handle.wake.notify_waiters();
            self.give_back(back);
        }
    }

    /// Counts jobs, and gives them back by dropping them.
    fn give_back(&self, jobs: Vec<Job>) {
        self.metrics.given_back.increment(jobs.len() as u64);
        drop(jobs);
    }

    /// Adds a job to its lane; gives it back when its source is not owned under its epoch or its lane is paused, and after
    /// a while when it or its lane is suspended.
    pub(crate) fn push(self: &Arc<Self>, context: &Arc<DeliveryContext>, name: &LaneName, job: Job) {
        let Some(handle) = self.find_or_add(context, name, job.epoch) else {
            return self.give_back(vec![job]);
        };
        let wake = self.push_to(&handle, job, |job| stops_job(&context.directory.borrow(), job));
        self.wake(context, &handle, wake);
    }

    /// Gives a job back after a while. It keeps no content meanwhile.
    fn refuse(&self, mut job: Job, now: Instant) {
        (job.content, job.budget) = (None, None);
        self.refused.lock().push_back((now + REFUSED_FOR, job));
    }

    /// Gives back the refused jobs whose time has come, or all of them.
    fn return_refused(&self, now: Option<Instant>) {
        let back = {
            let mut refused = self.refused.lock();
            let due = refused.partition_point(|(at, _)| now.is_none_or(|now| *at <= now));
            refused.drain(..due).map(|(_, job)| job).collect()
        };
        self.give_back(back);
    }

    /// Adds a job to a lane, or keeps it for a while when it or the lane is suspended, or gives it back.
    fn push_to(&self, handle: &LaneHandle, job: Job, is_suspended: impl FnOnce(&Job) -> bool) -> Wake {
        let now = postroad_env::now();
        let mut state = handle.state.lock();
        // Under the lock: what is suspended from now on is found among the lane's jobs.
        if !state.lane.is_closed() && (state.lane.is_suspended() || is_suspended(&job)) {
            drop(state);
            self.refuse(job, now);
            return Wake::None;
        }
        let pushed = self.change(handle, &mut state, now, |lane| lane.push(now, job));
        drop(state);
        pushed.unwrap_or_else(|job| {
            self.give_back(vec![*job]);
            Wake::None
        })
    }

    /// Changes a lane, and what depends on it: its timer, the number of paused lanes, and the windows.
    ///
    /// Whatever may begin or end a pause must go through here. [`LaneHandle::with`] does not: it is for what changes none of
    /// these, and nothing checks that.
    fn change<T>(
        &self,
        handle: &LaneHandle,
        state: &mut State,
        now: Instant,
        change: impl FnOnce(&mut Lane) -> T,
    ) -> T {
        let seen = |state: &State| (state.lane.pause().is_some(), state.lane.window(now));
        let before = seen(state);
        let changed = change(&mut state.lane);
        let after = seen(state);
        if after.0 != state.paused.is_some() {
            state.paused = after.0.then(|| handle.metrics.while_paused());
        }
        if after != before {
            self.windows_changed();
        }
        self.set_timer(handle, state);
        changed
    }

    fn find_or_add(
        &self,
        context: &DeliveryContext,
        name: &LaneName,
        epoch: Epoch,
    ) -> Option<Arc<LaneHandle>> {
        let mut sources = self.sources.lock();
        let owned =
            sources.get_mut(&name.source).filter(|owned| owned.open && owned.source.epoch == epoch)?;
        if let Some(handle) = owned.lanes.get(&name.site) {
            return Some(handle.clone());
        }
        let handle = self.add_lane(&context.view(), owned, &name.site);
        self.count_lanes(&sources);
        Some(handle)
    }

    fn wake(self: &Arc<Self>, context: &Arc<DeliveryContext>, handle: &Arc<LaneHandle>, wake: Wake) {
        match wake {
            Wake::None => {}
            Wake::Idle => handle.wake.notify_one(),
            Wake::New => {
                let run = worker::run(self.clone(), context.clone(), handle.clone());
                // Boxed: the future of a session is large, and spawning moves it.
                self.workers.spawn(Box::pin(run));
            }
        }
    }

    /// Reports the signal of an attempt to its lane.
    pub(crate) fn ended(&self, handle: &LaneHandle, signal: Signal) {
        let now = postroad_env::now();
        let (back, begun) = self.change(handle, &mut handle.state.lock(), now, |lane| {
            let before = lane.pause().map(|pause| pause.until);
            let back = lane.ended(now, signal);
            // Another pause may begin before the timer has ended the last one.
            (back, lane.pause().filter(|pause| Some(pause.until) != before).cloned())
        });
        self.give_back(back);
        let Some(pause) = begun else { return };
        handle.metrics.paused();
        let seconds = pause.until.saturating_duration_since(postroad_env::now()).as_secs();
        tracing::info!(source = %handle.source, site = %handle.site, seconds, reason = %pause.reason, "lane paused");
        handle.wake.notify_waiters();
    }

    /// Returns the next step of a worker, and wakes another one when more jobs wait.
    pub(crate) fn next(self: &Arc<Self>, context: &Arc<DeliveryContext>, handle: &Arc<LaneHandle>) -> Next {
        let now = postroad_env::now();
        let (next, wake) = {
            let mut state = handle.state.lock();
            let next = state.lane.next(now);
            let starts = matches!(next, Next::Start(_));
            if starts && state.lane.has_rates() {
                self.journal.mark_changed(&handle.name());
            }
            (next, if starts { state.lane.wake(now) } else { Wake::None })
        };
        self.wake(context, handle, wake);
        next
    }

    /// A worker has exited; starts another one when jobs have arrived meanwhile.
    pub(crate) fn worker_exited(self: &Arc<Self>, context: &Arc<DeliveryContext>, handle: &Arc<LaneHandle>) {
        self.connection_closed(context, handle, Lane::worker_exited);
    }

    fn connection_closed(
        self: &Arc<Self>,
        context: &Arc<DeliveryContext>,
        handle: &Arc<LaneHandle>,
        closed: impl FnOnce(&mut Lane),
    ) {
        let wake = {
            let mut state = handle.state.lock();
            closed(&mut state.lane);
            self.set_timer(handle, &mut state);
            state.lane.wake(postroad_env::now())
        };
        self.wake(context, handle, wake);
    }

    /// Removes a recipient from a waiting job; false when its job has started, or is not here.
    #[must_use]
    pub(crate) fn recall(&self, name: &LaneName, message: MessageId, recipient: u32, attempt: u32) -> bool {
        self.find(name).is_some_and(|handle| handle.state.lock().lane.recall(message, recipient, attempt))
    }

    /// Returns a source that is owned and may be used.
    pub(crate) fn source(&self, source: SourceId) -> Option<Arc<Source>> {
        let sources = self.sources.lock();
        sources.get(&source).filter(|owned| owned.open).map(|owned| owned.source.clone())
    }

    /// Takes one of a lane's connections for something else than a job.
    pub(crate) fn take_connection(
        self: &Arc<Self>,
        context: &Arc<DeliveryContext>,
        name: &LaneName,
        epoch: Epoch,
    ) -> Result<TakenConnection, NotTaken> {
        let handle = self.find_or_add(context, name, epoch).ok_or(NotTaken::NotOwned)?;
        let taken = handle.with(|lane| if lane.is_closed() { None } else { Some(lane.take_connection()) });
        match taken {
            None => Err(NotTaken::NotOwned),
            Some(false) => Err(NotTaken::InUse),
            Some(true) => Ok(TakenConnection { lanes: self.clone(), context: context.clone(), handle }),
        }
    }

    fn find(&self, name: &LaneName) -> Option<Arc<LaneHandle>> {
        let sources = self.sources.lock();
        sources.get(&name.source).and_then(|owned| owned.lanes.get(&name.site)).cloned()
    }

    /// Returns the windows of every source, divided by the number of `groups`.
    #[must_use]
    pub(crate) fn windows(&self, groups: u32) -> Vec<SourceWindows> {
        let now = postroad_env::now();
        let share = |window: u32| window.div_ceil(groups.max(1));
        let of_source = |owned: &OwnedSource| {
            let default = if owned.open { owned.default_window } else { 0 };
            let site = |handle: &Arc<LaneHandle>| {
                let window = handle.state.lock().lane.window(now);
                (window != default)
                    .then(|| SiteWindow { site: handle.site.to_string(), window: share(window) })
            };
            let unused = owned.site_windows.iter().filter(|(site, _)| !owned.lanes.contains_key(*site));
            let limited = unused.filter(|(_, window)| **window != default && owned.open);
            let limited =
                limited.map(|(site, window)| SiteWindow { site: site.to_string(), window: share(*window) });
            SourceWindows {
                source: owned.source.id.0,
                epoch: owned.source.epoch.0,
                default_window: share(default),
                sites: owned.lanes.values().filter_map(site).chain(limited).collect(),
            }
        };
        self.sources.lock().values().map(of_source).collect()
    }

    /// Returns all lanes as they are now.
    fn observations(&self, now: Instant) -> BTreeMap<(SourceId, Arc<str>), Observation> {
        let sources = self.sources.lock();
        let lanes = sources.values().flat_map(|owned| owned.lanes.values());
        let observed = lanes.map(|handle| {
            let (delivered, failed) = handle.metrics.ended();
            let lane = handle.with(|lane| lane.observe(now));
            ((handle.source, handle.site.clone()), Observation { delivered, failed, ..lane })
        });
        observed.collect()
    }

    /// Returns a receiver that sees when the windows must be sent again.
    #[must_use]
    pub(crate) fn windows_watch(&self) -> watch::Receiver<u64> {
        self.windows_changed.subscribe()
    }

    fn windows_changed(&self) {
        self.windows_changed.send_modify(|version| *version += 1);
    }

    /// Waits until every worker has exited; all lanes must be closed.
    pub(crate) async fn finished(&self) {
        self.workers.close();
        self.workers.wait().await;
    }

    fn count_lanes(&self, sources: &HashMap<SourceId, OwnedSource>) {
        let lanes: usize = sources.values().map(|owned| owned.lanes.len()).sum();
        self.metrics.lanes.set(lanes as f64);
    }
}

impl OwnedSource {
    fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            since: postroad_env::now(),
            default_window: 0,
            site_windows: BTreeMap::new(),
            open: true,
            releasing: false,
            lanes: HashMap::new(),
        }
    }
}

impl LaneHandle {
    fn name(&self) -> LaneName {
        LaneName { source: self.source, site: self.site.clone() }
    }

    /// Waits to be notified.
    pub(crate) async fn notified(&self) {
        self.wake.notified().await;
    }

    /// Returns the current source, and the token that is cancelled when it may no longer be used.
    pub(crate) fn source(&self) -> (Arc<Source>, CancellationToken) {
        let state = self.state.lock();
        (state.source.clone(), state.abort.clone())
    }

    /// Reads or changes the lane, except for its jobs and its pause: see [`Lanes::change`].
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Lane) -> T) -> T {
        change(&mut self.state.lock().lane)
    }
}

fn limited_sites(view: &View) -> impl Iterator<Item = &Arc<str>> {
    view.items().filter_map(|item| match item {
        Item::Limits(limits) => limits.site.as_ref(),
        _ => None,
    })
}
