//! What a receiver's reply means: the outcome of one recipient's attempt.
//!
//! The rules are a table read from top to bottom; the first row that matches decides.
//! Codes come before text: text is only asked where the field uses one code for several things.

use postroad_core::{BounceClass, Outcome, OutcomeKind, Reply, reply::EnhancedCode};
use postroad_smtp::client::Phase;

use BounceClass as C;
use OutcomeKind as K;

/// One row: a reply matches when each given part does.
struct Rule {
    /// First digit of the code, 4 or 5; 0 for either.
    class: u8,
    /// The basic code; 0 for any.
    code: u16,
    /// Subject and detail of the enhanced code.
    enhanced: Option<(u16, u16)>,
    /// One of these, in lower case, stands in the text; empty for any text.
    text: &'static [&'static str],
    kind: K,
    bounce: C,
}

const fn by_code(code: u16, kind: K, bounce: C) -> Rule {
    Rule { class: 0, code, enhanced: None, text: &[], kind, bounce }
}

const fn by_enhanced(class: u8, subject: u16, detail: u16, kind: K, bounce: C) -> Rule {
    Rule { class, code: 0, enhanced: Some((subject, detail)), text: &[], kind, bounce }
}

const fn by_text(class: u8, text: &'static [&'static str], kind: K, bounce: C) -> Rule {
    Rule { class, code: 0, enhanced: None, text, kind, bounce }
}

const BLOCK_WORDS: &[&str] = &[
    "blocklist",
    "blacklist",
    "block list",
    "blocked using",
    "spamhaus",
    "listed at",
    "poor reputation",
    "bad reputation",
    "low reputation",
    "[tss0",
    "s3150",
    "sender reputation",
    "banned",
];
const SPAM_WORDS: &[&str] = &["spam", "unsolicited", "bulk mail", "junk"];

/// The table for replies to RCPT and to the message; earlier phases concern the site and are decided in [`classify`].
const RULES: &[Rule] = &[
    // A blocklist is about the sender whatever its code: it must never read as a bad recipient (D-052).
    by_text(4, BLOCK_WORDS, K::PolicyBlock, C::SpamBlock),
    by_text(5, BLOCK_WORDS, K::PolicyBlock, C::SpamBlock),
    // Authentication (RFC 7372; the large providers' own details).
    by_enhanced(5, 7, 515, K::Hard, C::AuthFailed),
    by_enhanced(5, 7, 509, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 20, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 21, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 22, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 23, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 24, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 25, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 26, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 27, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 29, K::Hard, C::AuthFailed),
    by_enhanced(0, 7, 30, K::Hard, C::AuthFailed),
    by_enhanced(4, 7, 28, K::SiteSoft, C::RateLimited),
    by_enhanced(4, 7, 32, K::SiteSoft, C::RateLimited),
    // The address.
    by_enhanced(5, 1, 0, K::Hard, C::InvalidRecipient),
    by_enhanced(5, 1, 1, K::Hard, C::InvalidRecipient),
    by_enhanced(5, 1, 2, K::Hard, C::BadDomain),
    by_enhanced(5, 1, 3, K::Hard, C::InvalidRecipient),
    by_enhanced(5, 1, 6, K::Hard, C::InvalidRecipient),
    by_enhanced(5, 1, 10, K::Hard, C::BadDomain),
    by_enhanced(5, 4, 4, K::Hard, C::BadDomain),
    // The mailbox.
    by_enhanced(4, 2, 1, K::SiteSoft, C::RateLimited),
    by_enhanced(5, 2, 1, K::Hard, C::InactiveMailbox),
    by_enhanced(0, 2, 2, K::Soft, C::Quota),
    by_enhanced(0, 2, 3, K::Hard, C::TooBig),
    by_enhanced(5, 3, 4, K::Hard, C::TooBig),
    // Routing and protocol.
    by_enhanced(5, 4, 6, K::Hard, C::Loop),
    by_enhanced(4, 5, 3, K::Soft, C::TooManyRecipients),
    by_enhanced(4, 7, 4, K::Soft, C::TlsPolicy),
    by_enhanced(4, 7, 5, K::Soft, C::TlsPolicy),
    by_enhanced(5, 7, 10, K::Soft, C::TlsPolicy),
    // Text, where one code means several things.
    by_text(
        4,
        &["greylist", "graylist", "grey-list", "gray-list", "try again in 5 minutes"],
        K::Soft,
        C::Greylisted,
    ),
    by_text(5, &["virus", "malware", "infected", "prohibited attachment"], K::Hard, C::Virus),
    by_text(5, SPAM_WORDS, K::Hard, C::SpamContent),
    by_text(4, SPAM_WORDS, K::PolicyBlock, C::SpamContent),
    by_text(5, &["relay"], K::Hard, C::RelayDenied),
    by_text(4, &["rate limit", "too many", "throttl", "too fast", "slow down"], K::SiteSoft, C::RateLimited),
    by_text(5, &["disabled", "inactive", "suspended"], K::Hard, C::InactiveMailbox),
    by_text(
        5,
        &[
            "user unknown",
            "unknown user",
            "no such user",
            "does not exist",
            "no mailbox",
            "invalid recipient",
            "recipient rejected",
            "unknown recipient",
        ],
        K::Hard,
        C::InvalidRecipient,
    ),
    by_text(0, &["quota", "mailbox full", "mailbox is full", "over its storage"], K::Soft, C::Quota),
    // What the classes of RFC 3463 say by themselves.
    by_code(421, K::SiteSoft, C::RateLimited),
    by_code(551, K::Hard, C::InvalidRecipient),
    by_code(556, K::Hard, C::BadDomain),
    Rule { class: 5, code: 552, enhanced: None, text: &[], kind: K::Hard, bounce: C::TooBig },
    Rule { class: 4, code: 452, enhanced: None, text: &[], kind: K::Soft, bounce: C::Quota },
];

