//! The lane journal: what lanes with rates have sent, on disk, so that a restart need not count their rates as used up.
//!
//! The journal may be lost or outdated: a lane then starts with its rates used up, which is always safe.
//! It is written every second and, completely, at a clean stop.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use postroad_core::{Epoch, SourceId};
use postroad_directory::LaneLimits;
use postroad_storage::Cache;

use crate::{
    incarnation::Home,
    lease::BootTime,
    pending_attempts::LaneName,
    rate::{RateLimiter, WindowRecord},
};

/// What one lane had sent when the record was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LaneRecord {
    /// The epoch the lane was used under.
    pub(crate) epoch: Epoch,
    /// Nothing was sent after the record.
    pub(crate) complete: bool,
    pub(crate) at: Moment,
    pub(crate) windows: Vec<WindowRecord>,
}

/// A point in time that a later process can compare with its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The boot id of the machine, 0 if unknown.
    boot: u128,
    /// Milliseconds since boot.
    since_boot: u64,
    /// Milliseconds of the wall clock.
    wall: u64,
}

/// The most epochs between two of this node without another owner: with one, at least four pass,
/// since the source is revoked here, granted there, revoked there and granted here.
const OWN_EPOCHS_MAX: u64 = 3;

/// Lanes that are remembered.
const LANES_MAX: usize = 100_000;

/// The journal of this node.
#[derive(Debug)]
pub(crate) struct Journal {
    cache: Cache,
    /// Records of earlier incarnations, and of lanes that this one has closed.
    known: Mutex<HashMap<LaneName, LaneRecord>>,
    /// Lanes that have sent since their last record.
    changed: Mutex<HashSet<LaneName>>,
    boot: u128,
}

impl Journal {
    /// Opens the journal in a home that is locked.
    #[must_use]
    pub(crate) fn open(home: &Home) -> Self {
        let cache = match home {
            Home::Directory(directory) => Cache::open(&directory.join("cache")),
            Home::Memory(_) => Cache::closed(),
        };
        let lane = |(key, value): (Vec<u8>, Vec<u8>)| Some((decode_name(&key)?, LaneRecord::decode(&value)?));
        let known = cache.all(LANES_MAX).into_iter().filter_map(lane).collect();
        Self { cache, known: Mutex::new(known), changed: Mutex::default(), boot: postroad_env::boot_id() }
    }

    /// Returns the rates of a lane that this process begins to use under `epoch`, owning its source since `since`.
    pub(crate) fn rates(
        &self,
        name: &LaneName,
        limits: &LaneLimits,
        epoch: Epoch,
        since: Instant,
    ) -> RateLimiter {
        let limits = limits.rates.iter().map(|rate| (rate.messages, rate.per));
        // Under its first epoch the source was not used before.
        if epoch.0 <= 1 {
            return RateLimiter::new(since, limits);
        }
        let known = self.known.lock();
        let record =
            known.get(name).filter(|record| epoch.0.saturating_sub(record.epoch.0) <= OWN_EPOCHS_MAX);
        let Some(record) = record else { return RateLimiter::spent(since, limits) };
        // The writer of the record sent nothing after `since`, even if this lane starts much later.
        let passed = self.moment().since(record.at).saturating_sub(postroad_env::since(since));
        RateLimiter::restored(since, limits, &record.windows, passed, record.complete)
    }

    /// A lane has sent a message.
    pub(crate) fn mark_changed(&self, name: &LaneName) {
        let mut changed = self.changed.lock();
        if !changed.contains(name) {
            changed.insert(name.clone());
        }
    }

    /// Takes the lanes that have sent since their last record.
    pub(crate) fn take_changed(&self) -> HashSet<LaneName> {
        std::mem::take(&mut self.changed.lock())
    }

    /// Makes a record of what a lane's rates have counted.
    pub(crate) fn record(&self, epoch: Epoch, complete: bool, windows: Vec<WindowRecord>) -> LaneRecord {
        LaneRecord { epoch, complete, at: self.moment(), windows }
    }

    /// Writes records.
    pub(crate) fn write(&self, records: &[(LaneName, LaneRecord)]) {
        let mut known = self.known.lock();
        for (name, record) in records {
            if known.len() < LANES_MAX || known.contains_key(name) {
                known.insert(name.clone(), record.clone());
            }
            self.cache.put(&encode_name(name), &record.encode());
        }
    }

    /// Removes the record of a lane whose rates have no counts left.
    pub(crate) fn forget(&self, name: &LaneName) {
        if self.known.lock().remove(name).is_some() {
            self.cache.remove(&encode_name(name));
        }
    }

    /// Flushes the records to the operating system; blocks.
    pub(crate) fn flush(&self) {
        self.cache.flush();
    }

    fn moment(&self) -> Moment {
        let wall = postroad_env::wall().as_millis();
        Moment { boot: self.boot, since_boot: millis(BootTime::now().since_boot()), wall }
    }
}

impl Moment {
    /// Returns how long ago `earlier` was, at least.
    ///
    /// The wall clock is used only after a reboot; if it was set back, the result is zero.
    fn since(self, earlier: Self) -> Duration {
        let passed = if self.boot != 0 && self.boot == earlier.boot {
            self.since_boot.saturating_sub(earlier.since_boot)
        } else {
            self.wall.saturating_sub(earlier.wall)
        };
        Duration::from_millis(passed)
    }
}

