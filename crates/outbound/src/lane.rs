//! One lane: the jobs from one source to one site, and whether the next may start.
//!
//! A pure value: workers ask [`Lane::next`] and tell how it went with [`Lane::ended`]; the clock is theirs.
//! A worker has at most one connection, so the number of workers is what the cap on connections caps.
//!
//! A lane that pauses holds no jobs: they are given back at once, its window is closed, and they wait in the queue.
//! There another source of the pool may take them, their expiry is watched, and no attempt is counted
//! that nobody made. Reporting them as failed instead would cost a commit and an event for each,
//! and would let their retry schedules run ahead of the site.

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

#[cfg(test)]
mod tests;

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

/// A job that waits longer than this gets memory of its own: until then it shares the frame it came in,
/// and in a slow lane every job might keep another frame from being freed.
const UNPIN_AFTER: Duration = Duration::from_secs(2);

/// How long a lane is remembered that nobody uses.
const REMEMBER_FOR: Duration = Duration::from_secs(600);

/// How long an address family is avoided that did not work where the other one did (D-016).
const AVOID_FOR: Duration = Duration::from_secs(600);

/// The state of one lane.
#[derive(Debug)]
pub struct Lane {
    config: LaneConfig,
    limits: LaneLimits,
    rates: RateLimiter,
    feedback: Feedback,
    jobs: VecDeque<Job>,
    /// So many jobs at the front hold on to no more memory than their own content.
    unpinned: usize,
    /// Workers, which have or may get a connection each.
    workers: u32,
    /// Workers that are closing their connection to go.
    leaving: u32,
    /// Workers that have been called and have not come.
    called: u32,
    /// Workers that wait for a job or for a rate.
    idle: u32,
    pause: Option<Pause>,
    closed: bool,
    last_used: Instant,
    ipv6_avoided_until: Option<Instant>,
}

/// Why a lane does nothing, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// When it is tried again.
    pub until: Instant,
    /// What the site said or what went wrong.
    pub reason: Box<str>,
}

/// What a worker is to do.
#[derive(Debug)]
pub enum Next {
    /// This; the lane's rates have been charged.
    Start(Box<Job>),
    /// Wait to be woken, or until then.
    Wait(Option<Instant>),
    /// Close the connection and go.
    Leave,
}

/// Who is to be told that there is work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Nobody.
    Nobody,
    /// A worker that waits.
    Idle,
    /// A new worker: it has been counted.
    New,
}

