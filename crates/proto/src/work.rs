//! The frames between the leader of a group and an outbound node.

use bytes::Bytes;
use postroad_core::{DeliveryId, Epoch, SourceId};
use postroad_ledger::{
    AssignedView,
    command::{AttemptId, Command, Report},
    dispatch::Windows,
};

use crate::{
    convert::{Malformed, attempt, cut, message_id, parse_message_id, parse_outcome, required, time},
    queue as wire,
};

impl From<AttemptId> for wire::AttemptId {
    fn from(id: AttemptId) -> Self {
        Self {
            message_id: message_id(id.delivery.message),
            recipient: id.delivery.recipient,
            attempt: id.attempt.0,
            epoch: id.epoch.0,
        }
    }
}

impl TryFrom<wire::AttemptId> for AttemptId {
    type Error = Malformed;

    fn try_from(id: wire::AttemptId) -> Result<Self, Malformed> {
        let message = parse_message_id(&id.message_id)?;
        Ok(Self {
            delivery: DeliveryId { message, recipient: id.recipient },
            attempt: attempt(id.attempt),
            epoch: Epoch(id.epoch),
        })
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
            remote: cut(report.remote),
            tls: cut(report.tls),
            started_at: time(report.started_at_millis),
            ended_at: time(report.ended_at_millis),
        })
    }
}

impl TryFrom<wire::RecallAnswer> for Command {
    type Error = Malformed;

    fn try_from(answer: wire::RecallAnswer) -> Result<Self, Malformed> {
        let id = required(answer.attempt, "attempt")?.try_into()?;
        Ok(if answer.started { Self::Started(id) } else { Self::Return(id) })
    }
}

/// The windows of one source, as its owner reports them under one epoch.
impl From<wire::SourceWindows> for (SourceId, Epoch, Windows) {
    fn from(windows: wire::SourceWindows) -> Self {
        let sites = windows.sites.into_iter().map(|site| (site.site.into(), site.window)).collect();
        let parsed = Windows { default: windows.default_window, sites };
        (SourceId(windows.source), Epoch(windows.epoch), parsed)
    }
}

/// An assignment of one recipient, without the content.
impl From<&AssignedView<'_>> for wire::Assignment {
    fn from(view: &AssignedView<'_>) -> Self {
        Self {
            message_id: message_id(view.id.delivery.message),
            tenant: view.tenant.0,
            source: view.grant.source.0,
            epoch: view.grant.epoch.0,
            site: view.site.to_owned(),
            sender: (!view.sender.is_empty()).then(|| view.sender.to_owned()),
            recipients: vec![view.into()],
            smtputf8: view.smtputf8,
            eight_bit: view.eight_bit,
            size_bytes: u64::from(view.size),
            content: Bytes::new(),
            traceparent: view.traceparent.to_owned(),
            retry_now: view.retry_now,
            pool: view.pool.0,
        }
    }
}

impl From<&AssignedView<'_>> for wire::AssignedRecipient {
    fn from(view: &AssignedView<'_>) -> Self {
        Self {
            recipient: view.id.delivery.recipient,
            attempt: view.id.attempt.0,
            address: view.address.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::{AttemptNumber, GroupId, MessageId};

    use super::*;

    fn id() -> AttemptId {
        let delivery = DeliveryId { message: MessageId::new(time(5), GroupId(2), 77), recipient: 3 };
        AttemptId { delivery, attempt: AttemptNumber(4), epoch: Epoch(9) }
    }

    #[test]
    fn an_attempt_id_round_trips() {
        assert_eq!(AttemptId::try_from(wire::AttemptId::from(id())), Ok(id()));
        let answer = |started| wire::RecallAnswer { attempt: Some(id().into()), source: 1, started };
        assert_eq!(answer(true).try_into(), Ok(Command::Started(id())));
        assert_eq!(answer(false).try_into(), Ok(Command::Return(id())));
    }

    #[test]
    fn a_report_with_long_texts_keeps_its_outcome() {
        let report = wire::Report {
            attempt: Some(id().into()),
            kind: 1,
            code: 250,
            text: "ok".to_owned(),
            remote: "é".repeat(300),
            ..Default::default()
        };
        let parsed = Report::try_from(report.clone()).expect("it is well-formed");
        assert_eq!((parsed.id, parsed.outcome.code, parsed.remote.len()), (id(), 250, 256));
        let unknown = wire::Report { kind: 99, ..report };
        assert_eq!(Report::try_from(unknown), Err(Malformed("kind")));
    }
}
