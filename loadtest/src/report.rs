//! The results of a load run.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use postroad_core::{GroupId, MessageId};
use postroad_testkit::Ledger;
use serde::Serialize;

use crate::{
    LoadArgs,
    plan::{DueMessage, Plan},
    tracker::Tracker,
};

/// Latencies from 1 µs to 10 minutes with three digits.
const LATENCY_MICROS_MAX: u64 = 600_000_000;

/// Counts answers while a run goes on.
#[derive(Debug)]
pub(crate) struct Tally {
    messages: u64,
    accepted: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    finished: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    latencies: Histogram<u64>,
    accepted: Vec<Accepted>,
    by_group: BTreeMap<GroupId, u64>,
    refusal: Option<String>,
}

/// A message that the server acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) index: u64,
    pub(crate) at: Instant,
    /// The id in the answer, if the server is Postroad.
    pub(crate) id: Option<MessageId>,
}

/// Times until messages were accepted, from when they were due.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latencies {
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

/// The answers to the messages of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answers {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// The connection ended before an answer: the server may have accepted these or not.
    pub(crate) unanswered: u64,
    pub(crate) first_refusal: Option<String>,
    pub(crate) accepted_per_s: f64,
    #[serde(flatten)]
    pub(crate) latencies: Latencies,
}

impl Tally {
    pub(crate) fn new(messages: u64) -> Self {
        let latencies = Histogram::new_with_max(LATENCY_MICROS_MAX, 3).expect("the bounds of a histogram");
        Self {
            messages,
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                latencies,
                accepted: Vec::new(),
                by_group: BTreeMap::new(),
                refusal: None,
            }),
        }
    }

    /// Counts an accepted message; `id` is the one in the answer, if any.
    pub(crate) fn count_accepted(&self, due_message: DueMessage, id: Option<MessageId>) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner.lock();
        // Read under the lock, so that `accepted` is in order.
        let now = postroad_env::now();
        let micros = u64::try_from(now.duration_since(due_message.due).as_micros()).unwrap_or(u64::MAX);
        inner.latencies.saturating_record(micros.max(1));
        inner.accepted.push(Accepted { index: due_message.index, at: now, id });
        if let Some(id) = id {
            *inner.by_group.entry(id.group()).or_default() += 1;
        }
    }

    /// Counts a refused message.
    pub(crate) fn count_refused(&self, reply: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.inner.lock().refusal.get_or_insert_with(|| reply.to_owned());
    }

    /// Counts a message whose connection ended before an answer: it may have been accepted or not.
    pub(crate) fn count_unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    /// Returns the accepted messages, in the order of the answers.
    pub(crate) fn accepted(&self) -> Vec<Accepted> {
        self.inner.lock().accepted.clone()
    }

    pub(crate) fn accepted_count(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Returns how many accepted messages have an id of `group`.
    pub(crate) fn accepted_of(&self, group: GroupId) -> u64 {
        self.inner.lock().by_group.get(&group).copied().unwrap_or(0)
    }

    /// Returns the results of a run that began at `started`.
    pub(crate) fn answers(&self, started: Instant) -> Answers {
        let inner = self.inner.lock();
        let accepted = inner.accepted.len() as u64;
        let accept_secs =
            inner.accepted.last().map_or(0.0, |last| last.at.duration_since(started).as_secs_f64());
        let millis = |quantile| inner.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Answers {
            accepted,
            refused: self.refused.load(Ordering::Relaxed),
            unanswered: self.unanswered.load(Ordering::Relaxed),
            first_refusal: inner.refusal.clone(),
            accepted_per_s: per_second(accepted, accept_secs),
            latencies: Latencies {
                p50_ms: millis(0.5),
                p95_ms: millis(0.95),
                p99_ms: millis(0.99),
                max_ms: inner.latencies.max() as f64 / 1000.0,
            },
        }
    }

    fn done(&self) -> u64 {
        [&self.accepted, &self.refused, &self.unanswered].iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }
}

/// Prints a line every second until it is aborted.
pub(crate) async fn show_progress(tally: Arc<Tally>, ledger: Option<Ledger>) {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let done = tally.done();
        let delivered = ledger.as_ref().map(|ledger| format!(", {} delivered", ledger.count()));
        let waiting = if tally.finished.load(Ordering::Relaxed) { ", waiting for deliveries" } else { "" };
        eprintln!(
            "{done} of {} sent, {}/s{}{waiting}",
            tally.messages,
            done - before,
            delivered.unwrap_or_default()
        );
        before = done;
    }
}

/// The report of a run; values that were not measured are absent.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    target: String,
    messages: u64,
    size: usize,
    connections: usize,
    rate: Option<f64>,
    #[serde(flatten)]
    answers: Answers,
    delivered_per_s: Option<f64>,
    lost: Option<u64>,
    duplicates: Option<u64>,
    cpu_us_per_message: Option<f64>,
}

impl Report {
    pub(crate) fn new(
        arguments: &LoadArgs,
        plan: &Plan,
        tally: &Tally,
        tracker: Option<&Tracker>,
        cpu: Option<Duration>,
    ) -> Self {
        let answers = tally.answers(plan.started);
        let delivered_per_s = tracker.and_then(|tracker| {
            let (arrived, last) = tracker.arrived();
            let secs = last?.since(plan.started_at).as_secs_f64();
            Some(per_second(arrived, secs))
        });
        Self {
            target: arguments.target.clone(),
            messages: arguments.messages,
            size: arguments.size,
            connections: arguments.clients.connections,
            rate: arguments.rate,
            delivered_per_s,
            lost: tracker.map(|tracker| tracker.lost(&tally.accepted())),
            duplicates: tracker.map(Tracker::duplicates),
            cpu_us_per_message: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / answers.accepted.max(1) as f64),
            answers,
        }
    }
}

/// Writes a report as JSON.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(report)?;
    std::fs::write(path, json).with_context(|| format!("cannot write `{}`", path.display()))
}

pub(crate) fn per_second(number: u64, secs: f64) -> f64 {
    if secs > 0.0 { number as f64 / secs } else { 0.0 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.answers.write_counts(f)?;
        if let Some(rate) = self.delivered_per_s {
            let (lost, duplicates) = (self.lost.unwrap_or(0), self.duplicates.unwrap_or(0));
            writeln!(f, "delivered        {rate:.0}/s, {lost} lost, {duplicates} duplicates")?;
        }
        if let Some(micros) = self.cpu_us_per_message {
            writeln!(f, "cpu per message  {micros:.0} µs")?;
        }
        self.answers.write_latencies(f)
    }
}

impl Answers {
    pub(crate) fn write_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, refused, unanswered, accepted_per_s, .. } = self;
        writeln!(
            f,
            "accepted         {accepted} ({accepted_per_s:.0}/s), {refused} refused, {unanswered} unanswered"
        )?;
        self.first_refusal.iter().try_for_each(|refusal| writeln!(f, "first refusal    {refusal}"))
    }

    /// Writes the last line, without a line ending.
    pub(crate) fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latencies { p50_ms, p95_ms, p99_ms, max_ms } = self.latencies;
        write!(
            f,
            "accept latency   p50 {p50_ms:.1} ms, p95 {p95_ms:.1} ms, p99 {p99_ms:.1} ms, max {max_ms:.1} ms"
        )
    }
}
