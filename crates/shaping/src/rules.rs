//! The rules as a value: which one matches a reply, and the verdict it gives.

mod parse;
mod pattern;

use std::sync::LazyLock;

use postroad_core::{BounceClass, EnhancedCode, LaneEffect, Party, Reply};

use self::{parse::Origin, pattern::Pattern};
use crate::{
    text,
    verdict::{Ending, Phase, Refusal, Verdict},
};

pub use parse::RuleError;

/// An ordered list of rules; for every phase some rule matches any reply.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// One rule: a reply matches when each given part does.
#[derive(Clone, Debug)]
pub struct Rule {
    name: Box<str>,
    why: Box<str>,
    phases: Vec<Phase>,
    codes: Vec<CodePattern>,
    enhanced: Vec<EnhancedPattern>,
    provider: Option<Box<str>>,
    /// All of these must match.
    words: Vec<Pattern>,
    /// None of these may.
    without: Vec<Pattern>,
    outcomes: Outcomes,
}

impl Rule {
    /// Returns the name that records and output show.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns why the rule is there.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Returns true for a rule without any condition but phases: it catches what no other rule did.
    fn is_default_for(&self, phase: Phase, permanent: bool) -> bool {
        let unconditional = self.codes.is_empty()
            && self.enhanced.is_empty()
            && self.provider.is_none()
            && self.words.is_empty()
            && self.without.is_empty();
        unconditional && self.speaks_of(phase) && self.outcomes.get(phase, permanent).is_some()
    }

    fn reads(&self, text: &[u8]) -> bool {
        self.words.iter().all(|pattern| pattern.is_match(text))
            && !self.without.iter().any(|pattern| pattern.is_match(text))
    }

    /// Returns true where a permanent reply forgets the address.
    fn suppresses(&self) -> bool {
        let Outcomes { permanent, early, .. } = self.outcomes;
        [permanent, early].into_iter().flatten().any(|consequence| consequence.ending.suppresses())
    }

    /// Returns true where each phase comes after RCPT, so that an unknown user cannot be the sender.
    fn speaks_only_of_recipients(&self) -> bool {
        !self.phases.is_empty()
            && self.phases.iter().all(|phase| matches!(phase, Phase::Rcpt | Phase::Data | Phase::Dot))
    }

    fn speaks_of(&self, phase: Phase) -> bool {
        self.phases.is_empty() || self.phases.contains(&phase)
    }
}

/// What a rule makes of a temporary and of a permanent reply; it does not match where it says nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    transient: Option<Consequence>,
    permanent: Option<Consequence>,
    /// What a permanent reply before MAIL means, where the rule says so itself.
    early: Option<Consequence>,
}

impl Outcomes {
    fn get(&self, phase: Phase, permanent: bool) -> Option<Consequence> {
        if !permanent {
            return self.transient;
        }
        if !phase.is_early() {
            return self.permanent;
        }
        self.early.or_else(|| self.permanent.map(|permanent| permanent.before_mail(phase)))
    }
}

/// A refusal without its rule's name.
#[derive(Clone, Copy, Debug)]
struct Consequence {
    ending: Ending,
    class: BounceClass,
    party: Party,
    lane: LaneEffect,
}

impl Consequence {
    /// Nothing was said about a message yet, so no delivery ends by it; another host or another day may do (D-038).
    fn before_mail(self, phase: Phase) -> Self {
        match self.ending {
            Ending::Hard { .. } => Self { ending: Ending::SiteSoft, ..self },
            Ending::PolicyBlock { .. } if phase == Phase::Connect => {
                Self { ending: Ending::SiteSoft, ..self }
            }
            Ending::PolicyBlock { .. } | Ending::Soft | Ending::SiteSoft => self,
        }
    }
}

/// `550`, `55x`, `5xx`: `None` is any digit.
#[derive(Clone, Copy, Debug)]
struct CodePattern([Option<u8>; 3]);

impl CodePattern {
    fn matches(self, code: u16) -> bool {
        let digits = [code / 100, code / 10 % 10, code % 10];
        self.0
            .iter()
            .zip(digits)
            .all(|(wanted, digit)| wanted.is_none_or(|wanted| u16::from(wanted) == digit))
    }
}

