//! Many seeds: a process for each, as many at a time as there are cores.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal, Read, Write},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum as _};

use crate::{counters, plan::Theme, run::Report, shrink::shrink};

/// A run of seconds; one whose virtual time stands still never ends.
const RUN_WITHIN: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct SimulateArgs {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults happen in each run, in virtual seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// A theme for every plan, instead of the one that a seed has or has not.
    #[arg(long)]
    theme: Option<Theme>,
    /// Begin no seed after so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// Go on after a problem that is not known.
    #[arg(long)]
    keep_going: bool,
    /// Runs at a time; the number of cores unless given.
    #[arg(long)]
    jobs: Option<usize>,
}

/// What all runs found together.
#[derive(Default)]
struct Total {
    seeds: u64,
    seconds: f64,
    counts: BTreeMap<String, u64>,
    /// Problems with the seeds that have them.
    problems: BTreeMap<String, Vec<u64>>,
    /// The same for those that are known, by name.
    known: BTreeMap<String, Vec<u64>>,
    /// The first run with a problem.
    failed: Option<Report>,
}

/// Hands out seeds.
struct Seeds {
    next: u64,
    end: u64,
    until: Option<Instant>,
}

/// Runs the seeds and prints what they found.
pub(crate) fn simulate(args: &SimulateArgs) -> ExitCode {
    let jobs = args.jobs.or_else(|| thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let began = postroad_env::now();
    let until = args.minutes.map(|minutes| began + Duration::from_mins(minutes));
    let seeds = Mutex::new(Seeds { next: args.seed, end: args.seed + args.seeds, until });
    let total = Mutex::new(Total::default());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(seed) = take(&seeds) {
                    let report = run_apart(seed, args, None);
                    if !report.problems.is_empty() && !args.keep_going {
                        end(&seeds);
                    }
                    let mut total = total.lock().expect("no thread panics");
                    total.add(report);
                    say(&total.progress(args.seeds, postroad_env::since(began)));
                }
            });
        }
    });
    let total = total.into_inner().expect("no thread panics");
    say("\n");
    let _ = total.print(&mut io::stdout().lock());
    let Some(failed) = &total.failed else { return ExitCode::SUCCESS };
    if !args.keep_going {
        let _ = explain(failed, args, &mut io::stdout().lock());
    }
    ExitCode::from(1)
}

/// Prints the shortest plan that has the same problem, and its story.
fn explain(failed: &Report, args: &SimulateArgs, out: &mut impl Write) -> io::Result<()> {
    let Some(problem) = failed.problems.first() else { return Ok(()) };
    // A run that did not end has no list of its faults.
    if failed.faults.is_empty() {
        let command = arguments(failed.seed, args, None).join(" ");
        return writeln!(out, "\nseed {}: {problem}\npostroad-faults {command}", failed.seed);
    }
    let kind = kind_of(problem);
    say("leaving out faults that it does not need\n");
    let faults = shrink(failed.faults.clone(), |faults| {
        let problems = run_apart(failed.seed, args, Some(faults)).problems;
        problems.iter().any(|problem| kind_of(problem) == kind)
    });
    let arguments = arguments(failed.seed, args, Some(&faults));
    writeln!(out, "\nseed {}: {problem}\npostroad-faults {}\n", failed.seed, arguments.join(" "))?;
    let story = Command::new(std::env::current_exe()?).args(arguments).stderr(Stdio::null()).output()?;
    out.write_all(&story.stdout)
}

/// Shows progress to a person.
fn say(text: &str) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Nobody may be there to read it.
        let _ = stderr.write_all(text.as_bytes());
    }
}

fn take(seeds: &Mutex<Seeds>) -> Option<u64> {
    let mut seeds = seeds.lock().ok()?;
    let seed = seeds.next;
    seeds.next += 1;
    let is_late = seeds.until.is_some_and(|until| postroad_env::now() >= until);
    (seed < seeds.end && !is_late).then_some(seed)
}

/// Makes [`take`] return nothing more.
fn end(seeds: &Mutex<Seeds>) {
    if let Ok(mut seeds) = seeds.lock() {
        seeds.end = seeds.next;
    }
}

