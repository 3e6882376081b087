//! What this role measures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use postroad_core::OutcomeKind;
use postroad_telemetry::{
    Counter, Gauge, Histogram, Label, RankedCounter, RankedHistogram, Ranking, Tallied, Tally,
};

const OUTCOME: Label = Label::one_of("outcome", OutcomeKind::NAMES);
const RESULT: Label = Label::one_of("result", &["connected", "failed"]);
const SITE: Label =
    Label::ranked("site", "the sites of receivers: a normalised set of MX hosts, or a domain");
const SOURCE: Label = Label::ranked("source", "the names of sources");

postroad_telemetry::catalogue! {
    /// Attempts to deliver to one recipient that ended, by outcome
    counter ATTEMPTS = "postroad_outbound_attempts_total" [OUTCOME];
    /// Time of an attempt, from its start to its outcome
    histogram ATTEMPT_SECONDS = "postroad_outbound_attempt_seconds" [];
    /// Attempts to deliver to one recipient that ended, by site and outcome
    ranked_counter SITE_ATTEMPTS = "postroad_outbound_site_attempts_total" [SITE, OUTCOME];
    /// Time of an attempt, from its start to its outcome, by site
    ranked_histogram SITE_ATTEMPT_SECONDS = "postroad_outbound_site_attempt_seconds" [SITE];
    /// Time from the acceptance of a message to its delivery to one recipient, by site
    ranked_histogram SITE_DELAY_SECONDS = "postroad_outbound_site_delivery_delay_seconds" [SITE];
    /// Pauses of lanes whose site asked to slow down or could not be reached, by site
    ranked_counter SITE_PAUSES = "postroad_outbound_site_lane_pauses_total" [SITE];
    /// Attempts to deliver to one recipient that ended, by source and outcome
    ranked_counter SOURCE_ATTEMPTS = "postroad_outbound_source_attempts_total" [SOURCE, OUTCOME];
    /// Time from the acceptance of a message to its delivery to one recipient, by source
    ranked_histogram SOURCE_DELAY_SECONDS = "postroad_outbound_source_delivery_delay_seconds" [SOURCE];
    /// Lanes that are paused, by site
    ranked_gauge PAUSED_LANES = "postroad_outbound_paused_lanes" [SITE];
    /// Connections to receivers that were tried, by result
    counter CONNECTIONS = "postroad_outbound_connections_total" [RESULT];
    /// Connections ended because plaintext followed the reply to STARTTLS
    counter STARTTLS_INJECTED = "postroad_outbound_starttls_injected_total" [];
    /// Replies that broke the rules of SMTP and were understood
    counter IRREGULAR_REPLIES = "postroad_outbound_irregular_replies_total" [];
    /// Connections to receivers that are open
    gauge CONNECTIONS_OPEN = "postroad_outbound_open_connections" [];
    /// Transactions over a connection that had carried one before
    counter REUSED = "postroad_outbound_reused_connections_total" [];
    /// Lanes in memory: a lane is forgotten some time after its last job
    gauge LANES = "postroad_outbound_lanes" [];
    /// Sources of this node whose address this machine cannot use
    gauge SOURCES_WITHOUT_ADDRESS = "postroad_outbound_sources_without_address" [];
    /// Pauses of lanes whose site asked to slow down or could not be reached
    counter PAUSES = "postroad_outbound_lane_pauses_total" [];
    /// Jobs given back to the queue without an attempt
    counter GIVEN_BACK = "postroad_outbound_given_back_total" [];
    /// Times assignments waited because the content budget was used up; outbound.content_bytes_max sets it
    counter BUDGET_WAITS = "postroad_outbound_content_budget_waits_total" [];
    /// Times a conversion to 7-bit waited because its memory was used up; outbound.conversion_bytes_max sets it
    counter CONVERSION_WAITS = "postroad_outbound_conversion_waits_total" [];
    /// Time until the lease on the sources of this node ends
    gauge LEASE_SECONDS = "postroad_outbound_lease_remaining_seconds" [];
    /// Times the lease ended before it was renewed
    counter LEASE_ENDS = "postroad_outbound_lease_ends_total" [];
}

static SITES: Ranking =
    Ranking::new(&[&SITE_ATTEMPTS, &SITE_ATTEMPT_SECONDS, &SITE_DELAY_SECONDS, &SITE_PAUSES]);
static SOURCES: Ranking = Ranking::new(&[&SOURCE_ATTEMPTS, &SOURCE_DELAY_SECONDS]);
static PAUSED: Tally = Tally::new(&PAUSED_LANES);

