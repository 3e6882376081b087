//! How long this process may use its sources without hearing from the directory again.
//!
//! The lease counts from before its renewal was sent, on a clock that also runs while the machine sleeps,
//! and ends earlier here than at the directory: by the drift the clocks may have and by a margin for what is under way.
//! After its end nothing is connected, no MAIL is sent and no final dot.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// Time since the machine was started, sleep included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Reads the clock.
    #[must_use]
    pub fn now() -> Self {
        // CLOCK_MONOTONIC stands still while the machine sleeps, and others' leases do not.
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Self(Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// Returns the time since the machine was started.
    #[must_use]
    pub fn since_boot(self) -> Duration {
        self.0
    }
}

/// What directory and owner have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// How long a renewal counts at the directory.
    pub length: Duration,
    /// How far the clocks may drift apart in that time.
    pub drift: Duration,
    /// What the owner stops earlier by.
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
    /// Returns how long after a renewal was sent the owner may go on.
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
    /// A renewal sent at `sent` was granted; an answer that overtook a later one changes nothing.
    pub fn renewed(&mut self, sent: BootTime, terms: &LeaseTerms) {
        let ends = BootTime(sent.0 + terms.usable());
        self.ends = Some(self.ends.map_or(ends, |known| known.max(ends)));
    }

    /// The directory said no: nothing may be used from now on.
    pub fn revoked(&mut self) {
        self.ends = None;
    }

    /// Returns how much is left; `None` when there is no lease.
    #[must_use]
    pub fn remaining(&self, now: BootTime) -> Option<Duration> {
        self.ends.map(|ends| ends.0.saturating_sub(now.0)).filter(|left| !left.is_zero())
    }
}

/// The lease as everyone who sends mail asks for it.
#[derive(Debug)]
pub struct Lease {
    clock: Mutex<LeaseClock>,
    /// End of the lease in microseconds of boot time, 0 for none: asked before every MAIL and every final dot.
    ends_micros: AtomicU64,
    held: watch::Sender<bool>,
}

impl Default for Lease {
    fn default() -> Self {
        Self { clock: Mutex::default(), ends_micros: AtomicU64::new(0), held: watch::channel(false).0 }
    }
}

impl Lease {
    /// Returns true while sources may be used.
    #[must_use]
    pub fn holds(&self) -> bool {
        let now = u64::try_from(BootTime::now().0.as_micros()).unwrap_or(u64::MAX);
        now < self.ends_micros.load(Ordering::Acquire)
    }

    /// Returns a receiver that sees the lease end and begin; [`Lease::holds`] knows sooner.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.held.subscribe()
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

    /// The directory said no.
    pub fn revoked(&self) {
        self.clock.lock().revoked();
        self.publish();
    }

    /// Tells the watchers when the lease is over; returns how long to wait before looking again.
    ///
    /// Timers stand still while the machine sleeps, so one must not wait for the whole of the lease.
    pub fn check(&self) -> Duration {
        const LOOK_AGAIN: Duration = Duration::from_millis(200);
        self.publish().map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN))
    }

    fn publish(&self) -> Option<Duration> {
        let clock = self.clock.lock();
        let micros = clock.ends.map_or(0, |ends| u64::try_from(ends.0.as_micros()).unwrap_or(u64::MAX));
        self.ends_micros.store(micros, Ordering::Release);
        let left = clock.remaining(BootTime::now());
        self.held.send_if_modified(|held| std::mem::replace(held, left.is_some()) != left.is_some());
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
        // The answer took four seconds: they are gone.
        assert_eq!(clock.remaining(at(5_000)), Some(Duration::from_secs(4)));
        assert_eq!(clock.remaining(at(8_999)), Some(Duration::from_millis(1)));
        assert_eq!(clock.remaining(at(9_000)), None);
    }

    #[test]
    fn an_answer_that_was_overtaken_does_not_shorten_the_lease() {
        let terms = LeaseTerms::default();
        let mut clock = LeaseClock::default();
        clock.renewed(at(4_000), &terms);
        clock.renewed(at(1_000), &terms);
        assert_eq!(clock.remaining(at(4_000)), Some(terms.usable()));
        clock.revoked();
        assert_eq!(clock.remaining(at(4_000)), None);
    }

    #[test]
    fn terms_that_leave_nothing_give_no_lease() {
        let second = Duration::from_secs(1);
        let terms = LeaseTerms { length: second, drift: second, margin: second };
        let mut clock = LeaseClock::default();
        clock.renewed(at(1_000), &terms);
        assert_eq!(clock.remaining(at(1_000)), None);
    }

    #[test]
    fn watchers_see_the_lease_end_and_begin() {
        let lease = Lease::default();
        let mut watch = lease.watch();
        assert!(!lease.holds() && !*watch.borrow_and_update());
        lease.renewed(BootTime::now(), &LeaseTerms::default());
        assert!(lease.holds() && watch.has_changed().unwrap() && *watch.borrow_and_update());
        lease.check();
        lease.renewed(BootTime::now(), &LeaseTerms::default());
        assert!(!watch.has_changed().unwrap());
        lease.revoked();
        assert!(!lease.holds() && watch.has_changed().unwrap());
    }
}
