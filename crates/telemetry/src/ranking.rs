//! Labels with many values, such as the site of a receiver: the values with most volume have series of their own, the rest
//! share one that is called [`OTHER`].
//!
//! - A value has a place of its own from its first event while places are free, and later when in one ranking it had more
//!   than twice the volume of the place with least; volumes of earlier rankings count half each time.
//! - What is counted before a value has a place, or after it lost it, is counted in `other` and stays there.
//!   A series that lost its place ends; it is never added to `other`. So every event is counted once, in one series, and every
//!   series only grows for as long as it is there: `rate()` and sums of rates are right across a change of places.
//! - Memory is bounded by the places and by the handles that others hold; a handle is an index and costs two additions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    fmt::Write,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};

use crate::catalogue::{Kind, Label, Metric, Values};

/// The value that stands for all values without a series of their own.
pub const OTHER: &str = "other";

/// How many values of one label have series of their own, unless an operator says otherwise.
pub(crate) const LABEL_VALUES_MAX: usize = 100;

/// Fewer than other histograms have: there is one for every value.
const BUCKETS: [f64; 13] =
    [0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 172_800.0, 432_000.0];
/// The buckets, the one for all that is longer, and the sum in microseconds.
const HISTOGRAM_CELLS: usize = BUCKETS.len() + 2;

static PLACES: AtomicUsize = AtomicUsize::new(LABEL_VALUES_MAX);
static RENDERED: Mutex<Vec<&'static dyn Render>> = Mutex::new(Vec::new());

/// Says how many values of one label have series of their own; takes effect with the next ranking.
pub(crate) fn set_places(places: usize) {
    PLACES.store(places, Relaxed);
}

/// Ranks all labels, by the volume since the last ranking.
pub(crate) fn rank_all() {
    RENDERED.lock().iter().for_each(|rendered| rendered.rank());
}

/// Appends all series in Prometheus' text format.
pub(crate) fn render_into(text: &mut String) {
    RENDERED.lock().iter().for_each(|rendered| rendered.render_into(text));
}

trait Render: Sync {
    fn rank(&self) {}
    fn render_into(&self, text: &mut String);
}

/// Counters and histograms of one label whose values are ranked by volume.
#[derive(Debug)]
pub struct Ranking {
    metrics: &'static [&'static Metric],
    state: OnceLock<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    other: Arc<Place>,
    places: HashMap<Arc<str>, Arc<Place>>,
    /// Every value that somebody holds a handle of, and its volume.
    held: HashMap<Arc<str>, Held>,
}

#[derive(Debug)]
struct Held {
    value: Weak<Ranked>,
    score: f64,
}

/// The series of one value: one cell for each combination of the other labels, more for a histogram.
#[derive(Debug)]
struct Place {
    cells: Box<[AtomicU64]>,
}

/// A value of a ranked label; handles are made from it and hold it.
#[derive(Debug)]
pub struct Ranked {
    value: Arc<str>,
    metrics: &'static [&'static Metric],
    volume: AtomicU64,
    place: RwLock<Arc<Place>>,
}

impl Ranking {
    /// Makes a ranking of the first label of these metrics, which is the same for all.
    #[must_use]
    pub const fn new(metrics: &'static [&'static Metric]) -> Self {
        Self { metrics, state: OnceLock::new() }
    }

    /// Returns a value, from which handles are made; it keeps its place among the values for as long as it has the volume.
    #[must_use]
    pub fn value(&'static self, value: &str) -> Arc<Ranked> {
        let mut state = self.state().lock();
        if let Some(ranked) = state.held.get(value).and_then(|held| held.value.upgrade()) {
            return ranked;
        }
        let value: Arc<str> = value.into();
        let place = match state.places.get(&value) {
            Some(place) => Arc::clone(place),
            None if state.places.len() < PLACES.load(Relaxed) && &*value != OTHER => {
                let place = Arc::new(Place::new(self.metrics));
                state.places.insert(Arc::clone(&value), Arc::clone(&place));
                place
            }
            None => Arc::clone(&state.other),
        };
        let ranked = Arc::new(Ranked {
            value: Arc::clone(&value),
            metrics: self.metrics,
            volume: AtomicU64::new(0),
            place: RwLock::new(place),
        });
        let score = state.held.get(&value).map_or(0.0, |held| held.score);
        state.held.insert(value, Held { value: Arc::downgrade(&ranked), score });
        ranked
    }

    fn state(&'static self) -> &'static Mutex<State> {
        self.state.get_or_init(|| {
            RENDERED.lock().push(self);
            let other = Arc::new(Place::new(self.metrics));
            Mutex::new(State { other, places: HashMap::new(), held: HashMap::new() })
        })
    }
}

