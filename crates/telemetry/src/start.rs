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
use tokio::task::JoinHandle;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    layer::{Filter, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use crate::{
    LogFilter, LogFormat, OtlpEndpoint, TelemetryConfig,
    mail_log::{self, MailLog},
    process,
    quiet::ForeignLines,
    ranking, recorder, trace,
};

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// `otlp_endpoint` is not a URL that traces can be sent to.
    #[error("cannot send traces to `{endpoint}`")]
    Otlp {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        source: ExporterBuildError,
    },
    /// The mail log cannot be started.
    #[error("cannot open the mail log `{path}`")]
    MailLog {
        /// The file; empty where there is none, and the system has no thread for us.
        path: String,
        /// What is wrong with it.
        source: io::Error,
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
    log_filter: reload::Handle<EnvFilter, Registry>,
    mail_log: MailLog,
}

/// Ranked labels are ranked in every so many rounds of upkeep.
const RANK_ROUNDS: u32 = 12;
/// How long the end of the mail log may take; longer, and whatever reads the log hangs.
const MAIL_LOG_STOP_WITHIN: Duration = Duration::from_secs(5);

/// Starts the log, the recorder and the traces of this process; `service` is its name in traces.
///
/// # Errors
/// The configuration is invalid, or telemetry is already started.
///
/// # Panics
/// Outside a Tokio runtime.
pub fn init(config: &TelemetryConfig, service: &'static str) -> Result<Telemetry, InitError> {
    let (filter, log_filter) = reload::Layer::new(config.log_filter.to_filter());
    let endpoint = config.otlp_endpoint.as_ref().map(OtlpEndpoint::as_str);
    let tracer = endpoint.map(|endpoint| exporter(config, endpoint, service)).transpose()?;

    tracing_subscriber::registry()
        .with(layers(config.log_format, filter, tracer.as_ref()))
        .try_init()
        .map_err(|_| InitError::AlreadyStarted)?;

    let recorder = recorder::build();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| InitError::AlreadyStarted)?;
    recorder::publish(handle);
    process::mark_start();
    ranking::set_places(config.label_values_max);
    trace::set_enabled(tracer.is_some());
    let mail_log = start_mail_log(config)?;
    Ok(Telemetry { upkeep: tokio::spawn(keep_up()), tracer, log_filter, mail_log })
}

fn start_mail_log(config: &TelemetryConfig) -> Result<MailLog, InitError> {
    let file = config.mail_log.as_ref();
    let options = mail_log::Options {
        format: config.log_format,
        addresses: config.log_addresses,
        file: file.map(|file| file.0.clone()),
        look_every: mail_log::LOOK_EVERY,
        buffer_bytes: usize::try_from(config.mail_log_buffer_bytes.0).unwrap_or(usize::MAX),
        limited_lines_per_sec: config.rejected_lines_per_sec_max,
    };
    let failed =
        |source| InitError::MailLog { path: file.map(ToString::to_string).unwrap_or_default(), source };
    let log = MailLog::start(options, config.log_filter.lets_through(mail_log::TARGET)).map_err(failed)?;
    log.publish();
    Ok(log)
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The log, and the traces where they are exported.
///
/// Not an `Option` of a layer: an absent one asks for every span of every crate.
fn layers(
    format: LogFormat,
    filter: impl Filter<Registry> + Send + Sync + 'static,
    tracer: Option<&SdkTracerProvider>,
) -> Vec<BoxedLayer> {
    let traces = tracer.map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("postroad"))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(|metadata| metadata.target() == trace::TARGET))
            .boxed()
    });
    let log = log_layer(format).with_filter(filter.and(ForeignLines::default())).boxed();
    [log].into_iter().chain(traces).collect()
}

fn log_layer(format: LogFormat) -> BoxedLayer {
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
    for round in 1_u32.. {
        every.tick().await;
        recorder::upkeep();
        if round % RANK_ROUNDS == 0 {
            ranking::rank_all();
        }
    }
}

impl Telemetry {
    /// Changes which log lines are written.
    pub fn set_log_filter(&self, filter: &LogFilter) {
        // It fails only when the log is gone, and then nothing is written.
        let _ = self.log_filter.reload(filter.to_filter());
        self.mail_log.set_to_process_log(filter.lets_through(mail_log::TARGET));
    }

    /// Writes the mail log and sends the traces that are still buffered, and ends the upkeep; the log and the recorder continue.
    pub async fn shutdown(self) {
        self.upkeep.abort();
        trace::set_enabled(false);
        self.mail_log.stop();
        let stopped = async {
            while !self.mail_log.has_stopped() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(MAIL_LOG_STOP_WITHIN, stopped).await.is_err() {
            tracing::warn!("cannot write the last lines of the mail log");
        }
        let Some(tracer) = self.tracer else { return };
        let flushed = postroad_env::blocking(move || tracer.shutdown_with_timeout(Duration::from_secs(5)));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "cannot send the last traces");
        }
    }
}
