//! The metrics of control.

use postroad_core::GroupId;
use postroad_telemetry::{Counter, Gauge, Histogram, Label};

const GROUP: Label = Label::few("group", "the numbers of the ledger groups");

postroad_telemetry::catalogue! {
    /// Events written to the history
    counter EVENTS = "postroad_control_events_total" [];
    /// Events that came again and changed nothing
    counter REPEATED = "postroad_control_repeated_events_total" [];
    /// Events of a kind that this version does not know
    counter UNREADABLE = "postroad_control_unreadable_events_total" [];
    /// Events that the queue dropped before they could be written
    counter LOST = "postroad_control_lost_events_total" [];
    /// Events written in one transaction
    histogram BATCH_EVENTS = "postroad_control_batch_events" [];
    /// Time of one transaction, with its sync
    histogram BATCH_SECONDS = "postroad_control_batch_seconds" [];
    /// Transactions that failed and are tried again
    counter FAILURES = "postroad_control_write_failures_total" [];
    /// Events of a group that are committed and not yet written
    gauge LAG = "postroad_control_lag_events" [GROUP];
    /// Messages whose history is kept
    gauge MESSAGES = "postroad_control_messages" [];
}

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
            events: EVENTS.with([]),
            repeated: REPEATED.with([]),
            unreadable: UNREADABLE.with([]),
            lost: LOST.with([]),
            batch_events: BATCH_EVENTS.with([]),
            batch_seconds: BATCH_SECONDS.with([]),
            failures: FAILURES.with([]),
            messages: MESSAGES.with([]),
        }
    }
}

/// The lag of one group.
pub(crate) fn lag(group: GroupId) -> Gauge {
    LAG.with([&group.to_string()])
}
