//! Maps the result of a transaction or session to an outcome for each recipient and a signal for the lane.
//!
//! What a reply means is decided by the rules of `shaping`; this module knows the results that have no reply.

use postroad_core::{BounceClass, LaneEffect, Outcome, OutcomeKind, Party, Reply};
use postroad_dns::DnsError;
use postroad_shaping::{Phase as ReplyPhase, Rules};
use postroad_smtp::client::{Ended, Extension, Lost, Phase, RecipientResult};

use crate::lane::Signal;

use BounceClass as C;
use OutcomeKind as K;

/// Returns the outcome for one recipient of a transaction.
#[must_use]
pub fn outcome_of(result: &RecipientResult) -> Outcome {
    match result {
        RecipientResult::Reply(phase, reply) => read(*phase, reply),
        RecipientResult::NotSent(lost) => not_sent(*lost),
        // D-034: the dot was sent and no reply was read; the receiver may have it.
        RecipientResult::Unknown(lost) => {
            let text = format!("after the final dot: {}", text_of_lost(*lost));
            let outcome = Outcome::new(K::Unknown, Some(class_of(*lost)), 0, &text);
            let lane = if *lost == Lost::Aborted { LaneEffect::None } else { LaneEffect::Slow };
            Outcome { party: party_of(*lost), lane, ..outcome }
        }
        RecipientResult::Unsupported(Extension::Smtputf8) => {
            about(Party::Content, K::Hard, C::Other, "5.6.7 the receiver does not support SMTPUTF8")
        }
        RecipientResult::Unsupported(Extension::EightBitMime) => {
            about(Party::Content, K::Hard, C::Other, "5.6.3 the receiver does not support 8BITMIME")
        }
        RecipientResult::BareNewline => {
            about(Party::Content, K::Hard, C::Other, "5.6.0 the message has a line ending that is not CRLF")
        }
    }
}

/// Returns the outcomes for all recipients of a transaction.
///
/// Beside accepted recipients a 452 or 552 that says nothing else means too many of them (RFC 5321 4.5.3.1.10). If none
/// was accepted, their number is not the reason: without 5.3 the receiver is out of storage.
#[must_use]
pub fn outcomes_of(results: &[RecipientResult]) -> Vec<Outcome> {
    let is_enhanced_5_3 = |result: &RecipientResult| matches!(result, RecipientResult::Reply(_, reply) if reply.enhanced.is_some_and(|code| (code.subject, code.detail) == (5, 3)));
    let none_accepted = !results.iter().any(is_accepted);
    let outcome = |result: &RecipientResult| {
        let outcome = outcome_of(result);
        if none_accepted && outcome.class == Some(C::TooManyRecipients) && !is_enhanced_5_3(result) {
            return Outcome { class: Some(C::Quota), ..outcome };
        }
        let is_over = matches!(result, RecipientResult::Reply(Phase::Recipient, reply) if matches!(reply.code, 452 | 552));
        if !none_accepted && is_over && outcome.class == Some(C::Other) {
            return Outcome {
                class: Some(C::TooManyRecipients),
                kind: K::Soft,
                retry: K::Soft.retry(),
                ..outcome
            };
        }
        outcome
    };
    results.iter().map(outcome).collect()
}

/// The server answered 2xx to this recipient.
fn is_accepted(result: &RecipientResult) -> bool {
    !matches!(result, RecipientResult::Reply(Phase::Recipient | Phase::Mail, _) | RecipientResult::NotSent(_))
}

/// Returns the outcome of an attempt whose session ended before a transaction.
#[must_use]
pub fn outcome_of_session(ended: &Ended) -> Outcome {
    match ended {
        Ended::Refused(phase, reply) => read(*phase, reply),
        Ended::Lost(_, lost) => not_sent(*lost),
        Ended::NoTls => {
            about(Party::Receiver, K::Soft, C::TlsPolicy, "4.7.4 the receiver does not offer STARTTLS")
        }
        Ended::Injected => about(
            Party::Receiver,
            K::Soft,
            C::TlsPolicy,
            "4.7.0 plaintext followed the reply to STARTTLS: the connection may be under attack",
        ),
        Ended::Quit | Ended::Idle => not_sent(Lost::Closed),
    }
}

