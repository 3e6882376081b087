//! One module for each invariant; each is a pure function of the facts.

mod agreement;
mod answered;
mod cancel;
mod conservation;
mod copies;
mod exclusion;
mod ghosts;
mod hold;
mod integrity;
mod loss;
mod one_end;

use crate::{
    facts::{Facts, HistoryError},
    history::History,
    verdict::{Bounds, Invariant, Judgement, Verdict},
};

/// Judges a history.
///
/// # Errors
/// The history contradicts itself, so that its writer has a fault.
pub fn judge(history: &History, bounds: &Bounds) -> Result<Verdict, HistoryError> {
    let facts = Facts::new(history)?;
    let judgements = Invariant::ALL.iter().map(|invariant| check(*invariant, &facts, bounds));
    Ok(Verdict { judgements: judgements.collect() })
}

fn check(invariant: Invariant, facts: &Facts<'_>, bounds: &Bounds) -> Judgement {
    let mut judgement = Judgement::new(invariant);
    let into = &mut judgement;
    match invariant {
        Invariant::NoLoss => loss::check(facts, into),
        Invariant::NoGhosts => ghosts::check(facts, into),
        Invariant::OneEnd => one_end::check(facts, into),
        Invariant::ExplainedCopies => copies::check(facts, into),
        Invariant::MutualExclusion => exclusion::check(facts, into),
        Invariant::Cancel => cancel::check(facts, into),
        Invariant::Hold => hold::check(facts, bounds, into),
        Invariant::Integrity => integrity::check(facts, into),
        Invariant::Agreement => agreement::check(facts, into),
        Invariant::Conservation => conservation::check(facts, into),
        Invariant::Answered => answered::check(facts, bounds, into),
    }
    judgement
}
