//! The events of a ledger on the wire.

use bytes::Bytes;
use postroad_core::{DeliveryId, Epoch, FinalState, MessageId, NodeId, SourceId, TenantId};
use postroad_ledger::{
    command::Action,
    event::{AcceptedEvent, AttemptEvent, Changed, ChangedEvent, Event, EventKind, NextState, Retried},
};

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
                let state = wire::FinalState::from(*end).into();
                of_delivery(*delivery, Kind::Ended(wire::Ended { state, actor: String::new() }))
            }
            EventKind::Changed(changed) => of_delivery(changed.delivery, changed_kind(changed)),
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

fn changed_kind(event: &ChangedEvent) -> wire::event::Kind {
    use wire::event::Kind;
    let actor = event.actor.to_string();
    match event.what {
        Changed::Cancelled => Kind::Ended(wire::Ended { state: wire::FinalState::Cancelled.into(), actor }),
        Changed::Held => Kind::Held(wire::Held { actor }),
        Changed::Released(due) => Kind::Released(wire::Released { due_at_millis: due.as_millis(), actor }),
        Changed::Retried(Retried { due, deferred }) => {
            Kind::Retried(wire::Retried { due_at_millis: due.as_millis(), deferred, actor })
        }
        Changed::Requested(action) => {
            let change = wire::Change::from(action).into();
            Kind::ChangeRequested(wire::ChangeRequested { change, actor })
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
        let changed = |what, actor: String| -> Result<EventKind, Malformed> {
            let (delivery, actor) = (delivery()?, actor.into());
            Ok(EventKind::Changed(Box::new(ChangedEvent { delivery, what, actor })))
        };
        let kind = match required(event.kind, "kind")? {
            Kind::Accepted(accepted) => EventKind::Accepted(Box::new(parse_accepted(message()?, accepted)?)),
            Kind::AttemptEnded(attempt) => EventKind::Attempt(Box::new(parse_attempt(delivery()?, attempt)?)),
            Kind::Ended(ended) => match parse_final_state(ended.state)? {
                FinalState::Cancelled => changed(Changed::Cancelled, ended.actor)?,
                other => EventKind::Ended(delivery()?, other),
            },
            Kind::Held(held) => changed(Changed::Held, held.actor)?,
            Kind::Released(released) => {
                changed(Changed::Released(time(released.due_at_millis)), released.actor)?
            }
            Kind::Retried(retried) => {
                let (due, deferred) = (time(retried.due_at_millis), retried.deferred);
                changed(Changed::Retried(Retried { due, deferred }), retried.actor)?
            }
            Kind::ChangeRequested(requested) => {
                let action = parse_change(requested.change())?;
                changed(Changed::Requested(action), requested.actor)?
            }
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
        use wire::attempt_ended::NextState as Wire;
        Self {
            attempt: event.attempt.0,
            number: event.number,
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
            reading: Some((&event.outcome).into()),
            next_state: match event.next_state {
                NextState::Retry(due) => Some(Wire::RetryAtMillis(due.as_millis())),
                NextState::Ended(end) => Some(Wire::Ended(wire::FinalState::from(end).into())),
                NextState::Held => Some(Wire::Held(wire::Held::default())),
                NextState::Unchanged => None,
            },
        }
    }
}

fn parse_attempt(delivery: DeliveryId, event: wire::AttemptEnded) -> Result<AttemptEvent, Malformed> {
    use wire::attempt_ended::NextState as Wire;
    Ok(AttemptEvent {
        delivery,
        attempt: attempt(event.attempt),
        number: event.number,
        source: SourceId(event.source),
        epoch: Epoch(event.epoch),
        node: NodeId(event.node),
        outcome: parse_outcome(
            event.kind,
            event.bounce_class,
            event.code,
            &event.text,
            event.reading.map(Into::into),
        )?,
        remote: event.remote.into(),
        tls: event.tls.into(),
        started_at: time(event.started_at_millis),
        ended_at: time(event.ended_at_millis),
        next_state: match event.next_state {
            Some(Wire::RetryAtMillis(due)) => NextState::Retry(time(due)),
            Some(Wire::Ended(end)) => NextState::Ended(parse_final_state(end)?),
            Some(Wire::Held(_)) => NextState::Held,
            None => NextState::Unchanged,
        },
    })
}

impl From<Action> for wire::Change {
    fn from(action: Action) -> Self {
        match action {
            Action::Cancel => Self::Cancel,
            Action::Hold => Self::Hold,
            Action::Release => Self::Release,
            Action::Retry => Self::Retry,
        }
    }
}

/// Reads what somebody does with a delivery.
///
/// # Errors
/// This version does not know it.
pub fn parse_change(change: wire::Change) -> Result<Action, Malformed> {
    match change {
        wire::Change::Unspecified => Err(Malformed("change")),
        wire::Change::Cancel => Ok(Action::Cancel),
        wire::Change::Hold => Ok(Action::Hold),
        wire::Change::Release => Ok(Action::Release),
        wire::Change::Retry => Ok(Action::Retry),
    }
}

impl From<FinalState> for wire::FinalState {
    fn from(end: FinalState) -> Self {
        match end {
            FinalState::Delivered => Self::Delivered,
            FinalState::Bounced => Self::Bounced,
            FinalState::Expired => Self::Expired,
            FinalState::Cancelled => Self::Cancelled,
            FinalState::Suppressed => Self::Suppressed,
        }
    }
}

/// Reads a final state from its number on the wire.
///
/// # Errors
/// This version does not know it.
pub fn parse_final_state(number: i32) -> Result<FinalState, Malformed> {
    let known = |state| FinalState::ALL.iter().copied().find(|known| wire::FinalState::from(*known) == state);
    wire::FinalState::try_from(number).ok().and_then(known).ok_or(Malformed("state"))
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

    fn attempt_event(class: Option<BounceClass>, next_state: NextState) -> EventKind {
        EventKind::Attempt(Box::new(AttemptEvent {
            delivery: delivery(),
            attempt: attempt(2),
            number: 1,
            source: SourceId(4),
            epoch: Epoch(5),
            node: NodeId(6),
            outcome: Outcome::new(OutcomeKind::Soft, class, 451, "4.7.1 later"),
            remote: "mx.receiver.example [192.0.2.9]".into(),
            tls: "TLSv1.3".into(),
            started_at: time(10),
            ended_at: time(20),
            next_state,
        }))
    }

    #[test]
    fn events_round_trip() {
        check(accepted(Some("a@sender.example")));
        check(accepted(None));
        for end in FinalState::ALL.iter().copied() {
            if end != FinalState::Cancelled {
                check(EventKind::Ended(delivery(), end));
            }
            check(attempt_event(None, NextState::Ended(end)));
        }
        for next_state in [NextState::Retry(time(99)), NextState::Held, NextState::Unchanged] {
            check(attempt_event(Some(BounceClass::Greylisted), next_state));
        }
        let retried = |deferred| Changed::Retried(Retried { due: time(31), deferred });
        let requested =
            [Action::Cancel, Action::Hold, Action::Release, Action::Retry].map(Changed::Requested);
        let changed =
            [Changed::Cancelled, Changed::Held, Changed::Released(time(30)), retried(true), retried(false)];
        for what in changed.into_iter().chain(requested) {
            let actor = "ann@ops.example".into();
            check(EventKind::Changed(Box::new(ChangedEvent { delivery: delivery(), what, actor })));
        }
        check(EventKind::Gap { through: 9 });
    }

    #[test]
    fn malformed_events_are_refused() {
        let refuse = |change: fn(&mut wire::Event)| {
            let mut event = wire::Event::from(&Event {
                sequence: 7,
                at: time(1),
                kind: EventKind::Ended(delivery(), FinalState::Bounced),
            });
            change(&mut event);
            assert!(Event::try_from(event).is_err());
        };
        refuse(|event| event.kind = None);
        refuse(|event| event.recipient = None);
        refuse(|event| event.message_id = Bytes::from_static(b"short"));
        refuse(|event| {
            event.kind = Some(wire::event::Kind::Ended(wire::Ended { state: 99, ..Default::default() }))
        });
        refuse(|event| event.kind = Some(wire::event::Kind::Gap(wire::Gap { through: 6 })));
    }
}
