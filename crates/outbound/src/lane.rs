//! One lane: the jobs from one source to one site, and whether the next may start.
//!
//! A pure value: workers call [`Lane::next`] for their next step and report how it went with [`Lane::ended`];
//! they pass the time. A worker has at most one connection, so the connection limit is a limit on workers.
//!
//! A paused lane holds no jobs: they are given back at once, its window is closed, and they wait in the queue.
//! There another source of the pool may send them, and they can expire. Reporting them as failed instead would count
//! an attempt that was not made, cost a commit and an event each, and advance their retry schedules.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use postroad_core::MessageId;
use postroad_directory::LaneLimits;

use crate::{
    feedback::{Feedback, FeedbackConfig},
    job::Job,
    rate::{RateLimiter, WindowRecord},
};

mod per_connection;

#[cfg(test)]
mod tests;

use per_connection::MessagesPerConnection;

/// Bounds of a lane.
#[derive(Clone, Copy, Debug)]
pub struct LaneConfig {
    /// Concurrency and pauses.
    pub feedback: FeedbackConfig,
    /// A job that could not be started for this long is given back.
    pub wait_max: Duration,
    /// How long a worker waits for the next job with its connection open.
    pub idle: Duration,
}

/// The window of a lane that is about to recover from a pause.
const RECOVERY_WINDOW: u32 = 10;

/// A job that waits longer than this gets its own copy of its content: until then it shares the frame in which it came,
/// and in a slow lane every job might keep another frame in memory.
const COPY_AFTER: Duration = Duration::from_secs(2);

/// The pause after a fault of this node: long enough to be cheap when each attempt fails, and no judgement of the site.
const LOCAL_PAUSE: Duration = Duration::from_secs(5);

/// How long an unused lane is remembered.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How long IPv6 is avoided after it failed where IPv4 worked (D-016).
const AVOID_FOR: Duration = Duration::from_secs(600);

/// The state of one lane.
#[derive(Debug)]
pub struct Lane {
    config: LaneConfig,
    limits: LaneLimits,
    rates: RateLimiter,
    feedback: Feedback,
    jobs: VecDeque<Job>,
    /// How many jobs at the front have their own copy of their content.
    copied: usize,
    /// Workers; each has or may open a connection.
    workers: u32,
    /// Workers that are closing their connection to exit.
    exiting: u32,
    /// Workers that were created and have not started.
    starting: u32,
    /// Workers that wait for a job or for the rate limit.
    idle: u32,
    /// Connections that are no worker's.
    taken: u32,
    pause: Option<Pause>,
    closed: bool,
    /// An operator has suspended it.
    suspended: bool,
    last_used: Instant,
    ipv6_avoided_until: Option<Instant>,
    per_connection: MessagesPerConnection,
}

/// Why a lane is paused, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// When it ends.
    pub until: Instant,
    /// The site's reply, or the error.
    pub reason: Box<str>,
}

/// What people may want to know of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Connections that are open or may be opened: one for each worker, and those taken for something else.
    pub connections: u32,
    /// The most connections at the moment.
    pub connections_max: u32,
    /// Jobs that wait.
    pub waiting: u32,
    /// Deliveries that the receiver accepted.
    pub delivered: u64,
    /// Attempts that ended otherwise.
    pub failed: u64,
    /// The pause that it is in.
    pub pause: Option<Pause>,
    /// When its rates allow the next message.
    pub rate: RateReady,
}

/// When the rates of a lane allow the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateReady {
    /// At once.
    Now,
    /// At this time.
    At(Instant),
    /// Never: a rate is 0.
    Never,
}

/// The next step of a worker.
#[derive(Debug)]
pub enum Next {
    /// Send this job; it counts in the lane's rates.
    Start(Box<Job>),
    /// Wait to be woken, or until this time.
    Wait(Option<Instant>),
    /// Close the connection and exit.
    Exit,
}

/// Which worker to wake for the next job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// None.
    None,
    /// One that waits.
    Idle,
    /// A new one; the lane has counted it.
    New,
}

/// What an attempt says about the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It answered, whether it accepted the recipients or not.
    Served,
    /// A session could not be opened, or broke, or the site asked for mail more slowly.
    Failed(Box<str>),
    /// It asked this source to slow down, or refused it.
    Refused(Box<str>),
    /// This node could not even try, for this reason: the site is not at fault.
    Local(Box<str>),
    /// It says nothing about the site.
    Silent,
}