const VERSION: u8 = 1;

impl LaneRecord {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.complete)];
        out.extend(self.epoch.0.to_be_bytes());
        out.extend(self.at.boot.to_be_bytes());
        out.extend(self.at.since_boot.to_be_bytes());
        out.extend(self.at.wall.to_be_bytes());
        for window in &self.windows {
            out.extend(u64::try_from(window.slot.as_nanos()).unwrap_or(u64::MAX).to_be_bytes());
            out.push(u8::try_from(window.counts.len()).unwrap_or(u8::MAX));
            for (age, count) in window.counts.iter().take(usize::from(u8::MAX)) {
                out.push(*age);
                out.extend(count.to_be_bytes());
            }
        }
        out
    }

    /// Reads a record; `None` when it is damaged or of another version.
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let [VERSION, complete] = take(&mut bytes)? else { return None };
        let epoch = Epoch(u64::from_be_bytes(take(&mut bytes)?));
        let boot = u128::from_be_bytes(take(&mut bytes)?);
        let since_boot = u64::from_be_bytes(take(&mut bytes)?);
        let wall = u64::from_be_bytes(take(&mut bytes)?);
        let mut windows = Vec::new();
        while !bytes.is_empty() {
            let slot = Duration::from_nanos(u64::from_be_bytes(take(&mut bytes)?));
            let [count] = take(&mut bytes)?;
            let mut counts = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                let [age] = take(&mut bytes)?;
                counts.push((age, u32::from_be_bytes(take(&mut bytes)?)));
            }
            windows.push(WindowRecord { slot, counts });
        }
        Some(Self { epoch, complete: complete == 1, at: Moment { boot, since_boot, wall }, windows })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn encode_name(name: &LaneName) -> Vec<u8> {
    [&name.source.0.to_be_bytes()[..], name.site.as_bytes()].concat()
}

fn decode_name(mut key: &[u8]) -> Option<LaneName> {
    let source = SourceId(u32::from_be_bytes(take(&mut key)?));
    let site: Arc<str> = std::str::from_utf8(key).ok()?.into();
    Some(LaneName { source, site })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use postroad_directory::Rate;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn name() -> LaneName {
        LaneName { source: SourceId(3), site: "example.org".into() }
    }

    fn limits() -> LaneLimits {
        LaneLimits { rates: [Rate { messages: 10, per: MINUTE }].into(), ..LaneLimits::default() }
    }

    fn ready_in(journal: &Journal, epoch: u64) -> Duration {
        let now = postroad_env::now();
        let rates = journal.rates(&name(), &limits(), Epoch(epoch), now);
        rates.ready_at(now).unwrap().saturating_duration_since(now)
    }

    #[test]
    fn records_survive_encoding() {
        let windows = vec![
            WindowRecord { slot: Duration::from_secs(1), counts: vec![(0, 7), (60, u32::MAX)] },
            WindowRecord { slot: Duration::from_secs(1440), counts: Vec::new() },
        ];
        let at = Moment { boot: 1 << 100, since_boot: 5, wall: 6 };
        let record = LaneRecord { epoch: Epoch(9), complete: true, at, windows };
        let bytes = record.encode();
        assert_eq!(LaneRecord::decode(&bytes), Some(record));
        for end in 0..bytes.len() {
            // A record cut between windows decodes to fewer windows, never to other counts.
            if let Some(cut) = LaneRecord::decode(&bytes[..end]) {
                assert!(cut.windows.len() < 2);
            }
        }
        assert_eq!(decode_name(&encode_name(&name())), Some(name()));
    }

    #[test]
    fn a_clean_restart_keeps_the_counts_and_any_other_starts_used_up() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(&Home::Directory(home.path().to_owned()));
        assert_eq!(ready_in(&journal, 1), Duration::ZERO);
        assert!(ready_in(&journal, 2) >= MINUTE);
        let windows = vec![WindowRecord { slot: MINUTE / 60, counts: vec![(0, 4)] }];
        journal.write(&[(name(), journal.record(Epoch(5), true, windows.clone()))]);
        journal.flush();
        drop(journal);

        let journal = Journal::open(&Home::Directory(home.path().to_owned()));
        assert_eq!(ready_in(&journal, 7), Duration::ZERO);
        // Another node had the source in between.
        assert!(ready_in(&journal, 9) >= MINUTE);
        // The process died: what it sent after the record is unknown.
        journal.write(&[(name(), journal.record(Epoch(5), false, windows))]);
        assert!(ready_in(&journal, 6) >= MINUTE);
        journal.forget(&name());
        drop(journal);
        assert!(ready_in(&Journal::open(&Home::Directory(home.path().to_owned())), 7) >= MINUTE);
    }

    #[test]
    fn time_is_measured_since_boot_and_by_the_wall_clock_after_a_reboot() {
        let moment = |boot, since_boot, wall| Moment { boot, since_boot, wall };
        let check = |now: Moment, earlier: Moment, expected| {
            assert_eq!(now.since(earlier), Duration::from_millis(expected));
        };
        check(moment(1, 50, 9_000_000), moment(1, 20, 10), 30);
        check(moment(2, 50, 9_000), moment(1, 20, 1_000), 8_000);
        check(moment(2, 50, 1_000), moment(1, 20, 9_000), 0);
        check(moment(0, 50, 9_000), moment(0, 20, 8_000), 1_000);
    }
}
