//! The copies that the sink accepted: one record each, in memory or as lines of a file.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use postroad_core::{MessageId, Timestamp};
use tokio::sync::Notify;

/// One accepted copy: a message for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// When, since the start of the sink, by a monotonic clock.
    pub since_start: Duration,
    /// The client's address.
    pub source: IpAddr,
    /// The reverse path, empty for the null sender.
    pub sender: Box<str>,
    /// The recipient.
    pub recipient: Box<str>,
    /// Bytes of the content, without transport dots.
    pub size: u64,
    /// XXH3 of what follows the header.
    pub body_hash: u64,
    /// The id in the first `Received` field.
    pub message: Option<MessageId>,
    /// The value of the `X-Token` field.
    pub token: Option<Box<str>>,
    /// Whether the 250 was written to the connection; `None` while unknown.
    pub reply_written: Option<bool>,
}

/// Copies by message and recipient.
pub type Copies = BTreeMap<(MessageId, Box<str>), Vec<Record>>;

/// A handle to the copies that a sink accepted.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    count: AtomicU64,
    bare_newlines: AtomicU64,
    more: Notify,
    entries: Mutex<Entries>,
    file: Option<Mutex<File>>,
}

#[derive(Debug, Default)]
struct Entries {
    /// The number of the first record.
    first: u64,
    records: VecDeque<Record>,
    lines: Vec<u8>,
}

/// The number of a record whose reply is not written yet.
pub(super) type RecordNumber = u64;

impl Ledger {
    pub(super) fn new(file: Option<&Path>) -> io::Result<Self> {
        let file = file.map(|path| File::options().append(true).create(true).open(path)).transpose()?;
        Ok(Self(Arc::new(Inner {
            started: Instant::now(),
            count: AtomicU64::new(0),
            bare_newlines: AtomicU64::new(0),
            more: Notify::new(),
            entries: Mutex::default(),
            file: file.map(Mutex::new),
        })))
    }

    /// Returns how many copies were accepted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Acquire)
    }

    /// Returns how many CR without LF and LF without CR were received (S-112: there must be none).
    #[must_use]
    pub fn bare_newlines(&self) -> u64 {
        self.0.bare_newlines.load(Ordering::Acquire)
    }

    /// Waits until `count` copies were accepted; false after `limit`.
    pub async fn wait_for_count(&self, count: u64, limit: Duration) -> bool {
        let reached = async {
            loop {
                let mut more = std::pin::pin!(self.0.more.notified());
                more.as_mut().enable();
                if self.count() >= count {
                    return;
                }
                more.await;
            }
        };
        tokio::time::timeout(limit, reached).await.is_ok()
    }

    /// Returns all records; only those without a written reply when the sink writes to a file.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.0.entries.lock().records.iter().cloned().collect()
    }

    /// Returns the records with a message id, by message and recipient.
    #[must_use]
    pub fn copies(&self) -> Copies {
        by_message(self.records())
    }

    /// Returns the copies of one message for one recipient.
    #[must_use]
    pub fn copies_of(&self, message: MessageId, recipient: &str) -> Vec<Record> {
        let entries = self.0.entries.lock();
        let same = |record: &&Record| record.message == Some(message) && *record.recipient == *recipient;
        entries.records.iter().filter(same).cloned().collect()
    }

    /// Returns when the sink started: [`Record::since_start`] counts from then.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.started
    }

    pub(super) fn since_start(&self) -> Duration {
        self.0.started.elapsed()
    }

    pub(super) fn count_bare_newlines(&self, number: u64) {
        if number > 0 {
            self.0.bare_newlines.fetch_add(number, Ordering::AcqRel);
        }
    }

    /// Adds records whose reply is not written yet; returns the number of the first.
    pub(super) fn add(&self, records: Vec<Record>) -> RecordNumber {
        let count = records.len() as u64;
        let first = {
            let mut entries = self.0.entries.lock();
            let first = entries.first + entries.records.len() as u64;
            entries.records.extend(records);
            first
        };
        self.0.count.fetch_add(count, Ordering::AcqRel);
        self.0.more.notify_waiters();
        first
    }

    /// Records whether the reply for `count` records from `from` on was written.
    pub(super) fn record_reply(&self, from: RecordNumber, count: usize, written: bool) {
        let mut entries = self.0.entries.lock();
        let Entries { first, records, lines } = &mut *entries;
        let start = usize::try_from(from - *first).expect("a record without a written reply is in memory");
        for record in records.range_mut(start..start + count) {
            record.reply_written = Some(written);
            if self.0.file.is_some() {
                write_line(lines, record);
            }
        }
        if self.0.file.is_some() {
            while records.front().is_some_and(|record| record.reply_written.is_some()) {
                records.pop_front();
                *first += 1;
            }
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        let lines = std::mem::take(&mut self.0.entries.lock().lines);
        file.lock().write_all(&lines)
    }

    /// Writes the remaining records, including those without a written reply.
    pub(super) fn close(&self) -> io::Result<()> {
        if self.0.file.is_some() {
            let mut entries = self.0.entries.lock();
            let Entries { records, lines, .. } = &mut *entries;
            for record in records.iter().filter(|record| record.reply_written.is_none()) {
                write_line(lines, record);
            }
        }
        self.flush()
    }
}

