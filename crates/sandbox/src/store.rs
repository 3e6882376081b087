//! The newest captures, within their bounds.

use std::{collections::VecDeque, io, path::Path, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_core::{Address, MessageId};

use crate::{capture::Capture, disk::Disk, metrics::Metrics};

/// The newest captures, oldest first.
#[derive(Debug)]
pub(crate) struct Store {
    kept: Mutex<Kept>,
    messages_max: usize,
    bytes_max: u64,
    metrics: Metrics,
    disk: Option<Disk>,
}

#[derive(Debug, Default)]
struct Kept {
    captures: VecDeque<Arc<Capture>>,
    bytes: u64,
    /// How many were ever captured; the id of the last one.
    captured: u64,
}

/// Which captures a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Part of a recipient of the envelope, in any case.
    pub(crate) to: String,
    /// Part of the subject, in any case.
    pub(crate) subject: String,
}

impl Store {
    pub(crate) fn new(messages_max: usize, bytes_max: u64) -> Self {
        Self { kept: Mutex::default(), messages_max, bytes_max, metrics: Metrics::new(), disk: None }
    }

    /// Keeps captures in a directory too, and reads those that are there.
    ///
    /// # Errors
    /// The directory cannot be read or made.
    pub(crate) fn kept_in(self, directory: &Path) -> io::Result<Self> {
        let (disk, captures) = Disk::open(directory)?;
        let store = Self { disk: Some(disk), ..self };
        for capture in captures {
            store.keep(&mut store.kept.lock(), capture);
        }
        Ok(store)
    }

    /// Keeps a message and returns its id; drops the oldest captures beyond the bounds.
    ///
    /// # Errors
    /// It cannot be written to the directory.
    pub(crate) fn add(
        &self,
        sender: Option<Address>,
        recipients: Vec<Address>,
        content: Bytes,
    ) -> io::Result<u64> {
        let mut kept = self.kept.lock();
        let id = kept.captured + 1;
        let capture = Capture::new(id, postroad_env::wall(), sender, recipients, content);
        if let Some(disk) = &self.disk {
            disk.write(&capture)?;
        }
        self.keep(&mut kept, capture);
        drop(kept);
        self.metrics.captured.increment(1);
        Ok(id)
    }

    fn keep(&self, kept: &mut Kept, capture: Capture) {
        kept.captured = capture.id;
        kept.bytes += capture.bytes();
        kept.captures.push_back(Arc::new(capture));
        let mut dropped = 0;
        while kept.captures.len() > self.messages_max || kept.bytes > self.bytes_max {
            let Some(oldest) = kept.captures.pop_front() else { break };
            kept.bytes -= oldest.bytes();
            self.forget(oldest.id);
            dropped += 1;
        }
        self.metrics.messages.set(kept.captures.len() as f64);
        self.metrics.bytes.set(kept.bytes as f64);
        self.metrics.dropped.increment(dropped);
    }

    fn forget(&self, id: u64) {
        if let Some(disk) = &self.disk {
            disk.remove(id);
        }
    }

