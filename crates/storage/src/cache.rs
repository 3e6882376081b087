//! A small key-value store for data that may be lost at any time at the cost of speed, never of mail.
//!
//! The only user of sled, whose flush does not reach the disk and which may panic on files damaged by a power cut: every
//! call catches panics, and a cache that cannot be opened starts empty.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Bytes of pages kept in memory.
const MEMORY_BYTES: u64 = 16 << 20;
/// How often values are written to the operating system.
const FLUSH_EVERY_MILLIS: u64 = 500;
/// Larger values are not stored: sled writes several bytes for each byte.
pub const CACHE_VALUE_BYTES_MAX: usize = 4 << 10;

/// The store; calls may block on the disk.
pub struct Cache {
    /// `None` when it could not be opened even empty: then nothing is stored.
    db: Option<sled::Db>,
}

impl Cache {
    /// Opens the cache of a directory that no other process uses; starts empty if it cannot be opened.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        if let Some(db) = try_open(directory) {
            return Self { db: Some(db) };
        }
        tracing::warn!(directory = %directory.display(), "cannot open the cache: starting empty");
        let removed = fs::remove_dir_all(directory);
        Self { db: removed.ok().and_then(|()| try_open(directory)) }
    }

    /// Stores a value under a key; it may be lost.
    pub fn put(&self, key: &[u8], value: &[u8]) {
        if value.len() <= CACHE_VALUE_BYTES_MAX {
            self.guarded(|db| db.insert(key, value).map(drop));
        }
    }

    /// Removes a key.
    pub fn remove(&self, key: &[u8]) {
        self.guarded(|db| db.remove(key).map(drop));
    }

    /// Returns all pairs, at most `count_max`.
    #[must_use]
    pub fn all(&self, count_max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let read = |db: &sled::Db| {
            let pairs = db.iter().take(count_max);
            pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        };
        self.guarded(read).unwrap_or_default()
    }

    /// Writes stored values to the operating system. A power cut may still lose them.
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
    fn values_are_there_after_a_restart() {
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
    fn a_cache_that_cannot_be_opened_starts_empty() {
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
    fn without_a_usable_directory_nothing_is_stored() {
        let cache = Cache::open(Path::new("/proc/no/such/place"));
        cache.put(b"a", b"1");
        cache.flush();
        assert!(cache.all(10).is_empty());
    }
}
