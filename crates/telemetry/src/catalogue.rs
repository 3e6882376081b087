//! How metrics are declared: once, in the `metrics.rs` of the crate that records them.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution over fixed buckets; its name ends in its unit.
    Histogram,
}

/// One metric family, as it stands in the reference and in `# HELP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// `postroad_<role or crate>_<what>_<unit or total>`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence for people, without a full stop.
    pub help: &'static str,
    /// The names of its labels; each has a known small set of values.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// Declares a counter.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Counter, help, labels }
    }

    /// Declares a gauge.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Gauge, help, labels }
    }

    /// Declares a histogram; `_seconds` and `_bytes` have buckets of their own, anything else is counted in powers of two.
    #[must_use]
    pub const fn histogram(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Histogram, help, labels }
    }
}

/// Gives the metrics their help text; takes effect once [`crate::init`] has installed the recorder.
pub fn describe(catalogue: &[Metric]) {
    for metric in catalogue {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}
