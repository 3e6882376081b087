//! All lanes of the sources this process owns: finds them, calls their workers, and keeps their time.
//!
//! What a lane does is decided in [`crate::lane`]; here are only the locks, the timers and the bells.
//! Locks are taken in this order: the map of sources, one lane, the timers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use postroad_core::{Epoch, MessageId, SourceId};
use postroad_directory::{Item, LaneLimits, Source, View};
use postroad_proto::queue::{SiteWindow, SourceWindows};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    context::Workshop,
    job::Job,
    journal::Journal,
    lane::{Call, Lane, LaneConfig, Next, Signal, window_of},
    metrics::OutboundMetrics,
    pending_attempts::LaneName,
    worker,
};

mod timers;

/// The lanes of this process.
#[derive(Debug)]
pub(crate) struct Lanes {
    config: LaneConfig,
    sources: Mutex<HashMap<SourceId, Owned>>,
    timers: Mutex<BTreeSet<(Instant, LaneId)>>,
    timer_moved: Notify,
    next_id: AtomicU64,
    draining: AtomicBool,
    /// Counts up whenever windows are to be stated anew.
    windows_changed: watch::Sender<u64>,
    workers: TaskTracker,
    journal: Journal,
    metrics: Arc<OutboundMetrics>,
}

type LaneId = (u64, SourceId, Arc<str>);

/// A source in this process's hands.
#[derive(Debug)]
struct Owned {
    source: Arc<Source>,
    /// Since when.
    since: Instant,
    default_window: u32,
    /// The windows of sites that have limits of their own.
    site_windows: BTreeMap<Arc<str>, u32>,
    /// False while the lease is over, and once it is left.
    open: bool,
    /// Others are to have it: under this epoch it is not used again.
    left: bool,
    lanes: HashMap<Arc<str>, Arc<Cell>>,
}

/// One lane and what its workers need.
#[derive(Debug)]
pub(crate) struct Cell {
    id: u64,
    /// The source's number.
    pub(crate) source: SourceId,
    /// The site.
    pub(crate) site: Arc<str>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    lane: Lane,
    source: Arc<Source>,
    /// Cancelled when the source must not be used any more.
    abort: CancellationToken,
    /// When its timer rings.
    timer: Option<Instant>,
}

impl Lanes {
    /// Starts without sources.
    #[must_use]
    pub(crate) fn new(config: LaneConfig, journal: Journal, metrics: Arc<OutboundMetrics>) -> Self {
        Self {
            config,
            sources: Mutex::default(),
            timers: Mutex::default(),
            timer_moved: Notify::new(),
            next_id: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            windows_changed: watch::channel(0).0,
            workers: TaskTracker::new(),
            journal,
            metrics,
        }
    }

    /// Takes over which sources are owned, under which epochs and limits.
    ///
    /// What was under way with a source that is not owned any more is aborted, and what waited is given back.
    pub(crate) fn set_sources(&self, view: &View, owned: &[Arc<Source>]) {
        let mut sources = self.sources.lock();
        let kept = |id: &SourceId, before: &Owned| {
            owned.iter().any(|source| source.id == *id && source.epoch == before.source.epoch)
        };
        for (_, before) in sources.extract_if(|id, before| !kept(id, before)) {
            self.close(&before);
        }
        // A process that is about to stop begins nothing.
        let taken = if self.draining.load(Ordering::Relaxed) { &[][..] } else { owned };
        for source in taken {
            let owned = sources.entry(source.id).or_insert_with(|| Owned::new(source.clone()));
            owned.source = source.clone();
            owned.default_window = window_of(&view.lane_limits(source.id, ""), self.config.wait_max);
            let window = |site| window_of(&view.lane_limits(source.id, site), self.config.wait_max);
            owned.site_windows = limited_sites(view).map(|site| (site.clone(), window(site))).collect();
            let reopened = !owned.left && !std::mem::replace(&mut owned.open, true);
            for cell in owned.lanes.values() {
                let limits = view.lane_limits(source.id, &cell.site);
                self.take_over(cell, source, limits, reopened);
            }
        }
        self.count_lanes(&sources);
        drop(sources);
        self.windows_changed();
    }

    fn take_over(&self, cell: &Cell, source: &Arc<Source>, limits: LaneLimits, reopened: bool) {
        let mut state = cell.state.lock();
        state.source = source.clone();
        state.lane.set_limits(limits);
        if reopened {
            // Nobody had the source meanwhile: what was counted still counts.
            state.lane.reopen();
            state.abort = CancellationToken::new();
        }
        self.keep_time(cell, &mut state);
        // A worker that waits for a rate looks again.
        cell.wake.notify_waiters();
    }