impl Render for Ranking {
    fn rank(&self) {
        if let Some(state) = self.state.get() {
            state.lock().rank(PLACES.load(Relaxed), || Arc::new(Place::new(self.metrics)));
        }
    }

    fn render_into(&self, text: &mut String) {
        let Some(state) = self.state.get() else { return };
        // Lanes wait for the lock: it is not held while text is made.
        let (places, other) = {
            let state = state.lock();
            let place = |(value, place): (&Arc<str>, &Arc<Place>)| (Arc::clone(value), Arc::clone(place));
            (state.places.iter().map(place).collect::<BTreeMap<_, _>>(), Arc::clone(&state.other))
        };
        let rows = || places.iter().map(|(value, place)| (&**value, place)).chain([(OTHER, &other)]);
        let mut offset = 0;
        for metric in self.metrics {
            write_head(text, metric);
            for (value, place) in rows() {
                for (number, fixed) in combinations(&metric.labels[1..]).iter().enumerate() {
                    let labels = format!("{}=\"{}\"{fixed}", metric.labels[0].name, escaped(value));
                    write_series(text, metric, &labels, &place.cells[offset + number * cells(metric.kind)..]);
                }
            }
            offset += size(metric);
            text.push('\n');
        }
    }
}

impl State {
    fn rank(&mut self, places_max: usize, new_place: impl Fn() -> Arc<Place>) {
        self.held.retain(|_, held| {
            let Some(ranked) = held.value.upgrade() else { return false };
            held.score = held.score / 2.0 + ranked.volume.swap(0, Relaxed) as f64;
            true
        });
        let places = self.places.len();
        let with = self.places.keys().map(|value| (self.score(value), Arc::clone(value))).collect();
        let without = self.held.iter().filter(|(value, held)| {
            held.score > 0.0 && &***value != OTHER && !self.places.contains_key(*value)
        });
        let without = without.map(|(value, held)| (held.score, Arc::clone(value))).collect();
        for Change { from, to } in changes(places_max.saturating_sub(places), with, without) {
            from.iter().for_each(|value| self.take_place_from(value));
            self.give_place(&to, new_place());
        }
    }

    fn score(&self, value: &str) -> f64 {
        self.held.get(value).map_or(0.0, |held| held.score)
    }

    fn take_place_from(&mut self, value: &Arc<str>) {
        self.places.remove(value);
        if let Some(ranked) = self.held.get(value).and_then(|held| held.value.upgrade()) {
            *ranked.place.write() = Arc::clone(&self.other);
        }
    }

    fn give_place(&mut self, value: &Arc<str>, place: Arc<Place>) {
        if let Some(ranked) = self.held.get(value).and_then(|held| held.value.upgrade()) {
            *ranked.place.write() = Arc::clone(&place);
        }
        self.places.insert(Arc::clone(value), place);
    }
}

/// A place changes hands.
#[derive(Debug, PartialEq, Eq)]
struct Change<V> {
    /// The value that loses it; `None` for a place that is free.
    from: Option<V>,
    /// The value that gets it.
    to: V,
}

/// Decides which places change hands, from the scores of the values with and without one; each list is sorted once.
///
/// The value with most gets the place of the one with least, and so on. What has just got or lost a place need not be looked
/// at again: it had more than all that follow, or less than half of it.
fn changes<V>(free: usize, mut with: Vec<(f64, V)>, mut without: Vec<(f64, V)>) -> Vec<Change<V>> {
    with.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    without.sort_unstable_by(|one, other| other.0.total_cmp(&one.0));
    let mut without = without.into_iter();
    let given = without.by_ref().take(free).map(|(_, to)| Change { from: None, to });
    let mut changes: Vec<Change<V>> = given.collect();
    // Twice as much, so that two values of about the same volume do not take turns.
    let replaced = with.into_iter().zip(without).take_while(|(least, best)| best.0 > 2.0 * least.0);
    changes.extend(replaced.map(|((_, from), (_, to))| Change { from: Some(from), to }));
    changes
}

