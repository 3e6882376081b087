//! What events change in the history, as rows: pure, so that everything else is moving them about.
//!
//! Rows are written as JSON arrays, one document for each table and batch: a statement then costs what its rows cost.

use std::collections::HashMap;

use postroad_core::{BounceClass, GroupId, MessageId, OutcomeKind};
use postroad_proto::{
    parse_message_id,
    queue::{Accepted, AttemptEnded, Event, attempt_ended::Then, event::Kind},
};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use crate::state::State;

/// Bytes of one text that are kept; what comes over the wire is short already.
const TEXT_BYTES_MAX: usize = 1000;

/// Everything a transaction writes.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// How far each group's events have come, those of this batch counted.
    pub(crate) cursors: HashMap<GroupId, u64>,
    pub(crate) messages: Vec<MessageRow>,
    pub(crate) deliveries: Deliveries,
    pub(crate) timeline: Vec<TimelineRow>,
    pub(crate) counts: Counts,
    pub(crate) gaps: Vec<GapRow>,
    pub(crate) tally: Tally,
}

/// What became of the events of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) written: u64,
    pub(crate) repeated: u64,
    pub(crate) unreadable: u64,
    pub(crate) lost: u64,
}

/// Id, accepted at, tenant, sender, subject, origin, size, recipients.
#[derive(Debug, Serialize)]
pub(crate) struct MessageRow(Id, u64, u32, String, String, String, u32, usize);

/// Where a delivery stands after the batch: only its last state is written.
#[derive(Debug)]
pub(crate) struct DeliveryRow {
    pub(crate) message: Id,
    pub(crate) recipient: u32,
    /// Empty where the batch does not hold the acceptance: what is in the table stays.
    pub(crate) address: String,
    /// `None` where only the number of attempts is told.
    pub(crate) state: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) changed_at: u64,
    pub(crate) due_at: Option<u64>,
    /// `None` leaves the response that is there.
    pub(crate) response: Option<String>,
}

/// Deliveries in the order they were first touched, each once.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    rows: Vec<DeliveryRow>,
    places: HashMap<(u128, u32), usize>,
}

