//! What is not logged costs nothing: alone in its process, since a process has one log.

use postroad_telemetry::{LogFilter, TelemetryConfig};
use tracing::level_filters::LevelFilter;

fn filter(text: &str) -> LogFilter {
    LogFilter::parse(text).expect("a filter")
}

#[tokio::test]
async fn spans_that_are_neither_logged_nor_exported_are_not_made() {
    let config = TelemetryConfig { log_filter: filter("warn"), ..TelemetryConfig::default() };
    let telemetry = postroad_telemetry::init(&config, "test").expect("telemetry starts");
    assert_eq!(LevelFilter::current(), LevelFilter::WARN);
    telemetry.set_log_filter(&filter("info"));
    assert!(tracing::info_span!(target: "h2", "logged with its lines").id().is_some());
    assert!(tracing::debug_span!(target: "h2", "not logged").is_disabled());
    telemetry.set_log_filter(&filter("warn,postroad=info"));
    assert!(tracing::info_span!(target: "h2", "not logged").is_disabled());
    telemetry.shutdown().await;
}