/// Returns the outcome of an attempt for which DNS gave no mail host.
#[must_use]
pub fn outcome_of_dns(error: &DnsError) -> Outcome {
    let (kind, class, status) = match error {
        DnsError::NoSuchDomain | DnsError::NoMailHost => (K::Hard, C::BadDomain, "5.1.2"),
        DnsError::NullMx => (K::Hard, C::BadDomain, "5.1.10"),
        DnsError::BadTarget => (K::Hard, C::BadDomain, "5.4.4"),
        DnsError::NoAddress | DnsError::Temporary(_) => (K::Soft, C::Dns, "4.4.3"),
        DnsError::Exhausted(_) => (K::Internal, C::Dns, "4.3.0"),
    };
    Outcome::new(kind, Some(class), 0, &format!("{status} {error}"))
}

/// Returns the signal of a transaction for its lane: the most serious of its outcomes.
#[must_use]
pub fn signal_of(outcomes: &[Outcome]) -> Signal {
    outcomes.iter().map(signal_of_one).fold(Signal::Silent, Signal::worse)
}

/// A refusal by policy says nothing about how fast the site takes mail, so it never feeds the lane; nor does anything
/// else that is not about the recipient.
fn signal_of_one(outcome: &Outcome) -> Signal {
    match (outcome.lane, outcome.kind) {
        (LaneEffect::Pause, _) => Signal::Refused(said(outcome)),
        (LaneEffect::Slow, _) => Signal::Failed(said(outcome)),
        (LaneEffect::Reconnect, _) => Signal::Silent,
        (LaneEffect::None, K::Delivered) => Signal::Served,
        (LaneEffect::None, K::Hard | K::Soft) if outcome.party == Some(Party::Recipient) => Signal::Served,
        (LaneEffect::None, _) => Signal::Silent,
    }
}

/// The reply or the error, for a pause's reason.
fn said(outcome: &Outcome) -> Box<str> {
    if outcome.code == 0 { outcome.text.clone() } else { format!("{} {}", outcome.code, outcome.text).into() }
}

/// Returns the signal of a session that ended before a transaction.
#[must_use]
pub fn signal_of_session(ended: &Ended) -> Signal {
    match ended {
        Ended::Refused(phase, reply) => match signal_of_one(&read(*phase, reply)) {
            // It was no session, whatever was said.
            Signal::Silent | Signal::Served => Signal::Failed(reply.to_string().into()),
            signal => signal,
        },
        Ended::Lost(_, lost) => Signal::Failed(text_of_lost(*lost).into()),
        Ended::NoTls => Signal::Failed("no TLS".into()),
        Ended::Injected => Signal::Failed("plaintext after the reply to STARTTLS".into()),
        Ended::Quit | Ended::Idle => Signal::Failed(text_of_lost(Lost::Closed).into()),
    }
}

/// Returns true when the same host may be tried again without TLS, under a policy that does not require it (D-039).
/// After injected plaintext it may not: that is what an attacker wants.
#[must_use]
pub fn is_tls_failure(ended: &Ended) -> bool {
    matches!(ended, Ended::Refused(Phase::StartTls, _) | Ended::Lost(Phase::StartTls, _))
}

/// Returns true when a reused connection took nothing of the message and a new one may take it at once: the receiver
/// ended the connection, as after a number of messages, and said nothing about this message (D-036).
#[must_use]
pub fn is_end_of_connection(results: &[RecipientResult], outcomes: &[Outcome]) -> bool {
    let refused_421 = |result: &RecipientResult| matches!(result, RecipientResult::Reply(Phase::Mail, reply) if reply.code == 421);
    results.iter().all(refused_421) || outcomes.iter().all(|outcome| outcome.lane == LaneEffect::Reconnect)
}

/// Returns true when this host did not take the message and another may: it lacks an extension, refused the session at
/// MAIL, or closed. Nothing was sent (D-036).
#[must_use]
pub fn may_try_next_host(results: &[RecipientResult], outcomes: &[Outcome]) -> bool {
    let by_host = |(result, outcome): (&RecipientResult, &Outcome)| match result {
        RecipientResult::Unsupported(_) | RecipientResult::NotSent(Lost::Closed | Lost::Protocol(_)) => true,
        RecipientResult::Reply(Phase::Mail, reply) => {
            reply.code == 421 || outcome.kind == K::SiteSoft || outcome.lane != LaneEffect::None
        }
        _ => false,
    };
    results.iter().zip(outcomes).all(by_host)
}

/// Returns the positions of recipients refused as too many in one transaction: they are sent in the next one
/// (D-035, RFC 5321 4.5.3.1.10). Empty if no recipient was accepted: then their number is not the reason.
#[must_use]
pub fn over_recipient_limit(results: &[RecipientResult], outcomes: &[Outcome]) -> Vec<usize> {
    let too_many = |(_, (result, outcome)): &(usize, (&RecipientResult, &Outcome))| {
        matches!(result, RecipientResult::Reply(Phase::Recipient, _))
            && outcome.class == Some(C::TooManyRecipients)
    };
    if !results.iter().any(is_accepted) {
        return Vec::new();
    }
    results.iter().zip(outcomes).enumerate().filter(too_many).map(|(position, _)| position).collect()
}

