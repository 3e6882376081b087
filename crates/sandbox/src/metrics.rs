//! The metrics of the sandbox.

use postroad_telemetry::{Counter, Gauge};

postroad_telemetry::catalogue! {
    /// Messages captured
    counter CAPTURED = "postroad_sandbox_captured_total" [];
    /// Captured messages that were removed to make room for newer ones
    counter DROPPED = "postroad_sandbox_dropped_total" [];
    /// Captured messages that are kept
    gauge MESSAGES = "postroad_sandbox_messages" [];
    /// Bytes of captured messages that are kept
    gauge BYTES = "postroad_sandbox_kept_bytes" [];
}

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
            captured: CAPTURED.with([]),
            dropped: DROPPED.with([]),
            messages: MESSAGES.with([]),
            bytes: BYTES.with([]),
        }
    }
}
