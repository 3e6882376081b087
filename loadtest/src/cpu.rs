//! CPU time of a process and its children, from /proc.

use std::{fs, io, time::Duration};

/// Linux reports CPU times in ticks of 10 ms, on every architecture (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// Measures CPU time from its start.
#[derive(Debug)]
pub(crate) struct CpuMeter {
    pid: u32,
    before: Duration,
}

impl CpuMeter {
    pub(crate) fn start(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, before: cpu_time(pid)? })
    }

    pub(crate) fn elapsed(&self) -> io::Result<Duration> {
        Ok(cpu_time(self.pid)?.saturating_sub(self.before))
    }
}

/// User and system time of the process, of its ended children, and of its running descendants.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let own = stat(pid).ok_or_else(|| io::Error::other(format!("no process `{pid}`")))?;
    let mut ticks = own.ticks;
    let mut parents = vec![pid];
    let processes: Vec<(u32, Stat)> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    while let Some(parent) = parents.pop() {
        for (child, stat) in processes.iter().filter(|(_, stat)| stat.parent == parent) {
            ticks += stat.ticks;
            parents.push(*child);
        }
    }
    Ok(TICK * ticks)
}

struct Stat {
    parent: u32,
    ticks: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): the name in parentheses may contain anything; after it come state, ppid, and the times as fields 14 to 17.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u32>().ok();
    Some(Stat { parent: number(1)?, ticks: number(11)? + number(12)? + number(13)? + number(14)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let stat = parse_stat("7 (a) b) S 3 7 7 0 -1 0 0 0 0 0 1 2 3 4 20 0").unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 10));
        assert!(cpu_time(std::process::id()).is_ok());
    }
}
