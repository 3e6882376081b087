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

/// Appends both metrics; nothing for a role without data, or while the directory does not exist.
pub(crate) fn render_into(text: &mut String) {
    let Some(directory) = DIRECTORY.get() else { return };
    let Ok(found) = rustix::fs::statvfs(directory) else { return };
    let mut family = |metric: &Metric, blocks: u64| {
        let Metric { name, kind, help, .. } = metric;
        let (kind, bytes) = (kind.as_str(), blocks.saturating_mul(found.f_frsize));
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {bytes}\n\n");
    };
    family(&SIZE, found.f_blocks);
    family(&AVAILABLE, found.f_bavail);
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
