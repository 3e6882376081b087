//! CPU, memory and file descriptors of this process, under Prometheus' standard names.
//!
//! Written as text rather than recorded: CPU seconds are a counter with a fraction, which the recorder cannot hold.

use std::{fmt::Write, fs, sync::OnceLock, time::SystemTime};

/// The unit of `/proc/self/stat`: `USER_HZ`, 100 on every Linux that is built today.
const TICKS_PER_SECOND: f64 = 100.0;

static STARTED_AT: OnceLock<f64> = OnceLock::new();

/// Notes when the process started, for `process_start_time_seconds`.
pub(crate) fn mark_start() {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    STARTED_AT.get_or_init(|| since_epoch.as_secs_f64());
}

/// Appends the process's metrics, without those that the system does not provide.
pub(crate) fn render_into(text: &mut String) {
    let mut family = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
        }
    };
    family(
        "process_cpu_seconds_total",
        "counter",
        "User and system CPU time spent in seconds",
        cpu_seconds(),
    );
    family("process_resident_memory_bytes", "gauge", "Resident memory in bytes", resident_bytes());
    family("process_open_fds", "gauge", "Open file descriptors", open_descriptors());
    family("process_max_fds", "gauge", "The limit of open file descriptors", descriptors_max());
    family(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in seconds since the epoch",
        STARTED_AT.get().copied(),
    );
    let version = env!("CARGO_PKG_VERSION");
    let _ = write!(
        text,
        "# HELP postroad_build_info The version that runs\n# TYPE postroad_build_info gauge\n\
         postroad_build_info{{version=\"{version}\"}} 1\n\n"
    );
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
