//! Tracks deliveries at the sink: which messages of the run arrived, how often and when.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    time::Duration,
};

use postroad_core::Timestamp;
use postroad_testkit::{
    Ledger,
    sink::{Record, parse_record},
};

use crate::{message::index_of, report::Accepted};

/// How often the sink is read.
const INTERVAL: Duration = Duration::from_millis(50);

/// Deliveries of one run.
#[derive(Debug)]
pub(crate) struct Tracker {
    source: Source,
    run: u32,
    copies: HashMap<u64, u32>,
    last: Option<Timestamp>,
}

#[derive(Debug)]
enum Source {
    Sink(Ledger),
    /// A growing file; an incomplete last line is completed by a later read.
    File {
        reader: BufReader<File>,
        rest: String,
    },
}

impl Tracker {
    pub(crate) fn of_sink(ledger: Ledger, run: u32) -> Self {
        Self { source: Source::Sink(ledger), run, copies: HashMap::new(), last: None }
    }

    pub(crate) fn of_file(path: &Path, run: u32) -> io::Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        let source = Source::File { reader: BufReader::new(file), rest: String::new() };
        Ok(Self { source, run, copies: HashMap::new(), last: None })
    }

    /// Waits until all of `expected` have arrived, or none has for `patience`.
    pub(crate) async fn wait_for(&mut self, expected: &[Accepted], patience: Duration) -> io::Result<()> {
        let (mut seen, mut since) = (0, postroad_env::now());
        loop {
            self.read()?;
            let arrived = self.copies.len();
            if self.lost(expected) == 0 || postroad_env::since(since) > patience {
                return Ok(());
            }
            if arrived > seen {
                (seen, since) = (arrived, postroad_env::now());
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Returns how many of `expected` did not arrive.
    pub(crate) fn lost(&self, expected: &[Accepted]) -> u64 {
        expected.iter().filter(|accepted| !self.copies.contains_key(&accepted.index)).count() as u64
    }

    /// Returns how many copies arrived beyond the first of each message.
    pub(crate) fn duplicates(&self) -> u64 {
        self.copies.values().map(|copies| u64::from(copies - 1)).sum()
    }

    /// Returns how many messages arrived, and when the last copy did.
    pub(crate) fn arrived(&self) -> (u64, Option<Timestamp>) {
        (self.copies.len() as u64, self.last)
    }

    fn read(&mut self) -> io::Result<()> {
        match &mut self.source {
            Source::Sink(ledger) => {
                let records = ledger.records();
                self.copies.clear();
                records.iter().for_each(|record| self.count(record));
            }
            Source::File { reader, rest } => {
                let mut records = Vec::new();
                while reader.read_line(rest)? > 0 && rest.ends_with('\n') {
                    let line = std::mem::take(rest);
                    records.extend(parse_record(line.trim_end()));
                }
                records.iter().for_each(|record| self.count(record));
            }
        }
        Ok(())
    }

    fn count(&mut self, record: &Record) {
        let index = record.token.as_deref().and_then(|token| index_of(token, self.run));
        if let Some(index) = index {
            *self.copies.entry(index).or_default() += 1;
            self.last = self.last.max(Some(record.at));
        }
    }
}
