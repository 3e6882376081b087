//! The story of a message: the records about it, in order, as a person reads them.

use std::{collections::BTreeSet, fmt};

use postroad_core::MessageId;

use crate::{
    facts::{Facts, message_of},
    history::{
        Attempt, ChangeAnswer, Event, EventKind, History, NextState, Phase, Record, RecordNumber,
        SubmitAnswer, What,
    },
    verdict::Violation,
};

/// More records of a violation are only counted.
const RECORDS_MAX: usize = 200;

/// Returns a violation as a text: its sentence, and the records about its message; those that prove it are marked.
#[must_use]
pub fn of_violation(history: &History, violation: &Violation) -> String {
    let facts = Facts::new(history);
    let mut numbers = match (violation.subject.message(), &facts) {
        (Some(message), Ok(facts)) => of_message(history, facts, message),
        _ => Vec::new(),
    };
    numbers.extend(&violation.proof);
    numbers.sort_unstable();
    numbers.dedup();
    let mut text = format!("{violation}\n\n");
    for number in numbers.iter().take(RECORDS_MAX) {
        let mark = if violation.proof.contains(number) { '>' } else { ' ' };
        text += &format!("{mark} {number:>6} {}\n", history.records[number - 1]);
    }
    if numbers.len() > RECORDS_MAX {
        text += &format!("and {} more records\n", numbers.len() - RECORDS_MAX);
    }
    text
}

/// Returns the numbers of the records about a message, and of the faults, phases and nodes between the first and the last.
#[must_use]
pub fn of_message(history: &History, facts: &Facts<'_>, message: MessageId) -> Vec<RecordNumber> {
    let submissions = submissions(facts, message);
    let changes: BTreeSet<u64> = facts
        .changes
        .iter()
        .filter(|(_, change)| change.begun.what.message == message)
        .map(|(number, _)| *number)
        .collect();
    let transactions: BTreeSet<u64> = facts
        .transactions
        .iter()
        .filter(|(_, transaction)| transaction.id() == Some(message))
        .map(|(number, _)| *number)
        .collect();
    let is_about = |what: &What| match what {
        What::Submitted(what) => submissions.contains(&what.submission),
        What::SubmitAnswered(what) => submissions.contains(&what.submission),
        What::ChangeRequested(what) => changes.contains(&what.request),
        What::ChangeAnswered(what) => changes.contains(&what.request),
        What::Mail(what) => transactions.contains(&what.transaction),
        What::Rcpt(what) => transactions.contains(&what.transaction),
        What::Message(what) => transactions.contains(&what.transaction),
        What::Reply(what) => transactions.contains(&what.transaction),
        What::Closed(what) => transactions.contains(&what.transaction),
        What::Event(what) => message_of(&what.kind) == Some(message),
        What::PolicyChanged(_)
        | What::Source(_)
        | What::Node(_)
        | What::Fault(_)
        | What::Phase(_)
        | What::StateHash(_)
        | What::Counts(_)
        | What::Open(_) => false,
    };
    let about: BTreeSet<RecordNumber> =
        history.numbered().filter(|(_, record)| is_about(&record.what)).map(|(number, _)| number).collect();
    let (Some(first), Some(last)) = (about.first(), about.last()) else { return Vec::new() };
    let surrounds = |what: &What| {
        matches!(what, What::Node(_) | What::Fault(_) | What::Phase(_) | What::PolicyChanged(_))
    };
    let all = history.numbered().filter(|(number, record)| {
        about.contains(number) || (first..=last).contains(&number) && surrounds(&record.what)
    });
    all.map(|(number, _)| number).collect()
}