/// How many recipients came or went: summed up here where the tenant is known, and row by row where it is not.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By minute, tenant and outcome.
    sums: HashMap<(u64, u32, &'static str), u64>,
    /// The tenant stands in the history: minute, message, outcome.
    unknown: Vec<(u64, Id, &'static str)>,
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
    became: Option<&'static str>,
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
}

/// A message id as SQLite reads it from JSON: hexadecimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Id(u128);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 32];
        for (place, digit) in text.iter_mut().enumerate() {
            *digit = b"0123456789ABCDEF"[(self.0 >> (124 - 4 * place)) as usize & 15];
        }
        serializer.serialize_str(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl Rows {
    /// Starts a batch where the last one has ended.
    pub(crate) fn after(cursors: &HashMap<GroupId, u64>) -> Self {
        Self { cursors: cursors.clone(), ..Self::default() }
    }

    /// Returns how many rows there are: what a transaction costs.
    pub(crate) fn count(&self) -> usize {
        self.messages.len() + self.deliveries.rows.len() + self.timeline.len()
    }

    /// Takes an event of a group; what lies before the group's cursor has been written and is passed over.
    pub(crate) fn add(&mut self, group: GroupId, event: Event) {
        let through = match &event.kind {
            Some(Kind::Gap(gap)) => gap.through.max(event.sequence),
            _ => event.sequence,
        };
        let cursor = self.cursors.entry(group).or_insert(0);
        if through <= *cursor {
            self.tally.repeated += 1;
            return;
        }
        let expected = *cursor + 1;
        *cursor = through;
        let lost_before = match &event.kind {
            Some(Kind::Gap(_)) => through,
            _ => event.sequence - 1,
        };
        if lost_before >= expected {
            self.tally.lost += lost_before - expected + 1;
            self.gaps.push(GapRow(group.0, expected, lost_before, event.at_millis));
        }
        match self.note(event) {
            Some(()) => self.tally.written += 1,
            None => self.tally.unreadable += 1,
        }
    }

    /// Writes down what an event changes; `None` when this version cannot read it.
    fn note(&mut self, event: Event) -> Option<()> {
        let place = Place { sequence: event.sequence, at: fitting(event.at_millis) };
        let message = || parse_message_id(&event.message_id).ok().map(MessageId::as_u128).map(Id);
        let delivery = || Some((message()?, event.recipient?));
        match event.kind? {
            Kind::Accepted(accepted) => self.accepted(place, message()?, accepted),
            Kind::AttemptEnded(attempt) => return self.attempt(place, delivery()?, attempt),
            Kind::Ended(ended) => self.changed(place, delivery()?, State::of_end(ended.kind)?, None),
            Kind::Held(_) => self.changed(place, delivery()?, State::Held, None),
            Kind::Released(released) => {
                self.changed(place, delivery()?, State::Queued, Some(fitting(released.due_at_millis)));
            }
            Kind::Gap(_) => {}
        }
        Some(())
    }

    fn accepted(&mut self, place: Place, message: Id, accepted: Accepted) {
        let recipients = accepted.recipients.len();
        self.messages.push(MessageRow(
            message,
            place.at,
            accepted.tenant,
            text(&accepted.sender),
            subject(&accepted.subject),
            text(&accepted.origin),
            accepted.size_bytes,
            recipients,
        ));
        self.counts.accepted(place.minute(), message, accepted.tenant, recipients as u64);
        for (recipient, address) in (0..).zip(&accepted.recipients) {
            let row = self.deliveries.row(message, recipient);
            row.address = text(address);
            row.state = Some(State::Queued.as_str());
            row.changed_at = place.at;
        }
    }

    fn attempt(&mut self, place: Place, (message, recipient): (Id, u32), ended: AttemptEnded) -> Option<()> {
        let (became, due_at) = match ended.then {
            Some(Then::RetryAtMillis(due)) => (Some(State::Deferred), Some(fitting(due))),
            Some(Then::End(end)) => (Some(State::of_end(end)?), None),
            Some(Then::Held(_)) => (Some(State::Held), None),
            None => (None, None),
        };
        let code = |number: u32| u8::try_from(number).ok();
        let outcome = code(ended.kind).and_then(OutcomeKind::from_code)?;
        let class = code(ended.bounce_class).and_then(BounceClass::from_code);
        let response = text(&ended.text);
        let row = self.deliveries.row(message, recipient);
        row.attempts = row.attempts.max(ended.attempt);
        if let Some(state) = became {
            row.become_state(state, place.at, due_at);
            row.response = Some(said(ended.code, &response));
            self.counts.came_to(place.minute(), message, state);
        }
        self.timeline.push(TimelineRow {
            message,
            recipient,
            sequence: place.sequence,
            at: place.at,
            kind: "attempt",
            became: became.map(State::as_str),
            due_at,
            attempt: Some(ended.attempt),
            source: Some(ended.source),
            node: Some(ended.node),
            outcome: Some(outcome.as_str()),
            class: class.map(BounceClass::as_str),
            code: Some(ended.code).filter(|code| *code != 0),
            response: Some(response).filter(|text| !text.is_empty()),
            remote: Some(text(&ended.remote)).filter(|text| !text.is_empty()),
            tls: Some(text(&ended.tls)).filter(|text| !text.is_empty()),
            started_at: Some(fitting(ended.started_at_millis)).filter(|at| *at != 0),
            ended_at: Some(fitting(ended.ended_at_millis)).filter(|at| *at != 0),
        });
        Some(())
    }

    /// A change that no attempt brought about.
    fn changed(&mut self, place: Place, (message, recipient): (Id, u32), state: State, due_at: Option<u64>) {
        self.deliveries.row(message, recipient).become_state(state, place.at, due_at);
        if state.is_end() {
            self.counts.came_to(place.minute(), message, state);
        }
        let kind = match state {
            State::Held => "held",
            State::Queued => "released",
            _ => "ended",
        };
        self.timeline.push(TimelineRow {
            message,
            recipient,
            sequence: place.sequence,
            at: place.at,
            kind,
            became: Some(state.as_str()),
            due_at,
            ..TimelineRow::default()
        });
    }
}

/// Where in a group an event stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    sequence: u64,
    at: u64,
}

impl Place {
    fn minute(self) -> u64 {
        self.at / 60_000
    }
}

impl Counts {
    fn accepted(&mut self, minute: u64, message: Id, tenant: u32, recipients: u64) {
        self.tenants.insert(message.0, tenant);
        *self.sums.entry((minute, tenant, "accepted")).or_insert(0) += recipients;
    }

    fn came_to(&mut self, minute: u64, message: Id, state: State) {
        match self.tenants.get(&message.0) {
            Some(tenant) => *self.sums.entry((minute, *tenant, state.as_str())).or_insert(0) += 1,
            None => self.unknown.push((minute, message, state.as_str())),
        }
    }

    /// Minute, tenant, outcome, count.
    pub(crate) fn sums(&self) -> Vec<(u64, u32, &'static str, u64)> {
        let sums = self.sums.iter();
        sums.map(|((minute, tenant, outcome), count)| (*minute, *tenant, *outcome, *count)).collect()
    }

    /// Minute, message, outcome.
    pub(crate) fn unknown(&self) -> &[(u64, Id, &'static str)] {
        &self.unknown
    }
}

impl Deliveries {
    /// Returns the row of a delivery, an empty one the first time.
    fn row(&mut self, message: Id, recipient: u32) -> &mut DeliveryRow {
        let rows = &mut self.rows;
        let place = *self.places.entry((message.0, recipient)).or_insert_with(|| {
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
        &mut self.rows[place]
    }

    pub(crate) fn rows(&self) -> &[DeliveryRow] {
        &self.rows
    }
}

/// In the order of the statement that writes it.
impl Serialize for DeliveryRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { message, recipient, address, state, attempts, changed_at, due_at, response } = self;
        (message, recipient, address, state, attempts, changed_at, due_at, response).serialize(serializer)
    }
}

/// In the order of the statement that writes it.
impl Serialize for TimelineRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_seq(None)?;
        row.serialize_element(&self.message)?;
        row.serialize_element(&self.recipient)?;
        row.serialize_element(&self.sequence)?;
        row.serialize_element(&self.at)?;
        row.serialize_element(self.kind)?;
        row.serialize_element(&self.became)?;
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
        row.end()
    }
}

impl DeliveryRow {
    fn become_state(&mut self, state: State, at: u64, due_at: Option<u64>) {
        self.state = Some(state.as_str());
        self.changed_at = at;
        self.due_at = due_at;
    }
}

/// SQLite's integers have a sign.
fn fitting(number: u64) -> u64 {
    number.min(i64::MAX as u64)
}

/// What a receiver said, with its code where it gave one.
fn said(code: u32, text: &str) -> String {
    if code == 0 { text.to_owned() } else { format!("{code} {text}") }
}

/// The subject as a person reads it: it travels as it stands in the message.
fn subject(value: &str) -> String {
    if value.contains("=?") { postroad_mail::decode_text(value.as_bytes()) } else { text(value) }
}

/// Remote text without control characters, not too long; it is escaped where it is shown.
fn text(remote: &str) -> String {
    let cut = &remote[..remote.floor_char_boundary(TEXT_BYTES_MAX)];
    if cut.chars().any(char::is_control) {
        return cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
    cut.to_owned()
}