/// What an attempt says about the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It took part, whatever it said about the recipients.
    Served,
    /// No session could be had, or it broke.
    Failed(Box<str>),
    /// It asked this source to slow down or to go away.
    Refused(Box<str>),
    /// Nothing.
    Silent,
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
            unpinned: 0,
            workers: 0,
            leaving: 0,
            called: 0,
            idle: 0,
            pause: None,
            closed: false,
            last_used: now,
            ipv6_avoided_until: None,
        }
    }

    /// Takes a job.
    ///
    /// # Errors
    /// The lane is paused or closed: the job is to be given back.
    pub fn push(&mut self, now: Instant, job: Job) -> Result<Call, Box<Job>> {
        if self.closed || self.is_paused(now) {
            return Err(Box::new(job));
        }
        self.jobs.push_back(job);
        Ok(self.call(now))
    }

    /// Returns who is to be told that there is work, and counts a new worker.
    pub fn call(&mut self, now: Instant) -> Call {
        let uncalled = self.jobs.len() > self.called as usize;
        if !uncalled || self.closed || self.is_paused(now) {
            return Call::Nobody;
        }
        let may_start = self.rates.ready_at(now).is_some_and(|at| at <= now);
        if !may_start && self.workers > 0 {
            // One worker waits for the rates to allow the next.
            return Call::Nobody;
        }
        if self.idle > 0 {
            return Call::Idle;
        }
        if self.workers >= self.workers_max() {
            return Call::Nobody;
        }
        self.workers += 1;
        self.called += 1;
        Call::New
    }

    /// A worker that was called has come.
    pub fn arrived(&mut self) {
        self.called -= 1;
    }

    /// Decides what a worker does next. One that waited says so with [`Lane::woken`] before it asks again,
    /// and one that is to leave says [`Lane::left`] when its connection is closed.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.closed || self.is_paused(now) || self.workers - self.leaving > self.workers_max() {
            return self.leave();
        }
        if self.jobs.is_empty() {
            self.idle += 1;
            return Next::Wait(None);
        }
        match self.rates.ready_at(now) {
            Some(at) if at <= now => {
                let Some(job) = self.jobs.pop_front() else { return Next::Wait(None) };
                self.unpinned = self.unpinned.saturating_sub(1);
                self.rates.take(now);
                self.last_used = now;
                Next::Start(Box::new(job))
            }
            // One is enough to wait for a time that is far.
            at if self.idle > 0 && at.is_none_or(|at| at > now + self.config.idle) => self.leave(),
            at => {
                self.idle += 1;
                Next::Wait(at)
            }
        }
    }

    /// A worker has stopped waiting.
    pub fn woken(&mut self) {
        self.idle -= 1;
    }

    /// A worker has waited long enough and would go; false when there is work after all.
    pub fn may_leave(&mut self) -> bool {
        if self.jobs.is_empty() {
            self.leave();
        }
        self.jobs.is_empty()
    }

    /// A worker that was to leave has gone.
    pub fn left(&mut self) {
        self.workers -= 1;
        self.leaving -= 1;
    }

    /// A worker goes, though it was not told to.
    pub fn leave(&mut self) -> Next {
        self.leaving += 1;
        Next::Leave
    }

    /// A closed lane is to be used again; what was counted stays counted.
    pub fn reopen(&mut self) {
        self.closed = false;
    }

    /// An attempt has ended; returns the jobs that are to be given back, if the lane pauses.
    pub fn ended(&mut self, now: Instant, signal: Signal) -> Vec<Job> {
        let limit = self.limits.connections_max;
        // Whoever was under way when the pause began has nothing to add.
        let pause = match signal {
            _ if self.is_paused(now) => None,
            Signal::Silent => None,
            Signal::Served => {
                self.feedback.succeeded(limit);
                None
            }
            Signal::Failed(reason) => self.feedback.failed(limit).map(|length| (length, reason)),
            Signal::Refused(reason) => Some((self.feedback.pause(), reason)),
        };
        let Some((length, reason)) = pause else { return Vec::new() };
        self.pause = Some(Pause { until: now + length, reason });
        self.take(self.jobs.len())
    }

    /// Charges the rates for another transaction of the same job; false when it must not be now.
    pub fn charge(&mut self, now: Instant) -> bool {
        let may_start = self.rates.ready_at(now).is_some_and(|at| at <= now) && !self.is_paused(now);
        if may_start {
            self.rates.take(now);
        }
        may_start
    }

    fn take(&mut self, count: usize) -> Vec<Job> {
        self.unpinned = self.unpinned.saturating_sub(count);
        self.jobs.drain(..count).collect()
    }

    /// Takes a recipient of a job that waits out of it; false when it has started.
    pub fn recall(&mut self, message: MessageId, recipient: u32, attempt: u32) -> bool {
        let the_one = |job: &Job, place: usize| {
            let found = &job.recipients[place];
            job.message == message && found.number == recipient && found.attempt == attempt
        };
        for at in 0..self.jobs.len() {
            let Some(job) = self.jobs.get_mut(at) else { break };
            let Some(place) = (0..job.recipients.len()).find(|place| the_one(job, *place)) else { continue };
            job.recipients.remove(place);
            if job.recipients.is_empty() {
                self.jobs.remove(at);
                self.unpinned -= usize::from(at < self.unpinned);
            }
            return true;
        }
        false
    }

    /// Does what is due: ends a pause and returns the jobs that have waited too long.
    ///
    /// Given back, they go to the head of the queue again, where it is seen that their message has expired.
    pub fn tick(&mut self, now: Instant) -> Vec<Job> {
        if self.pause.as_ref().is_some_and(|pause| pause.until <= now) {
            self.pause = None;
        }
        let overdue = |job: &Job| job.received + self.config.wait_max <= now;
        let overdue = self.take(self.jobs.iter().take_while(|job| overdue(job)).count());
        while let Some(job) = self.jobs.get_mut(self.unpinned).filter(|job| job.received + UNPIN_AFTER <= now)
        {
            job.unpin();
            self.unpinned += 1;
        }
        overdue
    }

    /// Returns when [`Lane::tick`] has something to do.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        let overdue = self.jobs.front().map(|job| job.received + self.config.wait_max);
        let pinned = self.jobs.get(self.unpinned).map(|job| job.received + UNPIN_AFTER);
        let pause = self.pause.as_ref().map(|pause| pause.until);
        let first = [overdue, pinned, pause].into_iter().flatten().min();
        first.or_else(|| self.forgettable_at())
    }

    /// Returns true when nothing would be lost with this lane.
    #[must_use]
    pub fn is_forgettable(&self, now: Instant) -> bool {
        self.forgettable_at().is_some_and(|at| at <= now) && self.pause.is_none()
    }

    fn forgettable_at(&self) -> Option<Instant> {
        let longest = self.limits.rates.iter().map(|rate| rate.per).max().unwrap_or_default();
        // A window frees in steps of a sixtieth.
        let at = self.last_used + REMEMBER_FOR.max(longest + longest / 60);
        (self.workers == 0 && self.jobs.is_empty()).then_some(at)
    }

    /// Stops for good; returns the jobs that are to be given back.
    pub fn close(&mut self) -> Vec<Job> {
        self.closed = true;
        self.take(self.jobs.len())
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

    /// Takes over other caps; what was counted stays counted.
    pub fn set_limits(&mut self, limits: LaneLimits) {
        if limits.rates != self.limits.rates {
            self.rates.set_limits(rates(&limits));
        }
        self.limits = limits;
    }

    /// Returns how many deliveries of this lane may be assigned and not reported.
    #[must_use]
    pub fn window(&self, now: Instant) -> u32 {
        if self.closed || self.is_paused(now) {
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

    /// Returns true while a worker has or may get a connection.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.workers > 0
    }

    /// Returns how many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.jobs.len()
    }

    /// Returns how many messages may be sent over one connection.
    #[must_use]
    pub fn messages_per_connection(&self) -> u32 {
        self.limits.messages_per_connection_max.max(1)
    }

    /// Returns true while IPv6 is avoided.
    #[must_use]
    pub fn avoids_ipv6(&self, now: Instant) -> bool {
        self.ipv6_avoided_until.is_some_and(|until| until > now)
    }

    /// IPv4 worked where IPv6 did not.
    pub fn avoid_ipv6(&mut self, now: Instant) {
        self.ipv6_avoided_until = Some(now + AVOID_FOR);
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.until > now)
    }

    fn workers_max(&self) -> u32 {
        self.feedback.connections(self.limits.connections_max)
    }
}

/// Returns the window of a lane in good order: no more than its rates let through while a job may wait.
#[must_use]
pub fn window_of(limits: &LaneLimits, wait_max: Duration) -> u32 {
    let through = |rate: &postroad_directory::Rate| {
        let waits = wait_max.as_nanos() / rate.per.as_nanos().max(1);
        // Within one period all of it may go at once.
        u32::try_from(u128::from(rate.messages) * waits.max(1)).unwrap_or(u32::MAX)
    };
    let by_rates = limits.rates.iter().map(through).min().unwrap_or(u32::MAX);
    let by_connections = if limits.connections_max == 0 { 0 } else { u32::MAX };
    limits.window.min(by_rates).min(by_connections)
}

fn rates(limits: &LaneLimits) -> impl Iterator<Item = (u64, Duration)> + '_ {
    limits.rates.iter().map(|rate| (rate.messages, rate.per))
}
