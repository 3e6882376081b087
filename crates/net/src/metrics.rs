//! The metrics of listeners and connections.

use metrics::{Counter, Gauge};
use postroad_smtp::tolerance::Tolerance;
use postroad_telemetry::Metric;

/// Every metric this crate records.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter(
        ACCEPT_FAILURES,
        "Times no connection could be accepted, as when descriptors ran out",
        &[],
    ),
    Metric::counter(NODE_HANDSHAKES, "TLS handshakes between nodes that failed", &["side"]),
    Metric::counter(DENIED, "Connections not made because the address is not to be reached from here", &[]),
    Metric::gauge(OPEN, "SMTP connections that are open", &["listener"]),
    Metric::counter(CONNECTIONS, "SMTP connections accepted", &["listener"]),
    Metric::counter(REFUSED, "SMTP connections refused, by the bound that was hit", &["listener", "bound"]),
    Metric::counter(HANDSHAKES, "TLS handshakes of SMTP clients that failed", &["listener"]),
    Metric::counter(TIMEOUTS, "SMTP connections closed because the client took too long", &["listener"]),
    Metric::counter(RECEIVED, "Bytes received from SMTP clients", &["listener"]),
    Metric::counter(
        UNDELIVERED,
        "Messages taken whose client was gone before it could be told",
        &["listener"],
    ),
    Metric::counter(
        TOLERATED,
        "Deviations from the syntax that were accepted from SMTP clients",
        &["listener", "tolerance"],
    ),
    Metric::counter(CUT, "SMTP connections still busy when the time for draining was over", &["listener"]),
];

const ACCEPT_FAILURES: &str = "postroad_net_accept_failures_total";
const NODE_HANDSHAKES: &str = "postroad_net_node_handshake_failures_total";
const DENIED: &str = "postroad_net_connects_denied_total";
const OPEN: &str = "postroad_net_smtp_connections_open";
const CONNECTIONS: &str = "postroad_net_smtp_connections_total";
const REFUSED: &str = "postroad_net_smtp_refused_total";
const HANDSHAKES: &str = "postroad_net_smtp_handshake_failures_total";
const TIMEOUTS: &str = "postroad_net_smtp_timeouts_total";
const RECEIVED: &str = "postroad_net_smtp_received_bytes_total";
const UNDELIVERED: &str = "postroad_net_smtp_ack_undelivered_total";
const TOLERATED: &str = "postroad_net_smtp_tolerated_total";
const CUT: &str = "postroad_net_smtp_cut_total";

pub(crate) fn accept_failed() {
    metrics::counter!(ACCEPT_FAILURES).increment(1);
}

pub(crate) fn node_handshake_failed(side: &'static str) {
    metrics::counter!(NODE_HANDSHAKES, "side" => side).increment(1);
}

pub(crate) fn connect_denied() {
    metrics::counter!(DENIED).increment(1);
}

/// What one SMTP listener records.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) open: Gauge,
    pub(crate) connections: Counter,
    pub(crate) refused_total: Counter,
    pub(crate) refused_network: Counter,
    pub(crate) refused_policy: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) received: Counter,
    pub(crate) ack_undelivered: Counter,
    pub(crate) cut: Counter,
    /// In the order of [`Tolerance::ALL`].
    tolerated: [Counter; Tolerance::ALL.len()],
}

impl Listener {
    pub(crate) fn new(name: &str) -> Self {
        let counter = |metric: &'static str| metrics::counter!(metric, "listener" => name.to_owned());
        let refused =
            |bound: &'static str| metrics::counter!(REFUSED, "listener" => name.to_owned(), "bound" => bound);
        Self {
            open: metrics::gauge!(OPEN, "listener" => name.to_owned()),
            connections: counter(CONNECTIONS),
            refused_total: refused("connections"),
            refused_network: refused("connections_per_network"),
            refused_policy: refused("policy"),
            handshakes_failed: counter(HANDSHAKES),
            timeouts: counter(TIMEOUTS),
            received: counter(RECEIVED),
            ack_undelivered: counter(UNDELIVERED),
            cut: counter(CUT),
            tolerated: Tolerance::ALL.map(|tolerance| {
                metrics::counter!(TOLERATED, "listener" => name.to_owned(), "tolerance" => tolerance.label())
            }),
        }
    }

    pub(crate) fn note_tolerated(&self, tolerated: &[Tolerance]) {
        for tolerance in tolerated {
            self.tolerated[*tolerance as usize].increment(1);
        }
    }
}
