//! What the log measures.

use postroad_telemetry::Histogram;

postroad_telemetry::catalogue! {
    /// Time to write one batch to the log and to sync it
    histogram SYNC_SECONDS = "postroad_storage_sync_seconds" [];
}

pub(crate) fn sync_seconds() -> Histogram {
    SYNC_SECONDS.with([])
}