/// Decides what `reply`, given in `phase`, means for one recipient.
///
/// A positive reply means delivered only to the final dot; asked about an earlier phase it is a protocol error.
#[must_use]
pub fn classify(phase: Phase, reply: &Reply) -> Outcome {
    let (kind, class) = decide(phase, reply);
    Outcome::new(kind, class, reply.code, &text_of(reply))
}

fn decide(phase: Phase, reply: &Reply) -> (K, Option<C>) {
    if reply.is_positive() {
        let delivered = phase == Phase::Message && (200..300).contains(&reply.code);
        return if delivered { (K::Delivered, None) } else { (K::SiteSoft, Some(C::Protocol)) };
    }
    if !reply.is_transient() && !reply.is_permanent() {
        return (K::SiteSoft, Some(C::Protocol));
    }
    match phase {
        // D-038: a greeting of 554 at every MX waits until the message is too old; it may be about our address only.
        Phase::Greeting | Phase::Hello => (K::SiteSoft, Some(site_class(reply))),
        Phase::StartTls => (K::SiteSoft, Some(C::TlsPolicy)),
        // D-035, RFC 5321 4.5.3.1.10: 552 to RCPT is an old way to say 452.
        Phase::Recipient if matches!(reply.code, 452 | 552) && !about_quota(reply) => {
            (K::Soft, Some(C::TooManyRecipients))
        }
        Phase::Mail if reply.is_transient() => (K::SiteSoft, Some(site_class(reply))),
        Phase::Mail | Phase::Recipient | Phase::Data | Phase::Message => by_table(phase, reply),
    }
}

fn by_table(phase: Phase, reply: &Reply) -> (K, Option<C>) {
    let class = (reply.code / 100) as u8;
    let text = reply.text.to_ascii_lowercase();
    let found = RULES.iter().find(|rule| rule.matches(class, reply, &text));
    if let Some(rule) = found {
        // 4xx never ends a delivery, whatever a receiver's details say.
        let kind = if class == 4 && rule.kind == K::Hard { K::Soft } else { rule.kind };
        return (kind, Some(rule.bounce));
    }
    let subject = reply.enhanced.map(|enhanced| enhanced.subject);
    match (class, subject, phase) {
        (5, Some(7), _) => (K::Hard, Some(C::Policy)),
        (5, Some(5), _) => (K::SiteSoft, Some(C::Protocol)),
        (4, Some(7), _) => (K::Soft, Some(C::Policy)),
        // A bare 550 to RCPT has meant "no such mailbox" since RFC 821.
        (5, None, Phase::Recipient) if reply.code == 550 => (K::Hard, Some(C::InvalidRecipient)),
        (5, _, _) if (500..=504).contains(&reply.code) => (K::SiteSoft, Some(C::Protocol)),
        (5, _, _) => (K::Hard, Some(C::Other)),
        _ => (K::Soft, Some(C::Other)),
    }
}

impl Rule {
    fn matches(&self, class: u8, reply: &Reply, text: &str) -> bool {
        let enhanced = |EnhancedCode { subject, detail, .. }| (subject, detail);
        (self.class == 0 || self.class == class)
            && (self.code == 0 || self.code == reply.code)
            && (self.enhanced.is_none() || self.enhanced == reply.enhanced.map(enhanced))
            && (self.text.is_empty() || self.text.iter().any(|word| text.contains(word)))
    }
}

fn site_class(reply: &Reply) -> C {
    let text = reply.text.to_ascii_lowercase();
    if BLOCK_WORDS.iter().any(|word| text.contains(word)) {
        C::SpamBlock
    } else if reply.is_transient() {
        C::RateLimited
    } else {
        C::Policy
    }
}

fn about_quota(reply: &Reply) -> bool {
    let text = reply.text.to_ascii_lowercase();
    reply.enhanced.is_some_and(|code| (code.subject, code.detail) == (2, 2))
        || ["quota", "mailbox full", "mailbox is full", "storage"].iter().any(|word| text.contains(word))
}

