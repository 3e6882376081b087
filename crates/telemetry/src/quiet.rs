//! Bounds what foreign crates log: a warning or an error of one place in their code is written once a minute.
//!
//! Ours say what is wrong, once; a library below repeats it for every try, and a peer that is down for a night would
//! fill the disk. Lines at `info` and below were asked for, and are not bounded.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::{Event, Level, Metadata, callsite::Identifier, level_filters::LevelFilter};
use tracing_subscriber::layer::{Context, Filter};

const EVERY: Duration = Duration::from_secs(60);

/// The prefix of our own crates' targets.
const OURS: &str = "postroad";

/// Lets a line of a foreign crate pass once a minute.
#[derive(Debug, Default)]
pub(crate) struct ForeignLines {
    /// The places in the code of the crates that are linked: a bounded number.
    last: Mutex<HashMap<Identifier, Instant>>,
}

impl ForeignLines {
    fn passes(&self, line: &Metadata<'_>, now: Instant) -> bool {
        let is_bounded = *line.level() <= Level::WARN && !line.target().starts_with(OURS);
        if !is_bounded {
            return true;
        }
        let mut last = self.last.lock();
        let passes = last.get(&line.callsite()).is_none_or(|at| now.saturating_duration_since(*at) >= EVERY);
        if passes {
            last.insert(line.callsite(), now);
        }
        passes
    }
}

impl<S> Filter<S> for ForeignLines {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    // Without a level here, a filter that this is joined to has none either, and everything is asked for each time.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.passes(event.metadata(), postroad_env::now())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex as StdMutex},
    };

    use tracing_subscriber::{EnvFilter, Layer, filter::FilterExt, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<StdMutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_foreign_warning_is_written_once_a_minute_and_ours_always() {
        let written = Written::default();
        let writer = written.clone();
        let filter = EnvFilter::new("info,openraft=warn").and(ForeignLines::default());
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..1000 {
                tracing::warn!(target: "openraft::replication", "failed again");
                tracing::info!(target: "openraft::engine", "not asked for");
            }
            tracing::error!(target: "openraft::core", "another place");
            for _ in 0..3 {
                tracing::warn!(target: "postroad_raft::network", "ours");
                tracing::info!(target: "h2::client", "asked for");
            }
        });
        let lines = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |part: &str| lines.lines().filter(|line| line.contains(part)).count();
        assert_eq!((count("failed again"), count("another place")), (1, 1), "{lines}");
        assert_eq!((count("ours"), count("asked for")), (3, 3), "{lines}");
    }
}
