//! How long this process may use its sources without another renewal from the directory.
//!
//! The lease counts from before its renewal was sent, on a clock that also runs while the machine sleeps,
//! and ends earlier here than at the directory: by the possible clock drift and by a margin for steps in progress.
//! After its end no connection is opened, and no MAIL and no final dot is sent.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Time since the machine booted, sleep included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Reads the clock.
    #[must_use]
    pub fn now() -> Self {
        // The monotonic clock stops while the machine sleeps; the directory's clock does not.
        Self(postroad_env::since_boot())
    }

    /// Returns the time since the machine booted.
    #[must_use]
    pub fn since_boot(self) -> Duration {
        self.0
    }
}

/// The durations of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// How long the directory honours a renewal.
    pub length: Duration,
    /// How far the clocks may drift apart in that time.
    pub drift: Duration,
    /// How much earlier the owner stops.
    pub margin: Duration,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(10),
            drift: Duration::from_secs(1),
            margin: Duration::from_secs(1),
        }
    }
}

impl LeaseTerms {
    /// Returns how long after sending a renewal the owner may use its sources.
    #[must_use]
    pub fn usable(&self) -> Duration {
        self.length.saturating_sub(self.drift).saturating_sub(self.margin)
    }

    /// Returns how long to wait between renewals.
    #[must_use]
    pub fn renew_after(&self) -> Duration {
        self.length / 3
    }
}

/// When the lease ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeaseClock {
    /// `None` when there is no lease.
    ends: Option<BootTime>,
}

impl LeaseClock {
    /// A renewal sent at `sent` was granted; the answer to an earlier renewal does not shorten the lease.
    pub fn renewed(&mut self, sent: BootTime, terms: &LeaseTerms) {
        let ends = BootTime(sent.0 + terms.usable());
        self.ends = Some(self.ends.map_or(ends, |known| known.max(ends)));
    }

    /// The directory refused: no source may be used from now on.
    pub fn revoked(&mut self) {
        self.ends = None;
    }

    /// Returns how much is left; `None` when there is no lease.
    #[must_use]
    pub fn remaining(&self, now: BootTime) -> Option<Duration> {
        self.ends.map(|ends| ends.0.saturating_sub(now.0)).filter(|left| !left.is_zero())
    }
}

/// The lease, shared by all workers.
#[derive(Debug)]
pub struct Lease {
    clock: Mutex<LeaseClock>,
    /// End of the lease in microseconds of boot time, 0 for none: read before every MAIL and every final dot.
    ends_micros: AtomicU64,
    valid: watch::Sender<bool>,
}

impl Default for Lease {
    fn default() -> Self {
        Self { clock: Mutex::default(), ends_micros: AtomicU64::new(0), valid: watch::channel(false).0 }
    }
}

impl Lease {
    /// Returns true while sources may be used.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let now = u64::try_from(BootTime::now().0.as_micros()).unwrap_or(u64::MAX);
        now < self.ends_micros.load(Ordering::Acquire)
    }

    /// Returns a receiver that sees the lease end and begin; [`Lease::is_valid`] sees it sooner.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.valid.subscribe()
    }

    /// Returns how much is left.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.clock.lock().remaining(BootTime::now())
    }

    /// A claim or renewal sent at `sent` was granted.
    pub fn renewed(&self, sent: BootTime, terms: &LeaseTerms) {
        self.clock.lock().renewed(sent, terms);
        self.publish();
    }

    /// The directory refused.
    pub fn revoked(&self) {
        self.clock.lock().revoked();
        self.publish();
    }

    /// Notifies the watchers if the lease has ended; returns how long to wait until the next check.
    ///
    /// Timers stop while the machine sleeps, so this waits in short steps.
    pub fn check(&self) -> Duration {
        const CHECK_AGAIN: Duration = Duration::from_millis(200);
        self.publish().map_or(CHECK_AGAIN, |left| left.min(CHECK_AGAIN))
    }

    fn publish(&self) -> Option<Duration> {
        let clock = self.clock.lock();
        let micros = clock.ends.map_or(0, |ends| u64::try_from(ends.0.as_micros()).unwrap_or(u64::MAX));
        self.ends_micros.store(micros, Ordering::Release);
        let left = clock.remaining(BootTime::now());
        self.valid.send_if_modified(|valid| std::mem::replace(valid, left.is_some()) != left.is_some());
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootTime {
        BootTime(Duration::from_millis(millis))
    }

    #[test]
    fn r_31_the_lease_counts_from_before_the_renewal_was_sent() {
        let terms = LeaseTerms::default();
        let mut clock = LeaseClock::default();
        assert_eq!(clock.remaining(at(0)), None);
        clock.renewed(at(1_000), &terms);
        // The answer took four seconds: they count.
        assert_eq!(clock.remaining(at(5_000)), Some(Duration::from_secs(4)));
        assert_eq!(clock.remaining(at(8_999)), Some(Duration::from_millis(1)));
        assert_eq!(clock.remaining(at(9_000)), None);
    }

    #[test]
    fn a_late_answer_does_not_shorten_the_lease() {
        let terms = LeaseTerms::default();
        let mut clock = LeaseClock::default();
        clock.renewed(at(4_000), &terms);
        clock.renewed(at(1_000), &terms);
        assert_eq!(clock.remaining(at(4_000)), Some(terms.usable()));
        clock.revoked();
        assert_eq!(clock.remaining(at(4_000)), None);
    }

    #[test]
    fn a_lease_no_longer_than_drift_and_margin_is_none() {
        let second = Duration::from_secs(1);
        let terms = LeaseTerms { length: second, drift: second, margin: second };
        let mut clock = LeaseClock::default();
        clock.renewed(at(1_000), &terms);
        assert_eq!(clock.remaining(at(1_000)), None);
    }

    #[test]
    fn watchers_see_the_lease_begin_and_end() {
        let lease = Lease::default();
        let mut watch = lease.watch();
        assert!(!lease.is_valid() && !*watch.borrow_and_update());
        lease.renewed(BootTime::now(), &LeaseTerms::default());
        assert!(lease.is_valid() && watch.has_changed().unwrap() && *watch.borrow_and_update());
        lease.check();
        lease.renewed(BootTime::now(), &LeaseTerms::default());
        assert!(!watch.has_changed().unwrap());
        lease.revoked();
        assert!(!lease.is_valid() && watch.has_changed().unwrap());
    }
}