/// Subject and an inclusive range of details; the class is that of the reply code, which decides where they differ.
#[derive(Clone, Copy, Debug)]
struct EnhancedPattern {
    subject: u16,
    detail_from: u16,
    detail_to: u16,
}

impl EnhancedPattern {
    fn matches(self, code: EnhancedCode) -> bool {
        self.subject == code.subject && (self.detail_from..=self.detail_to).contains(&code.detail)
    }
}

/// How much of a reply's text is read. Real ones are far shorter, and each rule reads it again.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// A reply that no phase allows: neither success where it counts nor a refusal.
const UNEXPECTED: Refusal<'static> = Refusal {
    ending: Ending::SiteSoft,
    class: BounceClass::Protocol,
    party: Party::Receiver,
    lane: LaneEffect::Reconnect,
    rule: "unexpected_reply",
};

impl Rules {
    /// Returns the rules that are built in.
    #[must_use]
    pub fn builtin() -> &'static Self {
        static BUILTIN: LazyLock<Rules> = LazyLock::new(|| {
            parse::parse(include_str!("../rules.txt"), Origin::BuiltIn)
                .expect("a test parses the rules that are built in")
        });
        &BUILTIN
    }

    /// Parses a file of rules; its grammar stands at the head of the built-in `rules.txt`.
    ///
    /// # Errors
    /// Returns every error of the file, in the order of its lines.
    pub fn parse(file: &str) -> Result<Self, Vec<RuleError>> {
        parse::parse(file, Origin::Given)
    }

    /// Returns the rules in the order in which they are tried.
    #[must_use]
    pub fn list(&self) -> &[Rule] {
        &self.rules
    }

    /// Decides what `reply`, given in `phase`, means for one recipient.
    ///
    /// `provider` is who the site belongs to, where that is known: rules of other providers are passed over.
    /// Of a long reply only the first 4 KiB are read.
    #[must_use]
    pub fn classify(&self, phase: Phase, provider: Option<&str>, reply: &Reply) -> Verdict<'_> {
        if phase == Phase::Dot && (200..300).contains(&reply.code) {
            return Verdict::Delivered;
        }
        if !reply.is_transient() && !reply.is_permanent() {
            return Verdict::Refused(UNEXPECTED);
        }
        let said = &reply.text[..reply.text.floor_char_boundary(TEXT_BYTES_MAX)];
        let asked = Asked { phase, provider, code: reply.code, enhanced: enhanced_of(reply, said) };
        let text = text::normalise(said);
        let found = self.rules.iter().find_map(|rule| {
            let consequence = rule.outcomes.get(phase, reply.is_permanent())?;
            (asked.meets(rule) && rule.reads(text.as_bytes())).then_some((consequence, rule))
        });
        let (Consequence { ending, class, party, lane }, rule) =
            found.expect("parsing refuses rules without a default for each phase");
        Verdict::Refused(Refusal { ending, class, party, lane, rule: &rule.name })
    }
}

/// What of a reply is compared besides its words.
struct Asked<'a> {
    phase: Phase,
    provider: Option<&'a str>,
    code: u16,
    enhanced: Option<EnhancedCode>,
}

impl Asked<'_> {
    fn meets(&self, rule: &Rule) -> bool {
        rule.speaks_of(self.phase)
            && (rule.codes.is_empty() || rule.codes.iter().any(|pattern| pattern.matches(self.code)))
            && (rule.enhanced.is_empty()
                || self.enhanced.is_some_and(|code| rule.enhanced.iter().any(|p| p.matches(code))))
            && match (&rule.provider, self.provider) {
                (Some(of_rule), Some(of_site)) => **of_rule == *of_site,
                _ => true,
            }
    }
}

/// The enhanced code in front of the text, whatever its class, or else the one within it; x.0.0 says nothing.
fn enhanced_of(reply: &Reply, text: &str) -> Option<EnhancedCode> {
    let class = (reply.code / 100) as u8;
    let in_front = reply.enhanced.or_else(|| EnhancedCode::parse_prefix(text).map(|(code, _length)| code));
    let says_something = |code: &EnhancedCode| (code.subject, code.detail) != (0, 0);
    in_front.filter(says_something).or_else(|| text::enhanced_in(text, class)).or(in_front)
}