impl Place {
    fn new(metrics: &[&Metric]) -> Self {
        let cells = metrics.iter().map(|metric| size(metric)).sum();
        Self { cells: std::iter::repeat_with(AtomicU64::default).take(cells).collect() }
    }
}

impl Ranked {
    /// Returns the value.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.value
    }

    /// Returns the handle of a counter of the ranking; `values` are those of its labels behind the first.
    ///
    /// # Panics
    /// The metric is not of the ranking, or a value was not declared.
    #[must_use]
    pub fn counter(self: &Arc<Self>, metric: &'static Metric, values: &[&str]) -> RankedCounter {
        RankedCounter { ranked: Arc::clone(self), cell: self.cell(metric, values) }
    }

    /// Returns the handle of a histogram of the ranking; `values` are those of its labels behind the first.
    ///
    /// # Panics
    /// The metric is not of the ranking, or a value was not declared.
    #[must_use]
    pub fn histogram(self: &Arc<Self>, metric: &'static Metric, values: &[&str]) -> RankedHistogram {
        RankedHistogram { ranked: Arc::clone(self), cell: self.cell(metric, values) }
    }

    fn cell(&self, metric: &Metric, values: &[&str]) -> usize {
        let place = self.metrics.iter().position(|known| known.name == metric.name);
        let place = place.expect("a handle is made of a metric of the ranking");
        let offset: usize = self.metrics[..place].iter().map(|metric| size(metric)).sum();
        let number = metric.labels[1..].iter().zip(values).fold(0, |number, (label, value)| {
            let Values::OneOf(known) = label.values else { unreachable!("checked by `size`") };
            let place = known.iter().position(|known| known == value);
            number * known.len() + place.unwrap_or_else(|| panic!("`{}` has no `{value}`", metric.name))
        });
        offset + number * cells(metric.kind)
    }

    fn add(&self, cell: usize, number: u64) {
        self.volume.fetch_add(1, Relaxed);
        self.place.read().cells[cell].fetch_add(number, Relaxed);
    }
}

/// The handle of a counter of one value.
#[derive(Clone, Debug)]
pub struct RankedCounter {
    ranked: Arc<Ranked>,
    cell: usize,
}

impl RankedCounter {
    /// Counts.
    pub fn increment(&self, number: u64) {
        self.ranked.add(self.cell, number);
    }
}

/// The handle of a histogram of one value.
#[derive(Clone, Debug)]
pub struct RankedHistogram {
    ranked: Arc<Ranked>,
    cell: usize,
}

impl RankedHistogram {
    /// Records one sample.
    pub fn record(&self, sample: Duration) {
        let seconds = sample.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        let place = self.ranked.place.read();
        place.cells[self.cell + bucket].fetch_add(1, Relaxed);
        let micros = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX);
        place.cells[self.cell + HISTOGRAM_CELLS - 1].fetch_add(micros, Relaxed);
    }
}

/// How many cells one series takes.
const fn cells(kind: Kind) -> usize {
    match kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => HISTOGRAM_CELLS,
    }
}

/// How many cells a metric takes for one value of its first label.
fn size(metric: &Metric) -> usize {
    let of_label = |label: &Label| match label.values {
        Values::OneOf(values) => values.len(),
        Values::Few(_) | Values::Ranked(_) => {
            panic!("`{}`: only the first label may have many values", metric.name)
        }
    };
    metric.labels[1..].iter().map(of_label).product::<usize>() * cells(metric.kind)
}