    fn add_lane(&self, view: &View, owned: &mut Owned, site: &Arc<str>) -> Arc<Cell> {
        let limits = view.lane_limits(owned.source.id, site);
        let name = LaneName { source: owned.source.id, site: site.clone() };
        let rates = self.journal.rates(&name, &limits, owned.source.epoch, owned.since);
        let lane = Lane::new(self.config, limits, rates, Instant::now());
        let state =
            State { lane, source: owned.source.clone(), abort: CancellationToken::new(), timer: None };
        let cell = Arc::new(Cell {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            source: owned.source.id,
            site: site.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
        });
        self.keep_time(&cell, &mut cell.state.lock());
        owned.lanes.insert(site.clone(), cell.clone());
        cell
    }

    /// Stops using every source for now: the lease is over, or the process stops.
    pub(crate) fn suspend(&self) {
        let mut sources = self.sources.lock();
        for owned in sources.values_mut() {
            self.close(owned);
            owned.open = false;
        }
        drop(sources);
        self.windows_changed();
    }

    /// Gives back what waits and lets what is under way go on: the process is about to stop.
    pub(crate) fn drain(&self) {
        let mut sources = self.sources.lock();
        self.draining.store(true, Ordering::Relaxed);
        sources.values_mut().for_each(|owned| self.begin_nothing(owned));
        drop(sources);
        self.windows_changed();
    }

    /// Gives back what waits for a source and lets what is under way go on: others are to have it.
    ///
    /// Returns false when it is not owned under this epoch, or is being left already.
    pub(crate) fn leave(&self, source: SourceId, epoch: Epoch) -> bool {
        let mut sources = self.sources.lock();
        let owned = sources.get_mut(&source).filter(|owned| owned.source.epoch == epoch && !owned.left);
        let Some(owned) = owned else { return false };
        owned.left = true;
        self.begin_nothing(owned);
        drop(sources);
        self.windows_changed();
        true
    }

    /// Breaks off what is under way with a source that is left, and writes down what was sent from it.
    pub(crate) fn abandon(&self, source: SourceId, epoch: Epoch) {
        let sources = self.sources.lock();
        let left = |owned: &&Owned| owned.source.epoch == epoch && owned.left;
        if let Some(owned) = sources.get(&source).filter(left) {
            self.close(owned);
        }
    }

    /// Returns true while a connection from a source may be open, if it is still owned under this epoch.
    pub(crate) fn is_used(&self, source: SourceId, epoch: Epoch) -> bool {
        let sources = self.sources.lock();
        let owned = sources.get(&source).filter(|owned| owned.source.epoch == epoch);
        owned.is_some_and(|owned| owned.lanes.values().any(|cell| cell.with(|lane| lane.is_used())))
    }

    fn begin_nothing(&self, owned: &mut Owned) {
        owned.open = false;
        for cell in owned.lanes.values() {
            let back = cell.state.lock().lane.close();
            cell.wake.notify_waiters();
            self.give_back(cell, back);
        }
    }

    fn close(&self, owned: &Owned) {
        for cell in owned.lanes.values() {
            let back = {
                let mut state = cell.state.lock();
                state.abort.cancel();
                state.lane.close()
            };
            self.write_down(std::slice::from_ref(cell), true);
            cell.wake.notify_waiters();
            self.give_back(cell, back);
        }
    }

    fn give_back(&self, cell: &Cell, jobs: Vec<Job>) {
        self.metrics.given_back.increment(jobs.len() as u64);
        jobs.into_iter().for_each(|job| job.give_back(cell.source));
    }

    /// Puts a job into its lane; one whose source is not owned under its epoch, or whose lane is paused, is given back.
    pub(crate) fn push(self: &Arc<Self>, workshop: &Arc<Workshop>, name: &LaneName, job: Job) {
        let Some(cell) = self.find_or_add(workshop, name, job.epoch) else {
            self.metrics.given_back.increment(1);
            return job.give_back(name.source);
        };
        let pushed = {
            let mut state = cell.state.lock();
            let pushed = state.lane.push(Instant::now(), job);
            self.keep_time(&cell, &mut state);
            pushed
        };
        match pushed {
            Ok(call) => self.call(workshop, &cell, call),
            Err(job) => self.give_back(&cell, vec![*job]),
        }
    }

    fn find_or_add(&self, workshop: &Workshop, name: &LaneName, epoch: Epoch) -> Option<Arc<Cell>> {
        let mut sources = self.sources.lock();
        let owned =
            sources.get_mut(&name.source).filter(|owned| owned.open && owned.source.epoch == epoch)?;
        if let Some(cell) = owned.lanes.get(&name.site) {
            return Some(cell.clone());
        }
        let cell = self.add_lane(&workshop.view(), owned, &name.site);
        self.count_lanes(&sources);
        Some(cell)
    }