    /// Returns the newest captures that match the filter, at most `limit`.
    pub(crate) fn newest(&self, filter: &Filter, limit: usize) -> Vec<Arc<Capture>> {
        // Headers are parsed outside the lock that `add` needs.
        let captures: Vec<_> = self.kept.lock().captures.iter().rev().cloned().collect();
        let filter = filter.in_lower_case();
        captures.into_iter().filter(|capture| filter.matches(capture)).take(limit).collect()
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Capture>> {
        let kept = self.kept.lock();
        let position = kept.captures.binary_search_by_key(&id, |capture| capture.id).ok()?;
        kept.captures.get(position).cloned()
    }

    /// Returns all captures of one message, newest first, at most `limit`.
    pub(crate) fn of_message(&self, message: MessageId, limit: usize) -> Vec<Arc<Capture>> {
        let captures: Vec<_> = self.kept.lock().captures.iter().rev().cloned().collect();
        captures.into_iter().filter(|capture| capture.message() == Some(message)).take(limit).collect()
    }

    /// Returns how many captures are kept, and the bytes that they count.
    pub(crate) fn kept(&self) -> (usize, u64) {
        let kept = self.kept.lock();
        (kept.captures.len(), kept.bytes)
    }

    /// Deletes every capture; ids continue.
    pub(crate) fn clear(&self) {
        let cleared = {
            let mut kept = self.kept.lock();
            kept.bytes = 0;
            std::mem::take(&mut kept.captures)
        };
        self.metrics.messages.set(0.0);
        self.metrics.bytes.set(0.0);
        cleared.iter().for_each(|capture| self.forget(capture.id));
    }
}

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        self.to.is_empty() && self.subject.is_empty()
    }

    fn in_lower_case(&self) -> Self {
        Self { to: self.to.trim().to_lowercase(), subject: self.subject.trim().to_lowercase() }
    }

    fn matches(&self, capture: &Capture) -> bool {
        let to = || capture.recipients.iter().any(|to| to.as_str().to_lowercase().contains(&self.to));
        let subject = || capture.subject().to_lowercase().contains(&self.subject);
        (self.to.is_empty() || to()) && (self.subject.is_empty() || subject())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(store: &Store, to: &str, subject: &str) -> u64 {
        let to = Address::parse(to).unwrap();
        store.add(None, vec![to], format!("Subject: {subject}\r\n\r\nbody").into()).unwrap()
    }

    fn ids(store: &Store, to: &str, subject: &str) -> Vec<u64> {
        let filter = Filter { to: to.into(), subject: subject.into() };
        store.newest(&filter, 10).iter().map(|capture| capture.id).collect()
    }

    #[test]
    fn the_oldest_captures_are_dropped() {
        let store = Store::new(3, u64::MAX);
        for _ in 0..5 {
            add(&store, "a@b.example", "s");
        }
        assert_eq!(ids(&store, "", ""), [5, 4, 3]);
        assert!(store.find(2).is_none() && store.find(6).is_none() && store.find(0).is_none());
        assert_eq!(store.find(3).unwrap().id, 3);
        store.clear();
        assert_eq!(store.kept(), (0, 0));
        assert!(store.find(5).is_none());
        assert_eq!(add(&store, "a@b.example", "s"), 6);
        assert_eq!(store.find(6).unwrap().id, 6);
    }

    #[test]
    fn bytes_are_bounded() {
        let store = Store::new(1_000, 2_000);
        for _ in 0..100 {
            add(&store, "a@b.example", "s");
        }
        let (messages, bytes) = store.kept();
        assert!(messages < 10 && bytes <= 2_000, "{messages} {bytes}");
        store.add(None, Vec::new(), vec![b'a'; 10_000].into()).unwrap();
        assert_eq!(store.kept(), (0, 0));
    }

    #[test]
    fn captures_outlive_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Store::new(2, u64::MAX).kept_in(directory.path()).unwrap();
        let store = open();
        for subject in ["one", "two", "three"] {
            add(&store, "a@b.example", subject);
        }
        std::fs::write(directory.path().join("notes.txt"), "not a capture").unwrap();
        let store = open();
        assert_eq!(ids(&store, "", ""), [3, 2]);
        let capture = store.find(2).unwrap();
        assert_eq!((capture.subject(), &*capture.content), ("two", &b"Subject: two\r\n\r\nbody"[..]));
        assert_eq!((capture.sender.as_ref(), capture.recipients.len()), (None, 1));
        assert_eq!(add(&store, "a@b.example", "four"), 4);
        assert!(open().find(2).is_none());
        store.clear();
        assert_eq!(open().kept(), (0, 0));
    }

    #[test]
    fn lists_are_filtered() {
        let store = Store::new(10, u64::MAX);
        add(&store, "Alice@b.example", "Your invoice");
        add(&store, "bob@b.example", "=?utf-8?q?Gr=C3=BC=C3=9Fe?=");
        assert_eq!(ids(&store, "alice@", ""), [1]);
        assert_eq!(ids(&store, "", " INVOICE "), [1]);
        assert_eq!(ids(&store, "", "grüße"), [2]);
        assert_eq!(ids(&store, "bob", "invoice"), [] as [u64; 0]);
        assert_eq!(ids(&store, "b.example", ""), [2, 1]);
    }
}
