//! The state machine that the layer above implements; only committed entries change it.

use std::{any::Any, error::Error};

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
    /// The small part of the proposal.
    pub head: &'a Bytes,
    /// Its bodies; each can be read from the log by index and slot while the state refers to it.
    pub bodies: &'a [Bytes],
}

/// Why a machine cannot continue.
pub type MachineError = Box<dyn Error + Send + Sync>;

/// A replicated state.
pub trait Machine: Send + 'static {
    /// The answer to the proposer of an entry.
    type Reply: Send + 'static;

    /// Applies an entry: deterministic, and in memory only.
    ///
    /// # Errors
    /// This version does not know the entry: the group stops on this node, since skipping it would lose it.
    fn apply(&mut self, entry: Entry<'_>) -> Result<Self::Reply, MachineError>;

    /// Freezes the state; takes the same short time whatever its size.
    fn snapshot(&self) -> Box<dyn MachineSnapshot>;

    /// Replaces the state by that of a snapshot.
    ///
    /// # Errors
    /// The bytes are not a snapshot this version knows; the state is then unspecified and must not be used.
    fn restore(&mut self, state: Bytes) -> Result<(), MachineError>;

    /// Returns a number that is equal on replicas that applied the same entries.
    fn state_hash(&self) -> u64;
}

/// The reply of a machine, whatever its type.
pub(crate) type AnyReply = Box<dyn Any + Send>;

/// A machine whatever its replies are, so that openraft is compiled for one type.
pub(crate) trait AnyMachine: Send {
    fn apply(&mut self, entry: Entry<'_>) -> Result<AnyReply, MachineError>;
    fn snapshot(&self) -> Box<dyn MachineSnapshot>;
    fn restore(&mut self, state: Bytes) -> Result<(), MachineError>;
    fn state_hash(&self) -> u64;
}

impl<M: Machine> AnyMachine for M {
    fn apply(&mut self, entry: Entry<'_>) -> Result<AnyReply, MachineError> {
        Ok(Box::new(Machine::apply(self, entry)?))
    }

    fn snapshot(&self) -> Box<dyn MachineSnapshot> {
        Machine::snapshot(self)
    }

    fn restore(&mut self, state: Bytes) -> Result<(), MachineError> {
        Machine::restore(self, state)
    }

    fn state_hash(&self) -> u64 {
        Machine::state_hash(self)
    }
}

/// A state frozen at one entry.
pub trait MachineSnapshot: Send + 'static {
    /// Returns it as bytes.
    fn encode(&self) -> Bytes;

    /// Returns the bodies it refers to as index and slot, sorted.
    fn live_bodies(&self) -> Vec<(u64, u32)>;
}
