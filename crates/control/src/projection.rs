//! Turns events into the rows that they add or change in the history; pure.
//!
//! A batch goes to SQLite as one JSON document per table, so that each table needs one statement per batch.

use std::collections::HashMap;

use postroad_core::{BounceClass, DeliveryState, GroupId, MessageId, OutcomeKind, Party};
use postroad_proto::{
    parse_final_state, parse_message_id,
    queue::{Accepted, AttemptEnded, Change, Event, attempt_ended::NextState, event::Kind},
};
use serde::{Serialize, Serializer, ser::SerializeSeq};

/// Bytes of one text that are kept; texts are short on the wire already.
const TEXT_BYTES_MAX: usize = 1000;

/// Everything a transaction writes.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// The last event of each group, this batch included.
    pub(crate) cursors: HashMap<GroupId, u64>,
    pub(crate) messages: Vec<MessageRow>,
    pub(crate) deliveries: Deliveries,
    pub(crate) timeline: Vec<TimelineRow>,
    pub(crate) counts: Counts,
    pub(crate) gaps: Vec<GapRow>,
    pub(crate) events: EventCounts,
}

/// How many events of a batch were written, repeated, unreadable or lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventCounts {
    pub(crate) written: u64,
    pub(crate) repeated: u64,
    pub(crate) unreadable: u64,
    pub(crate) lost: u64,
}

/// Id, accepted at, tenant, sender, subject, origin, size, recipients.
#[derive(Debug, Serialize)]
pub(crate) struct MessageRow(Id, u64, u32, String, String, String, u32, usize);

/// The state of a delivery after the batch; states within the batch are not written.
#[derive(Debug)]
pub(crate) struct DeliveryRow {
    pub(crate) message: Id,
    pub(crate) recipient: u32,
    /// Empty where the batch does not hold the acceptance: the address in the table stays.
    pub(crate) address: String,
    /// `None` where only the number of attempts changes.
    pub(crate) state: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) changed_at: u64,
    pub(crate) due_at: Option<u64>,
    /// `None` keeps the response in the table.
    pub(crate) response: Option<String>,
}

/// Changed deliveries, each once, in the order of their first change.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    rows: Vec<DeliveryRow>,
    positions: HashMap<(u128, u32), usize>,
}