impl Signal {
    /// Returns the more serious of two signals of one attempt.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        if other.rank() >= self.rank() { other } else { self }
    }

    /// Returns the less serious of two signals, as when one of two hosts of a site refuses. A host that this node could
    /// not even try says nothing about the site, so what the other one says counts.
    #[must_use]
    pub fn milder(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Local(_), _) => other,
            (_, Self::Local(_)) => self,
            _ if other.rank() < self.rank() => other,
            _ => self,
        }
    }

    /// Returns true when the site must not be asked for more before the lane has learned of this.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Refused(_))
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Silent => 0,
            Self::Served | Self::Local(_) => 1,
            Self::Failed(_) => 2,
            Self::Refused(_) => 3,
        }
    }
}

impl Lane {
    /// Makes a lane; `rates` are those of `limits`, with what was sent before this process used the lane.
    #[must_use]
    pub fn new(config: LaneConfig, limits: LaneLimits, rates: RateLimiter, now: Instant) -> Self {
        Self {
            rates,
            limits,
            feedback: Feedback::new(config.feedback),
            config,
            jobs: VecDeque::new(),
            copied: 0,
            workers: 0,
            exiting: 0,
            starting: 0,
            idle: 0,
            taken: 0,
            pause: None,
            closed: false,
            suspended: false,
            last_used: now,
            ipv6_avoided_until: None,
            per_connection: MessagesPerConnection::default(),
        }
    }

    /// Adds a job; returns which worker to wake. One that a person asked for ends a pause.
    ///
    /// # Errors
    /// The lane is paused, suspended or closed: the caller must give the job back.
    pub fn push(&mut self, now: Instant, job: Job) -> Result<Wake, Box<Job>> {
        if job.retry_now && !self.suspended {
            self.pause = None;
        }
        if self.is_stopped(now) {
            return Err(Box::new(job));
        }
        self.jobs.push_back(job);
        Ok(self.wake(now))
    }

    /// Returns which worker to wake; a new one is counted.
    pub fn wake(&mut self, now: Instant) -> Wake {
        let unclaimed = self.jobs.len() > self.starting as usize;
        if !unclaimed || self.is_stopped(now) {
            return Wake::None;
        }
        let may_start = self.rates.ready_at(now).is_some_and(|at| at <= now);
        if !may_start && self.workers > 0 {
            // One worker already waits for the rates to allow the next job.
            return Wake::None;
        }
        if self.idle > 0 {
            return Wake::Idle;
        }
        if self.workers >= self.workers_max() || self.connections() >= self.limits.connections_max {
            return Wake::None;
        }
        self.workers += 1;
        self.starting += 1;
        Wake::New
    }

    /// Takes a connection that is no worker's; false when all are in use. No worker has to exit for it.
    pub fn take_connection(&mut self) -> bool {
        let is_free = self.connections() < self.limits.connections_max;
        self.taken += u32::from(is_free);
        is_free
    }

    /// A connection that was taken is closed.
    pub fn return_connection(&mut self) {
        self.taken -= 1;
    }

    fn connections(&self) -> u32 {
        self.workers + self.taken
    }

    /// Returns true once it is closed: nothing starts.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// A new worker has started.
    pub fn worker_started(&mut self) {
        self.starting -= 1;
    }

    /// Decides the next step of a worker. After [`Next::Wait`] the worker calls [`Lane::worker_woken`] first,
    /// after [`Next::Exit`] it closes its connection and calls [`Lane::worker_exited`].
    pub fn next(&mut self, now: Instant) -> Next {
        if self.is_stopped(now) || self.workers - self.exiting > self.workers_max() {
            return self.begin_exit();
        }
        if self.jobs.is_empty() {
            self.idle += 1;
            return Next::Wait(None);
        }
        match self.rates.ready_at(now) {
            Some(at) if at <= now => {
                let job = self.jobs.pop_front().expect("not empty, as checked above");
                self.copied = self.copied.saturating_sub(1);
                self.rates.take(now);
                self.last_used = now;
                Next::Start(Box::new(job))
            }
            // For a distant time one waiting worker is enough.
            at if self.idle > 0 && at.is_none_or(|at| at > now + self.config.idle) => self.begin_exit(),
            at => {
                self.idle += 1;
                Next::Wait(at)
            }
        }
    }

    /// A worker has stopped waiting.
    pub fn worker_woken(&mut self) {
        self.idle -= 1;
    }

    /// A worker has been idle for too long; returns false when there is a job after all, otherwise the worker exits.
    pub fn try_exit(&mut self) -> bool {
        if self.jobs.is_empty() {
            self.begin_exit();
        }
        self.jobs.is_empty()
    }

    /// A worker that was to exit has closed its connection.
    pub fn worker_exited(&mut self) {
        self.workers -= 1;
        self.exiting -= 1;
    }

