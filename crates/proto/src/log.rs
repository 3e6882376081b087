//! The head of a log entry: encoding and decoding of a batch of ledger commands.

use bytes::Bytes;
use postroad_core::{DeliveryId, Epoch, NodeId, SourceId, TenantId, Timestamp};
use postroad_ledger::command::{
    Accept, Action, Assign, AttemptId, ChangeRequest, Command, Content, NewRecipient, NextTry, Report,
    SourceGrant, Which,
};
use prost::Message;

use crate::{
    convert::{
        Malformed, class_code, message_id, parse_address, parse_message_id, parse_outcome, parse_sender,
        required, time, which,
    },
    generated::log as wire,
};

/// Commands that were committed together, and the leader's clock when it proposed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The leader's clock.
    pub at: Timestamp,
    /// To be applied in this order.
    pub commands: Vec<Command>,
}

/// The head of a log entry is not a batch that this version knows: the replica must stop, not skip it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not the encoding of a batch.
    #[error("cannot decode the batch")]
    Decode(#[from] prost::DecodeError),
    /// A command is unknown or exceeds a bound.
    #[error("a command is unknown or malformed")]
    Malformed(#[from] Malformed),
}

impl Batch {
    /// Writes the batch as the head of a log entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let commands = self.commands.iter().map(|command| wire::Command { command: Some(command.into()) });
        let batch = wire::Batch { at_millis: self.at.as_millis(), commands: commands.collect() };
        batch.encode_to_vec().into()
    }

    /// Reads the head of a log entry.
    ///
    /// # Errors
    /// The bytes were written by a newer version, or are not a batch.
    pub fn decode(head: Bytes) -> Result<Self, BatchError> {
        let batch = wire::Batch::decode(head)?;
        let commands = batch
            .commands
            .into_iter()
            .map(|command| required(command.command, "command")?.try_into())
            .collect::<Result<_, Malformed>>()?;
        Ok(Self { at: time(batch.at_millis), commands })
    }
}

impl From<&Command> for wire::command::Command {
    fn from(command: &Command) -> Self {
        match command {
            Command::Accept(accept) => Self::Accept(accept.as_ref().into()),
            Command::Assign(assign) => Self::Assign(wire::Assign {
                delivery: Some(assign.delivery.into()),
                attempt: assign.attempt.0,
                grant: Some(assign.grant.into()),
            }),
            Command::Report(report, next_try) => Self::Report(report_entry(report, *next_try)),
            Command::Return(id) => Self::Return((*id).into()),
            Command::Started(id) => Self::Started((*id).into()),
            Command::Reclaim { source, below, next_try, repeated_at } => Self::Reclaim(wire::Reclaim {
                source: source.0,
                below: below.0,
                retry_at_millis: next_try.at.as_millis(),
                copies_max: next_try.copies_max.into(),
                repeated_at_millis: repeated_at.as_millis(),
            }),
            Command::Change(request) => Self::Change(request.as_ref().into()),
            Command::Expire(deliveries) => Self::Expire(wire::Expire {
                deliveries: deliveries.iter().map(|delivery| (*delivery).into()).collect(),
            }),
            Command::Consume { consumer, through } => {
                Self::Consume(wire::Consume { consumer: consumer.to_string(), through: *through })
            }
            Command::StageChunk { message, number, slot } => Self::StageChunk(wire::StageChunk {
                message_id: message_id(*message),
                number: *number,
                slot: *slot,
            }),
        }
    }
}

impl TryFrom<wire::command::Command> for Command {
    type Error = Malformed;

