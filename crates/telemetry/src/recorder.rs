//! The Prometheus recorder: histograms in fixed buckets, never summaries, so that nodes can be added up.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::{data_disk, process, ranking};

/// From half a millisecond, below any fsync, to the days that a deferred message may wait.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1_800.0, 14_400.0, 86_400.0,
];
const BYTES: &[f64] = &[
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const COUNTS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0, 16_384.0];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Builds the recorder; nothing is global yet.
pub(crate) fn build() -> PrometheusRecorder {
    let buckets = |builder: PrometheusBuilder, suffix: &str, values: &[f64]| {
        builder
            .set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), values)
            .expect("the table of buckets is not empty")
    };
    let builder = PrometheusBuilder::new().set_buckets(COUNTS).expect("the table of buckets is not empty");
    let builder = buckets(builder, "_seconds", SECONDS);
    buckets(builder, "_bytes", BYTES).build_recorder()
}

/// Remembers where [`render`] reads; the first one stays.
pub(crate) fn publish(handle: PrometheusHandle) {
    let _ = HANDLE.set(handle);
}

/// Moves samples out of the histograms' buffers, so that they do not grow between two scrapes.
pub(crate) fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// Returns everything that was recorded, in Prometheus' text format; only the process's own metrics before [`crate::init`].
#[must_use]
pub fn render() -> String {
    let mut text = HANDLE.get().map(PrometheusHandle::render).unwrap_or_default();
    ranking::render_into(&mut text);
    process::render_into(&mut text);
    data_disk::render_into(&mut text);
    text
}
