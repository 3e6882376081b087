//! The unit a lane works on: one message for some recipients, and how their attempts are reported.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use postroad_core::{Address, Epoch, MessageId, Outcome, SourceId, Timestamp};
use postroad_proto::queue::{AttemptId, Report};
use tokio::sync::OwnedSemaphorePermit;

use crate::group_attempts::Desk;

/// One message, and those of its recipients that go out from one source to one site.
#[derive(Debug)]
pub struct Job {
    /// Where its attempts are accounted for.
    pub desk: Arc<Desk>,
    /// The message.
    pub message: MessageId,
    /// The fence of the assignment.
    pub epoch: Epoch,
    /// The reverse path.
    pub sender: Option<Address>,
    /// At least one while the job waits.
    pub recipients: Vec<JobRecipient>,
    /// An address needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content holds bytes above 127.
    pub eight_bit: bool,
    /// Bytes of the content.
    pub size: u64,
    /// Header and body; `None` when it is to be fetched.
    pub content: Option<Bytes>,
    /// W3C traceparent, empty without a trace.
    pub traceparent: String,
    /// When it came.
    pub received: Instant,
    /// The part of the content budget it takes.
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

/// How an attempt ended, before it is put into words for the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// How it ended.
    pub outcome: Outcome,
    /// Host, address and port that answered, empty where none did.
    pub remote: Arc<str>,
    /// TLS version and cipher, empty for plaintext.
    pub tls: Arc<str>,
}

impl Attempted {
    /// An attempt that ended before anybody answered.
    #[must_use]
    pub fn alone(outcome: Outcome) -> Self {
        Self { outcome, remote: "".into(), tls: "".into() }
    }
}

impl Job {
    /// Returns the wire's name of one recipient's attempt.
    #[must_use]
    pub fn attempt_id(&self, recipient: &JobRecipient) -> AttemptId {
        AttemptId {
            message_id: Bytes::copy_from_slice(&self.message.as_u128().to_be_bytes()),
            recipient: recipient.number,
            attempt: recipient.attempt,
            epoch: self.epoch.0,
        }
    }

    /// Reports how one recipient's attempt ended; it is kept and sent again until the queue has committed it.
    pub fn report(
        &self,
        recipient: &JobRecipient,
        source: SourceId,
        started_at: Timestamp,
        attempted: &Attempted,
    ) {
        let Attempted { outcome, remote, tls } = attempted;
        let ended_at = now().max(started_at);
        self.desk.finish(Report {
            attempt: Some(self.attempt_id(recipient)),
            source: source.0,
            kind: u32::from(outcome.kind.code()),
            bounce_class: outcome.class.map_or(0, |class| u32::from(class.code())),
            code: u32::from(outcome.code),
            text: outcome.text.to_string(),
            remote: remote.to_string(),
            started_at_millis: started_at.as_millis(),
            ended_at_millis: ended_at.as_millis(),
            tls: tls.to_string(),
        });
    }

    /// Moves the content out of the frame it came in.
    pub fn unpin(&mut self) {
        if let Some(content) = &mut self.content {
            *content = Bytes::copy_from_slice(content);
        }
    }

    /// Gives every recipient back: not started, and it will not be.
    pub fn give_back(self, source: SourceId) {
        for recipient in &self.recipients {
            self.desk.give_back(self.attempt_id(recipient), source);
        }
    }
}

/// Returns the time of day, for reports; nothing is decided by it.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
