//! The settings of telemetry.

use postroad_settings::{Given, Kind, Reading, SettingValue, Wrong, choices, settings};
use tracing_subscriber::EnvFilter;

settings! {
    /// What a process logs, and where its traces go.
    pub struct TelemetryConfig {
        /// How log lines are written to standard error.
        log_format: LogFormat = LogFormat::Text;
        /// Which lines are written, by level and part.
        log_filter: LogFilter = LogFilter("info,openraft=warn".to_owned()), reload = true;
        /// Where traces are sent over gRPC.
        /// Left out, there are none.
        otlp_endpoint: Option<OtlpEndpoint>;
        /// The share of messages that start a trace here.
        /// The decision of a caller that sends a trace id is always followed.
        otlp_sample_ratio: f64 = 0.01, within 0.0..=1.0;
    }
}

choices! {
    /// How log lines are written.
    pub enum LogFormat {
        /// for people
        Text = "text",
        /// one JSON object per line
        Json = "json",
    }
}

/// Which log lines are written: directives that `tracing_subscriber` understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// Takes directives such as `info,postroad_raft=debug`; `None` where they are not understood.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        EnvFilter::try_new(text).is_ok().then(|| Self(text.to_owned()))
    }

    pub(crate) fn to_filter(&self) -> EnvFilter {
        EnvFilter::try_new(&self.0).expect("directives were understood when the value was made")
    }
}

impl SettingValue for LogFilter {
    fn kind() -> Kind {
        Kind::Text { what: "a log filter", example: "info,postroad_raft=debug" }
    }

    fn placeholder() -> Self {
        Self("info".to_owned())
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| value.as_str().and_then(Self::parse))
    }

    fn write(&self) -> Option<postroad_settings::toml::Value> {
        self.0.write()
    }
}

/// The URL of an OTLP collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

impl OtlpEndpoint {
    /// Takes a URL such as `http://collector:4317`; `None` where it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
        let is_url = !authority.is_empty() && !authority.contains(char::is_whitespace);
        is_url.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl SettingValue for OtlpEndpoint {
    fn kind() -> Kind {
        Kind::Text { what: "a URL", example: "http://collector:4317" }
    }

    fn placeholder() -> Self {
        Self(String::new())
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| value.as_str().and_then(Self::parse))
    }

    fn write(&self) -> Option<postroad_settings::toml::Value> {
        self.0.write()
    }
}
