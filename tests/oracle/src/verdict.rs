//! What a judgement says.

use std::fmt;

use postroad_core::{DeliveryId, GroupId, MessageId, TenantId};

use crate::history::{Micros, RecordNumber};

/// An invariant that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// An acknowledged message ends for each recipient.
    NoLoss,
    /// What was refused is never sent, and what was submitted once is stored once.
    NoGhosts,
    /// A delivery ends once, and events are ordered without a gap.
    OneEnd,
    /// A second copy is explained by an attempt that ended `unknown`.
    ExplainedCopies,
    /// Two nodes never send one delivery or use one source at a time, and an old epoch decides nothing.
    MutualExclusion,
    /// No transaction begins after an acknowledged cancel.
    Cancel,
    /// No transaction begins before its time, after its deadline, or while the delivery is held.
    Hold,
    /// What arrives is what was submitted.
    Integrity,
    /// Replicas with the same log have the same state.
    Agreement,
    /// Ledgers, events and metrics count the same deliveries.
    Conservation,
    /// Every request is answered in time.
    Answered,
}

impl Invariant {
    /// Every invariant, in the order of the contract.
    pub const ALL: [Self; 11] = [
        Self::NoLoss,
        Self::NoGhosts,
        Self::OneEnd,
        Self::ExplainedCopies,
        Self::MutualExclusion,
        Self::Cancel,
        Self::Hold,
        Self::Integrity,
        Self::Agreement,
        Self::Conservation,
        Self::Answered,
    ];

    /// Returns its id in docs/reference/conformance.md.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::NoLoss => "I1",
            Self::NoGhosts => "I2",
            Self::OneEnd => "I3",
            Self::ExplainedCopies => "I4",
            Self::MutualExclusion => "I5",
            Self::Cancel => "I7",
            Self::Hold => "I8",
            Self::Integrity => "I10",
            Self::Agreement => "I11",
            Self::Conservation => "I12",
            Self::Answered => "I14",
        }
    }

    /// Returns what it is about, in a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoLoss => "no loss",
            Self::NoGhosts => "no ghosts",
            Self::OneEnd => "one end, events without a gap",
            Self::ExplainedCopies => "explained copies",
            Self::MutualExclusion => "mutual exclusion",
            Self::Cancel => "cancel",
            Self::Hold => "hold and deadline",
            Self::Integrity => "integrity",
            Self::Agreement => "replica agreement",
            Self::Conservation => "conservation",
            Self::Answered => "always answered",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// Invariants of the contract that are not judged, and why.
pub const NOT_JUDGED: &[(&str, &str)] = &[
    ("I6", "rate caps: a sink counts them itself, by the limits of its script"),
    (
        "I7",
        "unsubscribe and suppression: there is neither yet (unsubscribe comes with the mail that is ours)",
    ),
    ("I9", "idempotency keys: there are none yet (they come with the final formats)"),
    ("I13", "status after acknowledgement: ended ids are not found yet (they are with the final formats)"),
    ("I15", "webhooks: there are none yet"),
    ("I16", "configuration: a receiver cannot see it yet (DKIM keys come with the mail that is ours)"),
];

/// The bounds that judging needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Every request is answered within this time: the 5 s of the contract, and a second for the way there and back.
    pub answer_within: Micros,
    /// 99 of 100 submissions are answered within this time, while no fault is near.
    pub p99_within: Micros,
    /// How long after a fault the 99th percentile is not judged.
    pub settles_within: Micros,
    /// How much earlier or later than asked a transaction may begin.
    pub slack: Micros,
}

impl Bounds {
    /// The bounds of the contract.
    pub const CONTRACT: Self = Self {
        answer_within: Micros(6_000_000),
        p99_within: Micros(1_000_000),
        settles_within: Micros(5_000_000),
        slack: Micros(0),
    };
}

impl Default for Bounds {
    fn default() -> Self {
        Self::CONTRACT
    }
}

/// What a violation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A message.
    Message(MessageId),
    /// A message for one recipient.
    Delivery(DeliveryId),
    /// A ledger group.
    Group(GroupId),
    /// A tenant.
    Tenant(TenantId),
    /// A submission.
    Submission(u64),
    /// A change.
    Request(u64),
    /// The run as a whole.
    Run,
}

impl Subject {
    /// Returns the message whose story explains the violation.
    #[must_use]
    pub const fn message(self) -> Option<MessageId> {
        match self {
            Self::Message(message) => Some(message),
            Self::Delivery(delivery) => Some(delivery.message),
            _ => None,
        }
    }
}

/// One violation of an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant.
    pub invariant: Invariant,
    /// What it is about.
    pub subject: Subject,
    /// The records that prove it, in the order of the sentence.
    pub proof: Vec<RecordNumber>,
    /// What is wrong.
    pub sentence: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, sentence, .. } = self;
        write!(f, "{invariant}: {sentence}")
    }
}

/// The judgement on one invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The invariant.
    pub invariant: Invariant,
    /// How many things were judged.
    pub judged: u64,
    /// How many could not be judged: the history ends before, or lacks the records.
    pub undecided: u64,
    /// The first violations, at most [`Judgement::KEPT_MAX`].
    pub violations: Vec<Violation>,
    /// How many violations there are.
    pub violations_count: u64,
}

impl Judgement {
    /// How many violations are kept; more are only counted.
    pub const KEPT_MAX: usize = 100;

    pub(crate) fn new(invariant: Invariant) -> Self {
        Self { invariant, judged: 0, undecided: 0, violations: Vec::new(), violations_count: 0 }
    }

    pub(crate) fn violated(
        &mut self,
        subject: Subject,
        proof: impl IntoIterator<Item = RecordNumber>,
        sentence: String,
    ) {
        self.violations_count += 1;
        if self.violations.len() < Self::KEPT_MAX {
            let proof = proof.into_iter().collect();
            self.violations.push(Violation { invariant: self.invariant, subject, proof, sentence });
        }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, judged, undecided, violations_count, .. } = self;
        let word = match (*violations_count, *judged) {
            (0, 0) => "nothing to judge",
            (0, _) => "holds",
            _ => "VIOLATED",
        };
        write!(f, "{invariant:<4}{:<31}{word:<18}{judged} judged", invariant.name())?;
        if *undecided > 0 {
            write!(f, ", {undecided} undecided")?;
        }
        if *violations_count > 0 {
            write!(f, ", {violations_count} violations")?;
        }
        Ok(())
    }
}

/// The judgement on a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One for each of [`Invariant::ALL`].
    pub judgements: Vec<Judgement>,
}

impl Verdict {
    /// Returns true when nothing is violated.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.judgements.iter().all(|judgement| judgement.violations_count == 0)
    }

    /// Returns the violations that were kept.
    pub fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.judgements.iter().flat_map(|judgement| &judgement.violations)
    }
}
