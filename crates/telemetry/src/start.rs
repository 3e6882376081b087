//! Starts telemetry: the log, the metric recorder and, with an endpoint configured, traces over OTLP.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{process, quiet::ForeignLines, recorder, trace};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a process logs, and where its traces go.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// How log lines are written; they go to standard error.
    pub log_format: LogFormat,
    /// Which lines are written: `info`, or `info,postroad_raft=debug`.
    pub log_filter: String,
    /// Where traces go over gRPC, such as `http://collector:4317`; nowhere when left out.
    pub otlp_endpoint: Option<String>,
    /// The share of messages that start a trace here, from 0 to 1; a caller's decision is always followed.
    pub otlp_sample_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log_filter: "info,openraft=warn".to_owned(),
            otlp_endpoint: None,
            otlp_sample_ratio: 0.01,
        }
    }
}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// `log_filter` is not a list of directives.
    #[error("`{filter}` is not a valid log filter")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// `otlp_endpoint` is not a URL that traces can be sent to.
    #[error("cannot send traces to `{endpoint}`")]
    Otlp {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        source: ExporterBuildError,
    },
    /// This process has a global logger or metric recorder already.
    #[error("telemetry is already started in this process")]
    AlreadyStarted,
}

/// Running telemetry; [`Telemetry::shutdown`] stops it at the end of the process.
#[derive(Debug)]
pub struct Telemetry {
    upkeep: JoinHandle<()>,
    tracer: Option<SdkTracerProvider>,
}

/// Starts the log, the recorder and the traces of this process; `service` is its name in traces.
///
/// # Errors
/// The configuration is invalid, or telemetry is already started.
///
/// # Panics
/// Outside a Tokio runtime.
pub fn init(config: &TelemetryConfig, service: &'static str) -> Result<Telemetry, InitError> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|source| InitError::Filter { filter: config.log_filter.clone(), source })?;
    let tracer =
        config.otlp_endpoint.as_deref().map(|endpoint| exporter(config, endpoint, service)).transpose()?;

    let traces = tracer.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("postroad"))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(|metadata| metadata.target() == trace::TARGET))
    });
    let log = log_layer(config.log_format).with_filter(filter.and(ForeignLines::default()));
    tracing_subscriber::registry()
        .with(log)
        .with(traces)
        .try_init()
        .map_err(|_| InitError::AlreadyStarted)?;

    let recorder = recorder::build();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| InitError::AlreadyStarted)?;
    recorder::publish(handle);
    process::mark_start();
    trace::set_enabled(tracer.is_some());
    Ok(Telemetry { upkeep: tokio::spawn(keep_up()), tracer })
}

fn log_layer(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

fn exporter(
    config: &TelemetryConfig,
    endpoint: &str,
    service: &'static str,
) -> Result<SdkTracerProvider, InitError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .map_err(|source| InitError::Otlp { endpoint: endpoint.to_owned(), source })?;
    let ratio = Sampler::TraceIdRatioBased(config.otlp_sample_ratio);
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

async fn keep_up() {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        recorder::upkeep();
    }
}

impl Telemetry {
    /// Sends the traces that are still buffered and ends the upkeep; the log and the recorder continue.
    pub async fn shutdown(self) {
        self.upkeep.abort();
        trace::set_enabled(false);
        let Some(tracer) = self.tracer else { return };
        let flushed =
            tokio::task::spawn_blocking(move || tracer.shutdown_with_timeout(Duration::from_secs(5)));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "cannot send the last traces");
        }
    }
}