/// Reads a reply by the rules.
fn read(phase: Phase, reply: &Reply) -> Outcome {
    let verdict = Rules::builtin().classify(reply_phase(phase), None, reply);
    let refusal = verdict.refusal();
    let class = refusal.map(|refusal| refusal.class);
    let outcome = Outcome::new(verdict.kind(), class, reply.code, &text_of_reply(reply));
    let Some(refusal) = refusal else { return outcome };
    Outcome {
        party: Some(refusal.party),
        retry: refusal.ending.retry(),
        lane: refusal.lane,
        suppress: refusal.ending.suppresses(),
        rule: refusal.rule.into(),
        ..outcome
    }
}

fn reply_phase(phase: Phase) -> ReplyPhase {
    match phase {
        Phase::Greeting => ReplyPhase::Connect,
        Phase::Hello => ReplyPhase::Ehlo,
        Phase::StartTls => ReplyPhase::StartTls,
        Phase::Mail => ReplyPhase::Mail,
        Phase::Recipient => ReplyPhase::Rcpt,
        Phase::Data => ReplyPhase::Data,
        Phase::Message => ReplyPhase::Dot,
    }
}

fn text_of_reply(reply: &Reply) -> String {
    match reply.enhanced {
        Some(enhanced) => format!("{enhanced} {}", reply.text),
        None => reply.text.to_string(),
    }
}

fn about(party: Party, kind: K, class: C, text: &str) -> Outcome {
    Outcome { party: Some(party), ..Outcome::new(kind, Some(class), 0, text) }
}

fn not_sent(lost: Lost) -> Outcome {
    let (kind, lane) = match lost {
        Lost::Protocol(_) => (K::SiteSoft, LaneEffect::Slow),
        Lost::Aborted => (K::Internal, LaneEffect::None),
        Lost::Closed | Lost::TimedOut(_) => (K::Soft, LaneEffect::Slow),
    };
    let outcome = Outcome::new(kind, Some(class_of(lost)), 0, &text_of_lost(lost));
    Outcome { party: party_of(lost), lane, ..outcome }
}

/// A transaction that we aborted says nothing about the receiver.
fn party_of(lost: Lost) -> Option<Party> {
    (lost != Lost::Aborted).then_some(Party::Receiver)
}

fn class_of(lost: Lost) -> C {
    match lost {
        Lost::Closed | Lost::Aborted => C::Connection,
        Lost::TimedOut(_) => C::Timeout,
        Lost::Protocol(_) => C::Protocol,
    }
}

fn text_of_lost(lost: Lost) -> String {
    match lost {
        Lost::Closed => "4.4.2 the receiver closed the connection".to_owned(),
        Lost::TimedOut(phase) => format!("4.4.2 timed out waiting for {}", awaited(phase)),
        Lost::Protocol(_) => "4.5.0 the receiver sent an invalid reply".to_owned(),
        Lost::Aborted => "4.4.2 aborted: this node may no longer use the source".to_owned(),
    }
}

fn awaited(phase: Phase) -> &'static str {
    match phase {
        Phase::Greeting => "the greeting",
        Phase::Hello => "the reply to EHLO",
        Phase::StartTls => "the reply to STARTTLS",
        Phase::Mail => "the reply to MAIL",
        Phase::Recipient => "the reply to RCPT",
        Phase::Data => "the reply to DATA",
        Phase::Message => "the reply to the message",
    }
}

#[cfg(test)]
mod tests {
    use postroad_smtp::reply::ReplyError;

    use super::*;

    fn reply(phase: Phase, code: u16, text: &'static str) -> RecipientResult {
        RecipientResult::Reply(phase, Reply::plain(code, text))
    }

    fn enhanced(phase: Phase, code: u16, subject: u16, detail: u16) -> RecipientResult {
        RecipientResult::Reply(phase, Reply::new(code, subject, detail, "said so"))
    }