    /// A worker is about to exit.
    pub fn begin_exit(&mut self) -> Next {
        self.exiting += 1;
        Next::Exit
    }

    /// Opens a closed lane again; its rates keep their counts.
    pub fn reopen(&mut self) {
        self.closed = false;
    }

    /// An attempt has ended; returns the jobs to give back, if the lane pauses.
    pub fn ended(&mut self, now: Instant, signal: Signal) -> Vec<Job> {
        let limit = self.limits.connections_max;
        // Attempts that were in progress when the pause began do not prolong it.
        let pause = match signal {
            _ if self.is_paused(now) => None,
            Signal::Silent => None,
            Signal::Served => {
                self.feedback.succeeded(limit);
                None
            }
            Signal::Failed(reason) => self.feedback.failed(limit).map(|length| (length, reason)),
            Signal::Refused(reason) => Some((self.feedback.pause(), reason)),
            Signal::Local(reason) => Some((LOCAL_PAUSE, reason)),
        };
        let Some((length, reason)) = pause else { return Vec::new() };
        self.pause = Some(Pause { until: now + length, reason });
        self.take(self.jobs.len())
    }

    /// Counts another transaction of the same job in the rates; false when they do not allow it now, or the lane starts
    /// nothing.
    pub fn try_count_transaction(&mut self, now: Instant) -> bool {
        let is_ready = self.rates.ready_at(now).is_some_and(|at| at <= now);
        let may_start = is_ready && !self.is_stopped(now);
        if may_start {
            self.rates.take(now);
        }
        may_start
    }

    fn take(&mut self, count: usize) -> Vec<Job> {
        self.copied = self.copied.saturating_sub(count);
        self.jobs.drain(..count).collect()
    }

    /// Removes the waiting jobs that `wanted` says, to be given back.
    pub fn remove_jobs(&mut self, wanted: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut removed = Vec::new();
        if !self.jobs.iter().any(&wanted) {
            return removed;
        }
        let copied = self.copied;
        for (index, job) in std::mem::take(&mut self.jobs).into_iter().enumerate() {
            if wanted(&job) {
                self.copied -= usize::from(index < copied);
                removed.push(job);
            } else {
                self.jobs.push_back(job);
            }
        }
        removed
    }

    /// Removes a recipient from a waiting job; false when no waiting job has it.
    pub fn recall(&mut self, message: MessageId, recipient: u32, attempt: u32) -> bool {
        let is_it = |job: &Job, index: usize| {
            let found = &job.recipients[index];
            job.message == message && found.number == recipient && found.attempt == attempt
        };
        for at in 0..self.jobs.len() {
            let Some(job) = self.jobs.get_mut(at) else { break };
            let Some(index) = (0..job.recipients.len()).find(|index| is_it(job, *index)) else { continue };
            job.recipients.remove(index);
            if job.recipients.is_empty() {
                self.jobs.remove(at);
                self.copied -= usize::from(at < self.copied);
            }
            return true;
        }
        false
    }

    /// Ends a pause that is over, and returns the jobs that have waited too long, to be given back.
    ///
    /// In the queue they can expire.
    pub fn tick(&mut self, now: Instant) -> Vec<Job> {
        if self.pause.as_ref().is_some_and(|pause| pause.until <= now) {
            self.pause = None;
        }
        let overdue = |job: &Job| job.received + self.config.wait_max <= now;
        let overdue = self.take(self.jobs.iter().take_while(|job| overdue(job)).count());
        while let Some(job) = self.jobs.get_mut(self.copied).filter(|job| job.received + COPY_AFTER <= now) {
            job.copy_content();
            self.copied += 1;
        }
        overdue
    }

