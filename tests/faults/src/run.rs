//! One seed: its plan is carried out, and its history judged.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    panic,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use postroad_oracle::{Bounds, History, Judgement, Micros, Verdict, judge, story, text};
use postroad_telemetry::{LogFilter, TelemetryConfig};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;

use crate::{
    counters::Counters,
    known,
    plan::{self, Step, Theme},
    record::Recorder,
    trace::Trace,
    world::{START, World},
};

/// Clocks differ by as much as plans set them, and deliveries may be early or late by that. An answer takes the 5 s of the
/// contract, and the way there and back of the slowest network.
const BOUNDS: Bounds = Bounds {
    slack: Micros(2_000_000),
    answer_within: Micros(5_000_000 + 2 * 1_000 * plan::LATENCY_MAX_MILLIS),
    ..Bounds::CONTRACT
};

/// What is run.
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) only: Option<Vec<usize>>,
    pub(crate) theme: Option<Theme>,
    pub(crate) history: Option<PathBuf>,
    pub(crate) trace: Option<PathBuf>,
    pub(crate) log: Option<LogFilter>,
}

/// What a run found, as its process tells it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// Virtual time, in seconds.
    pub(crate) seconds: f64,
    /// The hash of everything that happened.
    pub(crate) digest: u64,
    /// The numbers of the faults that were carried out.
    pub(crate) faults: Vec<usize>,
    /// How often each thing happened.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Violations of invariants, and panics; none is good.
    pub(crate) problems: Vec<String>,
    /// Problems that are known, with their names.
    pub(crate) known: Vec<(String, String)>,
}

/// Runs a seed and prints what it found.
pub(crate) fn run(options: Options, as_json: bool) -> ExitCode {
    let history_file = options.history.clone();
    let trace_file = options.trace.clone();
    let outcome = simulate(options);
    if let Some(path) = history_file {
        let _ = fs::write(path, text::write(&outcome.history));
    }
    if let Some(path) = trace_file {
        let _ = fs::write(path, outcome.lines.join("\n"));
    }
    let mut out = std::io::stdout().lock();
    let is_good = outcome.report.problems.is_empty();
    if as_json {
        let line = serde_json::to_string(&outcome.report).unwrap_or_default();
        let _ = writeln!(out, "{line}");
    } else {
        let _ = write!(out, "{}", outcome.describe());
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

struct Outcome {
    report: Report,
    plan: Vec<Step>,
    history: History,
    verdict: Result<Verdict, String>,
    lines: Vec<String>,
}

impl Outcome {
    /// Takes known problems apart from others.
    fn sort_out_known(&mut self) {
        let faults: Vec<&str> = self.plan.iter().map(|step| step.fault.name()).collect();
        for problem in std::mem::take(&mut self.report.problems) {
            match known::name_of(&problem, &faults) {
                Some(name) => self.report.known.push((name.to_owned(), problem)),
                None => self.report.problems.push(problem),
            }
        }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for (number, step) in self.plan.iter().enumerate() {
            text += &format!("{:3} {step}\n", self.report.faults[number]);
        }
        match &self.verdict {
            Ok(verdict) => {
                let lines: Vec<String> = verdict.judgements.iter().map(ToString::to_string).collect();
                text += &lines.join("\n");
                if let Some(first) = verdict.violations().next() {
                    text += &format!("\n\n{}", story::of_violation(&self.history, first));
                }
            }
            Err(error) => text += error,
        }
        for (what, times) in &self.report.counts {
            text += &format!("\n{times:8} {what}");
        }
        text += &format!(
            "\nseed {}: {:.1} s, {} faults, hash {:016x}\n",
            self.report.seed,
            self.report.seconds,
            self.report.faults.len(),
            self.report.digest
        );
        for (name, problem) in &self.report.known {
            text += &format!("known as {name}: {problem}\n");
        }
        for problem in &self.report.problems {
            text += &format!("{problem}\n");
        }
        text
    }
}

/// On a thread of its own: what std keeps for each thread, such as the seeds of hash maps, begins with the run.
fn simulate(options: Options) -> Outcome {
    show_logs(options.log.clone());
    let panics = Panics::catch();
    let running = postroad_env::thread("simulation", move || simulate_here(&options));
    let ended = running.expect("a thread starts").join();
    let panics = panics.take();
    let Ok(mut outcome) = ended else { panic!("the simulator failed: {panics:?}") };
    outcome.report.problems.extend(panics);
    outcome.sort_out_known();
    outcome
}

/// The runtime is made without logs too: tokio counts them for the seeds of `select!`.
fn show_logs(log_filter: Option<LogFilter>) {
    let runtime = Builder::new_current_thread().build().expect("a runtime without I/O starts");
    let Some(log_filter) = log_filter else { return };
    let _entered = runtime.enter();
    drop(postroad_telemetry::init(
        &TelemetryConfig { log_filter, ..TelemetryConfig::default() },
        "simulation",
    ));
}

fn simulate_here(options: &Options) -> Outcome {
    postroad_machine::enter(options.seed, START);
    let (trace, recorder) = (Trace::default(), Recorder::default());
    let counters = Counters(recorder.clone());
    if options.trace.is_some() {
        trace.keep();
    }
    let _metrics = metrics::set_default_local_recorder(&counters);
    let mut rng = StdRng::seed_from_u64(options.seed ^ 0x706c_616e);
    let all = plan::generate(&mut rng, options.length, options.theme);
    let is_wanted = |number: &usize| options.only.as_ref().is_none_or(|only| only.contains(number));
    let (faults, plan): (Vec<usize>, Vec<Step>) =
        all.into_iter().enumerate().filter(|(number, _)| is_wanted(number)).unzip();
    let world = World::new(options.seed, trace.clone(), recorder.clone());
    let (now, ended) = world.run(&plan, options.length);
    let (_, digest) = trace.digest();
    let (history, counts) = recorder.finish();
    let verdict = judge(&history, &BOUNDS).map_err(|error| error.to_string());
    let mut problems = match &verdict {
        Ok(verdict) => verdict.judgements.iter().filter_map(problem).collect(),
        Err(error) => vec![format!("the history contradicts itself: {error}")],
    };
    problems.extend(ended);
    let report = Report {
        seed: options.seed,
        seconds: now.as_secs_f64(),
        digest,
        faults,
        counts,
        problems,
        known: Vec::new(),
    };
    Outcome { report, plan, history, verdict, lines: trace.take() }
}

/// Describes the violations of an invariant by the first of them.
fn problem(judgement: &Judgement) -> Option<String> {
    let first = judgement.violations.first()?;
    Some(format!("{first} ({} violations)", judgement.violations_count))
}

/// Panics of the simulated processes, by place and text.
struct Panics(Arc<Mutex<BTreeMap<String, u64>>>);

impl Panics {
    fn catch() -> Self {
        let seen: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let into = seen.clone();
        panic::set_hook(Box::new(move |info| {
            if let Ok(mut seen) = into.lock() {
                *seen.entry(info.to_string().replace('\n', " ")).or_default() += 1;
            }
        }));
        Self(seen)
    }

    fn take(&self) -> Vec<String> {
        let _ = panic::take_hook();
        let seen = self.0.lock().map(|seen| seen.clone()).unwrap_or_default();
        seen.into_iter().map(|(text, times)| format!("{times} × {text}")).collect()
    }
}
