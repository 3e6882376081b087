//! Our types for openraft.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;
use openraft::{EntryPayload, RaftTypeConfig, alias, impls};
use parking_lot::Mutex;

/// What is proposed.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) head: Bytes,
    pub(crate) bodies: Arc<[Bytes]>,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes and {} bodies", self.head.len(), self.bodies.len())
    }
}

impl Proposal {
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.bodies.iter().map(Bytes::len).sum::<usize>()
    }
}

/// The machine's reply to an entry, taken once by the proposer.
#[derive(Default)]
pub(crate) struct Answer(pub(crate) Mutex<Option<Box<dyn Any + Send>>>);

/// A member's address, and its disk: the same node with another disk is not the member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) disk: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

pub(crate) type LeaderId = impls::leader_id_std::LeaderId<u64, u64>;

impl RaftTypeConfig for Types {
    type D = Proposal;
    type R = Answer;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::Vote<LeaderId>;
    type Payload = EntryPayload<Proposal, u64, Member>;
    type Entry = alias::DefaultEntryOf<Self>;
    type Responder<T>
        = impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = crate::runtime::Runtime;
    type ErrorSource = openraft::AnyError;
}

pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type LogId = alias::LogIdOf<Types>;
pub(crate) type RaftEntry = alias::EntryOf<Types>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = alias::SnapshotOf<Types, State>;

/// A state in transfer between nodes.
pub(crate) struct State {
    pub(crate) bytes: Bytes,
    /// Bodies the state refers to: to be sent, or already durable on the receiver.
    pub(crate) live: Vec<(u64, u32)>,
    /// Keeps the bodies while it exists.
    pub(crate) _pin: Option<Arc<()>>,
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    let leader = LeaderId { term, voted_for: 0 };
    openraft::LogId { leader_id: openraft::vote::RaftLeaderId::to_committed(&leader), index }
}

pub(crate) fn term(id: &LogId) -> u64 {
    *id.leader_id
}
