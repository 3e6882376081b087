//! Makes jobs from assignments: each attempt once, within the content budget.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use postroad_core::{Address, BounceClass, Domain, Epoch, Outcome, OutcomeKind, PoolId, SourceId, TenantId};
use postroad_proto::{
    parse_message_id,
    queue::{AssignedRecipient, Assignment, Assignments, AttemptId, Report},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    context::DeliveryContext,
    group_attempts::GroupAttempts,
    job::{Job, JobRecipient},
    lanes::Lanes,
    pending_attempts::{LaneName, Received},
};

/// RFC 5321 4.5.3.1.8: a server must accept at least this many recipients in one transaction.
const RECIPIENTS_PER_JOB_MAX: usize = 100;

/// Frames of assignments that the leader may send before earlier ones were admitted: its flow-control credit.
/// Recalls and acknowledgements in the same stream are read while these wait.
pub(crate) const CREDIT_FRAMES: u32 = 16;

/// Credit is returned to the leader after this many admitted frames, while it still has as much left.
const CREDIT_EVERY: u64 = CREDIT_FRAMES as u64 / 2;

/// Received assignments of one session: they wait here while the content budget is used up.
pub(crate) struct IncomingAssignments<'a> {
    pub(crate) attempts: &'a Arc<GroupAttempts>,
    pub(crate) lanes: &'a Arc<Lanes>,
    pub(crate) context: &'a Arc<DeliveryContext>,
    pub(crate) budget: &'a Arc<Semaphore>,
    pub(crate) waiting: Mutex<VecDeque<Assignments>>,
    pub(crate) arrived: Notify,
    /// How many frames were admitted, in steps of [`CREDIT_EVERY`].
    pub(crate) admitted: watch::Sender<u64>,
}

/// The leader sent more frames than its credit allows.
#[derive(Debug)]
pub(crate) struct CreditExceeded;

impl IncomingAssignments<'_> {
    /// Adds a frame to those that wait.
    pub(crate) fn push(&self, assignments: Assignments) -> Result<(), CreditExceeded> {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= CREDIT_FRAMES as usize {
            return Err(CreditExceeded);
        }
        waiting.push_back(assignments);
        self.arrived.notify_one();
        Ok(())
    }

    /// Admits frames in order, each once the budget has room for its content; runs until dropped.
    pub(crate) async fn run(&self) {
        let mut frames = 0;
        loop {
            let first = self.waiting.lock().front().map(bytes);
            let Some(bytes) = first else {
                self.arrived.notified().await;
                continue;
            };
            let Some(mut budget) = self.acquire_budget(bytes).await else { return };
            let frame = self.waiting.lock().pop_front().unwrap_or_default();
            for assignment in frame.assignments {
                let part = budget.split(assignment.content.len()).map(Arc::new);
                self.admit(assignment, part);
            }
            frames += 1;
            if frames % CREDIT_EVERY == 0 {
                self.admitted.send_replace(frames);
            }
        }
    }

    /// Gives back an attempt that waits here; false when it does not.
    pub(crate) fn recall(&self, id: &AttemptId) -> bool {
        let mut waiting = self.waiting.lock();
        let assignments = waiting.iter_mut().flat_map(|frame| &mut frame.assignments);
        let mut of_message =
            assignments.filter(|one| (&one.message_id, one.epoch) == (&id.message_id, id.epoch));
        let found = of_message.find_map(|one| {
            let is_it = |r: &AssignedRecipient| (r.recipient, r.attempt) == (id.recipient, id.attempt);
            let index = one.recipients.iter().position(is_it)?;
            one.recipients.remove(index);
            Some(LaneName { source: SourceId(one.source), site: one.site.as_str().into() })
        });
        let Some(lane) = found else { return false };
        self.attempts.with(|pending| {
            if pending.receive(id, &lane) == Received::New {
                pending.give_back(id, lane.source);
            }
        });
        true
    }

    async fn acquire_budget(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.budget.clone().try_acquire_many_owned(bytes) {
            return Some(permit);
        }
        self.context.metrics.budget_waits.increment(1);
        let _waits = self.attempts.waiting_for_budget();
        self.budget.clone().acquire_many_owned(bytes).await.ok()
    }

    fn admit(&self, assignment: Assignment, budget: Option<Arc<OwnedSemaphorePermit>>) {
        let Ok(message) = parse_message_id(&assignment.message_id) else {
            return tracing::error!(group = %self.attempts.group, "assignment without a message id");
        };
        let lane = LaneName { source: SourceId(assignment.source), site: assignment.site.as_str().into() };
        let recipients = self.new_recipients(&assignment, &lane);
        if recipients.is_empty() {
            return;
        }
        let sender =
            match assignment.sender.as_deref().filter(|sender| !sender.is_empty()).map(Address::parse) {
                None => None,
                Some(Ok(sender)) => Some(sender),
                Some(Err(_)) => {
                    return recipients.iter().for_each(|r| self.malformed(&assignment, r.number, r.attempt));
                }
            };
        for recipients in transactions(recipients, &assignment.site) {
            let job = Job {
                attempts: self.attempts.clone(),
                source: lane.source,
                tenant: TenantId(assignment.tenant),
                pool: PoolId(assignment.pool),
                message,
                epoch: Epoch(assignment.epoch),
                sender: sender.clone(),
                recipients,
                size: assignment.size_bytes,
                content: Some(assignment.content.clone()).filter(|content| !content.is_empty()),
                traceparent: assignment.traceparent.clone(),
                retry_now: assignment.retry_now,
                received: postroad_env::now(),
                budget: budget.clone(),
            };
            self.lanes.push(self.context, &lane, job);
        }
    }

    /// Returns the recipients whose attempts are new.
    fn new_recipients(&self, assignment: &Assignment, lane: &LaneName) -> Vec<JobRecipient> {
        let is_new = |recipient: &&AssignedRecipient| {
            let id = attempt_id(assignment, recipient.recipient, recipient.attempt);
            self.attempts.with(|pending| pending.receive(&id, lane)) == Received::New
        };
        let mut recipients = Vec::with_capacity(assignment.recipients.len());
        for recipient in assignment.recipients.iter().filter(is_new) {
            let AssignedRecipient { recipient: number, attempt, .. } = *recipient;
            match Address::parse(&recipient.address) {
                Ok(address) => recipients.push(JobRecipient { number, attempt, address }),
                Err(_) => self.malformed(assignment, number, attempt),
            }
        }
        self.attempts.notify();
        recipients
    }

    /// An accepted address that does not parse is a fault of ours.
    fn malformed(&self, assignment: &Assignment, recipient: u32, attempt: u32) {
        tracing::error!(group = %self.attempts.group, recipient, "assignment with a malformed address");
        let outcome = Outcome::new(
            OutcomeKind::Internal,
            Some(BounceClass::Other),
            0,
            "malformed address in the assignment",
        );
        let now = postroad_env::wall().as_millis();
        self.attempts.finish(Report {
            attempt: Some(attempt_id(assignment, recipient, attempt)),
            source: assignment.source,
            kind: u32::from(outcome.kind.code()),
            bounce_class: outcome.class.map_or(0, |class| u32::from(class.code())),
            text: outcome.text.into(),
            started_at_millis: now,
            ended_at_millis: now,
            ..Report::default()
        });
    }
}

