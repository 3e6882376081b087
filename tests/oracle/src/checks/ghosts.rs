//! I2: what receivers and events know was submitted, was not refused, and was stored once for each submission.
//!
//! A message without an acknowledgement needs a submission whose outcome its client does not know. Where the client did
//! not know the id beforehand, the token tells at a receiver which submission that is; an event has no token, so there
//! the envelope does. Memory: the ids of each token.

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::{MessageId, TenantId};

use crate::{
    facts::{Facts, Submission, Transaction},
    history::{EventKind, RecordNumber},
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    let ids = KnownIds::of(facts);
    let any_unknown = any_unknown(facts);
    let mut by_token = BTreeMap::<&str, BTreeMap<MessageId, RecordNumber>>::new();
    for transaction in facts.transactions.values() {
        let Some(message) = transaction.id() else { continue };
        into.judged += 1;
        let number = transaction.message.map_or(transaction.mail.number, |message| message.number);
        if let Some(submission) = ids.refused.get(&message) {
            refused(message, number, submission, into);
        }
        unknown_recipients(facts, message, transaction, into);
        match token(transaction) {
            Some(token) => {
                by_token.entry(token).or_default().entry(message).or_insert(number);
            }
            None if !ids.possible(message) && !any_unknown => {
                let sentence = format!("a receiver saw `{message}`, which nobody submitted");
                into.violated(Subject::Message(message), [number], sentence);
            }
            None => {}
        }
    }
    for (token, found) in by_token {
        stored_once(facts, token, &found, into);
    }
    accepted_events(facts, &ids, into);
}

fn token<'a>(transaction: &Transaction<'a>) -> Option<&'a str> {
    transaction.message.and_then(|message| message.what.token.as_deref())
}

/// Which ids belong to submissions, as their clients know it.
struct KnownIds<'a> {
    acknowledged: BTreeSet<MessageId>,
    /// Known to the client before the answer, and the outcome is unknown.
    unknown: BTreeSet<MessageId>,
    /// Known to the client before the answer, and refused.
    refused: BTreeMap<MessageId, Submission<'a>>,
}

impl<'a> KnownIds<'a> {
    fn of(facts: &Facts<'a>) -> Self {
        let acknowledged: BTreeSet<MessageId> = facts.acknowledged.keys().copied().collect();
        let (mut unknown, mut refused) = (BTreeSet::new(), BTreeMap::new());
        for submission in facts.submissions.values() {
            let Some(message) = submission.begun.what.message else { continue };
            if submission.is_unknown() {
                unknown.insert(message);
            } else if submission.accepted_as().is_none() {
                refused.insert(message, *submission);
            }
        }
        refused.retain(|message, _| !acknowledged.contains(message) && !unknown.contains(message));
        Self { acknowledged, unknown, refused }
    }

    fn possible(&self, message: MessageId) -> bool {
        self.acknowledged.contains(&message)
            || self.unknown.contains(&message)
            || self.refused.contains_key(&message)
    }
}

fn any_unknown(facts: &Facts<'_>) -> bool {
    facts
        .submissions
        .values()
        .any(|submission| submission.is_unknown() && submission.begun.what.message.is_none())
}

fn refused(message: MessageId, number: RecordNumber, submission: &Submission<'_>, into: &mut Judgement) {
    let answer = submission.answer.map_or(submission.begun.number, |answer| answer.number);
    let sentence = format!("`{message}` was refused, and record {number} shows that it was stored");
    into.violated(Subject::Message(message), [answer, number], sentence);
}

/// Each recipient of a transaction is in the envelope.
fn unknown_recipients(
    facts: &Facts<'_>,
    message: MessageId,
    transaction: &Transaction<'_>,
    into: &mut Judgement,
) {
    if facts.recipients(message).is_none() {
        return;
    }
    for rcpt in &transaction.rcpts {
        if facts.delivery_to(message, &rcpt.what.recipient).is_none() {
            let sentence =
                format!("`{message}` was sent to `{}`, which is not in its envelope", rcpt.what.recipient);
            into.violated(Subject::Message(message), [rcpt.number], sentence);
        }
    }
}

/// A token is at receivers under no more ids than submissions of it may have been stored.
fn stored_once(
    facts: &Facts<'_>,
    token: &str,
    found: &BTreeMap<MessageId, RecordNumber>,
    into: &mut Judgement,
) {
    let of_token = || facts.of_token(token);
    let acknowledged: BTreeSet<MessageId> = of_token().filter_map(Submission::accepted_as).collect();
    let unknown = of_token().filter(|submission| submission.is_unknown()).count();
    let others: Vec<(MessageId, RecordNumber)> = found
        .iter()
        .map(|(id, number)| (*id, *number))
        .filter(|(id, _)| !acknowledged.contains(id))
        .collect();
    // Another submission's id with this token is mixed content, which is integrity (I10).
    let others: Vec<_> = others.into_iter().filter(|(id, _)| !facts.acknowledged.contains_key(id)).collect();
    if others.len() <= unknown {
        return;
    }
    let ids = found.len();
    let proof = of_token().map(|submission| submission.begun.number).chain(found.values().copied());
    let sentence = match of_token().count() {
        0 => format!("`{}` with token `{token}` is at a receiver, and nobody submitted it", others[0].0),
        _ if unknown == 0 && acknowledged.is_empty() => {
            format!("token `{token}` was refused and is at a receiver as `{}`", others[0].0)
        }
        submitted => format!(
            "token `{token}` was submitted {submitted} times and is at receivers under {ids} ids: it was stored too often"
        ),
    };
    into.violated(Subject::Message(others[0].0), proof, sentence);
}

/// A message that was accepted without an acknowledgement belongs to a submission with an unknown outcome.
fn accepted_events(facts: &Facts<'_>, ids: &KnownIds<'_>, into: &mut Judgement) {
    type Envelope<'a> = (TenantId, &'a [String]);
    let mut unknown = BTreeMap::<Envelope<'_>, usize>::new();
    for submission in facts.submissions.values().filter(|submission| submission.is_unknown()) {
        let begun = submission.begun.what;
        if begun.message.is_none() {
            *unknown.entry((begun.tenant, &begun.recipients)).or_default() += 1;
        }
    }
    for (message, events) in &facts.accepted {
        into.judged += 1;
        if let Some(submission) = ids.refused.get(message) {
            refused(*message, events[0].number, submission, into);
            continue;
        }
        if ids.possible(*message) {
            continue;
        }
        let EventKind::Accepted { tenant, recipients, .. } = &events[0].what.kind else { continue };
        match unknown.get_mut(&(*tenant, &**recipients)) {
            Some(left) if *left > 0 => *left -= 1,
            _ => {
                let sentence = format!(
                    "`{message}` was accepted, and no submission without a known outcome is left for it"
                );
                into.violated(Subject::Message(*message), [events[0].number], sentence);
            }
        }
    }
}