fn text_of(reply: &Reply) -> String {
    match reply.enhanced {
        Some(enhanced) => format!("{enhanced} {}", reply.text),
        None => reply.text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(phase: Phase, line: &str, kind: K, class: Option<C>) {
        let code = line[..3].parse().unwrap();
        let rest = line[3..].trim_start();
        let (enhanced, text) = match EnhancedCode::parse_prefix(rest) {
            Some((code, end)) => (Some(code), rest[end..].trim_start()),
            None => (None, rest),
        };
        let outcome = classify(phase, &Reply { code, enhanced, text: text.to_owned().into() });
        assert_eq!((outcome.kind, outcome.class), (kind, class), "{phase:?} {line}");
    }

    #[test]
    fn replies_of_the_field_fall_into_their_classes() {
        use Phase::{Data, Greeting, Hello, Mail, Message, Recipient, StartTls};
        check(Message, "250 2.0.0 queued", K::Delivered, None);
        check(Message, "250 ok", K::Delivered, None);
        check(Message, "354 what", K::SiteSoft, Some(C::Protocol));
        check(Recipient, "550 5.1.1 no such user here", K::Hard, Some(C::InvalidRecipient));
        check(Recipient, "550 mailbox unavailable", K::Hard, Some(C::InvalidRecipient));
        check(Recipient, "551 user not local", K::Hard, Some(C::InvalidRecipient));
        check(Recipient, "550 5.2.1 account disabled", K::Hard, Some(C::InactiveMailbox));
        check(Recipient, "556 5.1.10 null MX", K::Hard, Some(C::BadDomain));
        check(Recipient, "452 4.2.2 mailbox full", K::Soft, Some(C::Quota));
        check(Recipient, "552 5.2.2 over quota", K::Soft, Some(C::Quota));
        check(Message, "552 5.3.4 too big", K::Hard, Some(C::TooBig));
        check(Message, "550 5.7.1 looks like spam", K::Hard, Some(C::SpamContent));
        check(Message, "550 5.7.26 unauthenticated mail", K::Hard, Some(C::AuthFailed));
        check(Message, "550 5.7.515 access denied", K::Hard, Some(C::AuthFailed));
        check(Message, "421 4.7.28 unusual rate", K::SiteSoft, Some(C::RateLimited));
        check(Mail, "421 4.7.0 try again later", K::SiteSoft, Some(C::RateLimited));
        check(Recipient, "451 4.7.1 greylisted, come back", K::Soft, Some(C::Greylisted));
        check(Recipient, "450 4.2.1 receiving too quickly", K::SiteSoft, Some(C::RateLimited));
        check(Recipient, "554 5.7.1 relay access denied", K::Hard, Some(C::RelayDenied));
        check(Recipient, "554 5.4.6 too many hops", K::Hard, Some(C::Loop));
        check(Message, "554 5.7.1 virus found", K::Hard, Some(C::Virus));
        check(StartTls, "454 4.7.0 not now", K::SiteSoft, Some(C::TlsPolicy));
        check(Hello, "421 busy", K::SiteSoft, Some(C::RateLimited));
        check(Data, "503 5.5.1 bad sequence", K::SiteSoft, Some(C::Protocol));
        check(Message, "599 5.9.9 whatever", K::Hard, Some(C::Other));
        check(Message, "451 local error", K::Soft, Some(C::Other));
        check(Greeting, "554 no service", K::SiteSoft, Some(C::Policy));
    }

    #[test]
    fn d_035_552_to_a_recipient_is_too_many_and_elsewhere_permanent() {
        check(Phase::Recipient, "552 too many recipients", K::Soft, Some(C::TooManyRecipients));
        check(Phase::Recipient, "452 4.5.3 too many", K::Soft, Some(C::TooManyRecipients));
        check(Phase::Mail, "552 message size exceeds limit", K::Hard, Some(C::TooBig));
    }

    #[test]
    fn d_052_a_blocklist_never_reads_as_a_bad_recipient() {
        for line in [
            "550 5.1.1 rejected, listed at zen.spamhaus.org",
            "554 5.7.1 blocked using a blocklist",
            "553 5.7.1 [TSS09] permanently deferred",
            "550 5.7.1 S3150 part of your network is on our block list",
        ] {
            check(Phase::Recipient, line, K::PolicyBlock, Some(C::SpamBlock));
        }
    }

    #[test]
    fn a_transient_reply_never_ends_a_delivery() {
        for line in ["451 4.1.1 unknown user", "450 4.7.26 unauthenticated", "452 4.3.4 too big"] {
            let code = line[..3].parse().unwrap();
            let (enhanced, end) = EnhancedCode::parse_prefix(&line[4..]).unwrap();
            let reply = Reply { code, enhanced: Some(enhanced), text: line[4 + end..].to_owned().into() };
            for phase in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
                assert_ne!(classify(phase, &reply).kind, K::Hard, "{phase:?} {line}");
            }
        }
    }
}