/// Recipients by minute and outcome: summed here where the tenant is known, otherwise row by row.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By minute, tenant and outcome.
    sums: HashMap<(u64, u32, &'static str), u64>,
    /// Minute, message, outcome: SQLite looks the tenant up by the message.
    without_tenant: Vec<(u64, Id, &'static str)>,
    /// Tenants of the messages that the batch accepted.
    tenants: HashMap<u128, u32>,
}

/// Group, first, through, noticed at.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GapRow(pub(crate) u16, pub(crate) u64, pub(crate) u64, pub(crate) u64);

/// One line of a delivery's timeline.
#[derive(Debug, Default)]
pub(crate) struct TimelineRow {
    message: Id,
    recipient: u32,
    sequence: u64,
    at: u64,
    kind: &'static str,
    new_state: Option<&'static str>,
    due_at: Option<u64>,
    attempt: Option<u32>,
    source: Option<u32>,
    node: Option<u64>,
    outcome: Option<&'static str>,
    class: Option<&'static str>,
    code: Option<u32>,
    response: Option<String>,
    remote: Option<String>,
    tls: Option<String>,
    started_at: Option<u64>,
    ended_at: Option<u64>,
    party: Option<&'static str>,
    rule: Option<String>,
    actor: Option<String>,
}

/// A message id as SQLite reads it from JSON: hexadecimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Id(u128);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 32];
        for (position, digit) in text.iter_mut().enumerate() {
            *digit = b"0123456789ABCDEF"[(self.0 >> (124 - 4 * position)) as usize & 15];
        }
        serializer.serialize_str(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl Rows {
    /// Starts a batch after the last one.
    pub(crate) fn after(cursors: &HashMap<GroupId, u64>) -> Self {
        Self { cursors: cursors.clone(), ..Self::default() }
    }

    /// Returns how many rows there are: what a transaction costs.
    pub(crate) fn count(&self) -> usize {
        self.messages.len() + self.deliveries.rows.len() + self.timeline.len()
    }

    /// Adds an event of a group; one at or before the group's cursor has been written already and is skipped.
    pub(crate) fn add(&mut self, group: GroupId, event: Event) {
        let through = match &event.kind {
            Some(Kind::Gap(gap)) => gap.through.max(event.sequence),
            _ => event.sequence,
        };
        let cursor = self.cursors.entry(group).or_insert(0);
        if through <= *cursor {
            self.events.repeated += 1;
            return;
        }
        let expected = *cursor + 1;
        *cursor = through;
        let lost_before = match &event.kind {
            Some(Kind::Gap(_)) => through,
            _ => event.sequence - 1,
        };
        if lost_before >= expected {
            self.events.lost += lost_before - expected + 1;
            self.gaps.push(GapRow(group.0, expected, lost_before, event.at_millis));
        }
        match self.project(event) {
            Some(()) => self.events.written += 1,
            None => self.events.unreadable += 1,
        }
    }

    /// Adds the rows that an event changes; `None` when this version cannot read it.
    fn project(&mut self, event: Event) -> Option<()> {
        let position = Position { sequence: event.sequence, at: sqlite_integer(event.at_millis) };
        let message = || parse_message_id(&event.message_id).ok().map(MessageId::as_u128).map(Id);
        let delivery = || Some((message()?, event.recipient?));
        match event.kind? {
            Kind::Accepted(accepted) => self.accepted(position, message()?, accepted),
            Kind::AttemptEnded(attempt) => return self.attempt_ended(position, delivery()?, attempt),
            Kind::Ended(ended) => {
                let state = final_state(ended.state)?;
                self.changed(position, delivery()?, "ended", Some((state, None)), &ended.actor);
            }
            Kind::Held(held) => {
                let state = Some((DeliveryState::Held, None));
                self.changed(position, delivery()?, "held", state, &held.actor);
            }
            Kind::Released(released) => {
                let due_at = sqlite_integer(released.due_at_millis);
                let state = Some((DeliveryState::Queued, Some(due_at)));
                self.changed(position, delivery()?, "released", state, &released.actor);
            }
            Kind::Retried(retried) => {
                let due_at = sqlite_integer(retried.due_at_millis);
                let state = if retried.deferred { DeliveryState::Deferred } else { DeliveryState::Queued };
                self.changed(position, delivery()?, "retried", Some((state, Some(due_at))), &retried.actor);
            }
            Kind::ChangeRequested(requested) => {
                let kind = requested_kind(requested.change())?;
                self.changed(position, delivery()?, kind, None, &requested.actor);
            }
            Kind::Gap(_) => {}
        }
        Some(())
    }

    fn accepted(&mut self, position: Position, message: Id, accepted: Accepted) {
        let recipients = accepted.recipients.len();
        self.messages.push(MessageRow(
            message,
            position.at,
            accepted.tenant,
            text(&accepted.sender),
            subject(&accepted.subject),
            text(&accepted.origin),
            accepted.size_bytes,
            recipients,
        ));
        self.counts.accepted(position.minute(), message, accepted.tenant, recipients as u64);
        for (recipient, address) in (0..).zip(&accepted.recipients) {
            let row = self.deliveries.row(message, recipient);
            row.address = text(address);
            row.state = Some(DeliveryState::Queued.as_str());
            row.changed_at = position.at;
        }
    }

    fn attempt_ended(
        &mut self,
        position: Position,
        (message, recipient): (Id, u32),
        ended: AttemptEnded,
    ) -> Option<()> {
        let (new_state, due_at) = match ended.next_state {
            Some(NextState::RetryAtMillis(due)) => (Some(DeliveryState::Deferred), Some(sqlite_integer(due))),
            Some(NextState::Ended(state)) => (Some(final_state(state)?), None),
            Some(NextState::Held(_)) => (Some(DeliveryState::Held), None),
            None => (None, None),
        };
        let code = |number: u32| u8::try_from(number).ok();
        let outcome = code(ended.kind).and_then(OutcomeKind::from_code)?;
        let class = code(ended.bounce_class).and_then(BounceClass::from_code);
        let response = text(&ended.text);
        let reading = ended.reading.unwrap_or_default();
        let row = self.deliveries.row(message, recipient);
        row.attempts = row.attempts.max(ended.number);
        if let Some(state) = new_state {
            row.set_state(state, position.at, due_at);
            row.response = Some(reply_text(ended.code, &response));
            self.counts.count(position.minute(), message, state);
        }
        self.timeline.push(TimelineRow {
            message,
            recipient,
            sequence: position.sequence,
            at: position.at,
            kind: "attempt",
            new_state: new_state.map(DeliveryState::as_str),
            due_at,
            attempt: Some(ended.number),
            source: Some(ended.source),
            node: Some(ended.node),
            outcome: Some(outcome.as_str()),
            class: class.map(BounceClass::as_str),
            code: Some(ended.code).filter(|code| *code != 0),
            response: Some(response).filter(|text| !text.is_empty()),
            remote: Some(text(&ended.remote)).filter(|text| !text.is_empty()),
            tls: Some(text(&ended.tls)).filter(|text| !text.is_empty()),
            started_at: Some(sqlite_integer(ended.started_at_millis)).filter(|at| *at != 0),
            ended_at: Some(sqlite_integer(ended.ended_at_millis)).filter(|at| *at != 0),
            party: code(reading.party).and_then(Party::from_code).map(Party::as_str),
            rule: Some(text(&reading.rule)).filter(|rule| !rule.is_empty()),
            actor: None,
        });
        Some(())
    }

    /// Adds a change that is not the outcome of an attempt: a state, and when the delivery is due in it.
    ///
    /// Without a state only the timeline has it.
    fn changed(
        &mut self,
        position: Position,
        (message, recipient): (Id, u32),
        kind: &'static str,
        change: Option<(DeliveryState, Option<u64>)>,
        actor: &str,
    ) {
        if let Some((state, due_at)) = change {
            self.deliveries.row(message, recipient).set_state(state, position.at, due_at);
            if state.is_final() {
                self.counts.count(position.minute(), message, state);
            }
        }
        self.timeline.push(TimelineRow {
            message,
            recipient,
            sequence: position.sequence,
            at: position.at,
            kind,
            new_state: change.map(|(state, _)| state.as_str()),
            due_at: change.and_then(|(_, due_at)| due_at),
            actor: Some(text(actor)).filter(|actor| !actor.is_empty()),
            ..TimelineRow::default()
        });
    }
}

/// An event's sequence number and time.
#[derive(Clone, Copy, Debug)]
struct Position {
    sequence: u64,
    at: u64,
}

impl Position {
    fn minute(self) -> u64 {
        self.at / 60_000
    }
}

impl Counts {
    fn accepted(&mut self, minute: u64, message: Id, tenant: u32, recipients: u64) {
        self.tenants.insert(message.0, tenant);
        *self.sums.entry((minute, tenant, "accepted")).or_insert(0) += recipients;
    }

    fn count(&mut self, minute: u64, message: Id, state: DeliveryState) {
        match self.tenants.get(&message.0) {
            Some(tenant) => *self.sums.entry((minute, *tenant, state.as_str())).or_insert(0) += 1,
            None => self.without_tenant.push((minute, message, state.as_str())),
        }
    }

    /// Minute, tenant, outcome, count.
    pub(crate) fn sums(&self) -> Vec<(u64, u32, &'static str, u64)> {
        let sums = self.sums.iter();
        sums.map(|((minute, tenant, outcome), count)| (*minute, *tenant, *outcome, *count)).collect()
    }

    /// Minute, message, outcome.
    pub(crate) fn without_tenant(&self) -> &[(u64, Id, &'static str)] {
        &self.without_tenant
    }
}

impl Deliveries {
    /// Returns the row of a delivery, added where it is missing.
    fn row(&mut self, message: Id, recipient: u32) -> &mut DeliveryRow {
        let rows = &mut self.rows;
        let position = *self.positions.entry((message.0, recipient)).or_insert_with(|| {
            rows.push(DeliveryRow {
                message,
                recipient,
                address: String::new(),
                state: None,
                attempts: 0,
                changed_at: 0,
                due_at: None,
                response: None,
            });
            rows.len() - 1
        });
        &mut self.rows[position]
    }

    pub(crate) fn rows(&self) -> &[DeliveryRow] {
        &self.rows
    }
}

/// In the column order of the statement that writes it.
impl Serialize for DeliveryRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { message, recipient, address, state, attempts, changed_at, due_at, response } = self;
        (message, recipient, address, state, attempts, changed_at, due_at, response).serialize(serializer)
    }
}

/// In the column order of the statement that writes it.
impl Serialize for TimelineRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_seq(None)?;
        row.serialize_element(&self.message)?;
        row.serialize_element(&self.recipient)?;
        row.serialize_element(&self.sequence)?;
        row.serialize_element(&self.at)?;
        row.serialize_element(self.kind)?;
        row.serialize_element(&self.new_state)?;
        row.serialize_element(&self.due_at)?;
        row.serialize_element(&self.attempt)?;
        row.serialize_element(&self.source)?;
        row.serialize_element(&self.node)?;
        row.serialize_element(&self.outcome)?;
        row.serialize_element(&self.class)?;
        row.serialize_element(&self.code)?;
        row.serialize_element(&self.response)?;
        row.serialize_element(&self.remote)?;
        row.serialize_element(&self.tls)?;
        row.serialize_element(&self.started_at)?;
        row.serialize_element(&self.ended_at)?;
        row.serialize_element(&self.party)?;
        row.serialize_element(&self.rule)?;
        row.serialize_element(&self.actor)?;
        row.end()
    }
}