/// Every combination of the values of some labels, as text to be put behind the first label.
fn combinations(labels: &[Label]) -> Vec<String> {
    labels.iter().fold(vec![String::new()], |before, label| {
        let Values::OneOf(values) = label.values else { unreachable!("checked by `size`") };
        let with = |text: &String| values.iter().map(move |value| (text.clone(), *value)).collect::<Vec<_>>();
        before
            .iter()
            .flat_map(with)
            .map(|(text, value)| format!("{text},{}=\"{value}\"", label.name))
            .collect()
    })
}

fn write_head(text: &mut String, metric: &Metric) {
    let Metric { name, kind, help, .. } = metric;
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str());
}

fn write_series(text: &mut String, metric: &Metric, labels: &str, cells: &[AtomicU64]) {
    let name = metric.name;
    let read = |cell: usize| cells[cell].load(Relaxed);
    if metric.kind != Kind::Histogram {
        let _ = writeln!(text, "{name}{{{labels}}} {}", read(0));
        return;
    }
    let mut count = 0;
    for (cell, bound) in BUCKETS.iter().enumerate() {
        count += read(cell);
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
    }
    count += read(BUCKETS.len());
    let sum = Duration::from_micros(read(HISTOGRAM_CELLS - 1)).as_secs_f64();
    let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
}

/// A value as it stands between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A gauge that says how many things there are of each value of its one label.
#[derive(Debug)]
pub struct Tally {
    metric: &'static Metric,
    counts: OnceLock<Mutex<HashMap<Arc<str>, u64>>>,
}

/// Counts for its value until it is dropped.
#[derive(Debug)]
pub struct Tallied {
    tally: &'static Tally,
    value: Arc<str>,
}

impl Tally {
    /// Makes a tally of a gauge with one label.
    #[must_use]
    pub const fn new(metric: &'static Metric) -> Self {
        Self { metric, counts: OnceLock::new() }
    }

    /// Counts one more of this value.
    #[must_use]
    pub fn count(&'static self, value: &Arc<str>) -> Tallied {
        *self.counts().lock().entry(Arc::clone(value)).or_default() += 1;
        Tallied { tally: self, value: Arc::clone(value) }
    }

    fn counts(&'static self) -> &'static Mutex<HashMap<Arc<str>, u64>> {
        self.counts.get_or_init(|| {
            RENDERED.lock().push(self);
            Mutex::default()
        })
    }

    /// Makes the series known, so that `/metrics` shows that there are none.
    pub fn declare(&'static self) {
        self.counts();
    }
}

impl Drop for Tallied {
    fn drop(&mut self) {
        let mut counts = self.tally.counts().lock();
        if let Some(count) = counts.get_mut(&self.value) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.value);
            }
        }
    }
}

impl Render for Tally {
    fn render_into(&self, text: &mut String) {
        let Some(counts) = self.counts.get() else { return };
        let counts = counts.lock();
        let (top, rest) = top(PLACES.load(Relaxed), counts.iter().map(|(value, count)| (&**value, *count)));
        write_head(text, self.metric);
        write_gauges(text, self.metric, "", &top, rest);
        text.push('\n');
    }
}

/// A gauge that is set for all values of its last label at once, apart for every value of its first one.
#[derive(Debug)]
pub struct Depths {
    metric: &'static Metric,
    parts: OnceLock<Mutex<BTreeMap<String, Top<Box<str>>>>>,
}

/// The largest, and the sum of the rest.
type Top<V> = (Vec<(V, u64)>, u64);

impl Depths {
    /// Makes a gauge of a declaration with two labels, of which the second one is ranked.
    #[must_use]
    pub const fn new(metric: &'static Metric) -> Self {
        Self { metric, parts: OnceLock::new() }
    }

    /// Sets the gauge for one value of the first label; values that are not named, or are zero, have no series.
    pub fn set<'a>(&'static self, part: &str, depths: impl Iterator<Item = (&'a str, u64)>) {
        let (top, rest) = top(PLACES.load(Relaxed), depths.filter(|(_, depth)| *depth > 0));
        let top = top.into_iter().map(|(value, depth)| (value.into(), depth)).collect();
        let parts = self.parts.get_or_init(|| {
            RENDERED.lock().push(self);
            Mutex::default()
        });
        parts.lock().insert(part.to_owned(), (top, rest));
    }
}