    #[test]
    fn d_034_a_connection_lost_after_the_dot_is_unknown() {
        let check = |result: RecipientResult, kind, class| {
            let outcome = outcome_of(&result);
            assert_eq!((outcome.kind, outcome.class), (kind, Some(class)), "{result:?}");
        };
        check(RecipientResult::Unknown(Lost::Closed), K::Unknown, C::Connection);
        check(RecipientResult::Unknown(Lost::TimedOut(Phase::Message)), K::Unknown, C::Timeout);
        check(RecipientResult::NotSent(Lost::Closed), K::Soft, C::Connection);
        check(RecipientResult::NotSent(Lost::TimedOut(Phase::Data)), K::Soft, C::Timeout);
        check(RecipientResult::NotSent(Lost::Protocol(ReplyError::Malformed)), K::SiteSoft, C::Protocol);
        check(RecipientResult::Unknown(Lost::Aborted), K::Unknown, C::Connection);
        check(RecipientResult::NotSent(Lost::Aborted), K::Internal, C::Connection);
        check(RecipientResult::BareNewline, K::Hard, C::Other);
        check(RecipientResult::Unsupported(Extension::Smtputf8), K::Hard, C::Other);
    }

    #[test]
    fn d_037_a_reply_over_a_limit_is_a_temporary_failure_of_the_site() {
        for result in [RecipientResult::NotSent, RecipientResult::Unknown] {
            let outcome = outcome_of(&result(Lost::Protocol(ReplyError::TooLong)));
            assert_eq!(outcome.class, Some(C::Protocol), "{outcome:?}");
            assert!(outcome.kind == K::SiteSoft || outcome.kind == K::Unknown, "{outcome:?}");
        }
    }

    #[test]
    fn d_011_to_d_013_a_permanent_dns_error_ends_the_delivery() {
        let check = |error: DnsError, kind, start: &str| {
            let outcome = outcome_of_dns(&error);
            assert_eq!(outcome.kind, kind, "{error}");
            assert!(outcome.text.starts_with(start), "{}", outcome.text);
        };
        check(DnsError::NoSuchDomain, K::Hard, "5.1.2 ");
        check(DnsError::NullMx, K::Hard, "5.1.10 ");
        check(DnsError::BadTarget, K::Hard, "5.4.4 ");
        check(DnsError::NoAddress, K::Soft, "4.4.3 ");
        check(DnsError::Temporary("SERVFAIL".into()), K::Soft, "4.4.3 ");
        // D-053: nothing was asked.
        check(DnsError::Exhausted("too many open files".into()), K::Internal, "4.3.0 ");
    }

    fn signal(results: &[RecipientResult]) -> Signal {
        signal_of(&outcomes_of(results))
    }

    #[test]
    fn d_036_only_what_the_site_says_about_itself_or_about_us_slows_its_lane() {
        let refused = |results: &[RecipientResult]| matches!(signal(results), Signal::Refused(_));
        let failed = |results: &[RecipientResult]| matches!(signal(results), Signal::Failed(_));
        let slow_down = || {
            RecipientResult::Reply(
                Phase::Mail,
                Reply::new(421, 7, 0, "too many messages from your IP, slow down"),
            )
        };
        assert!(refused(&[slow_down()]) || failed(&[slow_down()]));
        assert!(failed(&[RecipientResult::Unknown(Lost::Closed)]));
        assert_eq!(signal(&[reply(Phase::Message, 250, "ok")]), Signal::Served);
        assert_eq!(signal(&[enhanced(Phase::Recipient, 550, 1, 1)]), Signal::Served);
        assert_eq!(signal(&[RecipientResult::NotSent(Lost::Aborted)]), Signal::Silent);
        assert_eq!(signal(&[RecipientResult::Unknown(Lost::Aborted)]), Signal::Silent);
        // Gmail's 450 4.2.1 is about one mailbox.
        let one_mailbox = "The user you are trying to contact is receiving mail at a rate that prevents additional messages";
        let result = RecipientResult::Reply(Phase::Recipient, Reply::new(450, 2, 1, one_mailbox));
        assert!(!refused(std::slice::from_ref(&result)) && !failed(std::slice::from_ref(&result)));
    }

    #[test]
    fn d_052_a_refusal_by_policy_never_feeds_the_lane() {
        for (phase, code, subject, detail, text) in [
            (Phase::Recipient, 554, 7, 1, "Service unavailable; client host blocked using zen.spamhaus.org"),
            (Phase::Message, 550, 7, 1, "message rejected due to local policy"),
            (Phase::Mail, 550, 7, 1, "you are not allowed to send here"),
            (Phase::Message, 550, 7, 26, "unauthenticated mail is prohibited"),
            (Phase::Recipient, 451, 7, 500, "Server busy. Please try again later"),
        ] {
            let results = [RecipientResult::Reply(phase, Reply::new(code, subject, detail, text))];
            assert_ne!(signal(&results), Signal::Served, "{text}");
        }
    }

