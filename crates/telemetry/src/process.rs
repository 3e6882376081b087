//! CPU, memory and file descriptors of this process, under Prometheus' standard names.
//!
//! Written as text rather than recorded: CPU seconds are a counter with a fraction, which the recorder cannot hold.

use std::{fmt::Write, fs, sync::OnceLock};

use crate::catalogue::{Kind, Label, Metric};

/// The unit of `/proc/self/stat`: `USER_HZ`, 100 on every Linux that is built today.
const TICKS_PER_SECOND: f64 = 100.0;

static STARTED_AT: OnceLock<f64> = OnceLock::new();

/// Notes when the process started, for `process_start_time_seconds`.
pub(crate) fn mark_start() {
    STARTED_AT.get_or_init(|| postroad_env::wall().as_millis() as f64 / 1000.0);
}

const CPU_SECONDS: Metric =
    Metric::new(Kind::Counter, "process_cpu_seconds_total", "User and system CPU time spent in seconds", &[]);
const RESIDENT_BYTES: Metric =
    Metric::new(Kind::Gauge, "process_resident_memory_bytes", "Resident memory in bytes", &[]);
const OPEN_FDS: Metric = Metric::new(Kind::Gauge, "process_open_fds", "Open file descriptors", &[]);
const MAX_FDS: Metric =
    Metric::new(Kind::Gauge, "process_max_fds", "The limit of open file descriptors", &[]);
const START_TIME: Metric = Metric::new(
    Kind::Gauge,
    "process_start_time_seconds",
    "When the process started, in seconds since the epoch",
    &[],
);
const BUILD_INFO: Metric = Metric::new(
    Kind::Gauge,
    "postroad_build_info",
    "Always 1; the label has the version that runs",
    &[Label::few("version", "the version that runs")],
);

/// The metrics of every process, whatever its role.
pub static CATALOGUE: &[&Metric] =
    &[&CPU_SECONDS, &RESIDENT_BYTES, &OPEN_FDS, &MAX_FDS, &START_TIME, &BUILD_INFO];

/// Appends the process's metrics, without those that the system does not provide.
pub(crate) fn render_into(text: &mut String) {
    let mut family = |metric: &Metric, labels: &str, value: Option<f64>| {
        let Metric { name, kind, help, .. } = metric;
        if let Some(value) = value {
            let kind = kind.as_str();
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}\n\n");
        }
    };
    family(&CPU_SECONDS, "", cpu_seconds());
    family(&RESIDENT_BYTES, "", resident_bytes());
    family(&OPEN_FDS, "", open_descriptors());
    family(&MAX_FDS, "", descriptors_max());
    family(&START_TIME, "", STARTED_AT.get().copied());
    family(&BUILD_INFO, concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), Some(1.0));
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command in parentheses and may hold spaces; utime and stime are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn open_descriptors() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory being read.
    u32::try_from(count.saturating_sub(1)).ok().map(f64::from)
}

fn descriptors_max() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_provides_every_metric() {
        mark_start();
        let mut text = String::new();
        render_into(&mut text);
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is missing in {text}")).parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