pub(super) fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

fn by_message(records: Vec<Record>) -> Copies {
    let mut copies = Copies::new();
    for record in records {
        if let Some(message) = record.message {
            copies.entry((message, record.recipient.clone())).or_default().push(record);
        }
    }
    copies
}

/// Tab-separated: wall clock in ms, µs since the start, source, sender, recipient, size, body hash, id, token, reply.
fn write_line(lines: &mut Vec<u8>, record: &Record) {
    let id = record.message.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let reply = match record.reply_written {
        Some(true) => "written",
        Some(false) => "lost",
        None => "open",
    };
    let _ = writeln!(
        lines,
        "{}\t{}\t{}\t{}\t{}\t{}\t{:016x}\t{id}\t{}\t{reply}",
        record.at.as_millis(),
        record.since_start.as_micros(),
        record.source,
        record.sender,
        record.recipient,
        record.size,
        record.body_hash,
        record.token.as_deref().unwrap_or("-"),
    );
}

/// Reads the file of a sink.
///
/// # Errors
/// The file cannot be read, or has a malformed line.
pub fn read_records(path: &Path) -> io::Result<Vec<Record>> {
    let malformed = |line: &str| io::Error::other(format!("malformed record: `{line}`"));
    BufReader::new(File::open(path)?)
        .lines()
        .map(|line| line.and_then(|line| parse_record(&line).ok_or_else(|| malformed(&line))))
        .collect()
}

/// Parses one line of a sink's file.
#[must_use]
pub fn parse_record(line: &str) -> Option<Record> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [at, since_start, source, sender, recipient, size, body_hash, id, token, reply] = fields[..] else {
        return None;
    };
    Some(Record {
        at: Timestamp::from_millis(at.parse().ok()?),
        since_start: Duration::from_micros(since_start.parse().ok()?),
        source: source.parse().ok()?,
        sender: sender.into(),
        recipient: recipient.into(),
        size: size.parse().ok()?,
        body_hash: u64::from_str_radix(body_hash, 16).ok()?,
        message: if id == "-" { None } else { Some(id.parse().ok()?) },
        token: (token != "-").then(|| token.into()),
        reply_written: match reply {
            "written" => Some(true),
            "lost" => Some(false),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(recipient: &str) -> Record {
        Record {
            at: Timestamp::from_millis(1),
            since_start: Duration::from_micros(2),
            source: IpAddr::from([127, 0, 0, 1]),
            sender: "".into(),
            recipient: recipient.into(),
            size: 3,
            body_hash: 4,
            message: "01M85FM9W0000G000000000007".parse().ok(),
            token: None,
            reply_written: None,
        }
    }

    #[tokio::test]
    async fn records_are_written_after_their_reply_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::new(Some(&path)).unwrap();
        let first = ledger.add(vec![record("a@x.test"), record("b@x.test")]);
        let second = ledger.add(vec![record("c@x.test")]);
        ledger.record_reply(second, 1, true);
        assert!(ledger.wait_for_count(3, Duration::ZERO).await);
        assert_eq!(ledger.records().len(), 3, "records after one without a written reply stay in memory");
        ledger.record_reply(first, 1, false);
        ledger.close().unwrap();
        let read = read_records(&path).unwrap();
        let seen: Vec<_> = read.iter().map(|record| (&*record.recipient, record.reply_written)).collect();
        assert_eq!(seen, [("c@x.test", Some(true)), ("a@x.test", Some(false)), ("b@x.test", None)]);
        assert_eq!(read[2], record("b@x.test"));
        assert!(!ledger.wait_for_count(4, Duration::from_millis(1)).await);
    }
}
