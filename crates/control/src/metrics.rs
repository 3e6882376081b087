//! The metrics of control.

use metrics::{Counter, Gauge, Histogram};
use postroad_core::GroupId;
use postroad_telemetry::Metric;

/// Every metric this crate records.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter(EVENTS, "Events written to the history", &[]),
    Metric::counter(REPEATED, "Events that came again and had no effect", &[]),
    Metric::counter(UNREADABLE, "Events of a kind this version does not know", &[]),
    Metric::counter(LOST, "Events that were dropped by the queue before they could be written", &[]),
    Metric::histogram(BATCH_EVENTS, "Events written in one transaction", &[]),
    Metric::histogram(BATCH_SECONDS, "How long one transaction took, with its sync", &[]),
    Metric::counter(FAILURES, "Transactions that failed and are tried again", &[]),
    Metric::gauge(LAG, "Events of a group that are committed and not yet written", &["group"]),
    Metric::gauge(MESSAGES, "Messages whose history is kept", &[]),
];

const EVENTS: &str = "postroad_control_events_total";
const REPEATED: &str = "postroad_control_events_repeated_total";
const UNREADABLE: &str = "postroad_control_events_unreadable_total";
const LOST: &str = "postroad_control_events_lost_total";
const BATCH_EVENTS: &str = "postroad_control_batch_events";
const BATCH_SECONDS: &str = "postroad_control_batch_seconds";
const FAILURES: &str = "postroad_control_write_failures_total";
const LAG: &str = "postroad_control_lag_events";
const MESSAGES: &str = "postroad_control_messages";

/// The handles of the writer.
#[derive(Debug)]
pub(crate) struct WriterMetrics {
    pub(crate) events: Counter,
    pub(crate) repeated: Counter,
    pub(crate) unreadable: Counter,
    pub(crate) lost: Counter,
    pub(crate) batch_events: Histogram,
    pub(crate) batch_seconds: Histogram,
    pub(crate) failures: Counter,
    pub(crate) messages: Gauge,
}

impl WriterMetrics {
    pub(crate) fn new() -> Self {
        Self {
            events: metrics::counter!(EVENTS),
            repeated: metrics::counter!(REPEATED),
            unreadable: metrics::counter!(UNREADABLE),
            lost: metrics::counter!(LOST),
            batch_events: metrics::histogram!(BATCH_EVENTS),
            batch_seconds: metrics::histogram!(BATCH_SECONDS),
            failures: metrics::counter!(FAILURES),
            messages: metrics::gauge!(MESSAGES),
        }
    }
}

/// The lag of one group.
pub(crate) fn lag(group: GroupId) -> Gauge {
    metrics::gauge!(LAG, "group" => group.to_string())
}
