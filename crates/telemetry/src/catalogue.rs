//! How metrics are declared: once, in the `metrics.rs` of the crate that records them.
//!
//! A handle can only be had from a declaration, and takes the help text to the recorder with it, so that no metric
//! reaches `/metrics` without help. [`catalogue!`](crate::catalogue) writes the declarations and the list of them,
//! from which `docs/reference/metrics.md` is made.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, Key, Level, Metadata, Recorder};

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

impl Kind {
    /// Returns the word of Prometheus' text format.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label, and what its value can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub values: Values,
}

/// What the value of a label can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Few by nature: the text says what they are.
    Few(&'static str),
    /// Many: at most `telemetry.label_values_max` have series of their own, the rest share [`OTHER`](crate::OTHER).
    /// The text says what they are.
    Ranked(&'static str),
}

impl Label {
    /// Declares a label that has one of these values.
    #[must_use]
    pub const fn one_of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: Values::OneOf(values) }
    }

    /// Declares a label with few values, which `meaning` describes.
    #[must_use]
    pub const fn few(name: &'static str, meaning: &'static str) -> Self {
        Self { name, values: Values::Few(meaning) }
    }

    /// Declares a label with many values, which `meaning` describes: those with most volume have series of their own.
    #[must_use]
    pub const fn ranked(name: &'static str, meaning: &'static str) -> Self {
        Self { name, values: Values::Ranked(meaning) }
    }

    /// Returns true when the declaration allows this value.
    #[must_use]
    pub fn allows(&self, value: &str) -> bool {
        match self.values {
            Values::OneOf(values) => values.contains(&value),
            Values::Few(_) | Values::Ranked(_) => true,
        }
    }
}

/// One metric family, as the reference has it and `# HELP` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// `postroad_<role or crate>_<what>_<unit>`, and `_total` behind that for counters.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence for people, without a full stop.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [Label],
}

impl Metric {
    /// Declares a metric; does not compile for a counter whose name does not end in `_total`, nor for anything else that does.
    #[must_use]
    pub const fn new(kind: Kind, name: &'static str, help: &'static str, labels: &'static [Label]) -> Self {
        assert!(
            matches!(kind, Kind::Counter) == is_total(name),
            "a counter, and nothing else, ends in `_total`"
        );
        Self { name, kind, help: help.trim_ascii(), labels }
    }

    /// Returns the unit its name ends in: `seconds` or `bytes`; empty for what is counted.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        let base = self.name.strip_suffix("_total").unwrap_or(self.name);
        let units = ["seconds", "bytes"];
        units
            .into_iter()
            .find(|unit| base.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
            .unwrap_or("")
    }

    /// Returns the declaration itself, as [`Family::metric`] does.
    #[must_use]
    pub const fn metric(&'static self) -> &'static Self {
        self
    }

    fn key(&self, values: &[&str]) -> Key {
        debug_assert_eq!(values.len(), self.labels.len(), "`{}`", self.name);
        let label = |(label, value): (&Label, &&str)| {
            debug_assert!(label.allows(value), "`{}` has no {} `{value}`", self.name, label.name);
            metrics::Label::new(label.name, (*value).to_owned())
        };
        Key::from_parts(self.name, self.labels.iter().zip(values).map(label).collect::<Vec<_>>())
    }

    fn describe(&self, recorder: &dyn Recorder) {
        match self.kind {
            Kind::Counter => recorder.describe_counter(self.name.into(), None, self.help.into()),
            Kind::Gauge => recorder.describe_gauge(self.name.into(), None, self.help.into()),
            Kind::Histogram => recorder.describe_histogram(self.name.into(), None, self.help.into()),
        }
    }
}

const fn is_total(name: &str) -> bool {
    let (name, suffix) = (name.as_bytes(), b"_total");
    let mut matched = 0;
    while matched < suffix.len() {
        if name.len() <= matched || name[name.len() - 1 - matched] != suffix[suffix.len() - 1 - matched] {
            return false;
        }
        matched += 1;
    }
    true
}

/// A metric whose series have `N` labels, and the only way to a handle of one of them.
#[derive(Debug)]
pub struct Family<K: 'static, const N: usize> {
    metric: Metric,
    kind: PhantomData<fn() -> K>,
}

const METADATA: Metadata<'static> = Metadata::new("postroad", Level::INFO, None);

impl<K, const N: usize> Family<K, N> {
    /// Makes a family of a declaration; [`catalogue!`](crate::catalogue) calls it.
    #[must_use]
    pub const fn new(metric: Metric) -> Self {
        assert!(metric.labels.len() == N, "a family has as many labels as it declares");
        Self { metric, kind: PhantomData }
    }

