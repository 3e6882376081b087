//! What a node keeps on disk: one log for all its Raft groups, and a checkpoint of each.
//!
//! Everything is written once, in batches, by one thread; a batch is one write and one sync.
//! Entries, votes and bodies are bytes here; the layer above knows their meaning and when they may be freed.

pub mod cache;
pub mod fs;
pub mod log;
pub mod metrics;
pub mod sim;

mod batch;
mod checkpoint;
mod disk;
mod format;
mod index;
mod plan;
mod recovery;
mod segment;
mod shared;
mod writer;

pub use cache::Cache;
pub use checkpoint::Checkpoint;
pub use disk::{Disk, DiskId, FormatError, Origin, format, formatted};
pub use fs::{Fs, RealFs};
pub use log::{Done, GroupState, Identity, Log, LogConfig, OpenError, Room};
pub use shared::LogStats;

use bytes::Bytes;

/// The id of an entry in its group's log; a later entry is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its position.
    pub index: u64,
}

/// An entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub id: EntryId,
    /// The kind, for the layer above.
    pub kind: u8,
    /// Small, and read whenever the entry is.
    pub head: Bytes,
    /// Each can be read on its own, also after the entry was purged.
    pub bodies: Vec<Bytes>,
}

impl Record {
    /// Returns how many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head.len() + self.bodies.iter().map(Bytes::len).sum::<usize>()
    }
}
