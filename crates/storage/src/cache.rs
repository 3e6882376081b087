//! A small key-value store for data that may be lost at any time at the cost of speed, never of mail.
//!
//! The only user of sled, whose flush does not reach the disk and which may panic on files damaged by a power cut: every
//! call catches panics, and a cache that cannot be opened starts empty.
//!
//! Only damaged files are moved away. Files that are locked or cannot be reached are intact and stay: the cache then
//! starts empty in the next generation, a directory beside them, which later starts prefer, so that no start ever reads
//! files that are older than what the last one wrote.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

/// Bytes of pages kept in memory.
const MEMORY_BYTES: u64 = 16 << 20;
/// How often values are written to the operating system.
const FLUSH_EVERY_MILLIS: u64 = 500;
/// Larger values are not stored: sled writes several bytes for each byte.
pub const CACHE_VALUE_BYTES_MAX: usize = 4 << 10;
/// How long to wait for a lock: sled returns from drop before its threads have closed the file.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(5);
/// Generations beside a first one that stays locked.
const GENERATIONS_MAX: u32 = 8;

/// The store; calls may block on the disk.
pub struct Cache {
    /// `None` when it could not be opened even empty: then nothing is stored.
    db: Option<sled::Db>,
}

/// Why sled did not open.
#[derive(Debug)]
enum Closed {
    /// Another process, or an earlier cache of this one, has the files open.
    Locked,
    /// The system refused: no permission, no space, no such place.
    Unreachable(io::Error),
    /// The files are not what sled wrote.
    Damaged,
}

impl Cache {
    /// Opens the cache of a directory; waits for its lock, and starts empty if it cannot be opened.
    ///
    /// Blocks for up to ten seconds while the files are locked.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self::open_within(directory, LOCK_WAIT_MAX)
    }

    /// Returns a cache that stores nothing.
    #[must_use]
    pub fn closed() -> Self {
        Self { db: None }
    }

    fn open_within(directory: &Path, lock_wait_max: Duration) -> Self {
        let newest = (1..=GENERATIONS_MAX).rev().find(|number| generation(directory, *number).exists());
        let newest = newest.unwrap_or(0);
        let path = generation(directory, newest);
        let next = match open_unlocked(&path, lock_wait_max) {
            Ok(db) => {
                (0..newest).for_each(|number| remove_unlocked(&generation(directory, number)));
                return Self { db: Some(db) };
            }
            Err(Closed::Damaged) => {
                tracing::warn!(directory = %path.display(), "the cache is damaged: starting empty");
                move_away(&path);
                path
            }
            Err(Closed::Locked) => {
                tracing::warn!(directory = %path.display(), "the cache is locked: starting empty beside it");
                generation(directory, (newest + 1).min(GENERATIONS_MAX))
            }
            Err(Closed::Unreachable(error)) => {
                tracing::warn!(directory = %path.display(), %error, "cannot open the cache: starting empty");
                generation(directory, (newest + 1).min(GENERATIONS_MAX))
            }
        };
        Self { db: open_unlocked(&next, Duration::ZERO).ok() }
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

/// The directory of a generation: `cache`, then `cache.1`.
fn generation(directory: &Path, number: u32) -> PathBuf {
    match number {
        0 => directory.to_owned(),
        _ => with_suffix(directory, &number.to_string()),
    }
}

fn with_suffix(directory: &Path, suffix: &str) -> PathBuf {
    let mut path = directory.as_os_str().to_owned();
    path.push(".");
    path.push(suffix);
    path.into()
}

/// Keeps the last damaged files, for a person to look at.
fn move_away(directory: &Path) {
    let damaged = with_suffix(directory, "damaged");
    let moved = match fs::remove_dir_all(&damaged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::rename(directory, &damaged),
    };
    if let Err(error) = moved {
        tracing::warn!(directory = %directory.display(), %error, "cannot move the damaged cache away");
    }
}

fn remove_unlocked(directory: &Path) {
    if !is_locked(directory) {
        // A generation that stays costs space only: a newer one is preferred.
        let _ = fs::remove_dir_all(directory);
    }
}

/// Opens sled once nobody else has its files open.
fn open_unlocked(directory: &Path, lock_wait_max: Duration) -> Result<sled::Db, Closed> {
    let give_up = postroad_env::now() + lock_wait_max;
    loop {
        match try_open(directory) {
            Err(Closed::Locked) if postroad_env::now() < give_up => postroad_env::pause(LOCK_POLL),
            outcome => return outcome,
        }
    }
}

fn try_open(directory: &Path) -> Result<sled::Db, Closed> {
    // Asked first: sled reports a lock like any other failure.
    if is_locked(directory) {
        return Err(Closed::Locked);
    }
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(MEMORY_BYTES)
        .flush_every_ms(Some(FLUSH_EVERY_MILLIS));
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(_)) if is_locked(directory) => Err(Closed::Locked),
        Ok(Err(sled::Error::Io(error))) if error.raw_os_error().is_some() => Err(Closed::Unreachable(error)),
        Ok(Err(_)) | Err(_) => Err(Closed::Damaged),
    }
}

/// Returns true when sled has the directory open, in any process. sled locks this file with `flock`.
fn is_locked(directory: &Path) -> bool {
    let lock = File::open(directory.join("db")).map(|file| file.try_lock());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
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
        assert!(home.path().join("cache.damaged/db").exists(), "damaged files are kept for a person");
    }

    #[test]
    fn a_locked_cache_is_waited_for_and_keeps_its_values() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("cache");
        let cache = Cache::open(&directory);
        cache.put(b"a", b"1");
        cache.flush();
        std::thread::scope(|scope| {
            let later = scope.spawn(|| Cache::open(&directory).all(10));
            postroad_env::pause(10 * LOCK_POLL);
            drop(cache);
            assert_eq!(later.join().unwrap(), [(b"a".to_vec(), b"1".to_vec())]);
        });
    }

    #[test]
    fn a_cache_that_stays_locked_is_not_removed_and_its_old_values_are_never_read_again() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("cache");
        let holder = Cache::open(&directory);
        holder.put(b"a", b"old");
        let beside = Cache::open_within(&directory, Duration::ZERO);
        assert!(beside.all(10).is_empty());
        beside.put(b"a", b"new");
        beside.flush();
        assert_eq!(holder.all(10), [(b"a".to_vec(), b"old".to_vec())]);
        drop((holder, beside));
        assert_eq!(Cache::open(&directory).all(10), [(b"a".to_vec(), b"new".to_vec())]);
    }

    #[test]
    fn quick_restarts_never_lose_values() {
        let home = tempfile::tempdir().unwrap();
        for round in 0..50_u32 {
            let cache = Cache::open(home.path());
            assert_eq!(cache.all(100).len(), round as usize);
            cache.put(&round.to_be_bytes(), b"1");
        }
    }

    #[test]
    fn without_a_usable_directory_nothing_is_stored() {
        let cache = Cache::open(Path::new("/proc/no/such/place"));
        cache.put(b"a", b"1");
        cache.flush();
        assert!(cache.all(10).is_empty());
    }
}
