//! What an ingress node counts.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use postroad_smtp::headers::Protocol;
use postroad_telemetry::Metric;

use crate::error::Refusal;

/// The metrics of this crate.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter(
        "postroad_ingress_messages_total",
        "Messages that a majority of disks holds, by how they came",
        &["protocol"],
    ),
    Metric::counter("postroad_ingress_recipients_total", "Recipients of those messages", &[]),
    Metric::counter(
        "postroad_ingress_refusals_total",
        "Senders, recipients and messages refused, by reason",
        &["reason"],
    ),
    Metric::counter(
        "postroad_ingress_logins_total",
        "Logins and API keys checked: good, good from the cache, wrong, or not told in time",
        &["result"],
    ),
    Metric::histogram("postroad_ingress_message_bytes", "Bytes of a message as it is stored", &[]),
    Metric::histogram(
        "postroad_ingress_submit_seconds",
        "Time from the end of a message to the answer of the queue",
        &[],
    ),
    Metric::gauge("postroad_ingress_in_flight_bytes", "Bytes of messages that wait for their commit", &[]),
];

/// Handles of the metrics above.
#[derive(Debug)]
pub(crate) struct Metrics {
    smtp: Counter,
    grpc: Counter,
    recipients: Counter,
    bytes: Histogram,
    submit_seconds: Histogram,
    pub(crate) in_flight: Gauge,
    pub(crate) login_good: Counter,
    pub(crate) login_cached: Counter,
    pub(crate) login_wrong: Counter,
    pub(crate) login_untold: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let messages = |protocol: &'static str| metrics::counter!("postroad_ingress_messages_total", "protocol" => protocol);
        let logins =
            |result: &'static str| metrics::counter!("postroad_ingress_logins_total", "result" => result);
        Self {
            smtp: messages("smtp"),
            grpc: messages("grpc"),
            recipients: metrics::counter!("postroad_ingress_recipients_total"),
            bytes: metrics::histogram!("postroad_ingress_message_bytes"),
            submit_seconds: metrics::histogram!("postroad_ingress_submit_seconds"),
            in_flight: metrics::gauge!("postroad_ingress_in_flight_bytes"),
            login_good: logins("good"),
            login_cached: logins("cached"),
            login_wrong: logins("wrong"),
            login_untold: logins("untold"),
        }
    }

    pub(crate) fn note_accepted(&self, protocol: Protocol, recipients: usize, bytes: u64, took: Duration) {
        match protocol {
            Protocol::Smtp { .. } => self.smtp.increment(1),
            Protocol::Grpc => self.grpc.increment(1),
        }
        self.recipients.increment(recipients as u64);
        self.bytes.record(bytes as f64);
        self.submit_seconds.record(took);
    }

    /// Refusals are rare enough to look the counter up.
    pub(crate) fn note_refused(&self, refusal: &Refusal) {
        metrics::counter!("postroad_ingress_refusals_total", "reason" => refusal.label()).increment(1);
    }
}