impl Render for Depths {
    fn render_into(&self, text: &mut String) {
        let Some(parts) = self.parts.get() else { return };
        write_head(text, self.metric);
        for (part, (top, rest)) in parts.lock().iter() {
            let first = format!("{}=\"{}\",", self.metric.labels[0].name, escaped(part));
            write_gauges(text, self.metric, &first, top, *rest);
        }
        text.push('\n');
    }
}

fn write_gauges<V: AsRef<str>>(text: &mut String, metric: &Metric, first: &str, top: &[(V, u64)], rest: u64) {
    let label = metric.labels.last().map_or("", |label| label.name);
    for (value, count) in top {
        let _ = writeln!(text, "{}{{{first}{label}=\"{}\"}} {count}", metric.name, escaped(value.as_ref()));
    }
    let _ = writeln!(text, "{}{{{first}{label}=\"{OTHER}\"}} {rest}", metric.name);
}

/// Chooses the largest, in the order of their values; what is called like the rest is part of the rest.
fn top<V: Ord + AsRef<str>>(number: usize, values: impl Iterator<Item = (V, u64)>) -> Top<V> {
    let mut heap = BinaryHeap::new();
    let mut rest = 0;
    for (value, count) in values {
        if value.as_ref() == OTHER {
            rest += count;
            continue;
        }
        heap.push(Reverse((count, value)));
        if heap.len() > number
            && let Some(Reverse((least, _))) = heap.pop()
        {
            rest += least;
        }
    }
    let mut top: Vec<(V, u64)> = heap.into_iter().map(|Reverse((count, value))| (value, count)).collect();
    top.sort_unstable();
    (top, rest)
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "a catalogue is public, and this one is of a test")]
mod tests {
    use super::*;

    const SITE: Label = Label::ranked("site", "sites");
    const OUTCOME: Label = Label::one_of("outcome", &["good", "bad"]);

    crate::catalogue! {
        /// Attempts
        ranked_counter ATTEMPTS = "postroad_test_attempts_total" [SITE, OUTCOME];
        /// Their time
        ranked_histogram SECONDS = "postroad_test_attempt_seconds" [SITE];
        /// What waits
        ranked_gauge DEPTH = "postroad_test_waiting" [Label::few("group", "groups"), SITE];
        /// What is paused
        ranked_gauge PAUSED = "postroad_test_paused" [SITE];
    }

    fn rendered(one: &dyn Render) -> String {
        let mut text = String::new();
        one.render_into(&mut text);
        text
    }

    #[track_caller]
    fn check(text: &str, lines: &[&str]) {
        let attempts: Vec<&str> =
            text.lines().filter(|line| line.starts_with("postroad_test_attempts")).collect();
        assert_eq!(attempts, lines);
    }

    fn rank(ranking: &'static Ranking, places: usize) {
        ranking.state().lock().rank(places, || Arc::new(Place::new(ranking.metrics)));
    }

    #[test]
    fn every_event_is_counted_once_in_a_series_that_only_grows() {
        static RANKING: Ranking = Ranking::new(&[&ATTEMPTS, &SECONDS]);
        let (small, large) = (RANKING.value("small.test"), RANKING.value("large.test"));
        let (bad, good) = (small.counter(&ATTEMPTS, &["bad"]), large.counter(&ATTEMPTS, &["good"]));
        rank(&RANKING, 1);
        bad.increment(1);
        small.histogram(&SECONDS, &[]).record(Duration::from_millis(300));
        // Both got places while some were free; with one place the larger keeps it.
        RANKING.state().lock().take_place_from(&"large.test".into());
        good.increment(1);
        check(
            &rendered(&RANKING),
            &[
                "postroad_test_attempts_total{site=\"small.test\",outcome=\"good\"} 0",
                "postroad_test_attempts_total{site=\"small.test\",outcome=\"bad\"} 1",
                "postroad_test_attempts_total{site=\"other\",outcome=\"good\"} 1",
                "postroad_test_attempts_total{site=\"other\",outcome=\"bad\"} 0",
            ],
        );
        // As much as another has is not enough to take its place, nor is twice as much.
        good.increment(1);
        rank(&RANKING, 1);
        assert!(rendered(&RANKING).contains("site=\"small.test\""));
        (0..7).for_each(|_| good.increment(1));
        rank(&RANKING, 1);
        good.increment(1);
        bad.increment(1);
        // What was counted in `other` stays there, and the series that ended is not added to it.
        check(
            &rendered(&RANKING),
            &[
                "postroad_test_attempts_total{site=\"large.test\",outcome=\"good\"} 1",
                "postroad_test_attempts_total{site=\"large.test\",outcome=\"bad\"} 0",
                "postroad_test_attempts_total{site=\"other\",outcome=\"good\"} 9",
                "postroad_test_attempts_total{site=\"other\",outcome=\"bad\"} 1",
            ],
        );
    }

