//! One attempt at the recipients of a job: which recipients are open, and the reports of the others.
//!
//! Each recipient is reported or given back exactly once, even if the worker panics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_core::{Address, AttemptNumber, BounceClass, Outcome, OutcomeKind, Party, Timestamp};
use postroad_smtp::client::Transaction;
use postroad_telemetry::mail_log::{self, Mailbox, Said, Secs, Trace};

use crate::{
    conversion::FinishedFor,
    job::{AttemptResult, Job, JobRecipient},
    lane::Signal,
    metrics::LaneMetrics,
    plan::Target,
};

/// A job in progress.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) job: Job,
    /// Recipients without an outcome.
    open: Vec<JobRecipient>,
    /// How many of them one transaction may have (D-035).
    recipients_max: usize,
    /// The content as the last host took it.
    pub(crate) finished: Option<FinishedFor>,
    started_at: Timestamp,
    started: Instant,
    /// The most serious signal so far.
    signal: Signal,
    metrics: Arc<LaneMetrics>,
}

impl Attempt {
    pub(crate) fn begin(mut job: Job, metrics: Arc<LaneMetrics>) -> Self {
        let open = job.start();
        let (started_at, started) = (postroad_env::wall(), postroad_env::now());
        let (recipients_max, finished) = (usize::MAX, None);
        Self { job, open, recipients_max, finished, started_at, started, signal: Signal::Silent, metrics }
    }

    /// Returns the recipients that have no outcome yet.
    pub(crate) fn open(&self) -> &[JobRecipient] {
        &self.open
    }

    /// Adds what a part of the attempt says about the site.
    pub(crate) fn note(&mut self, signal: Signal) {
        let before = std::mem::replace(&mut self.signal, Signal::Silent);
        self.signal = before.worse(signal);
    }

    /// Returns what the attempt says about the site.
    pub(crate) fn signal(&self) -> Signal {
        self.signal.clone()
    }

    /// Returns the transaction for the open recipients, or for as many as one may have.
    ///
    /// What the server must be able to do is computed from what is sent, however the message came in.
    pub(crate) fn transaction(&self, content: &FinishedFor) -> Transaction {
        let recipients = self.open.iter().take(self.recipients_max);
        let recipients: Vec<Address> = recipients.map(|recipient| recipient.address.clone()).collect();
        let mut addresses = self.job.sender.iter().chain(&recipients);
        let smtputf8 = content.smtputf8 || addresses.any(|address| !address.as_str().is_ascii());
        Transaction {
            sender: self.job.sender.clone(),
            recipients,
            smtputf8,
            eight_bit: content.eight_bit,
            content: content.parts.clone(),
        }
    }

    /// Limits the number of recipients in further transactions.
    pub(crate) fn limit_recipients(&mut self, recipients_max: usize) {
        self.recipients_max = recipients_max.max(1);
    }

    /// Reports the recipients of a transaction, which are the first open ones, except those at the positions `keep_open`.
    pub(crate) fn report_outcomes(
        &mut self,
        outcomes: Vec<Outcome>,
        keep_open: &[usize],
        remote: &Arc<str>,
        tls: &Arc<str>,
    ) {
        let not_sent = self.open.split_off(outcomes.len());
        let sent = std::mem::take(&mut self.open);
        for (index, (recipient, outcome)) in sent.into_iter().zip(outcomes).enumerate() {
            if keep_open.contains(&index) {
                self.open.push(recipient);
            } else {
                let result = AttemptResult { outcome, remote: remote.clone(), tls: tls.clone() };
                self.report(&recipient, &result);
            }
        }
        self.open.extend(not_sent);
    }

    /// Reports the same result for all open recipients.
    pub(crate) fn report_all(&mut self, result: &AttemptResult) {
        for recipient in std::mem::take(&mut self.open) {
            self.report(&recipient, result);
        }
    }

    /// Gives all open recipients back to the queue: nothing was sent for them.
    pub(crate) fn give_back(&mut self) {
        self.metrics.all.given_back.increment(1);
        for recipient in std::mem::take(&mut self.open) {
            self.job.give_back(&recipient);
        }
    }

    fn report(&self, recipient: &JobRecipient, result: &AttemptResult) {
        let (took, delay) =
            (postroad_env::since(self.started), postroad_env::wall().since(self.job.message.at()));
        self.metrics.attempted(result.outcome.kind, took, delay);
        if mail_log::is_enabled() {
            self.log(recipient, result, took, delay);
        }
        self.job.report(recipient, self.started_at, result);
    }

    fn log(&self, recipient: &JobRecipient, result: &AttemptResult, took: Duration, delay: Duration) {
        let AttemptResult { outcome, remote, tls } = result;
        let (mx, address) = Target::parse_remote(remote);
        mail_log::write(&mail_log::Attempt {
            id: self.job.message,
            recipient: recipient.number,
            attempt: AttemptNumber(recipient.attempt),
            outcome: outcome.kind.as_str(),
            class: outcome.class.map(BounceClass::as_str),
            party: outcome.party.map(Party::as_str),
            code: Some(outcome.code).filter(|code| *code != 0),
            reply: Said(&outcome.text),
            rule: Some(&*outcome.rule).filter(|rule| !rule.is_empty()),
            to: Mailbox::Of(recipient.address.as_str()),
            source: &self.metrics.source,
            site: &self.metrics.site,
            mx,
            address,
            tls: Some(&**tls).filter(|tls| !tls.is_empty()),
            seconds: Secs(took),
            delay: Secs(delay),
            trace: Trace(&self.job.traceparent),
        });
    }
}

impl Drop for Attempt {
    /// A worker that panicked cannot say what it had sent.
    fn drop(&mut self) {
        if !self.open.is_empty() {
            let outcome =
                Outcome::new(OutcomeKind::Unknown, None, 0, "the delivery worker stopped during the attempt");
            self.report_all(&AttemptResult::without_remote(outcome));
        }
    }
}