/// Handles to the metrics of the hot paths.
#[derive(Debug)]
pub struct OutboundMetrics {
    attempts: Vec<Counter>,
    /// Seconds of an attempt.
    pub attempt_seconds: Histogram,
    /// Connections that were made.
    pub connected: Counter,
    /// Connections that could not be made.
    pub not_connected: Counter,
    /// Connections with plaintext in place of a TLS handshake.
    pub starttls_injected: Counter,
    /// Replies that broke the rules and were understood.
    pub irregular_replies: Counter,
    /// Connections that are open.
    pub connections_open: Gauge,
    /// Messages over a connection used before.
    pub reused: Counter,
    /// Lanes in memory.
    pub lanes: Gauge,
    /// Owned sources whose address this machine lacks.
    pub sources_without_address: Gauge,
    /// Pauses begun.
    pub pauses: Counter,
    /// Jobs given back.
    pub given_back: Counter,
    /// Waits for the content budget.
    pub budget_waits: Counter,
    /// Waits for the memory of conversions.
    pub conversion_waits: Counter,
    /// Seconds left of the lease.
    pub lease_remaining: Gauge,
    /// Leases that ended before they were renewed.
    pub lease_ends: Counter,
}

impl Default for OutboundMetrics {
    fn default() -> Self {
        PAUSED.declare();
        Self {
            attempts: OutcomeKind::ALL.iter().map(|kind| ATTEMPTS.with([kind.as_str()])).collect(),
            attempt_seconds: ATTEMPT_SECONDS.with([]),
            connected: CONNECTIONS.with(["connected"]),
            not_connected: CONNECTIONS.with(["failed"]),
            starttls_injected: STARTTLS_INJECTED.with([]),
            irregular_replies: IRREGULAR_REPLIES.with([]),
            connections_open: CONNECTIONS_OPEN.with([]),
            reused: REUSED.with([]),
            lanes: LANES.with([]),
            sources_without_address: SOURCES_WITHOUT_ADDRESS.with([]),
            pauses: PAUSES.with([]),
            given_back: GIVEN_BACK.with([]),
            budget_waits: BUDGET_WAITS.with([]),
            conversion_waits: CONVERSION_WAITS.with([]),
            lease_remaining: LEASE_SECONDS.with([]),
            lease_ends: LEASE_ENDS.with([]),
        }
    }
}

/// The handles of one lane: those of its site and of its source.
#[derive(Debug)]
pub(crate) struct LaneMetrics {
    pub(crate) all: Arc<OutboundMetrics>,
    /// The name of the source.
    pub(crate) source: Arc<str>,
    pub(crate) site: Arc<str>,
    site_attempts: Vec<RankedCounter>,
    site_seconds: RankedHistogram,
    site_delay: RankedHistogram,
    site_pauses: RankedCounter,
    source_attempts: Vec<RankedCounter>,
    source_delay: RankedHistogram,
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl LaneMetrics {
    pub(crate) fn new(all: Arc<OutboundMetrics>, source: &Arc<str>, site: &Arc<str>) -> Self {
        let (of_site, of_source) = (SITES.value(site), SOURCES.value(source));
        let outcomes = || OutcomeKind::ALL.iter().map(|kind| kind.as_str());
        Self {
            all,
            source: source.clone(),
            site: site.clone(),
            site_attempts: outcomes().map(|kind| of_site.counter(&SITE_ATTEMPTS, &[kind])).collect(),
            site_seconds: of_site.histogram(&SITE_ATTEMPT_SECONDS, &[]),
            site_delay: of_site.histogram(&SITE_DELAY_SECONDS, &[]),
            site_pauses: of_site.counter(&SITE_PAUSES, &[]),
            source_attempts: outcomes().map(|kind| of_source.counter(&SOURCE_ATTEMPTS, &[kind])).collect(),
            source_delay: of_source.histogram(&SOURCE_DELAY_SECONDS, &[]),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Counts the end of an attempt that took `took`, `delay` after the message was accepted.
    pub(crate) fn attempted(&self, kind: OutcomeKind, took: Duration, delay: Duration) {
        let place = OutcomeKind::ALL.iter().position(|known| *known == kind).unwrap_or_default();
        self.all.attempts[place].increment(1);
        self.all.attempt_seconds.record(took);
        self.site_attempts[place].increment(1);
        self.site_seconds.record(took);
        self.source_attempts[place].increment(1);
        if kind == OutcomeKind::Delivered {
            self.site_delay.record(delay);
            self.source_delay.record(delay);
            self.delivered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many attempts of this lane delivered, and how many ended otherwise.
    pub(crate) fn ended(&self) -> (u64, u64) {
        (self.delivered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Counts a pause that begins.
    pub(crate) fn paused(&self) {
        self.all.pauses.increment(1);
        self.site_pauses.increment(1);
    }

    /// Counts the lane among those that are paused, until the value is dropped.
    pub(crate) fn while_paused(&self) -> Tallied {
        PAUSED.count(&self.site)
    }
}