    /// Returns when [`Lane::tick`] must be called next.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        let overdue = self.jobs.front().map(|job| job.received + self.config.wait_max);
        let shared = self.jobs.get(self.copied).map(|job| job.received + COPY_AFTER);
        let pause = self.pause.as_ref().map(|pause| pause.until);
        let first = [overdue, shared, pause].into_iter().flatten().min();
        first.or_else(|| self.forgettable_at())
    }

    /// Returns true when the lane has no state worth keeping.
    #[must_use]
    pub fn is_forgettable(&self, now: Instant) -> bool {
        self.forgettable_at().is_some_and(|at| at <= now) && self.pause.is_none()
    }

    fn forgettable_at(&self) -> Option<Instant> {
        let longest = self.limits.rates.iter().map(|rate| rate.per).max().unwrap_or_default();
        // A window is counted in slots of a sixtieth.
        let at = self.last_used + FORGET_AFTER.max(longest + longest / 60);
        (self.connections() == 0 && self.jobs.is_empty()).then_some(at)
    }

    /// Closes the lane; returns the jobs to give back.
    pub fn close(&mut self) -> Vec<Job> {
        self.closed = true;
        self.take(self.jobs.len())
    }

    /// Returns true while an operator has suspended it.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Suspends the lane, or resumes it; returns the jobs to give back. Transactions under way finish.
    pub fn set_suspended(&mut self, suspended: bool) -> Vec<Job> {
        self.suspended = suspended;
        if suspended { self.take(self.jobs.len()) } else { Vec::new() }
    }

    /// Returns what people may want to know of it; the numbers of deliveries are counted elsewhere.
    #[must_use]
    pub fn observe(&self, now: Instant) -> Observation {
        Observation {
            connections: self.connections(),
            connections_max: self.workers_max(),
            waiting: u32::try_from(self.jobs.len()).unwrap_or(u32::MAX),
            delivered: 0,
            failed: 0,
            pause: self.pause.clone().filter(|pause| pause.until > now),
            rate: match self.rates.ready_at(now) {
                None => RateReady::Never,
                Some(at) if at <= now => RateReady::Now,
                Some(at) => RateReady::At(at),
            },
        }
    }

    /// Returns what the lane's rates have counted; empty without rates.
    #[must_use]
    pub fn record(&self, now: Instant) -> Vec<WindowRecord> {
        self.rates.record(now)
    }

    /// Returns true when the lane has rates.
    #[must_use]
    pub fn has_rates(&self) -> bool {
        !self.limits.rates.is_empty()
    }

    /// Changes the limits; the rates keep their counts.
    pub fn set_limits(&mut self, limits: LaneLimits) {
        if limits.rates != self.limits.rates {
            self.rates.set_limits(rates(&limits));
        }
        self.limits = limits;
    }

    /// Returns how many deliveries of this lane may be assigned and not reported.
    #[must_use]
    pub fn window(&self, now: Instant) -> u32 {
        if self.is_stopped(now) {
            0
        } else if self.feedback.is_recovering() {
            self.open_window().min(RECOVERY_WINDOW)
        } else {
            self.open_window()
        }
    }

    fn open_window(&self) -> u32 {
        window_of(&self.limits, self.config.wait_max)
    }

    /// Returns why the lane is paused.
    #[must_use]
    pub fn pause(&self) -> Option<&Pause> {
        self.pause.as_ref()
    }

    /// Returns true while a connection is open or may be opened.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connections() > 0
    }

    /// Returns how many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.jobs.len()
    }

    /// Returns how many messages may be sent over one connection.
    #[must_use]
    pub fn messages_per_connection(&self) -> u32 {
        self.per_connection.limit(self.limits.messages_per_connection_max)
    }

    /// The site ended a connection after this many messages.
    pub fn connection_ended_after(&mut self, messages: u32) {
        self.per_connection.ended_after(messages);
    }

    /// A connection carried as many messages as it may.
    pub fn connection_filled(&mut self) {
        self.per_connection.filled();
    }

    /// Returns true while IPv6 is avoided.
    #[must_use]
    pub fn avoids_ipv6(&self, now: Instant) -> bool {
        self.ipv6_avoided_until.is_some_and(|until| until > now)
    }

    /// IPv4 worked where IPv6 failed.
    pub fn avoid_ipv6(&mut self, now: Instant) {
        self.ipv6_avoided_until = Some(now + AVOID_FOR);
    }

    /// Nothing starts.
    fn is_stopped(&self, now: Instant) -> bool {
        self.closed || self.suspended || self.is_paused(now)
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.until > now)
    }

    fn workers_max(&self) -> u32 {
        self.feedback.connections(self.limits.connections_max)
    }
}

/// Returns the window of an open lane: no more than its rates allow while a job may wait.
#[must_use]
pub fn window_of(limits: &LaneLimits, wait_max: Duration) -> u32 {
    let allowed = |rate: &postroad_directory::Rate| {
        let waits = wait_max.as_nanos() / rate.per.as_nanos().max(1);
        // Within one period all messages may go at once.
        u32::try_from(u128::from(rate.messages) * waits.max(1)).unwrap_or(u32::MAX)
    };
    let by_rates = limits.rates.iter().map(allowed).min().unwrap_or(u32::MAX);
    let by_connections = if limits.connections_max == 0 { 0 } else { u32::MAX };
    limits.window.min(by_rates).min(by_connections)
}

fn rates(limits: &LaneLimits) -> impl Iterator<Item = (u64, Duration)> + '_ {
    limits.rates.iter().map(|rate| (rate.messages, rate.per))
}