    fn try_from(command: wire::command::Command) -> Result<Self, Malformed> {
        use wire::command::Command as Wire;
        Ok(match command {
            Wire::Accept(accept) => Self::Accept(Box::new(accept.try_into()?)),
            Wire::Assign(assign) => Self::Assign(Assign {
                delivery: delivery(assign.delivery)?,
                attempt: crate::convert::attempt(assign.attempt),
                grant: required(assign.grant, "grant")?.into(),
            }),
            Wire::Report(report) => {
                let next_try = next_try(report.retry_at_millis, report.copies_max)?;
                Self::Report(Box::new(report.try_into()?), next_try)
            }
            Wire::Return(id) => Self::Return(id.try_into()?),
            Wire::Started(id) => Self::Started(id.try_into()?),
            Wire::Reclaim(reclaim) => Self::Reclaim {
                source: SourceId(reclaim.source),
                below: Epoch(reclaim.below),
                next_try: next_try(reclaim.retry_at_millis, reclaim.copies_max)?,
                repeated_at: time(reclaim.repeated_at_millis),
            },
            Wire::Change(change) => Self::Change(Box::new(change.try_into()?)),
            Wire::Expire(expire) => Self::Expire(
                expire.deliveries.into_iter().map(|id| delivery(Some(id))).collect::<Result<_, _>>()?,
            ),
            Wire::Consume(consume) => {
                Self::Consume { consumer: consume.consumer.into(), through: consume.through }
            }
            Wire::StageChunk(chunk) => Self::StageChunk {
                message: parse_message_id(&chunk.message_id)?,
                number: chunk.number,
                slot: chunk.slot,
            },
        })
    }
}

impl From<&Accept> for wire::Accept {
    fn from(accept: &Accept) -> Self {
        let content = match accept.content {
            Content::Slot(slot) => wire::accept::Content::Slot(slot),
            Content::Staged(chunks) => wire::accept::Content::Chunks(chunks),
        };
        Self {
            message_id: message_id(accept.id),
            tenant: accept.tenant.0,
            sender: accept.sender.as_ref().map(ToString::to_string),
            recipients: accept.recipients.iter().map(Into::into).collect(),
            content: Some(content),
            size_bytes: accept.size,
            smtputf8: accept.smtputf8,
            eight_bit: accept.eight_bit,
            expires_at_millis: accept.expires_at.as_millis(),
            subject: accept.subject.to_string(),
            origin: accept.origin.to_string(),
            traceparent: accept.traceparent.to_string(),
        }
    }
}

impl TryFrom<wire::Accept> for Accept {
    type Error = Malformed;

    fn try_from(accept: wire::Accept) -> Result<Self, Malformed> {
        Ok(Self {
            id: parse_message_id(&accept.message_id)?,
            tenant: TenantId(accept.tenant),
            sender: parse_sender(accept.sender.as_deref())?,
            recipients: accept.recipients.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            content: match required(accept.content, "content")? {
                wire::accept::Content::Slot(slot) => Content::Slot(slot),
                wire::accept::Content::Chunks(chunks) => Content::Staged(chunks),
            },
            size: accept.size_bytes,
            smtputf8: accept.smtputf8,
            eight_bit: accept.eight_bit,
            expires_at: time(accept.expires_at_millis),
            subject: accept.subject.into(),
            origin: accept.origin.into(),
            traceparent: accept.traceparent.into(),
        })
    }
}

impl From<&NewRecipient> for wire::Recipient {
    fn from(recipient: &NewRecipient) -> Self {
        Self {
            address: recipient.address.to_string(),
            site: recipient.site.to_string(),
            pool: recipient.pool.0,
            not_before_millis: recipient.not_before.as_millis(),
            grant: recipient.grant.map(Into::into),
        }
    }
}

impl TryFrom<wire::Recipient> for NewRecipient {
    type Error = Malformed;

    fn try_from(recipient: wire::Recipient) -> Result<Self, Malformed> {
        Ok(Self {
            address: parse_address(&recipient.address)?,
            site: recipient.site.into(),
            pool: crate::convert::pool(recipient.pool),
            not_before: time(recipient.not_before_millis),
            grant: recipient.grant.map(Into::into),
        })
    }
}

impl From<&ChangeRequest> for wire::Change {
    fn from(request: &ChangeRequest) -> Self {
        let (every_recipient, recipients) = match &request.which {
            Which::Every => (true, Vec::new()),
            Which::Recipients(recipients) => (false, recipients.to_vec()),
        };
        Self {
            message_id: message_id(request.message),
            action: wire::Action::from(request.action).into(),
            every_recipient,
            recipients,
            actor: request.actor.to_string(),
        }
    }
}

impl TryFrom<wire::Change> for ChangeRequest {
    type Error = Malformed;

