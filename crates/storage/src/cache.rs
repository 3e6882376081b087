//! A small store for what a node has learned and can learn again: it may be lost at any time, and costs speed then, never mail.
//!
//! The only door to sled, whose flush does not reach the disk and which may panic on what a power cut left behind:
//! every call is guarded, and a cache that does not open begins empty.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Bytes of pages kept in memory.
const MEMORY_BYTES: u64 = 16 << 20;
/// How often what was put is handed to the operating system.
const FLUSH_EVERY_MILLIS: u64 = 500;
/// Larger values are not kept: sled writes several bytes for each.
pub const CACHE_VALUE_BYTES_MAX: usize = 4 << 10;

/// The store; calls may block on the disk.
pub struct Cache {
    /// `None` when it could not be opened even empty: then nothing is remembered.
    db: Option<sled::Db>,
}

impl Cache {
    /// Opens the cache of a directory that no other process uses; one that does not open is begun anew.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        if let Some(db) = try_open(directory) {
            return Self { db: Some(db) };
        }
        tracing::warn!(directory = %directory.display(), "the cache does not open and begins empty");
        let removed = fs::remove_dir_all(directory);
        Self { db: removed.ok().and_then(|()| try_open(directory)) }
    }

    /// Remembers a value under a key, for as long as nothing goes wrong.
    pub fn put(&self, key: &[u8], value: &[u8]) {
        if value.len() <= CACHE_VALUE_BYTES_MAX {
            self.guarded(|db| db.insert(key, value).map(drop));
        }
    }

    /// Forgets a key.
    pub fn remove(&self, key: &[u8]) {
        self.guarded(|db| db.remove(key).map(drop));
    }

    /// Returns all that is remembered, at most `count_max` values.
    #[must_use]
    pub fn all(&self, count_max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let read = |db: &sled::Db| {
            let pairs = db.iter().take(count_max);
            pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        };
        self.guarded(read).unwrap_or_default()
    }

    /// Hands what was put to the operating system. A power cut may still take it.
    pub fn flush(&self) {
        self.guarded(|db| db.flush().map(drop));
    }

    fn guarded<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Option<T> {
        let db = self.db.as_ref()?;
        match catch_unwind(AssertUnwindSafe(|| work(db))) {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the cache failed");
                None
            }
            Err(_) => None,
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("open", &self.db.is_some()).finish()
    }
}

fn try_open(directory: &Path) -> Option<sled::Db> {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(MEMORY_BYTES)
        .flush_every_ms(Some(FLUSH_EVERY_MILLIS));
    catch_unwind(AssertUnwindSafe(|| config.open())).ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_when_it_is_opened_again() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path());
        cache.put(b"a", b"1");
        cache.put(b"b", b"2");
        cache.put(b"a", b"3");
        cache.remove(b"b");
        cache.put(b"c", &[0; CACHE_VALUE_BYTES_MAX + 1]);
        cache.flush();
        drop(cache);
        let all = Cache::open(home.path()).all(10);
        assert_eq!(all, [(b"a".to_vec(), b"3".to_vec())]);
    }

    #[test]
    fn one_that_does_not_open_begins_empty() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("cache");
        let cache = Cache::open(&directory);
        cache.put(b"a", b"1");
        cache.flush();
        drop(cache);
        for file in ["conf", "db"] {
            fs::write(directory.join(file), [0xa5; 4096]).unwrap();
        }
        let cache = Cache::open(&directory);
        assert!(cache.all(10).is_empty());
        cache.put(b"b", b"2");
        assert_eq!(cache.all(10).len(), 1);
    }

    #[test]
    fn where_nothing_can_be_kept_nothing_is_remembered() {
        let cache = Cache::open(Path::new("/proc/no/such/place"));
        cache.put(b"a", b"1");
        cache.flush();
        assert!(cache.all(10).is_empty());
    }
}
