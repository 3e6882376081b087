//! The events of a ledger, as they travel to those who follow them.

use bytes::Bytes;
use postroad_core::{DeliveryId, Epoch, MessageId, NodeId, SourceId, TenantId};
use postroad_ledger::event::{AcceptedEvent, AttemptEvent, End, Event, EventKind, Then};

use crate::{
    convert::{
        Malformed, attempt, class_code, message_id, parse_address, parse_message_id, parse_outcome,
        parse_sender, required, time,
    },
    queue as wire,
};

impl From<&Event> for wire::Event {
    fn from(event: &Event) -> Self {
        use wire::event::Kind;
        let (message, recipient, kind) = match &event.kind {
            EventKind::Accepted(accepted) => {
                (Some(accepted.message), None, Kind::Accepted(accepted.as_ref().into()))
            }
            EventKind::Attempt(attempt) => {
                of_delivery(attempt.delivery, Kind::AttemptEnded(attempt.as_ref().into()))
            }
            EventKind::Ended(delivery, end) => {
                let kind = wire::EndKind::from(*end).into();
                of_delivery(*delivery, Kind::Ended(wire::Ended { kind }))
            }
            EventKind::Held(delivery) => of_delivery(*delivery, Kind::Held(wire::Held {})),
            EventKind::Released(delivery, due) => {
                let due_at_millis = due.as_millis();
                of_delivery(*delivery, Kind::Released(wire::Released { due_at_millis }))
            }
            EventKind::Gap { through } => (None, None, Kind::Gap(wire::Gap { through: *through })),
        };
        Self {
            sequence: event.sequence,
            at_millis: event.at.as_millis(),
            message_id: message.map_or_else(Bytes::new, message_id),
            recipient,
            kind: Some(kind),
        }
    }
}

fn of_delivery(
    delivery: DeliveryId,
    kind: wire::event::Kind,
) -> (Option<MessageId>, Option<u32>, wire::event::Kind) {
    (Some(delivery.message), Some(delivery.recipient), kind)
}

impl TryFrom<wire::Event> for Event {
    type Error = Malformed;

    fn try_from(event: wire::Event) -> Result<Self, Malformed> {
        use wire::event::Kind;
        let message = || parse_message_id(&event.message_id);
        let delivery = || {
            let recipient = required(event.recipient, "recipient")?;
            Ok(DeliveryId { message: message()?, recipient })
        };
        let kind = match required(event.kind, "kind")? {
            Kind::Accepted(accepted) => EventKind::Accepted(Box::new(parse_accepted(message()?, accepted)?)),
            Kind::AttemptEnded(attempt) => EventKind::Attempt(Box::new(parse_attempt(delivery()?, attempt)?)),
            Kind::Ended(ended) => EventKind::Ended(delivery()?, parse_end(ended.kind)?),
            Kind::Held(_) => EventKind::Held(delivery()?),
            Kind::Released(released) => EventKind::Released(delivery()?, time(released.due_at_millis)),
            Kind::Gap(gap) if gap.through >= event.sequence => EventKind::Gap { through: gap.through },
            Kind::Gap(_) => return Err(Malformed("through")),
        };
        Ok(Self { sequence: event.sequence, at: time(event.at_millis), kind })
    }
}

impl From<&AcceptedEvent> for wire::Accepted {
    fn from(event: &AcceptedEvent) -> Self {
        Self {
            tenant: event.tenant.0,
            sender: event.sender.as_ref().map(ToString::to_string).unwrap_or_default(),
            recipients: event.recipients.iter().map(ToString::to_string).collect(),
            size_bytes: event.size,
            subject: event.subject.to_string(),
            origin: event.origin.to_string(),
        }
    }
}

fn parse_accepted(message: MessageId, event: wire::Accepted) -> Result<AcceptedEvent, Malformed> {
    Ok(AcceptedEvent {
        message,
        tenant: TenantId(event.tenant),
        sender: parse_sender(Some(&event.sender))?,
        recipients: event.recipients.iter().map(|text| parse_address(text)).collect::<Result<_, _>>()?,
        size: event.size_bytes,
        subject: event.subject.into(),
        origin: event.origin.into(),
    })
}

impl From<&AttemptEvent> for wire::AttemptEnded {
    fn from(event: &AttemptEvent) -> Self {
        use wire::attempt_ended::Then as Wire;
        Self {
            attempt: event.attempt.0,
            source: event.source.0,
            epoch: event.epoch.0,
            node: event.node.0,
            kind: u32::from(event.outcome.kind.code()),
            bounce_class: class_code(&event.outcome),
            code: u32::from(event.outcome.code),
            text: event.outcome.text.to_string(),
            remote: event.remote.to_string(),
            tls: event.tls.to_string(),
            started_at_millis: event.started_at.as_millis(),
            ended_at_millis: event.ended_at.as_millis(),
            then: match event.then {
                Then::Retry(due) => Some(Wire::RetryAtMillis(due.as_millis())),
                Then::Ended(end) => Some(Wire::End(wire::EndKind::from(end).into())),
                Then::Held => Some(Wire::Held(wire::Held {})),
                Then::Unchanged => None,
            },
        }
    }
}

