//! The size of the file system that holds the node's data, and what is free of it, read at each scrape.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::catalogue::{Kind, Metric};

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

const SIZE: Metric = Metric::new(
    Kind::Gauge,
    "postroad_data_disk_size_bytes",
    "Bytes of the file system that holds node.data",
    &[],
);
const AVAILABLE: Metric = Metric::new(
    Kind::Gauge,
    "postroad_data_disk_available_bytes",
    "Bytes of the file system of node.data that this process may still use",
    &[],
);

/// The metrics of the disk with the node's data.
pub static CATALOGUE: &[&Metric] = &[&SIZE, &AVAILABLE];

/// Shows the file system of `directory` in the metrics from now on; the first one stays.
pub fn show_data_disk(directory: &Path) {
    DIRECTORY.get_or_init(|| directory.to_owned());
}

/// The file system that holds the node's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataDisk {
    /// All of it.
    pub size_bytes: u64,
    /// What this process may still use.
    pub available_bytes: u64,
}

/// Returns the size of the disk; `None` for a role without data, or while the directory does not exist.
#[must_use]
pub fn data_disk() -> Option<DataDisk> {
    let found = rustix::fs::statvfs(DIRECTORY.get()?).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(DataDisk { size_bytes: bytes(found.f_blocks), available_bytes: bytes(found.f_bavail) })
}

/// Appends both metrics, where there is a disk.
pub(crate) fn render_into(text: &mut String) {
    let Some(disk) = data_disk() else { return };
    let mut family = |metric: &Metric, bytes: u64| {
        let Metric { name, kind, help, .. } = metric;
        let kind = kind.as_str();
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {bytes}\n\n");
    };
    family(&SIZE, disk.size_bytes);
    family(&AVAILABLE, disk.available_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_the_data_directory_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        show_data_disk(directory.path());
        let mut text = String::new();
        render_into(&mut text);
        let value = |metric: &Metric| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(metric.name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{} is missing in {text}", metric.name)).parse().unwrap()
        };
        assert!(value(&SIZE) >= value(&AVAILABLE) && value(&SIZE) > 1 << 20, "{text}");
    }
}
