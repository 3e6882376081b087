//! What a lane sends: one message for some recipients, and the reports of their attempts.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use postroad_core::{Address, Epoch, MessageId, Outcome, PoolId, SourceId, TenantId, Timestamp};
use postroad_proto::queue::{AttemptId, Report};
use tokio::sync::OwnedSemaphorePermit;

use crate::group_attempts::GroupAttempts;

/// One message, and those of its recipients that are sent from one source to one site.
///
/// Dropping it gives the recipients that it still has back to the queue: none was started.
#[derive(Debug)]
pub struct Job {
    /// The pending attempts of its group.
    pub attempts: Arc<GroupAttempts>,
    /// The source from which it is sent.
    pub source: SourceId,
    /// Whose mail it is.
    pub tenant: TenantId,
    /// The pool of its recipients.
    pub pool: PoolId,
    /// The message.
    pub message: MessageId,
    /// The epoch of the source under which it was assigned.
    pub epoch: Epoch,
    /// The reverse path.
    pub sender: Option<Address>,
    /// At least one while the job waits.
    pub recipients: Vec<JobRecipient>,
    /// Bytes of the content.
    pub size: u64,
    /// Header and body; `None` when they must be fetched.
    pub content: Option<Bytes>,
    /// W3C traceparent, empty without a trace.
    pub traceparent: String,
    /// A person asked for it: a pause of its lane ends.
    pub retry_now: bool,
    /// When it was received.
    pub received: Instant,
    /// Its part of the content budget.
    pub budget: Option<Arc<OwnedSemaphorePermit>>,
}

/// A recipient of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecipient {
    /// The position in the message's envelope.
    pub number: u32,
    /// Which attempt this is.
    pub attempt: u32,
    /// The mailbox.
    pub address: Address,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptResult {
    /// The outcome.
    pub outcome: Outcome,
    /// Host, address and port of the receiver, empty without a connection.
    pub remote: Arc<str>,
    /// TLS version and cipher, empty for plaintext.
    pub tls: Arc<str>,
}

impl AttemptResult {
    /// The result of an attempt that ended without a connection.
    #[must_use]
    pub fn without_remote(outcome: Outcome) -> Self {
        Self { outcome, remote: "".into(), tls: "".into() }
    }
}

impl Job {
    /// Returns the id of one recipient's attempt in the protocol.
    #[must_use]
    pub fn attempt_id(&self, recipient: &JobRecipient) -> AttemptId {
        AttemptId {
            message_id: Bytes::copy_from_slice(&self.message.as_u128().to_be_bytes()),
            recipient: recipient.number,
            attempt: recipient.attempt,
            epoch: self.epoch.0,
        }
    }

    /// Reports one recipient's result; the report is sent until the queue has committed it.
    pub fn report(&self, recipient: &JobRecipient, started_at: Timestamp, result: &AttemptResult) {
        let AttemptResult { outcome, remote, tls } = result;
        let ended_at = postroad_env::wall().max(started_at);
        self.attempts.finish(Report {
            attempt: Some(self.attempt_id(recipient)),
            source: self.source.0,
            kind: u32::from(outcome.kind.code()),
            bounce_class: outcome.class.map_or(0, |class| u32::from(class.code())),
            code: u32::from(outcome.code),
            text: outcome.text.to_string(),
            remote: remote.to_string(),
            started_at_millis: started_at.as_millis(),
            ended_at_millis: ended_at.as_millis(),
            tls: tls.to_string(),
            reading: Some(outcome.into()),
        });
    }

    /// Copies the content, so that the frame in which it came can be freed.
    pub fn copy_content(&mut self) {
        if let Some(content) = &mut self.content {
            *content = Bytes::copy_from_slice(content);
        }
    }

    /// Takes the recipients to start their attempts: from now on each must be reported or given back.
    pub fn start(&mut self) -> Vec<JobRecipient> {
        std::mem::take(&mut self.recipients)
    }

    /// Gives a recipient back to the queue.
    pub fn give_back(&self, recipient: &JobRecipient) {
        self.attempts.give_back(self.attempt_id(recipient), self.source);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.recipients.iter().for_each(|recipient| self.give_back(recipient));
    }
}

#[cfg(test)]
impl Job {
    /// Makes a job of which no attempt has started, without content.
    pub(crate) fn for_test(
        attempts: &Arc<GroupAttempts>,
        source: SourceId,
        message: u128,
        recipients: u32,
    ) -> Self {
        let address = Address::parse("a@example.org").expect("an address");
        let recipient = |number| JobRecipient { number, attempt: 1, address: address.clone() };
        Self {
            attempts: attempts.clone(),
            source,
            tenant: TenantId(1),
            pool: PoolId(1),
            message: MessageId::from_u128(message),
            epoch: Epoch(1),
            sender: None,
            recipients: (0..recipients).map(recipient).collect(),
            size: 0,
            content: None,
            traceparent: String::new(),
            retry_now: false,
            received: postroad_env::now(),
            budget: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::GroupId;

    use super::*;
    use crate::pending_attempts::LaneName;

    #[test]
    fn a_job_that_is_dropped_gives_back_the_recipients_that_were_not_started() {
        let check = |started: bool, expected: &[u32]| {
            let attempts = Arc::new(GroupAttempts::new(GroupId(1)));
            let mut job = Job::for_test(&attempts, SourceId(3), 1, 2);
            let lane = LaneName { source: SourceId(3), site: "example.org".into() };
            for recipient in &job.recipients {
                attempts.with(|pending| pending.receive(&job.attempt_id(recipient), &lane));
            }
            if started {
                assert_eq!(job.start().len(), 2);
            }
            drop(job);
            let answers = attempts.with(|pending| pending.take_answers());
            let given_back: Vec<u32> =
                answers.into_iter().filter_map(|answer| Some(answer.attempt?.recipient)).collect();
            assert_eq!(given_back, expected);
        };
        check(false, &[0, 1]);
        check(true, &[]);
    }
}