fn parse_attempt(delivery: DeliveryId, event: wire::AttemptEnded) -> Result<AttemptEvent, Malformed> {
    use wire::attempt_ended::Then as Wire;
    Ok(AttemptEvent {
        delivery,
        attempt: attempt(event.attempt),
        source: SourceId(event.source),
        epoch: Epoch(event.epoch),
        node: NodeId(event.node),
        outcome: parse_outcome(event.kind, event.bounce_class, event.code, &event.text)?,
        remote: event.remote.into(),
        tls: event.tls.into(),
        started_at: time(event.started_at_millis),
        ended_at: time(event.ended_at_millis),
        then: match event.then {
            Some(Wire::RetryAtMillis(due)) => Then::Retry(time(due)),
            Some(Wire::End(end)) => Then::Ended(parse_end(end)?),
            Some(Wire::Held(_)) => Then::Held,
            None => Then::Unchanged,
        },
    })
}

impl From<End> for wire::EndKind {
    fn from(end: End) -> Self {
        match end {
            End::Delivered => Self::Delivered,
            End::Bounced => Self::Bounced,
            End::Expired => Self::Expired,
            End::Cancelled => Self::Cancelled,
            End::Suppressed => Self::Suppressed,
        }
    }
}

fn parse_end(kind: i32) -> Result<End, Malformed> {
    match wire::EndKind::try_from(kind) {
        Ok(wire::EndKind::Delivered) => Ok(End::Delivered),
        Ok(wire::EndKind::Bounced) => Ok(End::Bounced),
        Ok(wire::EndKind::Expired) => Ok(End::Expired),
        Ok(wire::EndKind::Cancelled) => Ok(End::Cancelled),
        Ok(wire::EndKind::Suppressed) => Ok(End::Suppressed),
        Ok(wire::EndKind::Unspecified) | Err(_) => Err(Malformed("end")),
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::{Address, BounceClass, Outcome, OutcomeKind};

    use super::*;

    fn check(kind: EventKind) {
        let event = Event { sequence: 7, at: time(1_795_480_496_789), kind };
        let wire = wire::Event::from(&event);
        assert_eq!(Event::try_from(wire), Ok(event));
    }

    fn delivery() -> DeliveryId {
        let message = MessageId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        DeliveryId { message, recipient: 3 }
    }

    fn accepted(sender: Option<&str>) -> EventKind {
        let address = |text: &str| Address::parse(text).unwrap();
        EventKind::Accepted(Box::new(AcceptedEvent {
            message: delivery().message,
            tenant: TenantId(7),
            sender: sender.map(address),
            recipients: ["b@receiver.example", "\"c d\"@receiver.example"].map(address).into(),
            size: 8192,
            subject: "hello".into(),
            origin: "192.0.2.1".into(),
        }))
    }

    fn attempt_event(class: Option<BounceClass>, then: Then) -> EventKind {
        EventKind::Attempt(Box::new(AttemptEvent {
            delivery: delivery(),
            attempt: attempt(2),
            source: SourceId(4),
            epoch: Epoch(5),
            node: NodeId(6),
            outcome: Outcome::new(OutcomeKind::Soft, class, 451, "4.7.1 later"),
            remote: "mx.receiver.example [192.0.2.9]".into(),
            tls: "TLSv1.3".into(),
            started_at: time(10),
            ended_at: time(20),
            then,
        }))
    }

    #[test]
    fn events_are_read_back_as_they_were_sent() {
        check(accepted(Some("a@sender.example")));
        check(accepted(None));
        for end in End::ALL {
            check(EventKind::Ended(delivery(), end));
            check(attempt_event(None, Then::Ended(end)));
        }
        for then in [Then::Retry(time(99)), Then::Held, Then::Unchanged] {
            check(attempt_event(Some(BounceClass::Greylisted), then));
        }
        check(EventKind::Held(delivery()));
        check(EventKind::Released(delivery(), time(30)));
        check(EventKind::Gap { through: 9 });
    }

    #[test]
    fn what_does_not_convert_is_refused() {
        let refuse = |change: fn(&mut wire::Event)| {
            let mut event = wire::Event::from(&Event {
                sequence: 7,
                at: time(1),
                kind: EventKind::Ended(delivery(), End::Bounced),
            });
            change(&mut event);
            assert!(Event::try_from(event).is_err());
        };
        refuse(|event| event.kind = None);
        refuse(|event| event.recipient = None);
        refuse(|event| event.message_id = Bytes::from_static(b"short"));
        refuse(|event| event.kind = Some(wire::event::Kind::Ended(wire::Ended { kind: 99 })));
        refuse(|event| event.kind = Some(wire::event::Kind::Gap(wire::Gap { through: 6 })));
    }
}
