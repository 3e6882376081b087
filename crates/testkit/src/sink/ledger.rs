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
    time::{Duration, Instant},
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
    /// What became of the 250.
    pub reply: ReplyState,
}

/// What is known of the reply to a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyState {
    /// It is not written yet.
    #[default]
    Open,
    /// It was not written: the connection ended.
    Lost,
    /// It was written to the connection.
    Written,
    /// The client has sent something after it was written. A file has this as written.
    Read,
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
            started: postroad_env::now(),
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
        postroad_env::since(self.0.started)
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

    /// Records that the client goes on after the written reply for `count` records from `from` on.
    pub(super) fn record_read(&self, from: RecordNumber, count: usize) {
        let mut entries = self.0.entries.lock();
        // With a file, records are not kept once their reply is written.
        let Some(start) = from.checked_sub(entries.first).and_then(|start| usize::try_from(start).ok())
        else {
            return;
        };
        entries.records.range_mut(start..start + count).for_each(|record| record.reply = ReplyState::Read);
    }

    /// Records whether the reply for `count` records from `from` on was written.
    pub(super) fn record_reply(&self, from: RecordNumber, count: usize, written: bool) {
        let mut entries = self.0.entries.lock();
        let Entries { first, records, lines } = &mut *entries;
        let start = usize::try_from(from - *first).expect("a record without a written reply is in memory");
        for record in records.range_mut(start..start + count) {
            record.reply = if written { ReplyState::Written } else { ReplyState::Lost };
            if self.0.file.is_some() {
                write_line(lines, record);
            }
        }
        if self.0.file.is_some() {
            while records.front().is_some_and(|record| record.reply != ReplyState::Open) {
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
            for record in records.iter().filter(|record| record.reply == ReplyState::Open) {
                write_line(lines, record);
            }
        }
        self.flush()
    }
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
    let reply = match record.reply {
        ReplyState::Written | ReplyState::Read => "written",
        ReplyState::Lost => "lost",
        ReplyState::Open => "open",
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
        reply: match reply {
            "written" => ReplyState::Written,
            "lost" => ReplyState::Lost,
            _ => ReplyState::Open,
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
            reply: ReplyState::Open,
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
        ledger.record_read(second, 1);
        assert!(ledger.wait_for_count(3, Duration::ZERO).await);
        assert_eq!(ledger.records().len(), 3, "records after one without a written reply stay in memory");
        ledger.record_reply(first, 1, false);
        // Not kept: there is nothing to record.
        ledger.record_read(first, 1);
        ledger.close().unwrap();
        let read = read_records(&path).unwrap();
        let seen: Vec<_> = read.iter().map(|record| (&*record.recipient, record.reply)).collect();
        let [open, lost, written] = [ReplyState::Open, ReplyState::Lost, ReplyState::Written];
        assert_eq!(seen, [("c@x.test", written), ("a@x.test", lost), ("b@x.test", open)]);
        assert_eq!(read[2], record("b@x.test"));
        assert!(!ledger.wait_for_count(4, Duration::from_millis(1)).await);
    }
}