    fn call(self: &Arc<Self>, workshop: &Arc<Workshop>, cell: &Arc<Cell>, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Idle => cell.wake.notify_one(),
            Call::New => {
                let run = worker::run(self.clone(), workshop.clone(), cell.clone());
                // Boxed: the future of a session is large, and a task is moved into its place.
                self.workers.spawn(Box::pin(run));
            }
        }
    }

    /// Tells the lane how an attempt went.
    pub(crate) fn ended(&self, cell: &Cell, signal: Signal) {
        let (back, paused) = {
            let mut state = cell.state.lock();
            let (paused_before, window) = (state.lane.pause().is_some(), state.lane.window(Instant::now()));
            let back = state.lane.ended(Instant::now(), signal);
            self.keep_time(cell, &mut state);
            if state.lane.window(Instant::now()) != window {
                self.windows_changed();
            }
            (back, state.lane.pause().filter(|_| !paused_before).cloned())
        };
        let Some(pause) = paused else { return };
        self.metrics.pauses.increment(1);
        let seconds = pause.until.saturating_duration_since(Instant::now()).as_secs();
        tracing::info!(source = %cell.source, site = %cell.site, seconds, reason = %pause.reason, "lane paused");
        cell.wake.notify_waiters();
        self.give_back(cell, back);
    }

    /// Asks for the next step of a worker, and calls another one when there is more to do than it can.
    pub(crate) fn next(self: &Arc<Self>, workshop: &Arc<Workshop>, cell: &Arc<Cell>) -> Next {
        let now = Instant::now();
        let (next, call) = {
            let mut state = cell.state.lock();
            let next = state.lane.next(now);
            let starts = matches!(next, Next::Start(_));
            if starts && state.lane.has_rates() {
                self.journal.note(&cell.name());
            }
            (next, if starts { state.lane.call(now) } else { Call::Nobody })
        };
        self.call(workshop, cell, call);
        next
    }

    /// A worker has gone; another one is called when work has come meanwhile.
    pub(crate) fn left(self: &Arc<Self>, workshop: &Arc<Workshop>, cell: &Arc<Cell>) {
        let call = {
            let mut state = cell.state.lock();
            state.lane.left();
            self.keep_time(cell, &mut state);
            state.lane.call(Instant::now())
        };
        self.call(workshop, cell, call);
    }

    /// Takes a recipient out of a job that has not started; false when it has, or is not here.
    #[must_use]
    pub(crate) fn recall(&self, name: &LaneName, message: MessageId, recipient: u32, attempt: u32) -> bool {
        self.find(name).is_some_and(|cell| cell.state.lock().lane.recall(message, recipient, attempt))
    }

    fn find(&self, name: &LaneName) -> Option<Arc<Cell>> {
        let sources = self.sources.lock();
        sources.get(&name.source).and_then(|owned| owned.lanes.get(&name.site)).cloned()
    }

    /// Returns the windows of every source, as shares of one in `groups`.
    #[must_use]
    pub(crate) fn windows(&self, groups: u32) -> Vec<SourceWindows> {
        let now = Instant::now();
        let share = |window: u32| window.div_ceil(groups.max(1));
        let of_source = |owned: &Owned| {
            let default = if owned.open { owned.default_window } else { 0 };
            let site = |cell: &Arc<Cell>| {
                let window = cell.state.lock().lane.window(now);
                (window != default).then(|| SiteWindow { site: cell.site.to_string(), window: share(window) })
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

    /// Returns a receiver that sees when windows are to be stated anew.
    #[must_use]
    pub(crate) fn windows_watch(&self) -> watch::Receiver<u64> {
        self.windows_changed.subscribe()
    }

    fn windows_changed(&self) {
        self.windows_changed.send_modify(|version| *version += 1);
    }

    /// Waits until every worker has gone; no lane may be open any more.
    pub(crate) async fn finished(&self) {
        self.workers.close();
        self.workers.wait().await;
    }

    fn count_lanes(&self, sources: &HashMap<SourceId, Owned>) {
        let lanes: usize = sources.values().map(|owned| owned.lanes.len()).sum();
        self.metrics.lanes.set(lanes as f64);
    }
}

impl Owned {
    fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            since: Instant::now(),
            default_window: 0,
            site_windows: BTreeMap::new(),
            open: true,
            left: false,
            lanes: HashMap::new(),
        }
    }
}

impl Cell {
    fn name(&self) -> LaneName {
        LaneName { source: self.source, site: self.site.clone() }
    }

    /// Waits to be woken.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns the source as it is now, and what is cancelled when it must not be used any more.
    pub(crate) fn source(&self) -> (Arc<Source>, CancellationToken) {
        let state = self.state.lock();
        (state.source.clone(), state.abort.clone())
    }

    /// Looks at the lane, or changes it.
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