    /// Returns the declaration.
    #[must_use]
    pub const fn metric(&'static self) -> &'static Metric {
        &self.metric
    }

    fn register<T>(&self, values: [&str; N], register: impl FnOnce(&dyn Recorder, &Key) -> T) -> T {
        let key = self.metric.key(&values);
        metrics::with_recorder(|recorder| {
            self.metric.describe(recorder);
            register(recorder, &key)
        })
    }
}

impl<const N: usize> Family<Counter, N> {
    /// Returns the counter with these values of the labels; it stands at zero until it is incremented.
    pub fn with(&self, values: [&str; N]) -> Counter {
        self.register(values, |recorder, key| recorder.register_counter(key, &METADATA))
    }
}

impl<const N: usize> Family<Gauge, N> {
    /// Returns the gauge with these values of the labels; it stands at zero until it is set.
    pub fn with(&self, values: [&str; N]) -> Gauge {
        self.register(values, |recorder, key| recorder.register_gauge(key, &METADATA))
    }
}

impl<const N: usize> Family<Histogram, N> {
    /// Returns the histogram with these values of the labels.
    pub fn with(&self, values: [&str; N]) -> Histogram {
        self.register(values, |recorder, key| recorder.register_histogram(key, &METADATA))
    }
}

/// Declares the metrics of a crate, each as a static, and all of them as `CATALOGUE`.
///
/// ```
/// use postroad_telemetry::{Label, catalogue};
///
/// const RESULT: Label = Label::one_of("result", &["good", "bad"]);
///
/// catalogue! {
///     /// Things that were looked at
///     counter THINGS = "postroad_example_things_total" [RESULT];
///     /// How long it took
///     histogram TOOK = "postroad_example_look_seconds" [];
/// }
///
/// THINGS.with(["good"]).increment(1);
/// TOOK.with([]).record(0.25);
/// assert_eq!(CATALOGUE.len(), 2);
/// ```
///
/// `ranked_counter`, `ranked_gauge` and `ranked_histogram` have a first label with many values: their handles come from a
/// [`Ranking`](crate::Ranking), a [`Tally`](crate::Tally) or [`Depths`](crate::Depths).
#[macro_export]
macro_rules! catalogue {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident = $family:literal [$($label:expr),* $(,)?];)+) => {
        $($crate::catalogue!(@declare $kind, $name, $family, concat!($($help),+), [$($label),*]);)+

        /// Every metric that is recorded here, in the order of the reference.
        pub static CATALOGUE: &[&$crate::Metric] = &[$($name.metric()),+];
    };
    (@declare counter, $($rest:tt)*) => { $crate::catalogue!(@family Counter, $($rest)*); };
    (@declare gauge, $($rest:tt)*) => { $crate::catalogue!(@family Gauge, $($rest)*); };
    (@declare histogram, $($rest:tt)*) => { $crate::catalogue!(@family Histogram, $($rest)*); };
    (@declare ranked_counter, $($rest:tt)*) => { $crate::catalogue!(@ranked Counter, $($rest)*); };
    (@declare ranked_gauge, $($rest:tt)*) => { $crate::catalogue!(@ranked Gauge, $($rest)*); };
    (@declare ranked_histogram, $($rest:tt)*) => { $crate::catalogue!(@ranked Histogram, $($rest)*); };
    (@family $kind:ident, $name:ident, $family:literal, $help:expr, [$($label:expr),*]) => {
        static $name: $crate::Family<$crate::$kind, { <[$crate::Label]>::len(&[$($label),*]) }> = $crate::Family::new(
            $crate::Metric::new($crate::Kind::$kind, $family, $help, &[$($label),*]),
        );
    };
    (@ranked $kind:ident, $name:ident, $family:literal, $help:expr, [$($label:expr),*]) => {
        static $name: $crate::Metric =
            $crate::Metric::new($crate::Kind::$kind, $family, $help, &[$($label),*]);
    };
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "a catalogue is public, and this one is of a test")]
mod tests {
    use super::*;

    const RESULT: Label = Label::one_of("result", &["good", "bad"]);
    const NAME: Label = Label::few("name", "the names of listeners");

    crate::catalogue! {
        /// Things that were looked at,
        /// by result
        counter THINGS = "postroad_test_things_total" [RESULT, NAME];
        /// How long a look took
        histogram TOOK = "postroad_test_look_seconds" [];
        /// What was seen
        ranked_counter SEEN = "postroad_test_seen_bytes_total" [Label::ranked("site", "sites"), RESULT];
    }

    #[test]
    fn a_declaration_says_everything_about_a_metric() {
        let names: Vec<&str> = CATALOGUE.iter().map(|metric| metric.name).collect();
        assert_eq!(
            names,
            ["postroad_test_things_total", "postroad_test_look_seconds", "postroad_test_seen_bytes_total"]
        );
        assert_eq!(CATALOGUE[0].help, "Things that were looked at, by result");
        assert_eq!(CATALOGUE[0].labels, [RESULT, NAME]);
        let units: Vec<&str> = CATALOGUE.iter().map(|metric| metric.unit()).collect();
        assert_eq!(units, ["", "seconds", "bytes"]);
        assert_eq!(CATALOGUE[2].kind, Kind::Counter);
        THINGS.with(["bad", "anything"]).increment(1);
        TOOK.with([]).record(1.0);
    }

    #[test]
    #[should_panic(expected = "has no result `worse`")]
    #[cfg(debug_assertions)]
    fn a_value_that_was_not_declared_is_found_by_every_test_that_records_it() {
        THINGS.with(["worse", "anything"]).increment(1);
    }

    #[test]
    fn only_what_ends_in_total_is_a_total() {
        let check = |name, expected| assert_eq!(is_total(name), expected, "{name}");
        check("postroad_x_total", true);
        check("_total", true);
        check("total", false);
        check("postroad_total_x", false);
        check("", false);
    }
}
