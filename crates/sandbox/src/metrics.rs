//! The metrics of the sandbox.

use metrics::{Counter, Gauge};
use postroad_telemetry::Metric;

/// Every metric this crate records.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter(CAPTURED, "Messages captured", &[]),
    Metric::counter(DROPPED, "Captured messages dropped because newer ones needed their room", &[]),
    Metric::gauge(MESSAGES, "Captured messages that are kept", &[]),
    Metric::gauge(BYTES, "Bytes of captured messages that are kept", &[]),
];

const CAPTURED: &str = "postroad_sandbox_captured_total";
const DROPPED: &str = "postroad_sandbox_dropped_total";
const MESSAGES: &str = "postroad_sandbox_messages";
const BYTES: &str = "postroad_sandbox_kept_bytes";

/// The handles of what is recorded for every message.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) captured: Counter,
    pub(crate) dropped: Counter,
    pub(crate) messages: Gauge,
    pub(crate) bytes: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            captured: metrics::counter!(CAPTURED),
            dropped: metrics::counter!(DROPPED),
            messages: metrics::gauge!(MESSAGES),
            bytes: metrics::gauge!(BYTES),
        }
    }
}