    /// Gives places one after the other, and looks at all values for each.
    fn changes_one_by_one(free: usize, with: &[(f64, u32)], without: &[(f64, u32)]) -> Vec<Change<u32>> {
        let (mut with, mut without, mut free) = (with.to_vec(), without.to_vec(), free);
        let mut changes = Vec::new();
        let least =
            |values: &[(f64, u32)]| (0..values.len()).min_by(|a, b| values[*a].0.total_cmp(&values[*b].0));
        let best =
            |values: &[(f64, u32)]| (0..values.len()).max_by(|a, b| values[*a].0.total_cmp(&values[*b].0));
        while let Some(place) = best(&without) {
            let to = without.remove(place);
            let mut from = None;
            if free == 0 {
                match least(&with).map(|place| with.remove(place)) {
                    Some(least) if to.0 > 2.0 * least.0 => {
                        without.push(least);
                        from = Some(least.1);
                    }
                    _ => return changes,
                }
            } else {
                free -= 1;
            }
            with.push(to);
            changes.push(Change { from, to: to.1 });
        }
        changes
    }

    #[test]
    fn places_change_hands_as_if_they_were_given_one_by_one() {
        // Scores that differ, so that there is one right answer.
        let scores = |count: u32, factor: u32, first: u32| {
            (0..count).map(move |number| (f64::from(1 + (number * factor + first) % 997), first + number))
        };
        let mut changed = 0;
        for (number, factor) in (0..60).zip([7, 11, 101, 331, 500].into_iter().cycle()) {
            let with: Vec<_> =
                scores(number % 13, factor, 0).map(|(score, value)| (score / 3.0, value)).collect();
            let without: Vec<_> = scores(number % 17, factor, 100).collect();
            for free in [0, 1, 5, 100] {
                let found = changes(free, with.clone(), without.clone());
                assert_eq!(found, changes_one_by_one(free, &with, &without), "{free} {with:?} {without:?}");
                changed += found.len();
            }
        }
        assert!(changed > 1000, "{changed}");
        assert_eq!(changes(0, vec![], vec![(1.0, 1)]), []);
        assert_eq!(changes(0, vec![(1.0, 1)], vec![(2.0, 2)]), []);
    }

    #[test]
    fn a_ranking_in_which_all_places_change_hands_takes_about_as_long_as_any_other() {
        static RANKING: Ranking = Ranking::new(&[&ATTEMPTS]);
        const PLACES: usize = 500;
        let handle = |number: usize| RANKING.value(&format!("{number}.test")).counter(&ATTEMPTS, &["good"]);
        let handles: Vec<RankedCounter> = (0..20 * PLACES).map(handle).collect();
        let time = || {
            let start = postroad_env::now();
            rank(&RANKING, PLACES);
            postroad_env::since(start)
        };
        let (mut without_change, mut with_change) = (Duration::MAX, Duration::MAX);
        for round in 1..=5_u32 {
            let values = &handles[round as usize * PLACES..][..PLACES];
            // More than twice as much as any value had before.
            values.iter().for_each(|handle| handle.ranked.volume.store(10_u64.pow(round), Relaxed));
            with_change = with_change.min(time());
            without_change = without_change.min(time());
            let state = RANKING.state().lock();
            assert!(values.iter().all(|handle| state.places.contains_key(&handle.ranked.value)));
        }
        assert!(with_change < 50 * without_change, "{with_change:?} instead of {without_change:?}");
    }