    fn try_from(change: wire::Change) -> Result<Self, Malformed> {
        let action = match change.action() {
            wire::Action::Unspecified => return Err(Malformed("action")),
            wire::Action::Cancel => Action::Cancel,
            wire::Action::Hold => Action::Hold,
            wire::Action::Release => Action::Release,
            wire::Action::Retry => Action::Retry,
        };
        let which = which(change.every_recipient, change.recipients)?;
        let message = parse_message_id(&change.message_id)?;
        Ok(Self { message, which, action, actor: change.actor.into() })
    }
}

impl From<Action> for wire::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Cancel => Self::Cancel,
            Action::Hold => Self::Hold,
            Action::Release => Self::Release,
            Action::Retry => Self::Retry,
        }
    }
}

impl From<SourceGrant> for wire::SourceGrant {
    fn from(grant: SourceGrant) -> Self {
        Self { source: grant.source.0, epoch: grant.epoch.0, node: grant.node.0 }
    }
}

impl From<wire::SourceGrant> for SourceGrant {
    fn from(grant: wire::SourceGrant) -> Self {
        Self { source: SourceId(grant.source), epoch: Epoch(grant.epoch), node: NodeId(grant.node) }
    }
}

impl From<DeliveryId> for wire::Delivery {
    fn from(id: DeliveryId) -> Self {
        Self { message_id: message_id(id.message), recipient: id.recipient }
    }
}

fn delivery(wire: Option<wire::Delivery>) -> Result<DeliveryId, Malformed> {
    let wire = required(wire, "delivery")?;
    Ok(DeliveryId { message: parse_message_id(&wire.message_id)?, recipient: wire.recipient })
}

impl From<AttemptId> for wire::AttemptId {
    fn from(id: AttemptId) -> Self {
        Self { delivery: Some(id.delivery.into()), attempt: id.attempt.0, epoch: id.epoch.0 }
    }
}

impl TryFrom<wire::AttemptId> for AttemptId {
    type Error = Malformed;

    fn try_from(id: wire::AttemptId) -> Result<Self, Malformed> {
        Ok(Self {
            delivery: delivery(id.delivery)?,
            attempt: crate::convert::attempt(id.attempt),
            epoch: Epoch(id.epoch),
        })
    }
}

fn next_try(at_millis: u64, copies_max: u32) -> Result<NextTry, Malformed> {
    let copies_max = u8::try_from(copies_max).map_err(|_| Malformed("copies_max"))?;
    Ok(NextTry { at: time(at_millis), copies_max })
}

