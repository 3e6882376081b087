//! What those above put in: a state that changes by entries and by nothing else.

use std::error::Error;

use bytes::Bytes;
use postroad_core::GroupId;

/// A committed entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The group.
    pub group: GroupId,
    /// Its position in the group's log.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What was proposed.
    pub head: &'a Bytes,
    /// Bodies that came with it; each can be read from the log by index and slot for as long as the state refers to it.
    pub bodies: &'a [Bytes],
}

/// Why a machine cannot go on.
pub type MachineError = Box<dyn Error + Send + Sync>;

/// A replicated state.
pub trait Machine: Send + 'static {
    /// What the proposer of an entry is told.
    type Reply: Send + 'static;

    /// Applies an entry: deterministic, and in memory only.
    ///
    /// # Errors
    /// The entry is not one this version knows: the group stops on this node, since what is skipped is lost.
    fn apply(&mut self, entry: Entry<'_>) -> Result<Self::Reply, MachineError>;

    /// Freezes the state: quick, whatever its size.
    fn snapshot(&self) -> Box<dyn MachineSnapshot>;

    /// Replaces the state by that of a snapshot.
    ///
    /// # Errors
    /// The bytes are not a snapshot this version knows; the state is then unspecified and must not be used.
    fn restore(&mut self, state: Bytes) -> Result<(), MachineError>;

    /// Returns a number that is equal on replicas that applied the same entries.
    fn state_hash(&self) -> u64;
}

/// A state frozen at one entry.
pub trait MachineSnapshot: Send + 'static {
    /// Returns it as bytes.
    fn encode(&self) -> Bytes;

    /// Returns the bodies it refers to as index and slot, sorted.
    fn live_bodies(&self) -> Vec<(u64, u32)>;
}