/// Returns the submissions of a message: acknowledged with its id, or with a token that arrived under it.
fn submissions(facts: &Facts<'_>, message: MessageId) -> BTreeSet<u64> {
    let of_message = facts.transactions.values().filter(|transaction| transaction.id() == Some(message));
    let tokens: BTreeSet<&str> =
        of_message.filter_map(|transaction| transaction.message?.what.token.as_deref()).collect();
    let is_of = |submission: &crate::facts::Submission<'_>| {
        submission.accepted_as() == Some(message)
            || submission.begun.what.message == Some(message)
            || tokens.contains(&*submission.begun.what.token)
    };
    facts.submissions.iter().filter(|(_, submission)| is_of(submission)).map(|(number, _)| *number).collect()
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>16}  {}", self.at.to_string(), self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Submitted(what) => {
                let to = what.recipients.join("`, `");
                write!(
                    f,
                    "client: submission {} of token `{}` to `{to}` begins",
                    what.submission, what.token
                )?;
                write_node(f, what.node)
            }
            Self::SubmitAnswered(what) => {
                write!(f, "client: submission {} ", what.submission)?;
                match &what.answer {
                    SubmitAnswer::Accepted { message } => write!(f, "was accepted as `{message}`"),
                    SubmitAnswer::Refused { reply } => write!(f, "was refused: `{reply}`"),
                    SubmitAnswer::Failed { reply } => write!(f, "failed, its outcome is unknown: `{reply}`"),
                    SubmitAnswer::TimedOut => f.write_str("was given up, its outcome is unknown"),
                    SubmitAnswer::ConnectionLost => {
                        f.write_str("lost its connection, its outcome is unknown")
                    }
                }
            }
            Self::ChangeRequested(what) => {
                let change = format!("{:?}", what.change).to_lowercase();
                write!(
                    f,
                    "client: change {} asks to {change} recipients {:?} of `{}`",
                    what.request, what.recipients, what.message
                )
            }
            Self::ChangeAnswered(what) => {
                write!(f, "client: change {} ", what.request)?;
                match &what.answer {
                    ChangeAnswer::Results(results) => write!(f, "was answered {results:?}"),
                    ChangeAnswer::Failed => f.write_str("failed, its outcome is unknown"),
                    ChangeAnswer::TimedOut => f.write_str("was given up, its outcome is unknown"),
                    ChangeAnswer::ConnectionLost => {
                        f.write_str("lost its connection, its outcome is unknown")
                    }
                }
            }
            Self::PolicyChanged(what) => write!(f, "directory: revision {}: {}", what.revision, what.what),
            Self::Source(what) => write!(f, "directory: source {} has address {}", what.source, what.address),
            Self::Mail(what) => {
                write!(f, "receiver: transaction {} begins from {}", what.transaction, what.source)?;
                write_node(f, what.node)
            }
            Self::Rcpt(what) => {
                write!(f, "receiver: transaction {} to `{}`: {}", what.transaction, what.recipient, what.code)
            }
            Self::Message(what) => {
                write!(f, "receiver: transaction {} has a message", what.transaction)?;
                if let Some(message) = what.message {
                    write!(f, ", `{message}`")?;
                }
                write!(f, ": {}", what.code)
            }
            Self::Reply(what) => {
                let read = if what.read { "was read" } else { "was not read" };
                write!(f, "receiver: the reply in transaction {} {read}", what.transaction)
            }
            Self::Closed(what) => {
                write!(f, "receiver: transaction {} ends without a message", what.transaction)
            }
            Self::Event(event) => event.fmt(f),
            Self::Node(what) => {
                let happened = if what.runs { "starts" } else { "is killed" };
                write!(f, "{} node {} {happened}", format!("{:?}", what.role).to_lowercase(), what.node)
            }
            Self::Fault(what) => {
                let happened = if what.on { "begins" } else { "ends" };
                write!(f, "fault `{}` {happened}", what.name)?;
                match &*what.nodes {
                    [] => Ok(()),
                    nodes => write!(f, " at nodes {:?}", nodes.iter().map(|node| node.0).collect::<Vec<_>>()),
                }
            }
            Self::Phase(Phase::Safety) => f.write_str("phase: faults may begin"),
            Self::Phase(Phase::Liveness { within }) => {
                write!(f, "phase: faults are over, all is quiet within {within}")
            }
            Self::Phase(Phase::Quiet) => f.write_str("phase: all is quiet"),
            Self::StateHash(what) => {
                write!(
                    f,
                    "group {} on node {}: hash {:016x} after entry {}",
                    what.group, what.node, what.hash, what.index
                )
            }
            Self::Counts(what) => write!(f, "{what:?}"),
            Self::Open(what) => {
                let open = what.tenants.iter().map(|of| format!("{} of tenant {}", of.open, of.tenant));
                let open = open.collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "group {} on node {}: after event {} these deliveries have not ended: {open}",
                    what.group, what.node, what.event
                )
            }
        }
    }
}

fn write_node(f: &mut fmt::Formatter<'_>, node: Option<postroad_core::NodeId>) -> fmt::Result {
    match node {
        Some(node) => write!(f, ", node {node}"),
        None => Ok(()),
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {} of group {}: ", self.sequence, self.group)?;
        match &self.kind {
            EventKind::Accepted { message, .. } => write!(f, "`{message}` accepted"),
            EventKind::Attempt(attempt) => attempt.fmt(f),
            EventKind::Ended { delivery, state } => write!(f, "`{delivery}` ended: {state}"),
            EventKind::Held { delivery } => write!(f, "`{delivery}` held"),
            EventKind::Released { delivery } => write!(f, "`{delivery}` released"),
            EventKind::Retried { delivery } => write!(f, "`{delivery}` is to be tried now"),
            EventKind::Requested { delivery, change } => {
                write!(
                    f,
                    "`{delivery}`: {} asked for during an attempt",
                    format!("{change:?}").to_lowercase()
                )
            }
            EventKind::Gap { through } => write!(f, "events up to {through} were dropped"),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delivery, attempt, source, epoch, node, outcome, next } = self;
        write!(
            f,
            "attempt {attempt} at `{delivery}` by node {node}, source {source}, epoch {epoch}: {outcome}, then "
        )?;
        match next {
            NextState::Retry => f.write_str("another attempt"),
            NextState::Ended(state) => write!(f, "ended: {state}"),
            NextState::Held => f.write_str("held"),
            NextState::Unchanged => f.write_str("as before (the report is late)"),
        }
    }
}
