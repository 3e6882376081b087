//! The settings of telemetry.

use postroad_core::ByteSize;
use postroad_settings::{Given, Kind, Reading, SettingValue, WritableFile, Wrong, choices, settings};
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, Targets},
};

use crate::ranking::LABEL_VALUES_MAX;

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
        /// The file that the mail log is written to, besides the log; see [Mail log](mail-log.md).
        /// It is opened again on SIGHUP and after it was renamed.
        /// `mail=off` in `log_filter` keeps the mail log out of the log.
        mail_log: Option<WritableFile>;
        /// How much of an address the mail log shows.
        log_addresses: LogAddresses = LogAddresses::None;
        /// The most `rejected` lines in the mail log per second, and as many `login_failed` lines; the rest is counted.
        rejected_lines_per_sec_max: u32 = 100, within 1..=1_000_000;
        /// The most bytes of the mail log that wait to be written.
        /// Lines beyond it are lost and counted; mail does not wait for the log.
        mail_log_buffer_bytes: ByteSize = ByteSize::mib(4), within ByteSize::kib(64)..=ByteSize::gib(1);
        /// The most values of a metric label such as `site` that have series of their own; the others share `other`.
        /// See [Metrics](metrics.md).
        label_values_max: usize = LABEL_VALUES_MAX, within 1..=10_000;
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

choices! {
    /// How much of an address the mail log shows.
    pub enum LogAddresses {
        /// nothing
        None = "none",
        /// the domain
        Domain = "domain",
        /// the whole address
        Full = "full",
    }
}

/// Which log lines are written: directives that `tracing_subscriber` understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// Why a text is no log filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// The directives are not understood.
    #[error("expected a log filter such as \"info,postroad_raft=debug\"")]
    Directives,
    /// A word alone is no level.
    #[error(
        "`{0}` is not a level: expected off, error, warn, info, debug or trace, or a part and its level such as \
         `postroad_queue=debug`"
    )]
    Level(String),
}

impl LogFilter {
    /// Takes directives such as `info,postroad_raft=debug`.
    ///
    /// # Errors
    /// They are not understood, or a word alone is no level: `tracing_subscriber` takes `inof` for a part of the program,
    /// of which it writes all lines, and writes none of any other.
    pub fn parse(text: &str) -> Result<Self, LogFilterError> {
        let is_word = |directive: &&str| !directive.is_empty() && !directive.contains(['=', '[']);
        // `EnvFilter` splits at every comma as well.
        let mut words = text.split(',').filter(is_word);
        if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
            return Err(LogFilterError::Level(word.to_owned()));
        }
        EnvFilter::try_new(text).map(|_| Self(text.to_owned())).map_err(|_| LogFilterError::Directives)
    }

    /// Returns true when lines of a target are written at the level of `info`.
    ///
    /// The subscriber is not asked: with filters for each layer, asking without an event behind it makes the next span of
    /// the thread vanish. A filter that names spans or fields, which [`Targets`] cannot read, counts as one that lets all
    /// through.
    pub(crate) fn lets_through(&self, target: &str) -> bool {
        self.0.parse::<Targets>().map_or(true, |targets| targets.would_enable(target, &tracing::Level::INFO))
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
        let text = given.scalar(|value| value.as_str().map(str::to_owned))?;
        Self::parse(&text).map_err(|error| Wrong::Because(error.to_string()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_in_a_log_filter_is_a_level() {
        let check = |text: &str, wrong: Option<&str>| {
            let expected = wrong.map_or(Ok(()), |word| Err(LogFilterError::Level(word.to_owned())));
            assert_eq!(LogFilter::parse(text).map(drop), expected, "{text:?}");
        };
        for text in
            ["info", "WARN", "off", "3", "info,openraft=warn", "mail=off", "postroad_queue=debug,warn"]
        {
            check(text, None);
        }
        for text in
            ["[span]", "postroad_raft[span]", "[span{field=1}]=debug", "info,postroad_raft[{peer}]=trace"]
        {
            check(text, None);
        }
        check("inof", Some("inof"));
        check("info,postroad_queue", Some("postroad_queue"));
        check("openraft=warn,inof", Some("inof"));
        check("info, warn", Some(" warn"));
        check("info ", Some("info "));
        check("6", Some("6"));
        assert_eq!(LogFilter::parse("info,="), Err(LogFilterError::Directives));
    }

    #[test]
    fn the_log_filter_decides_whether_the_log_has_the_mail_log() {
        let check = |filter, expected| {
            assert_eq!(LogFilter::parse(filter).unwrap().lets_through("mail"), expected, "{filter}");
        };
        check("info,openraft=warn", true);
        check("info,openraft=warn,mail=off", false);
        check("warn", false);
        check("warn,mail=info", true);
        check("info,[span{field=1}]=debug", true);
    }
}
