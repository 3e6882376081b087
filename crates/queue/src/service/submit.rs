//! Submissions: each batch is one request to the group's proposer, answered after its commit.

use futures::{Stream, StreamExt};
use postroad_core::GroupId;
use postroad_ledger::command::{Command, Refusal, Reply};
use postroad_proto::{
    parse_message_id, parse_submission,
    queue::{Submission, SubmitBatch, SubmitResult, SubmitResults, SubmitStatus},
};
use postroad_raft::ProposeError;
use tonic::{Status, Streaming};

use super::QueueService;
use crate::clock;

/// Batches of one stream being committed at a time; more wait on the stream.
const BATCHES_MAX: usize = 32;

pub(super) fn answer(
    service: QueueService,
    batches: Streaming<SubmitBatch>,
) -> impl Stream<Item = Result<SubmitResults, Status>> {
    let answered = batches.map(move |batch| {
        let service = service.clone();
        async move { Ok(service.submit_batch(batch?).await) }
    });
    answered.buffer_unordered(BATCHES_MAX)
}

/// The valid submissions of a batch, and the answers to the others.
#[derive(Default)]
struct Parsed {
    sequences: Vec<u64>,
    commands: Vec<Command>,
    bodies: Vec<bytes::Bytes>,
    results: Vec<SubmitResult>,
}

impl QueueService {
    async fn submit_batch(&self, batch: SubmitBatch) -> SubmitResults {
        let group = batch.submissions.first().map(group_of);
        let mut parsed = Parsed::default();
        let expires_by_default = clock::now().after(self.message_age_max);
        for submission in batch.submissions {
            let sequence = submission.sequence;
            if Some(group_of(&submission)) != group {
                parsed.refuse(sequence, "all submissions of a batch must belong to one group");
                continue;
            }
            match parse_submission(submission, expires_by_default, parsed.next_slot()) {
                Ok((command, body)) => parsed.push(sequence, command, body),
                Err(error) => parsed.refuse(sequence, &error.to_string()),
            }
        }
        let ledger = group.flatten().and_then(|group| self.ledgers.get(&group));
        let committed = match ledger {
            _ if parsed.commands.is_empty() => Ok(Vec::new()),
            Some(ledger) if ledger.status().leading => ledger.commit(parsed.commands, parsed.bodies).await,
            Some(ledger) => Err(ProposeError::NotLeader { leader: ledger.status().leader }),
            None => Err(ProposeError::NotLeader { leader: None }),
        };
        let mut results = parsed.results;
        match committed {
            Ok(replies) => {
                let answered = parsed.sequences.into_iter().zip(&replies);
                results.extend(answered.map(|(sequence, reply)| result(sequence, status_of(reply), "")));
            }
            Err(error) => {
                let answered = parsed.sequences.into_iter();
                results.extend(answered.map(|sequence| refused(sequence, &error)));
            }
        }
        results.iter().for_each(|result| self.submissions.count(result.status()));
        SubmitResults { results }
    }
}

/// The group that the message's id names; none for an invalid id.
fn group_of(submission: &Submission) -> Option<GroupId> {
    parse_message_id(&submission.message_id).ok().map(|id| id.group())
}

impl Parsed {
    /// The number that the next body has among those of the batch.
    fn next_slot(&self) -> u32 {
        u32::try_from(self.bodies.len()).expect("the submissions of a frame are bounded")
    }

    fn push(&mut self, sequence: u64, command: Command, body: Option<bytes::Bytes>) {
        self.sequences.push(sequence);
        self.commands.push(command);
        self.bodies.extend(body);
    }

    fn refuse(&mut self, sequence: u64, detail: &str) {
        self.results.push(result(sequence, SubmitStatus::Invalid, detail));
    }
}

fn result(sequence: u64, status: SubmitStatus, detail: &str) -> SubmitResult {
    SubmitResult { sequence, status: status.into(), leader_hint: 0, detail: detail.to_owned() }
}

fn status_of(reply: &Reply) -> SubmitStatus {
    match reply {
        Reply::Accepted | Reply::Done => SubmitStatus::Accepted,
        Reply::Refused(Refusal::TooOld) => SubmitStatus::TooOld,
        Reply::Refused(Refusal::ChunkMissing) => SubmitStatus::ChunkMissing,
        Reply::Refused(Refusal::StageFull) => SubmitStatus::Unavailable,
        Reply::Refused(Refusal::Invalid) | Reply::Changed(_) | Reply::NotFound => SubmitStatus::Invalid,
    }
}

fn refused(sequence: u64, error: &ProposeError) -> SubmitResult {
    let status = match error {
        ProposeError::NotLeader { .. } => SubmitStatus::NotLeader,
        ProposeError::Unknown => SubmitStatus::Unknown,
        ProposeError::Full => SubmitStatus::StorageFull,
        ProposeError::Stopped => SubmitStatus::Unavailable,
    };
    let mut result = result(sequence, status, &error.to_string());
    if let ProposeError::NotLeader { leader: Some(leader) } = error {
        result.leader_hint = leader.0;
    }
    result
}