impl DeliveryRow {
    fn set_state(&mut self, state: DeliveryState, at: u64, due_at: Option<u64>) {
        self.state = Some(state.as_str());
        self.changed_at = at;
        self.due_at = due_at;
    }
}

/// SQLite's integers are signed.
fn sqlite_integer(number: u64) -> u64 {
    number.min(i64::MAX as u64)
}

/// What somebody asked for while an attempt was under way; `None` for what this version does not know.
fn requested_kind(change: Change) -> Option<&'static str> {
    match change {
        Change::Cancel => Some("cancel_requested"),
        Change::Hold => Some("hold_requested"),
        Change::Release => Some("release_requested"),
        Change::Retry | Change::Unspecified => None,
    }
}

/// A final state; `None` for one that this version does not know.
fn final_state(number: i32) -> Option<DeliveryState> {
    parse_final_state(number).ok().map(DeliveryState::Final)
}

/// A receiver's reply, with its code where it gave one.
fn reply_text(code: u32, text: &str) -> String {
    if code == 0 { text.to_owned() } else { format!("{code} {text}") }
}

/// The subject, decoded: events carry it as it is in the message.
fn subject(value: &str) -> String {
    if value.contains("=?") { postroad_mail::decode_text(value.as_bytes()) } else { text(value) }
}

/// Remote text cut to [`TEXT_BYTES_MAX`] and without control characters; pages escape it.
fn text(remote: &str) -> String {
    let cut = &remote[..remote.floor_char_boundary(TEXT_BYTES_MAX)];
    if cut.chars().any(char::is_control) {
        return cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
    cut.to_owned()
}
