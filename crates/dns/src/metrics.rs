//! What this crate counts.

use std::time::Duration;

use metrics::{Counter, Histogram};
use postroad_telemetry::Metric;

/// The metrics of this crate.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter("postroad_dns_lookups_total", "Lookups of mail hosts by what came of them", &["result"]),
    Metric::histogram("postroad_dns_lookup_seconds", "Time until the mail hosts of a domain were known", &[]),
    Metric::counter(
        "postroad_dns_sites_total",
        "Sites told: from the cache, after a lookup, or the domain itself because none could be told in time",
        &["from"],
    ),
];

/// Handles of the metrics above.
#[derive(Debug)]
pub(crate) struct Metrics {
    found: Counter,
    permanent: Counter,
    temporary: Counter,
    seconds: Histogram,
    pub(crate) site_cached: Counter,
    pub(crate) site_looked_up: Counter,
    pub(crate) site_untold: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let lookups =
            |result: &'static str| metrics::counter!("postroad_dns_lookups_total", "result" => result);
        let sites = |from: &'static str| metrics::counter!("postroad_dns_sites_total", "from" => from);
        Self {
            found: lookups("found"),
            permanent: lookups("permanent_error"),
            temporary: lookups("temporary_error"),
            seconds: metrics::histogram!("postroad_dns_lookup_seconds"),
            site_cached: sites("cache"),
            site_looked_up: sites("lookup"),
            site_untold: sites("domain"),
        }
    }

    pub(crate) fn note_lookup<T>(&self, result: &Result<T, crate::DnsError>, took: Duration) {
        self.seconds.record(took);
        match result {
            Ok(_) => self.found.increment(1),
            Err(error) if error.is_permanent() => self.permanent.increment(1),
            Err(_) => self.temporary.increment(1),
        }
    }
}
