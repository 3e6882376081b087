//! I10: what arrives under an id has the content, token, tenant and envelope that were submitted under it.
//!
//! Memory: nothing beyond the facts.

use postroad_core::MessageId;

use crate::{
    facts::{Facts, Submission},
    history::EventKind,
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    one_token_for_each_id(facts, into);
    for transaction in facts.transactions.values() {
        let Some(received) = transaction.message else { continue };
        let Some((id, submission)) = transaction
            .id()
            .and_then(|id| Some((id, submission_of(facts, id, received.what.token.as_deref())?)))
        else {
            into.undecided += 1;
            continue;
        };
        into.judged += 1;
        let begun = submission.begun;
        let proof = [begun.number, received.number];
        if let Some(token) = &received.what.token
            && *token != begun.what.token
        {
            let sentence =
                format!("`{id}` was submitted with token `{}`, and arrived with `{token}`", begun.what.token);
            into.violated(Subject::Message(id), proof, sentence);
        }
        if let (Some(sent), Some(arrived)) = (begun.what.content_hash, received.what.content_hash)
            && sent != arrived
        {
            let sentence =
                format!("the content of `{id}` has hash {sent:016x}, and arrived with {arrived:016x}");
            into.violated(Subject::Message(id), proof, sentence);
        }
    }
    accepted_as_submitted(facts, into);
}

/// Returns the submission that a message belongs to; where its client does not know, the token tells.
fn submission_of<'a>(facts: &Facts<'a>, id: MessageId, token: Option<&str>) -> Option<Submission<'a>> {
    if let Some(acknowledged) = acknowledged(facts, id) {
        return Some(acknowledged);
    }
    let is_unknown = |submission: &&Submission<'_>| submission.is_unknown();
    let by_id = facts.of_known_id(id).find(is_unknown);
    let has_no_id =
        |submission: &&Submission<'_>| is_unknown(submission) && submission.begun.what.message.is_none();
    by_id.or_else(|| facts.of_token(token?).find(has_no_id)).copied()
}

fn acknowledged<'a>(facts: &Facts<'a>, id: MessageId) -> Option<Submission<'a>> {
    let number = facts.acknowledged.get(&id)?.first()?;
    facts.submissions.get(number).copied()
}

fn one_token_for_each_id(facts: &Facts<'_>, into: &mut Judgement) {
    for (id, submissions) in &facts.acknowledged {
        let begun = |number: &u64| facts.submissions[number].begun;
        let first = begun(&submissions[0]);
        for other in submissions[1..].iter().map(begun).filter(|other| other.what.token != first.what.token) {
            let sentence = format!("two messages were acknowledged with one id, `{id}`");
            into.violated(Subject::Message(*id), [first.number, other.number], sentence);
        }
    }
}

/// The event that a message was accepted has its tenant and envelope.
fn accepted_as_submitted(facts: &Facts<'_>, into: &mut Judgement) {
    for (id, events) in &facts.accepted {
        let Some(submission) = acknowledged(facts, *id) else { continue };
        let begun = submission.begun;
        for event in events {
            let EventKind::Accepted { tenant, recipients, .. } = &event.what.kind else { continue };
            into.judged += 1;
            let proof = [begun.number, event.number];
            if *tenant != begun.what.tenant {
                let sentence = format!(
                    "`{id}` is of tenant {}, and its event is one of tenant {tenant}",
                    begun.what.tenant
                );
                into.violated(Subject::Message(*id), proof, sentence);
            }
            if *recipients != begun.what.recipients {
                let sentence =
                    format!("`{id}` was accepted with another envelope than it was submitted with");
                into.violated(Subject::Message(*id), proof, sentence);
            }
        }
    }
}