/// The arguments that repeat a run, with only some of its faults if they are given.
fn arguments(seed: u64, args: &SimulateArgs, only: Option<&[usize]>) -> Vec<String> {
    let mut arguments = vec!["run".to_owned(), seed.to_string(), format!("--seconds={}", args.seconds)];
    let theme = args.theme.and_then(|theme| theme.to_possible_value());
    arguments.extend(theme.map(|theme| format!("--theme={}", theme.get_name())));
    if let Some(only) = only {
        let only: Vec<String> = only.iter().map(ToString::to_string).collect();
        // No fault has this number.
        let only = if only.is_empty() { "9999".to_owned() } else { only.join(",") };
        arguments.push(format!("--only={only}"));
    }
    arguments
}

/// Runs a seed in a process of its own.
fn run_apart(seed: u64, args: &SimulateArgs, only: Option<&[usize]>) -> Report {
    let failed = |what: String| Report {
        seed,
        seconds: 0.0,
        digest: 0,
        faults: Vec::new(),
        counts: BTreeMap::new(),
        problems: vec![what],
        known: Vec::new(),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return failed(format!("this program cannot be found: {error}")),
    };
    let started = Command::new(program)
        .args(arguments(seed, args, only))
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut running = match started {
        Ok(running) => running,
        Err(error) => return failed(format!("it cannot be started: {error}")),
    };
    match ended_within(&mut running, RUN_WITHIN) {
        Ok(Some(status)) => {
            // A report is one line, which a pipe holds.
            let mut printed = String::new();
            let read = running.stdout.take().map(|mut stdout| stdout.read_to_string(&mut printed));
            let report = read.and_then(|_| serde_json::from_str(&printed).ok());
            report.unwrap_or_else(|| failed(format!("it ended with {status}")))
        }
        Ok(None) => failed("virtual time stands still: a node is busy for ever".to_owned()),
        Err(error) => failed(format!("it cannot be waited for: {error}")),
    }
}

/// Waits for the end of a process, and kills it once `limit` has passed.
fn ended_within(running: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let until = postroad_env::now() + limit;
    while postroad_env::now() < until {
        if let Some(status) = running.try_wait()? {
            return Ok(Some(status));
        }
        postroad_env::pause(LOOK_EVERY);
    }
    running.kill()?;
    running.wait()?;
    Ok(None)
}

impl Total {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.seconds += report.seconds;
        for (what, times) in &report.counts {
            *self.counts.entry(what.clone()).or_default() += times;
        }
        for problem in &report.problems {
            self.problems.entry(kind_of(problem)).or_default().push(report.seed);
        }
        for (name, problem) in &report.known {
            self.known.entry(format!("{name}: {}", kind_of(problem))).or_default().push(report.seed);
        }
        if !report.problems.is_empty() && self.failed.is_none() {
            self.failed = Some(report);
        }
    }

    fn progress(&self, of: u64, passed: Duration) -> String {
        let (seeds, hours, seconds) = (self.seeds, self.seconds / 3600.0, passed.as_secs());
        let failed = self.problems.values().flatten().collect::<BTreeSet<_>>().len();
        format!("\r{seeds} of {of} seeds, {hours:.1} virtual hours in {seconds} s, {failed} with problems ")
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for (what, times) in &self.counts {
            writeln!(out, "{times:10} {what}")?;
        }
        let under_fault = |step: &&&str| !self.counts.contains_key(&format!("{step}, under fault"));
        let missing: Vec<&str> = counters::NAMES.iter().filter(under_fault).copied().collect();
        if !missing.is_empty() {
            writeln!(out, "never under a fault: {}", missing.join(", "))?;
        }
        for (title, problems) in [("known ", &self.known), ("", &self.problems)] {
            for (problem, seeds) in problems {
                let first: Vec<String> = seeds.iter().take(8).map(ToString::to_string).collect();
                writeln!(out, "{title}{} seeds ({}): {problem}", seeds.len(), first.join(", "))?;
            }
        }
        writeln!(out, "{} seeds, {:.2} virtual hours", self.seeds, self.seconds / 3600.0)
    }
}

/// Returns a problem without what differs from seed to seed.
fn kind_of(problem: &str) -> String {
    let mut kind = String::new();
    let mut is_quoted = false;
    for character in problem.chars() {
        match character {
            '`' => {
                is_quoted = !is_quoted;
                kind.push('`');
            }
            _ if is_quoted => {}
            '0'..='9' if kind.ends_with('#') => {}
            '0'..='9' => kind.push('#'),
            other => kind.push(other),
        }
    }
    kind
}
