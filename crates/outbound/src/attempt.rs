//! One attempt at the recipients of a job: what is still open, and the reports of what is decided.
//!
//! Whatever becomes of the code that runs it, each recipient is reported or given back exactly once.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use postroad_core::{Outcome, OutcomeKind, SourceId, Timestamp};
use postroad_smtp::client::{Fate, Transaction};

use crate::{
    job::{self, Attempted, Job, JobRecipient},
    metrics::OutboundMetrics,
    result,
};

/// A job under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) job: Job,
    source: SourceId,
    /// Recipients without an outcome.
    open: Vec<JobRecipient>,
    started_at: Timestamp,
    started: Instant,
    metrics: Arc<OutboundMetrics>,
}

impl Attempt {
    pub(crate) fn begin(mut job: Job, source: SourceId, metrics: Arc<OutboundMetrics>) -> Self {
        let open = std::mem::take(&mut job.recipients);
        Self { job, source, open, started_at: job::now(), started: Instant::now(), metrics }
    }

    /// Returns the recipients that have no outcome yet.
    pub(crate) fn open(&self) -> &[JobRecipient] {
        &self.open
    }

    /// Returns the transaction for the open recipients.
    pub(crate) fn transaction(&self, content: &[Bytes]) -> Transaction {
        Transaction {
            sender: self.job.sender.clone(),
            recipients: self.open.iter().map(|recipient| recipient.address.clone()).collect(),
            content: content.to_vec(),
            smtputf8: self.job.smtputf8,
            eight_bit: self.job.eight_bit,
        }
    }

    /// Reports the recipients of a transaction, but for those at the places `left`, which stay open.
    pub(crate) fn settle(&mut self, fates: &[Fate], left: &[usize], remote: &Arc<str>, tls: &Arc<str>) {
        let recipients = std::mem::take(&mut self.open);
        let outcomes = result::outcomes_of(fates);
        for (place, (recipient, outcome)) in recipients.into_iter().zip(outcomes).enumerate() {
            if left.contains(&place) {
                self.open.push(recipient);
            } else {
                let attempted = Attempted { outcome, remote: remote.clone(), tls: tls.clone() };
                self.report(&recipient, &attempted);
            }
        }
    }

    /// Reports all that is open.
    pub(crate) fn settle_all(&mut self, attempted: &Attempted) {
        for recipient in std::mem::take(&mut self.open) {
            self.report(&recipient, attempted);
        }
    }

    /// Gives back all that is open: nothing of it has been sent.
    pub(crate) fn give_back(&mut self) {
        self.metrics.given_back.increment(1);
        for recipient in std::mem::take(&mut self.open) {
            self.job.desk.give_back(self.job.attempt_id(&recipient), self.source);
        }
    }

    fn report(&self, recipient: &JobRecipient, attempted: &Attempted) {
        self.metrics.attempted(attempted.outcome.kind);
        self.metrics.attempt_seconds.record(self.started.elapsed().as_secs_f64());
        self.job.report(recipient, self.source, self.started_at, attempted);
    }
}

impl Drop for Attempt {
    /// A worker that failed half-way cannot say how far it was.
    fn drop(&mut self) {
        if !self.open.is_empty() {
            let outcome = Outcome::new(OutcomeKind::Unknown, None, 0, "the attempt was cut short");
            self.settle_all(&Attempted::alone(outcome));
        }
    }
}
