//! Conversions between openraft's types, the wire and the records of the log.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use openraft::{
    EntryPayload, Membership,
    raft::{AppendEntriesRequest, StreamAppendResult, VoteRequest, VoteResponse},
};
use postroad_proto::raft as wire;
use postroad_storage::{EntryId, Record};
use prost::Message;

use crate::types::{
    LeaderId, LogId, Member, Proposal, RaftEntry, SnapshotMeta, StoredMembership, Types, Vote, log_id, term,
};

/// Kinds of records on disk.
const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

pub(crate) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(crate) fn from_vote(vote: &Vote) -> wire::VoteId {
    wire::VoteId { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn to_vote(vote: Option<wire::VoteId>) -> io::Result<Vote> {
    let vote = vote.ok_or_else(|| invalid("a vote is missing"))?;
    let leader_id = LeaderId { term: vote.term, voted_for: vote.node };
    Ok(Vote { leader_id, committed: vote.committed })
}

pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    from_vote(vote).encode_to_vec().into()
}

pub(crate) fn decode_vote(bytes: &Bytes) -> io::Result<Vote> {
    let vote = wire::VoteId::decode(bytes.clone()).map_err(|_| invalid("cannot decode the vote"))?;
    to_vote(Some(vote))
}

pub(crate) fn from_log_id(id: &LogId) -> wire::LogId {
    wire::LogId { term: term(id), index: id.index }
}

pub(crate) fn to_log_id(id: wire::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn entry_id(id: &LogId) -> EntryId {
    EntryId { term: term(id), index: id.index }
}

pub(crate) fn from_entry_id(id: EntryId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn to_record(entry: RaftEntry) -> Record {
    let id = entry_id(&entry.log_id);
    let (kind, head, bodies) = match entry.payload {
        EntryPayload::Blank => (BLANK, Bytes::new(), Vec::new()),
        EntryPayload::Normal(proposal) => (NORMAL, proposal.head, proposal.bodies.to_vec()),
        EntryPayload::Membership(members) => (MEMBERSHIP, encode_membership(&members), Vec::new()),
    };
    Record { id, kind, head, bodies }
}

pub(crate) fn from_record(record: Record) -> io::Result<RaftEntry> {
    let payload = match record.kind {
        BLANK => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Proposal { head: record.head, bodies: record.bodies.into() }),
        MEMBERSHIP => EntryPayload::Membership(decode_membership(record.head)?),
        _ => return Err(invalid("an entry of an unknown kind")),
    };
    Ok(RaftEntry { log_id: from_entry_id(record.id), payload })
}

fn from_membership(members: &Membership<u64, Member>) -> wire::Membership {
    let configs = members.get_joint_config().iter();
    wire::Membership {
        configs: configs.map(|voters| wire::Voters { nodes: voters.iter().copied().collect() }).collect(),
        members: members
            .nodes()
            .map(|(node, member)| wire::Member {
                node: *node,
                address: member.address.clone(),
                disk: member.disk,
            })
            .collect(),
    }
}

fn to_membership(members: wire::Membership) -> io::Result<Membership<u64, Member>> {
    let configs = members.configs.into_iter().map(|voters| voters.nodes.into_iter().collect()).collect();
    let member = |member: wire::Member| (member.node, Member { address: member.address, disk: member.disk });
    let nodes: BTreeMap<u64, Member> = members.members.into_iter().map(member).collect();
    Membership::new(configs, nodes).map_err(|_| invalid("an invalid membership"))
}

fn encode_membership(members: &Membership<u64, Member>) -> Bytes {
    from_membership(members).encode_to_vec().into()
}

fn decode_membership(bytes: Bytes) -> io::Result<Membership<u64, Member>> {
    to_membership(wire::Membership::decode(bytes).map_err(|_| invalid("cannot decode a membership"))?)
}

pub(crate) fn from_meta(meta: &SnapshotMeta) -> wire::CheckpointMeta {
    wire::CheckpointMeta {
        applied: meta.last_log_id.as_ref().map(from_log_id),
        membership_at: meta.last_membership.log_id().as_ref().map(from_log_id),
        membership: Some(from_membership(meta.last_membership.membership())),
    }
}

pub(crate) fn to_meta(meta: wire::CheckpointMeta) -> io::Result<SnapshotMeta> {
    let membership = to_membership(meta.membership.unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: meta.applied.map(to_log_id),
        last_membership: StoredMembership::new(meta.membership_at.map(to_log_id), membership),
    })
}

pub(crate) fn from_append(request: AppendEntriesRequest<Types>) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(from_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(from_log_id),
        committed: request.leader_commit.as_ref().map(from_log_id),
        entries: request.entries.into_iter().map(from_entry).collect(),
    }
}