/// Bytes of content in a frame.
fn bytes(frame: &Assignments) -> u32 {
    let bytes: usize = frame.assignments.iter().map(|assignment| assignment.content.len()).sum();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn attempt_id(assignment: &Assignment, recipient: u32, attempt: u32) -> AttemptId {
    AttemptId { message_id: assignment.message_id.clone(), recipient, attempt, epoch: assignment.epoch }
}

/// Splits recipients into transactions: by domain, and within the number that every server accepts.
///
/// Domains of one site share its limits, but a host may refuse recipients of two domains in one transaction.
/// The host of a route accepts every domain that the operator routes there.
fn transactions(recipients: Vec<JobRecipient>, site: &str) -> Vec<Vec<JobRecipient>> {
    if recipients.len() == 1 {
        return vec![recipients];
    }
    let mut by_domain: BTreeMap<Option<Domain>, Vec<JobRecipient>> = BTreeMap::new();
    for recipient in recipients {
        let domain = if site.starts_with("route:") { None } else { recipient.address.domain() };
        by_domain.entry(domain).or_default().push(recipient);
    }
    let chunks = |recipients: Vec<JobRecipient>| {
        let chunks = recipients.chunks(RECIPIENTS_PER_JOB_MAX).map(<[JobRecipient]>::to_vec);
        chunks.collect::<Vec<_>>()
    };
    by_domain.into_values().flat_map(chunks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipients(addresses: &[&str]) -> Vec<JobRecipient> {
        let parse = |address: &&str| Address::parse(address).unwrap();
        let recipient = |(number, address)| JobRecipient { number, attempt: 1, address };
        (0..).zip(addresses.iter().map(parse)).map(recipient).collect()
    }

    fn check(addresses: &[&str], site: &str, expected: &[&[u32]]) {
        let split = transactions(recipients(addresses), site);
        let numbers: Vec<Vec<u32>> =
            split.iter().map(|group| group.iter().map(|recipient| recipient.number).collect()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn recipients_of_one_domain_share_a_transaction() {
        check(&["a@x.example"], "x.example", &[&[0]]);
        check(&["a@x.example", "b@X.example"], "x.example", &[&[0, 1]]);
        check(&["a@y.example", "b@x.example", "c@y.example"], "host.example", &[&[1], &[0, 2]]);
        check(&["a@y.example", "b@x.example"], "route:sink:2525", &[&[0, 1]]);
    }

    #[test]
    fn a_transaction_has_no_more_recipients_than_every_server_accepts() {
        let split = transactions(recipients(&["a@x.example"; 250]), "x.example");
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    }
}
