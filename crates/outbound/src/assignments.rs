//! From assignments to jobs: each attempt once, within the content budget.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use postroad_core::{Address, BounceClass, Domain, Epoch, Outcome, OutcomeKind, SourceId};
use postroad_proto::{
    parse_message_id,
    queue::{AssignedRecipient, Assignment, Assignments, AttemptId, Report},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    context::Workshop,
    group_attempts::Desk,
    job::{Job, JobRecipient},
    lanes::Lanes,
    pending_attempts::{LaneName, Offered},
};

/// RFC 5321 4.5.3.1.8: a server takes at least this many recipients in one transaction.
const RECIPIENTS_PER_JOB_MAX: usize = 100;

/// Frames that may wait for room. The leader sends no more, so that what else it says is read meanwhile.
pub(crate) const FRAMES_AHEAD_MAX: u32 = 16;

/// The leader is told of every so many frames that found room, while it may still send as many.
const TOLD_EVERY: u64 = FRAMES_AHEAD_MAX as u64 / 2;

/// The first station of the assignments of one session: they wait here while the content budget is used up.
pub(crate) struct Intake<'a> {
    pub(crate) desk: &'a Arc<Desk>,
    pub(crate) lanes: &'a Arc<Lanes>,
    pub(crate) workshop: &'a Arc<Workshop>,
    pub(crate) budget: &'a Arc<Semaphore>,
    pub(crate) waiting: Mutex<VecDeque<Assignments>>,
    pub(crate) arrived: Notify,
    /// How many frames have found room, as far as it is to be told.
    pub(crate) taken: watch::Sender<u64>,
}

/// The leader sent more frames than it was told to.
#[derive(Debug)]
pub(crate) struct TooFarAhead;

impl Intake<'_> {
    /// Puts a frame behind those that wait.
    pub(crate) fn put(&self, assignments: Assignments) -> Result<(), TooFarAhead> {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= FRAMES_AHEAD_MAX as usize {
            return Err(TooFarAhead);
        }
        waiting.push_back(assignments);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes frame by frame over, each once there is room for its content; runs until dropped.
    pub(crate) async fn run(&self) {
        let mut frames = 0;
        loop {
            let first = self.waiting.lock().front().map(bytes);
            let Some(bytes) = first else {
                self.arrived.notified().await;
                continue;
            };
            let Some(mut room) = self.room(bytes).await else { return };
            let frame = self.waiting.lock().pop_front().unwrap_or_default();
            for assignment in frame.assignments {
                let part = room.split(assignment.content.len()).map(Arc::new);
                self.take_one(assignment, part);
            }
            frames += 1;
            if frames % TOLD_EVERY == 0 {
                self.taken.send_replace(frames);
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
            let place = one.recipients.iter().position(is_it)?;
            one.recipients.remove(place);
            Some(LaneName { source: SourceId(one.source), site: one.site.as_str().into() })
        });
        let Some(lane) = found else { return false };
        self.desk.with(|held| {
            if held.offer(id, &lane) == Offered::Taken {
                held.give_back(id, lane.source);
            }
        });
        true
    }

    async fn room(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        if let Ok(room) = self.budget.clone().try_acquire_many_owned(bytes) {
            return Some(room);
        }
        self.workshop.metrics.budget_waits.increment(1);
        let _waits = self.desk.short_of_room();
        self.budget.clone().acquire_many_owned(bytes).await.ok()
    }

    fn take_one(&self, assignment: Assignment, budget: Option<Arc<OwnedSemaphorePermit>>) {
        let Ok(message) = parse_message_id(&assignment.message_id) else {
            return tracing::error!(group = %self.desk.group, "an assignment without a message id");
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
                desk: self.desk.clone(),
                message,
                epoch: Epoch(assignment.epoch),
                sender: sender.clone(),
                recipients,
                smtputf8: assignment.smtputf8,
                eight_bit: assignment.eight_bit,
                size: assignment.size_bytes,
                content: Some(assignment.content.clone()).filter(|content| !content.is_empty()),
                traceparent: assignment.traceparent.clone(),
                received: Instant::now(),
                budget: budget.clone(),
            };
            self.lanes.push(self.workshop, &lane, job);
        }
    }

    /// Returns the recipients whose attempts are not here yet.
    fn new_recipients(&self, assignment: &Assignment, lane: &LaneName) -> Vec<JobRecipient> {
        let is_new = |recipient: &&AssignedRecipient| {
            let id = attempt_id(assignment, recipient.recipient, recipient.attempt);
            self.desk.with(|held| held.offer(&id, lane)) == Offered::Taken
        };
        let mut recipients = Vec::with_capacity(assignment.recipients.len());
        for recipient in assignment.recipients.iter().filter(is_new) {
            let AssignedRecipient { recipient: number, attempt, .. } = *recipient;
            match Address::parse(&recipient.address) {
                Ok(address) => recipients.push(JobRecipient { number, attempt, address }),
                Err(_) => self.malformed(assignment, number, attempt),
            }
        }
        self.desk.ring();
        recipients
    }

    /// An address that was accepted and does not parse is our own fault: nobody else can have put it there.
    fn malformed(&self, assignment: &Assignment, recipient: u32, attempt: u32) {
        tracing::error!(group = %self.desk.group, recipient, "an assignment with a malformed address");
        let outcome =
            Outcome::new(OutcomeKind::Internal, Some(BounceClass::Other), 0, "the address is malformed");
        let now = crate::job::now().as_millis();
        self.desk.finish(Report {
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

/// Splits recipients into transactions: by domain, and within the number every server takes.
///
/// Domains of one site share its limits, but a host may take mail for one of them only by its own name.
/// A route's host takes whatever the operator sends there.
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
    fn a_transaction_has_no_more_recipients_than_every_server_takes() {
        let split = transactions(recipients(&["a@x.example"; 250]), "x.example");
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    }
}