fn report_entry(report: &Report, next_try: NextTry) -> wire::Report {
    wire::Report {
        attempt: Some(report.id.into()),
        kind: u32::from(report.outcome.kind.code()),
        bounce_class: class_code(&report.outcome),
        code: u32::from(report.outcome.code),
        text: report.outcome.text.to_string(),
        retry_at_millis: next_try.at.as_millis(),
        remote: report.remote.to_string(),
        tls: report.tls.to_string(),
        started_at_millis: report.started_at.as_millis(),
        ended_at_millis: report.ended_at.as_millis(),
        reading: Some((&report.outcome).into()),
        copies_max: next_try.copies_max.into(),
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = Malformed;

    fn try_from(report: wire::Report) -> Result<Self, Malformed> {
        Ok(Self {
            id: required(report.attempt, "attempt")?.try_into()?,
            outcome: parse_outcome(
                report.kind,
                report.bounce_class,
                report.code,
                &report.text,
                report.reading.map(Into::into),
            )?,
            remote: report.remote.into(),
            tls: report.tls.into(),
            started_at: time(report.started_at_millis),
            ended_at: time(report.ended_at_millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::{
        Address, AttemptNumber, BounceClass, LaneEffect, MessageId, Outcome, OutcomeKind, Party, PoolId,
        Retry,
    };

    use super::*;

    fn check(command: Command) {
        let batch = Batch { at: time(1_795_480_496_789), commands: vec![command] };
        assert_eq!(Batch::decode(batch.encode()), Ok(batch));
    }

    fn id() -> MessageId {
        MessageId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)
    }

    fn attempt() -> AttemptId {
        let delivery = DeliveryId { message: id(), recipient: 3 };
        AttemptId { delivery, attempt: AttemptNumber(2), epoch: Epoch(9) }
    }

    fn accept(sender: Option<&str>, content: Content) -> Command {
        let grant = SourceGrant { source: SourceId(1), epoch: Epoch(2), node: NodeId(3) };
        let address = |text: &str| Address::parse(text).expect("a test address parses");
        let recipient = |grant| NewRecipient {
            address: address("b@receiver.example"),
            site: "mx.receiver.example".into(),
            pool: PoolId(4),
            not_before: time(5),
            grant,
        };
        Command::Accept(Box::new(Accept {
            id: id(),
            tenant: TenantId(7),
            sender: sender.map(address),
            recipients: vec![recipient(Some(grant)), recipient(None)],
            content,
            size: 8192,
            smtputf8: true,
            eight_bit: true,
            expires_at: time(11),
            subject: "hello".into(),
            origin: "demo from 127.0.0.1".into(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        }))
    }

    fn change(action: Action, which: Which) -> Command {
        let actor = "ann@ops.example, operator 0".into();
        Command::Change(Box::new(ChangeRequest { message: id(), which, action, actor }))
    }

    #[test]
    fn commands_round_trip() {
        let grant = SourceGrant { source: SourceId(1), epoch: Epoch(2), node: NodeId(3) };
        let delivery = attempt().delivery;
        let outcome = Outcome {
            party: Some(Party::Ip),
            retry: Retry::Distant { tries_max: 3.try_into().unwrap() },
            lane: LaneEffect::Slow,
            suppress: true,
            rule: "some_rule".into(),
            ..Outcome::new(OutcomeKind::PolicyBlock, Some(BounceClass::SpamBlock), 550, "blocked")
        };
        let report = Report {
            id: attempt(),
            outcome,
            remote: "mx [192.0.2.1]".into(),
            tls: "TLSv1.3".into(),
            started_at: time(1),
            ended_at: time(2),
        };
        for command in [
            accept(Some("a@sender.example"), Content::Slot(0)),
            accept(None, Content::Staged(40)),
            Command::Assign(Assign { delivery, attempt: AttemptNumber(1), grant }),
            Command::Report(Box::new(report), NextTry { at: time(6), copies_max: 4 }),
            Command::Return(attempt()),
            Command::Started(attempt()),
            Command::Reclaim {
                source: SourceId(8),
                below: Epoch(10),
                next_try: NextTry { at: time(12), copies_max: 4 },
                repeated_at: time(13),
            },
            change(Action::Cancel, Which::Every),
            change(Action::Hold, Which::Recipients([0, 3].into())),
            change(Action::Release, Which::Every),
            change(Action::Retry, Which::Recipients([9].into())),
            Command::Expire(vec![delivery, delivery]),
            Command::Consume { consumer: "control".into(), through: 99 },
            Command::StageChunk { message: id(), number: 1, slot: 2 },
        ] {
            check(command);
        }
    }

    /// A change without recipients must not become one of all.
    #[test]
    fn a_change_names_every_recipient_or_some() {
        let decode = |every_recipient, recipients: &[u32], action: i32| {
            let (message_id, recipients) = (message_id(id()), recipients.to_vec());
            let change =
                wire::Change { message_id, action, every_recipient, recipients, actor: String::new() };
            ChangeRequest::try_from(change).map(|request| request.which)
        };
        assert_eq!(decode(true, &[], 1), Ok(Which::Every));
        assert_eq!(decode(false, &[2], 1), Ok(Which::Recipients([2].into())));
        assert_eq!(decode(false, &[], 1), Err(Malformed("recipients")));
        assert_eq!(decode(true, &[2], 1), Err(Malformed("recipients")));
        assert_eq!(decode(true, &[], 0), Err(Malformed("action")));
        assert_eq!(decode(true, &[], 99), Err(Malformed("action")));
    }

    #[test]
    fn r_28_an_unknown_command_is_an_error_and_not_skipped() {
        let unknown = wire::Batch { at_millis: 1, commands: vec![wire::Command { command: None }] };
        let error = Batch::decode(unknown.encode_to_vec().into());
        assert_eq!(error, Err(BatchError::Malformed(Malformed("command"))));
    }
}
