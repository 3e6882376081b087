//! Counts connections and messages of each client to a domain with limits, exactly, in every window.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::script::Limits;

/// The counts of one client and domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterReport {
    /// The client's address.
    pub source: IpAddr,
    /// The domain.
    pub domain: Box<str>,
    /// The most concurrent connections.
    pub connections_peak: u32,
    /// For each rate of the limits, the most messages in any window of its length.
    pub window_peaks: Vec<u64>,
    /// How often a limit was exceeded, whether enforced or not.
    pub violations: u64,
}

/// A client's address and a domain.
type Key = (IpAddr, Box<str>);

#[derive(Debug, Default)]
pub(super) struct Meters(Arc<Mutex<BTreeMap<Key, Meter>>>);

#[derive(Debug, Default)]
struct Meter {
    connections: u32,
    connections_peak: u32,
    windows: Vec<VecDeque<Instant>>,
    window_peaks: Vec<u64>,
    violations: u64,
}

/// A connection that counts for a domain, until it is dropped.
#[derive(Debug)]
pub(super) struct Connected {
    meters: Arc<Mutex<BTreeMap<Key, Meter>>>,
    key: Key,
    messages: u32,
}

impl Meters {
    /// Counts a connection; false when it exceeds the limit.
    pub(super) fn connect(&self, source: IpAddr, domain: &str, limits: &Limits) -> (Connected, bool) {
        let key = (source, Box::from(domain));
        let mut meters = self.0.lock();
        let meter = meters.entry(key.clone()).or_default();
        meter.connections += 1;
        meter.connections_peak = meter.connections_peak.max(meter.connections);
        let within = limits.connections_max.is_none_or(|max| meter.connections <= max);
        meter.violations += u64::from(!within);
        (Connected { meters: self.0.clone(), key, messages: 0 }, within)
    }

    pub(super) fn report(&self) -> Vec<MeterReport> {
        let report = |((source, domain), meter): (&Key, &Meter)| MeterReport {
            source: *source,
            domain: domain.clone(),
            connections_peak: meter.connections_peak,
            window_peaks: meter.window_peaks.clone(),
            violations: meter.violations,
        };
        self.0.lock().iter().map(report).collect()
    }
}

impl Connected {
    /// Returns true when the connection counts for this domain.
    pub(super) fn is_for(&self, domain: &str) -> bool {
        *self.key.1 == *domain
    }

    /// Counts a message on this connection; false when it exceeds the limit.
    pub(super) fn count_on_connection(&mut self, limits: &Limits) -> bool {
        self.messages += 1;
        let within = limits.messages_per_connection_max.is_none_or(|max| self.messages <= max);
        self.with_meter(|meter| meter.violations += u64::from(!within));
        within
    }

    /// Counts a message in every window; false when it exceeds a limit.
    pub(super) fn count_in_windows(&self, now: Instant, limits: &Limits) -> bool {
        self.with_meter(|meter| {
            meter.windows.resize_with(limits.rates.len(), VecDeque::new);
            meter.window_peaks.resize(limits.rates.len(), 0);
            let mut within = true;
            for ((rate, window), peak) in
                limits.rates.iter().zip(&mut meter.windows).zip(&mut meter.window_peaks)
            {
                let length = Duration::from_secs_f64(rate.per_secs);
                while window.front().is_some_and(|at| now.duration_since(*at) >= length) {
                    window.pop_front();
                }
                window.push_back(now);
                *peak = (*peak).max(window.len() as u64);
                within &= window.len() as u64 <= rate.messages;
            }
            meter.violations += u64::from(!within);
            within
        })
    }

    fn with_meter<T>(&self, change: impl FnOnce(&mut Meter) -> T) -> T {
        change(self.meters.lock().entry(self.key.clone()).or_default())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.with_meter(|meter| meter.connections -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::script::Rate, *};

    #[test]
    fn every_window_is_counted() {
        let limits = Limits {
            connections_max: Some(1),
            messages_per_connection_max: Some(3),
            rates: vec![Rate { messages: 2, per_secs: 1.0 }],
            enforce: true,
        };
        let meters = Meters::default();
        let source = IpAddr::from([127, 0, 0, 1]);
        let (mut first, within) = meters.connect(source, "x.test", &limits);
        assert!(within);
        let (second, within) = meters.connect(source, "x.test", &limits);
        assert!(!within);
        drop(second);
        let now = postroad_env::now();
        let at = |millis| now + Duration::from_millis(millis);
        let seen: Vec<bool> =
            [0, 900, 999, 1950].map(|millis| first.count_in_windows(at(millis), &limits)).into();
        assert_eq!(seen, [true, true, false, true]);
        let seen: Vec<bool> = (0..4).map(|_| first.count_on_connection(&limits)).collect();
        assert_eq!(seen, [true, true, true, false]);
        let report = &meters.report()[0];
        assert_eq!((report.connections_peak, report.violations), (2, 3));
        assert_eq!(report.window_peaks, [3]);
    }
}
