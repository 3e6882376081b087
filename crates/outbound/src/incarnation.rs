//! This process's incarnation and the one before it, kept in the data directory, which the process locks.
//!
//! The lock proves that the recorded incarnation has ended, so a claim may say that it replaces it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use postroad_core::NodeId;
use rustix::fs::{FlockOperation, flock};

use crate::error::StartError;

/// Where a node keeps what outlives its process; one home for one node.
#[derive(Clone, Debug)]
pub enum Home {
    /// A directory, which one process at a time uses.
    Directory(PathBuf),
    /// The memory of a simulation, with the last incarnation.
    Memory(Arc<Mutex<Option<u64>>>),
}

/// The incarnation of this node; its home stays locked until this is dropped.
#[derive(Debug)]
pub(crate) struct Incarnation {
    record: Record,
    current: u64,
    replaces: Option<u64>,
}

/// Where the incarnation is recorded.
#[derive(Debug)]
enum Record {
    File { directory: PathBuf, node: NodeId, _lock: File },
    Memory(Arc<Mutex<Option<u64>>>),
}

const LOCK: &str = "lock";
const FILE: &str = "incarnation";

impl Incarnation {
    /// Locks the home, reads the previous incarnation and writes `number` as the new one, synced.
    ///
    /// `number` must be random, so that it differs from all earlier ones.
    ///
    /// # Errors
    /// The directory cannot be used, or another process uses it.
    pub(crate) fn begin(home: &Home, node: NodeId, number: u64) -> Result<Self, StartError> {
        let (record, replaces) = match home {
            Home::Directory(directory) => {
                let lock = lock(directory)?;
                let before = read(directory, node)?;
                (Record::File { directory: directory.clone(), node, _lock: lock }, before)
            }
            Home::Memory(last) => (Record::Memory(last.clone()), *last.lock()),
        };
        let mut incarnation = Self { record, current: 0, replaces };
        incarnation.write(number)?;
        Ok(incarnation)
    }

    /// Begins another incarnation in the same process, after everything of the current one was aborted.
    /// Returns after it was synced.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn begin_next(&mut self, number: u64) -> Result<(), StartError> {
        self.replaces = Some(self.current);
        self.write(number)
    }

    /// Returns the current incarnation.
    #[must_use]
    pub(crate) fn current(&self) -> u64 {
        self.current
    }

    /// Returns the previous incarnation, which has certainly ended.
    #[must_use]
    pub(crate) fn replaces(&self) -> Option<u64> {
        self.replaces
    }

    fn write(&mut self, number: u64) -> Result<(), StartError> {
        match &self.record {
            Record::File { directory, node, .. } => write(directory, *node, number)?,
            Record::Memory(last) => *last.lock() = Some(number),
        }
        self.current = number;
        Ok(())
    }
}

fn lock(directory: &Path) -> Result<File, StartError> {
    let failed = |error| StartError::DataDirectory { directory: directory.to_owned(), error };
    fs::create_dir_all(directory).map_err(failed)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join(LOCK))
        .map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Locked(directory.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn write(directory: &Path, node: NodeId, number: u64) -> Result<(), StartError> {
    let replace = || -> io::Result<()> {
        let (path, temporary) = (directory.join(FILE), directory.join("incarnation.new"));
        let mut file = File::create(&temporary)?;
        writeln!(file, "{node} {number}")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    replace().map_err(|error| StartError::DataDirectory { directory: directory.to_owned(), error })
}

/// Reads `NODE INCARNATION`; `None` when there is no file.
fn read(directory: &Path, node: NodeId) -> Result<Option<u64>, StartError> {
    let path = directory.join(FILE);
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(128).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(StartError::Incarnation(path));
        }
        Err(error) => return Err(StartError::DataDirectory { directory: directory.to_owned(), error }),
    }
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(found)), Some(Ok(before)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
        return Err(StartError::Incarnation(path));
    };
    if found != node.0 {
        return Err(StartError::OtherNode { directory: directory.to_owned(), found, node: node.0 });
    }
    Ok(Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_incarnation_knows_the_previous_one() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("outbound");
        let first = Incarnation::begin(&Home::Directory(directory.clone()), NodeId(4), 11).unwrap();
        assert_eq!((first.current(), first.replaces()), (11, None));
        drop(first);
        let mut second = Incarnation::begin(&Home::Directory(directory.clone()), NodeId(4), 22).unwrap();
        assert_eq!((second.current(), second.replaces()), (22, Some(11)));
        second.begin_next(33).unwrap();
        assert_eq!((second.current(), second.replaces()), (33, Some(22)));
        drop(second);
        assert_eq!(
            Incarnation::begin(&Home::Directory(directory), NodeId(4), 44).unwrap().replaces(),
            Some(33)
        );
    }

    #[test]
    fn the_memory_of_a_simulation_knows_the_previous_incarnation_too() {
        let home = Home::Memory(Arc::default());
        drop(Incarnation::begin(&home, NodeId(4), 11).unwrap());
        let second = Incarnation::begin(&home, NodeId(4), 22).unwrap();
        assert_eq!((second.current(), second.replaces()), (22, Some(11)));
    }

    #[test]
    fn a_data_directory_serves_one_process_and_one_node() {
        let home = tempfile::tempdir().unwrap();
        let first = Incarnation::begin(&Home::Directory(home.path().to_owned()), NodeId(4), 11).unwrap();
        assert!(matches!(
            Incarnation::begin(&Home::Directory(home.path().to_owned()), NodeId(4), 22),
            Err(StartError::Locked(_))
        ));
        drop(first);
        let other = Incarnation::begin(&Home::Directory(home.path().to_owned()), NodeId(5), 22);
        assert!(matches!(other, Err(StartError::OtherNode { found: 4, node: 5, .. })));
    }

    #[test]
    fn a_malformed_incarnation_file_stops_the_start() {
        for content in [&b""[..], b"4", b"4 x\n", b"4 5 6\n", b"\xff\xfe 4\n"] {
            let home = tempfile::tempdir().unwrap();
            fs::write(home.path().join(FILE), content).unwrap();
            let begun = Incarnation::begin(&Home::Directory(home.path().to_owned()), NodeId(4), 22);
            assert!(matches!(begun, Err(StartError::Incarnation(_))), "{content:?}");
        }
    }
}
