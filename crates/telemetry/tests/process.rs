//! Telemetry of one process: it starts once, renders metrics, and serves readiness.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use postroad_settings::WritableFile;
use postroad_telemetry::{
    Health, InitError, Label, LogFilter, OtlpEndpoint, TelemetryConfig, init,
    mail_log::{self, Event, LeftOut},
    render, serve, trace,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

postroad_telemetry::catalogue! {
    /// Things that happened
    counter THINGS = "postroad_test_things_total" [Label::one_of("kind", &["good", "bad"])];
    /// How long things took
    histogram WAIT = "postroad_test_wait_seconds" [];
    /// How many things at once
    histogram BATCH = "postroad_test_batch_messages" [];
}

/// Everything global in one test: it can be done only once in a process.
#[tokio::test]
async fn telemetry_starts_once_and_renders_what_was_counted() {
    let wrong =
        TelemetryConfig { otlp_endpoint: OtlpEndpoint::parse("http://a^b"), ..TelemetryConfig::default() };
    assert!(matches!(init(&wrong, "test"), Err(InitError::Otlp { .. })));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mail.log");
    // The port is closed: spans are recorded all the same, and dropped at the end.
    let config = TelemetryConfig {
        log_filter: LogFilter::parse("info,mail=off").unwrap(),
        mail_log: Some(WritableFile(file.clone())),
        otlp_endpoint: OtlpEndpoint::parse("http://127.0.0.1:9"),
        ..TelemetryConfig::default()
    };
    let telemetry = init(&config, "test").unwrap();
    assert!(matches!(init(&config, "test"), Err(InitError::AlreadyStarted)));

    let says_debug = || tracing::enabled!(tracing::Level::DEBUG);
    assert!(!says_debug());
    telemetry.set_log_filter(&LogFilter::parse("debug,mail=off").unwrap());
    assert!(says_debug());
    assert_eq!(OtlpEndpoint::parse("collector:4317"), None);

    THINGS.with(["good"]).increment(3);
    WAIT.with([]).record(0.003);
    BATCH.with([]).record(5.0);
    let text = render();
    for line in [
        "# HELP postroad_test_things_total Things that happened",
        "# TYPE postroad_test_things_total counter",
        "postroad_test_things_total{kind=\"good\"} 3",
        "# TYPE postroad_test_wait_seconds histogram",
        "postroad_test_wait_seconds_bucket{le=\"0.005\"} 1",
        "postroad_test_wait_seconds_bucket{le=\"0.0025\"} 0",
        "postroad_test_batch_messages_bucket{le=\"8\"} 1",
        "# TYPE process_cpu_seconds_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("quantile"));

    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let span = trace::span("submit", parent);
    let child = trace::traceparent_of(&span);
    assert!(child.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && child.ends_with("-01"), "{child}");
    assert_ne!(child, parent);
    assert!(span.in_scope(|| trace::traceparent() == child));
    drop(span);
    assert!(mail_log::is_enabled());
    mail_log::write(&LeftOut { event: Event::Lost, of: None, lines: 7 });
    telemetry.shutdown().await;
    assert!(!trace::is_enabled());
    let lines = std::fs::read_to_string(&file).unwrap();
    assert!(lines.ends_with("  INFO mail: lost of=- lines=7\n"), "all is written at the end: {lines}");
}

async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn health_and_readiness_are_served_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health::new();
    let raft = health.component("raft");
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, health, shutdown.clone()));

    assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    let response = fetch(address, "/readyz").await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("not ready: raft\n"), "{response}");
    assert!(fetch(address, "/metrics").await.contains("\npostroad_ready{component=\"raft\"} 0\n"));
    raft.set_ready(true);
    assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(fetch(address, "/metrics").await.contains("\npostroad_ready{component=\"raft\"} 1\n"));
    assert!(fetch(address, "/metrics").await.contains("postroad_build_info{version="));
    assert!(fetch(address, "/other").await.starts_with("HTTP/1.1 404"));

    // A client that keeps its connection open does not delay the shutdown.
    let _idle = TcpStream::connect(address).await.unwrap();
    shutdown.cancel();
    server.await.unwrap().unwrap();
}