fn from_entry(entry: RaftEntry) -> wire::Entry {
    let id = Some(from_log_id(&entry.log_id));
    let (kind, head, bodies) = match entry.payload {
        EntryPayload::Blank => (wire::EntryKind::Blank, Bytes::new(), Vec::new()),
        EntryPayload::Normal(proposal) => (wire::EntryKind::Normal, proposal.head, proposal.bodies.to_vec()),
        EntryPayload::Membership(members) => {
            (wire::EntryKind::Membership, encode_membership(&members), Vec::new())
        }
    };
    wire::Entry { id, kind: kind.into(), head, bodies }
}

fn to_entry(entry: wire::Entry) -> io::Result<RaftEntry> {
    let log_id = to_log_id(entry.id.ok_or_else(|| invalid("an entry without an id"))?);
    let payload = match wire::EntryKind::try_from(entry.kind) {
        Ok(wire::EntryKind::Blank) => EntryPayload::Blank,
        Ok(wire::EntryKind::Normal) => {
            // Copied, so that keeping a body does not keep the whole frame.
            let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
            let bodies = entry.bodies.iter().map(copy).collect();
            EntryPayload::Normal(Proposal { head: copy(&entry.head), bodies })
        }
        Ok(wire::EntryKind::Membership) => EntryPayload::Membership(decode_membership(entry.head)?),
        _ => return Err(invalid("an entry of an unknown kind")),
    };
    Ok(RaftEntry { log_id, payload })
}

pub(crate) fn to_append(request: wire::AppendRequest) -> io::Result<AppendEntriesRequest<Types>> {
    Ok(AppendEntriesRequest {
        vote: to_vote(request.vote)?,
        prev_log_id: request.previous.map(to_log_id),
        leader_commit: request.committed.map(to_log_id),
        entries: request.entries.into_iter().map(to_entry).collect::<io::Result<_>>()?,
    })
}

pub(crate) fn from_append_result(result: &StreamAppendResult<Types>, full: bool) -> wire::AppendResponse {
    use openraft::raft::StreamAppendError;
    use wire::append_response::Result as Wire;
    let result = match result {
        Ok(id) => Wire::Matched(wire::Matched { id: id.as_ref().map(from_log_id) }),
        Err(StreamAppendError::Conflict(id)) => Wire::Conflict(from_log_id(id)),
        Err(StreamAppendError::HigherVote(vote)) => Wire::HigherVote(from_vote(vote)),
    };
    wire::AppendResponse { result: Some(result), full }
}

pub(crate) fn to_append_result(response: wire::AppendResponse) -> io::Result<StreamAppendResult<Types>> {
    use openraft::raft::StreamAppendError;
    use wire::append_response::Result as Wire;
    Ok(match response.result.ok_or_else(|| invalid("an answer without a result"))? {
        Wire::Matched(matched) => Ok(matched.id.map(to_log_id)),
        Wire::Conflict(id) => Err(StreamAppendError::Conflict(to_log_id(id))),
        Wire::HigherVote(vote) => Err(StreamAppendError::HigherVote(to_vote(Some(vote))?)),
    })
}

pub(crate) fn from_vote_request(request: &VoteRequest<Types>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(from_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(from_log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn to_vote_request(request: wire::VoteRequest) -> io::Result<VoteRequest<Types>> {
    Ok(VoteRequest {
        vote: to_vote(request.vote)?,
        last_log_id: request.last.map(to_log_id),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(crate) fn from_vote_response(response: &VoteResponse<Types>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(from_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(from_log_id),
    }
}

pub(crate) fn to_vote_response(response: wire::VoteResponse) -> io::Result<VoteResponse<Types>> {
    Ok(VoteResponse {
        vote: to_vote(response.vote)?,
        vote_granted: response.granted,
        last_log_id: response.last.map(to_log_id),
    })
}
