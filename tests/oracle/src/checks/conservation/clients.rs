//! The recipients that events accepted are those that clients know of: at least what was acknowledged, and at most that and
//! every submission whose outcome is unknown.

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::TenantId;

use crate::{
    facts::{Facts, Submission},
    verdict::{Judgement, Subject},
};

/// The recipients of a tenant's submissions.
#[derive(Default)]
struct Known {
    acknowledged: u64,
    unknown: u64,
    last: usize,
}

/// Judges what clients know once all is quiet; `accepted` is what the events say.
pub(super) fn check(facts: &Facts<'_>, accepted: impl Fn(TenantId) -> u64, into: &mut Judgement) {
    for (tenant, Known { acknowledged, unknown, last }) in known(facts) {
        into.judged += 1;
        let (accepted, most) = (accepted(tenant), acknowledged + unknown);
        if !(acknowledged..=most).contains(&accepted) {
            let sentence = format!(
                "tenant {tenant}: the events count {accepted} accepted recipients, its clients {acknowledged} to {most}"
            );
            into.violated(Subject::Tenant(tenant), [last], sentence);
        }
    }
}

fn known(facts: &Facts<'_>) -> BTreeMap<TenantId, Known> {
    let mut tenants = BTreeMap::<TenantId, Known>::new();
    // An id is stored once, however often it is submitted.
    let mut counted = BTreeSet::new();
    let (acknowledged, others): (Vec<&Submission<'_>>, Vec<&Submission<'_>>) =
        facts.submissions.values().partition(|submission| submission.accepted_as().is_some());
    for submission in acknowledged.into_iter().chain(others) {
        let begun = submission.begun;
        let known = tenants.entry(begun.what.tenant).or_default();
        known.last = known.last.max(submission.answer.map_or(begun.number, |answer| answer.number));
        let id = submission.accepted_as().or(begun.what.message);
        if id.is_some_and(|id| !counted.insert(id)) {
            continue;
        }
        let recipients = begun.what.recipients.len() as u64;
        if submission.accepted_as().is_some() {
            known.acknowledged += recipients;
        } else if submission.is_unknown() {
            known.unknown += recipients;
        }
    }
    tenants
}