    #[test]
    fn a_value_is_remembered_by_its_place_or_by_who_holds_it() {
        static RANKING: Ranking = Ranking::new(&[&ATTEMPTS]);
        RANKING.value("one.test").counter(&ATTEMPTS, &["good"]).increment(1);
        RANKING.value("one.test").counter(&ATTEMPTS, &["good"]).increment(1);
        assert!(rendered(&RANKING).contains("{site=\"one.test\",outcome=\"good\"} 2"));
        for number in 0..2 * LABEL_VALUES_MAX {
            RANKING.value(&format!("site-{number}.test")).counter(&ATTEMPTS, &["good"]).increment(1);
        }
        rank(&RANKING, LABEL_VALUES_MAX);
        let state = RANKING.state().lock();
        assert_eq!((state.places.len(), state.held.len()), (LABEL_VALUES_MAX, 0));
    }

    #[test]
    fn a_site_that_is_called_other_is_one_of_the_others() {
        static RANKING: Ranking = Ranking::new(&[&ATTEMPTS]);
        let other = RANKING.value(OTHER);
        assert_eq!(CATALOGUE[0].labels, [SITE, OUTCOME]);
        other.counter(&ATTEMPTS, &["good"]).increment(1);
        rank(&RANKING, 10);
        check(
            &rendered(&RANKING),
            &[
                "postroad_test_attempts_total{site=\"other\",outcome=\"good\"} 1",
                "postroad_test_attempts_total{site=\"other\",outcome=\"bad\"} 0",
            ],
        );
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        static RANKING: Ranking = Ranking::new(&[&ATTEMPTS, &SECONDS]);
        let histogram = RANKING.value("a.test").histogram(&SECONDS, &[]);
        for millis in [50, 1_500, 999_999_999] {
            histogram.record(Duration::from_millis(millis));
        }
        let text = rendered(&RANKING);
        for line in [
            "# TYPE postroad_test_attempt_seconds histogram",
            "postroad_test_attempt_seconds_bucket{site=\"a.test\",le=\"0.05\"} 1",
            "postroad_test_attempt_seconds_bucket{site=\"a.test\",le=\"1\"} 1",
            "postroad_test_attempt_seconds_bucket{site=\"a.test\",le=\"5\"} 2",
            "postroad_test_attempt_seconds_bucket{site=\"a.test\",le=\"432000\"} 2",
            "postroad_test_attempt_seconds_bucket{site=\"a.test\",le=\"+Inf\"} 3",
            "postroad_test_attempt_seconds_sum{site=\"a.test\"} 1000001.549",
            "postroad_test_attempt_seconds_count{site=\"a.test\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn gauges_name_the_largest_and_sum_up_the_rest() {
        let (top, rest) = top(2, [("b", 5), ("a", 1), ("d", 9), ("c", 1), (OTHER, 100)].into_iter());
        assert_eq!((top, rest), (vec![("b", 5), ("d", 9)], 102));

        static DEPTHS: Depths = Depths::new(&DEPTH);
        DEPTHS.set("1", [("a.test", 2), ("quote\".test", 3)].into_iter());
        DEPTHS.set("2", std::iter::empty());
        DEPTHS.set("1", [("quote\".test", 4), ("b.test", 0)].into_iter());
        let expected = "# HELP postroad_test_waiting What waits\n# TYPE postroad_test_waiting gauge\n\
            postroad_test_waiting{group=\"1\",site=\"quote\\\".test\"} 4\n\
            postroad_test_waiting{group=\"1\",site=\"other\"} 0\n\
            postroad_test_waiting{group=\"2\",site=\"other\"} 0\n\n";
        assert_eq!(rendered(&DEPTHS), expected);

        static TALLY: Tally = Tally::new(&PAUSED);
        let site = Arc::from("a.test");
        let (one, two) = (TALLY.count(&site), TALLY.count(&site));
        drop(one);
        assert!(rendered(&TALLY).contains("postroad_test_paused{site=\"a.test\"} 1\n"));
        drop(two);
        assert!(!rendered(&TALLY).contains("a.test"));
    }
}
