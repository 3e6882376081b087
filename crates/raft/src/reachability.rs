//! Which peers answer: when to call those that do not again, and what the log says about them.
//!
//! openraft calls a dead follower again as soon as a call has failed; its own back-off waits only where a request is
//! already being sent. Calls are therefore paced here, one by one: votes never wait, entries wait for their turn,
//! and a heartbeat that is not due is skipped.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The wait after the first failed call to a peer; it doubles with every further one.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// The longest wait, and so the longest time until a peer that came back is called again.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// Shorter interruptions, such as a restarted connection, are not logged.
const LOG_AFTER: Duration = Duration::from_secs(2);
/// A peer that stays down is logged again after this time.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// A peer that comes and goes is logged as down no more often than this.
const LOG_CHANGES_EVERY: Duration = Duration::from_secs(10);

/// The peers of a node; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reachability {
    peers: Arc<Mutex<BTreeMap<u64, Silence>>>,
    /// Fires when a peer answers after a failure.
    back: Arc<Notify>,
}

/// A peer's failed calls since its last answer.
#[derive(Debug)]
struct Silence {
    since: Option<Instant>,
    logged_at: Option<Instant>,
    /// The log says that it is down.
    is_logged: bool,
}

/// What the log should say now.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    Silent(Duration),
    Back(Duration),
}

impl Silence {
    const NONE: Self = Self { since: None, logged_at: None, is_logged: false };

    fn failed(&mut self, now: Instant) -> Option<Notice> {
        let silent = now - *self.since.get_or_insert(now);
        let every = if self.is_logged { LOG_EVERY } else { LOG_CHANGES_EVERY };
        let is_due = self.logged_at.is_none_or(|at| now - at >= every);
        if silent < LOG_AFTER || !is_due {
            return None;
        }
        self.logged_at = Some(now);
        self.is_logged = true;
        Some(Notice::Silent(silent))
    }

    fn answered(&mut self, now: Instant) -> Option<Notice> {
        let since = self.since.take()?;
        std::mem::take(&mut self.is_logged).then(|| Notice::Back(now - since))
    }
}

impl Reachability {
    /// A call to a peer got no answer.
    pub(crate) fn failed(&self, peer: u64, error: &str) {
        let notice = self.peers.lock().entry(peer).or_insert(Silence::NONE).failed(postroad_env::now());
        if let Some(Notice::Silent(silent)) = notice {
            let silent_secs = silent.as_secs();
            tracing::warn!(
                peer,
                silent_secs,
                error,
                "queue node {peer} does not answer: this node keeps calling it"
            );
        }
    }

    /// A peer answered a call.
    pub(crate) fn answered(&self, peer: u64) {
        let mut peers = self.peers.lock();
        let Some(silence) = peers.get_mut(&peer).filter(|silence| silence.since.is_some()) else { return };
        let notice = silence.answered(postroad_env::now());
        drop(peers);
        self.back.notify_waiters();
        if let Some(Notice::Back(silent)) = notice {
            let silent_secs = silent.as_secs();
            tracing::info!(peer, silent_secs, "queue node {peer} answers again");
        }
    }
}

/// When one client may call its peer again.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    failures: Mutex<Failures>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    /// `None`: at once.
    next: Option<Instant>,
}

impl Failures {
    fn wait(self) -> Duration {
        WAIT_MIN.saturating_mul(1 << self.count.saturating_sub(1).min(16)).min(WAIT_MAX)
    }
}

impl Pace {
    /// Returns true when a call need not wait.
    pub(crate) fn is_due(&self) -> bool {
        self.failures.lock().next.is_none_or(|next| next <= postroad_env::now())
    }

    /// Waits until the next call is due, or until a peer answers again; cancel-safe.
    pub(crate) async fn due(&self, peers: &Reachability) {
        let Some(next) = self.failures.lock().next else { return };
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = peers.back.notified() => {}
        }
    }

    pub(crate) fn failed(&self) {
        let mut failures = self.failures.lock();
        failures.count = failures.count.saturating_add(1);
        failures.next = Some(postroad_env::now() + failures.wait());
    }

    pub(crate) fn answered(&self) {
        *self.failures.lock() = Failures::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_logged_once_a_minute_and_once_when_it_is_back() {
        let start = postroad_env::now();
        let mut silence = Silence::NONE;
        let mut notices = Vec::new();
        // A call fails every 100 ms for two and a half minutes.
        for tenths in 0..1500 {
            notices.extend(silence.failed(start + Duration::from_millis(100 * tenths)));
        }
        notices.extend(silence.answered(start + Duration::from_secs(150)));
        notices.extend(silence.answered(start + Duration::from_secs(151)));
        let secs = Duration::from_secs;
        let silent = |after| Notice::Silent(secs(after));
        assert_eq!(notices, [silent(2), silent(62), silent(122), Notice::Back(secs(150))]);
    }

    #[test]
    fn a_peer_that_comes_and_goes_is_logged_every_ten_seconds_at_most() {
        let start = postroad_env::now();
        let mut silence = Silence::NONE;
        let mut count = 0;
        for second in 0..120 {
            let now = start + Duration::from_secs(second);
            let notice = if second % 4 == 3 { silence.answered(now) } else { silence.failed(now) };
            count += usize::from(matches!(notice, Some(Notice::Silent(_))));
        }
        assert!((5..=12).contains(&count), "{count}");
    }

    #[test]
    fn a_short_interruption_is_not_logged() {
        let start = postroad_env::now();
        let mut silence = Silence::NONE;
        assert_eq!(silence.failed(start), None);
        assert_eq!(silence.failed(start + LOG_AFTER / 2), None);
        assert_eq!(silence.answered(start + LOG_AFTER), None);
    }

    #[test]
    fn waits_grow_to_their_bound_and_end_with_an_answer() {
        let pace = Pace::default();
        assert!(pace.is_due());
        let mut waits = Vec::new();
        for _ in 0..40 {
            pace.failed();
            waits.push(pace.failures.lock().wait());
        }
        assert!(!pace.is_due());
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[39]), (WAIT_MIN, WAIT_MAX));
        pace.answered();
        assert!(pace.is_due());
    }
}
