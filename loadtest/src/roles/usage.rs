//! What a process has used, from /proc.

use std::{fs, io, time::Duration};

use crate::cpu::cpu_time;

/// What a process has used until now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) cpu: Duration,
    /// Resident memory in bytes; the pages of the binary count in every process.
    pub(super) rss: u64,
    /// As `rss`, with pages that several processes have divided by their number.
    pub(super) pss: u64,
    /// Bytes that it caused to be written to disks.
    pub(super) written: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let disk = fs::read_to_string(format!("/proc/{pid}/io"))?;
        let field = |text: &str, name: &str| {
            field(text, name).ok_or_else(|| io::Error::other(format!("no `{name}` of process {pid}")))
        };
        Ok(Self {
            cpu: cpu_time(pid)?,
            rss: field(&memory, "Rss")? * 1024,
            pss: field(&memory, "Pss")? * 1024,
            written: field(&disk, "write_bytes")?,
        })
    }
}

/// Returns the number of a line such as `Rss:   123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Dirty: 1 kB\nPss:     2345 kB\nwrite_bytes: 7\ncancelled_write_bytes: 0\n";
        assert_eq!(field(text, "Pss"), Some(2345));
        assert_eq!(field(text, "write_bytes"), Some(7));
        assert_eq!(field(text, "Rss"), None);
        assert!(Usage::of(std::process::id()).is_ok_and(|usage| usage.pss <= usage.rss));
    }
}
