//! What this role measures.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use postroad_core::OutcomeKind;
use postroad_telemetry::Metric;

const ATTEMPTS: &str = "postroad_outbound_attempts_total";
const ATTEMPT_SECONDS: &str = "postroad_outbound_attempt_seconds";
const CONNECTIONS: &str = "postroad_outbound_connections_total";
const CONNECTIONS_OPEN: &str = "postroad_outbound_open_connections";
const STARTTLS_INJECTED: &str = "postroad_outbound_starttls_injected_total";
const IRREGULAR_REPLIES: &str = "postroad_outbound_irregular_replies_total";
const REUSED: &str = "postroad_outbound_reused_connections_total";
const LANES: &str = "postroad_outbound_lanes";
const SOURCES_WITHOUT_ADDRESS: &str = "postroad_outbound_sources_without_address";
const PAUSES: &str = "postroad_outbound_lane_pauses_total";
const GIVEN_BACK: &str = "postroad_outbound_given_back_total";
const BUDGET_WAITS: &str = "postroad_outbound_content_budget_waits_total";
const LEASE_SECONDS: &str = "postroad_outbound_lease_remaining_seconds";
const LEASE_ENDS: &str = "postroad_outbound_lease_ends_total";

/// Everything this crate records.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter(ATTEMPTS, "Attempts at one delivery that ended, by how", &["outcome"]),
    Metric::histogram(ATTEMPT_SECONDS, "From the start of an attempt to its outcome", &[]),
    Metric::counter(CONNECTIONS, "Connections to receivers that were tried, by result", &["result"]),
    Metric::counter(
        STARTTLS_INJECTED,
        "Connections ended because plaintext followed the reply to STARTTLS",
        &[],
    ),
    Metric::counter(IRREGULAR_REPLIES, "Replies that broke the rules of SMTP and were understood", &[]),
    Metric::gauge(CONNECTIONS_OPEN, "Sessions with receivers that are open", &[]),
    Metric::counter(REUSED, "Messages sent over a connection that had carried one before", &[]),
    Metric::gauge(LANES, "Lanes that are remembered", &[]),
    Metric::gauge(SOURCES_WITHOUT_ADDRESS, "Owned sources whose address this machine cannot use", &[]),
    Metric::counter(PAUSES, "Pauses of a lane whose site asked to slow down or could not be reached", &[]),
    Metric::counter(GIVEN_BACK, "Jobs given back to the queue without an attempt", &[]),
    Metric::counter(BUDGET_WAITS, "Times assignments waited because the content budget was used up", &[]),
    Metric::gauge(LEASE_SECONDS, "What is left of the lease on this node's sources", &[]),
    Metric::counter(LEASE_ENDS, "Times the lease ended before it was renewed", &[]),
];

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
    /// Sessions that are open.
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
    /// Seconds left of the lease.
    pub lease_remaining: Gauge,
    /// Leases that ended unrenewed.
    pub lease_ends: Counter,
}

impl Default for OutboundMetrics {
    fn default() -> Self {
        let attempts = OutcomeKind::ALL.iter().map(|kind| counter!(ATTEMPTS, "outcome" => kind.as_str()));
        Self {
            attempts: attempts.collect(),
            attempt_seconds: histogram!(ATTEMPT_SECONDS),
            connected: counter!(CONNECTIONS, "result" => "connected"),
            not_connected: counter!(CONNECTIONS, "result" => "failed"),
            starttls_injected: counter!(STARTTLS_INJECTED),
            irregular_replies: counter!(IRREGULAR_REPLIES),
            connections_open: gauge!(CONNECTIONS_OPEN),
            reused: counter!(REUSED),
            lanes: gauge!(LANES),
            sources_without_address: gauge!(SOURCES_WITHOUT_ADDRESS),
            pauses: counter!(PAUSES),
            given_back: counter!(GIVEN_BACK),
            budget_waits: counter!(BUDGET_WAITS),
            lease_remaining: gauge!(LEASE_SECONDS),
            lease_ends: counter!(LEASE_ENDS),
        }
    }
}

impl OutboundMetrics {
    /// Counts the end of an attempt.
    pub fn attempted(&self, kind: OutcomeKind) {
        let place = OutcomeKind::ALL.iter().position(|known| *known == kind);
        if let Some(counter) = place.and_then(|place| self.attempts.get(place)) {
            counter.increment(1);
        }
    }
}
