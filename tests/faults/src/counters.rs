//! What the nodes count, as counts of the run.

use std::sync::Arc;

use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder as MetricsRecorder, SharedString,
    Unit,
};

use crate::record::Recorder;

/// Steps of the protocols: the metric that counts one, the value of a label where that matters, and the name of the step.
const STEPS: [(&str, Option<&str>, &str); 7] = [
    ("postroad_queue_submissions_total", Some("accepted"), "accept"),
    ("postroad_queue_assigned_total", None, "assign"),
    ("postroad_queue_reports_total", None, "report"),
    ("postroad_outbound_given_back_total", None, "return"),
    ("postroad_queue_lease_decisions_total", Some("revoke"), "recall"),
    ("postroad_queue_lease_decisions_total", Some("release"), "release"),
    ("postroad_queue_reclaims_total", None, "reclaim"),
];

/// Every step that is counted, here or by [`Observer`](crate::observer::Observer).
pub(crate) const NAMES: [&str; 12] = [
    "accept",
    "assign",
    "report",
    "return",
    "recall",
    "release",
    "reclaim",
    "checkpoint",
    "recycle",
    "transfer",
    "rejoin",
    "vote",
];

/// Takes the place of the registry that a node has outside of a simulation.
pub(crate) struct Counters(pub(crate) Recorder);

impl MetricsRecorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let is_counted = |(metric, value, _): &&(&str, Option<&str>, &str)| {
            key.name() == *metric
                && value.is_none_or(|value| key.labels().any(|label| label.value() == value))
        };
        match STEPS.iter().find(is_counted) {
            Some((_, _, name)) => Counter::from_arc(Arc::new(Step { name, recorder: self.0.clone() })),
            None => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

struct Step {
    name: &'static str,
    recorder: Recorder,
}

impl CounterFn for Step {
    fn increment(&self, times: u64) {
        if times > 0 {
            self.recorder.count(self.name, times);
        }
    }

    /// None of these is set to a total.
    fn absolute(&self, _: u64) {}
}
