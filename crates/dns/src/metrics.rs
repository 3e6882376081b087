//! What this crate counts.

use std::time::Duration;

use postroad_telemetry::{Counter, Histogram, Label};

const RESULT: Label = Label::one_of("result", &["found", "permanent_error", "temporary_error"]);
const FROM: Label = Label::one_of("from", &["cache", "lookup", "domain"]);

postroad_telemetry::catalogue! {
    /// Lookups of mail hosts, by result
    counter LOOKUPS = "postroad_dns_lookups_total" [RESULT];
    /// Time until the mail hosts of a domain were known
    histogram LOOKUP_SECONDS = "postroad_dns_lookup_seconds" [];
    /// Sites of recipients, by where they came from: the cache, a lookup, or the domain itself when no lookup ended in time
    counter SITES = "postroad_dns_sites_total" [FROM];
}

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
        Self {
            found: LOOKUPS.with(["found"]),
            permanent: LOOKUPS.with(["permanent_error"]),
            temporary: LOOKUPS.with(["temporary_error"]),
            seconds: LOOKUP_SECONDS.with([]),
            site_cached: SITES.with(["cache"]),
            site_looked_up: SITES.with(["lookup"]),
            site_untold: SITES.with(["domain"]),
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
