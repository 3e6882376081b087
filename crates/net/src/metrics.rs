//! The metrics of listeners and connections.

use postroad_core::Timestamp;
use postroad_smtp::tolerance::Tolerance;
use postroad_telemetry::{Counter, Gauge, Label};

const SIDE: Label = Label::one_of("side", &["accept", "connect"]);
const LISTENER: Label =
    Label::few("listener", "the names of SMTP listeners: `submission`, `relay`, and `smtp` for the sandbox");
const BOUND: Label = Label::one_of("bound", &["connections", "connections_per_network", "policy"]);
const TOLERANCE: Label = Label::one_of("tolerance", &TOLERANCES);
const CERTIFICATE: Label = Label::one_of("certificate", &["node", "authority", "listener"]);

const TOLERANCES: [&str; Tolerance::ALL.len()] = {
    let mut labels = [""; Tolerance::ALL.len()];
    let mut place = 0;
    while place < labels.len() {
        labels[place] = Tolerance::ALL[place].label();
        place += 1;
    }
    labels
};

postroad_telemetry::catalogue! {
    /// Times no connection could be accepted, as when file descriptors ran out
    counter ACCEPT_FAILURES = "postroad_net_accept_failures_total" [];
    /// TLS handshakes between nodes that failed
    counter NODE_HANDSHAKES = "postroad_net_node_handshake_failures_total" [SIDE];
    /// Connections not made because the guard denies the address
    counter DENIED = "postroad_net_connects_denied_total" [];
    /// When a certificate that is in use ends, in seconds since the epoch: that of the node, that of the cluster's CA (the
    /// last one where there are several), and the one that clients see, where it is in a file
    gauge CERTIFICATE_ENDS = "postroad_net_certificate_ends_timestamp_seconds" [CERTIFICATE];
    /// SMTP connections that are open
    gauge OPEN = "postroad_net_smtp_connections_open" [LISTENER];
    /// SMTP connections accepted
    counter CONNECTIONS = "postroad_net_smtp_connections_total" [LISTENER];
    /// SMTP connections refused, by the bound that was hit
    counter REFUSED = "postroad_net_smtp_refused_total" [LISTENER, BOUND];
    /// TLS handshakes with SMTP clients that failed
    counter HANDSHAKES = "postroad_net_smtp_handshake_failures_total" [LISTENER];
    /// SMTP connections closed because the client took too long
    counter TIMEOUTS = "postroad_net_smtp_timeouts_total" [LISTENER];
    /// Bytes received from SMTP clients
    counter RECEIVED = "postroad_net_smtp_received_bytes_total" [LISTENER];
    /// Messages accepted whose client closed the connection before it read the reply: it may send them again
    counter UNDELIVERED = "postroad_net_smtp_ack_undelivered_total" [LISTENER];
    /// Deviations from the syntax that were accepted from SMTP clients
    counter TOLERATED = "postroad_net_smtp_tolerated_total" [LISTENER, TOLERANCE];
    /// SMTP connections that were still busy at the end of drain_timeout, and were closed
    counter CUT = "postroad_net_smtp_drain_aborted_total" [LISTENER];
}

/// Shows the counters of failures at zero: `rate` and `increase` miss the first event of a counter that appears with it.
pub fn show_failures() {
    let sides = ["accept", "connect"].map(|side| NODE_HANDSHAKES.with([side]));
    for counter in sides.into_iter().chain([ACCEPT_FAILURES.with([]), DENIED.with([])]) {
        counter.increment(0);
    }
}

pub(crate) fn accept_failed() {
    ACCEPT_FAILURES.with([]).increment(1);
}

pub(crate) fn node_handshake_failed(side: &'static str) {
    NODE_HANDSHAKES.with([side]).increment(1);
}

pub(crate) fn certificate_ends(certificate: &'static str, end: Timestamp) {
    CERTIFICATE_ENDS.with([certificate]).set((end.as_millis() / 1000) as f64);
}

pub(crate) fn connect_denied() {
    DENIED.with([]).increment(1);
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
    tolerated: [Counter; Tolerance::ALL.len()],
}

impl Listener {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            open: OPEN.with([name]),
            connections: CONNECTIONS.with([name]),
            refused_total: REFUSED.with([name, "connections"]),
            refused_network: REFUSED.with([name, "connections_per_network"]),
            refused_policy: REFUSED.with([name, "policy"]),
            handshakes_failed: HANDSHAKES.with([name]),
            timeouts: TIMEOUTS.with([name]),
            received: RECEIVED.with([name]),
            ack_undelivered: UNDELIVERED.with([name]),
            cut: CUT.with([name]),
            tolerated: TOLERANCES.map(|tolerance| TOLERATED.with([name, tolerance])),
        }
    }

    pub(crate) fn note_tolerated(&self, tolerated: &[Tolerance]) {
        for tolerance in tolerated {
            self.tolerated[*tolerance as usize].increment(1);
        }
    }
}