    #[test]
    fn d_036_the_end_of_a_reused_connection_says_nothing_about_the_message() {
        let check = |results: &[RecipientResult], expected: bool| {
            assert_eq!(is_end_of_connection(results, &outcomes_of(results)), expected, "{results:?}");
        };
        check(&[reply(Phase::Mail, 421, "4.7.0 enough"), reply(Phase::Mail, 421, "4.7.0 enough")], true);
        check(&[reply(Phase::Recipient, 452, "too many messages in this session")], true);
        check(
            &[
                reply(Phase::Message, 250, "ok"),
                reply(Phase::Recipient, 421, "too many messages in this session"),
            ],
            false,
        );
        check(&[enhanced(Phase::Recipient, 550, 1, 1)], false);
        check(&[enhanced(Phase::Mail, 550, 7, 1)], false);
    }

    #[test]
    fn d_036_another_host_is_tried_where_nothing_was_sent() {
        let check = |results: &[RecipientResult], expected: bool| {
            assert_eq!(may_try_next_host(results, &outcomes_of(results)), expected, "{results:?}");
        };
        check(&[reply(Phase::Mail, 421, "busy"), reply(Phase::Mail, 421, "busy")], true);
        check(&[RecipientResult::Unsupported(Extension::EightBitMime)], true);
        check(&[RecipientResult::NotSent(Lost::Closed)], true);
        check(&[reply(Phase::Mail, 550, "5.1.8 sender domain does not exist")], false);
        check(&[enhanced(Phase::Recipient, 451, 3, 0)], false);
        check(&[RecipientResult::Unknown(Lost::Closed)], false);
        check(&[reply(Phase::Message, 250, "ok"), RecipientResult::NotSent(Lost::Closed)], false);
    }

    #[test]
    fn d_046_a_lost_reply_is_the_receivers_matter_and_our_abort_is_not() {
        assert_eq!(outcome_of(&RecipientResult::Unknown(Lost::Closed)).party, Some(Party::Receiver));
        assert_eq!(outcome_of(&RecipientResult::Unknown(Lost::Aborted)).party, None);
    }

    #[test]
    fn the_rule_that_read_a_reply_is_named() {
        let outcome = outcome_of(&enhanced(Phase::Recipient, 550, 1, 1));
        assert!(outcome.suppress && !outcome.rule.is_empty());
        assert_eq!(outcome.party, Some(Party::Recipient));
    }

    #[test]
    fn d_035_recipients_over_the_limit_go_in_another_transaction() {
        let over_limit = |results: &[RecipientResult]| over_recipient_limit(results, &outcomes_of(results));
        let accepted = || reply(Phase::Message, 250, "ok");
        let too_many = || enhanced(Phase::Recipient, 452, 5, 3);
        assert_eq!(over_limit(&[accepted(), too_many(), reply(Phase::Recipient, 552, "too many")]), [1, 2]);
        assert!(over_limit(&[too_many(), too_many()]).is_empty());
        assert!(over_limit(&[accepted(), enhanced(Phase::Recipient, 452, 2, 2)]).is_empty());
        assert!(over_limit(&[accepted(), enhanced(Phase::Recipient, 550, 1, 1)]).is_empty());
        // The message was refused after one recipient was accepted: the other one is sent again.
        assert_eq!(over_limit(&[reply(Phase::Message, 554, "no"), too_many()]), [1]);
    }

    #[test]
    fn d_035_452_means_too_many_only_beside_accepted_recipients() {
        let check = |results: &[RecipientResult], index: usize, class| {
            let outcome = &outcomes_of(results)[index];
            assert_eq!((outcome.kind, outcome.class), (K::Soft, Some(class)), "{results:?}");
        };
        let accepted = reply(Phase::Message, 250, "ok");
        let no_storage = reply(Phase::Recipient, 452, "requested action not taken");
        check(std::slice::from_ref(&no_storage), 0, C::Other);
        check(&[reply(Phase::Recipient, 452, "too many recipients")], 0, C::Quota);
        check(&[enhanced(Phase::Recipient, 452, 5, 3)], 0, C::TooManyRecipients);
        check(&[accepted, no_storage], 1, C::TooManyRecipients);
    }

    #[test]
    fn d_039_only_a_tls_failure_is_retried_without_tls() {
        assert!(is_tls_failure(&Ended::Refused(Phase::StartTls, Reply::plain(454, "no"))));
        assert!(is_tls_failure(&Ended::Lost(Phase::StartTls, Lost::Closed)));
        assert!(!is_tls_failure(&Ended::Lost(Phase::Hello, Lost::Closed)));
        assert!(!is_tls_failure(&Ended::NoTls));
        assert!(!is_tls_failure(&Ended::Injected));
    }
}
