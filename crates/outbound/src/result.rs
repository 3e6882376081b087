//! Maps the result of a transaction or session to an outcome for each recipient and a signal for the lane.

use postroad_core::{BounceClass, Outcome, OutcomeKind, Reply};
use postroad_dns::DnsError;
use postroad_smtp::client::{Ended, Extension, Lost, Phase, RecipientResult};

use crate::{classify::classify, lane::Signal};

use BounceClass as C;
use OutcomeKind as K;

/// Returns the outcome for one recipient of a transaction.
#[must_use]
pub fn outcome_of(result: &RecipientResult) -> Outcome {
    match result {
        RecipientResult::Reply(phase, reply) => classify(*phase, reply),
        RecipientResult::NotSent(lost) => not_sent(*lost),
        // D-034: the dot was sent and no reply was read; the receiver may have it.
        RecipientResult::Unknown(lost) => Outcome::new(
            K::Unknown,
            Some(class_of(*lost)),
            0,
            &format!("after the final dot: {}", text_of(*lost)),
        ),
        RecipientResult::Unsupported(Extension::Smtputf8) => {
            Outcome::new(K::Hard, Some(C::Other), 0, "5.6.7 the receiver does not support SMTPUTF8")
        }
        RecipientResult::Unsupported(Extension::EightBitMime) => {
            Outcome::new(K::Hard, Some(C::Other), 0, "5.6.3 the receiver does not support 8BITMIME")
        }
        RecipientResult::BareNewline => {
            Outcome::new(K::Hard, Some(C::Other), 0, "5.6.0 the message has a line ending that is not CRLF")
        }
    }
}

/// Returns the outcomes for all recipients of a transaction.
///
/// If none was accepted, a 452 without 5.3 does not mean too many recipients: the receiver is out of storage.
#[must_use]
pub fn outcomes_of(results: &[RecipientResult]) -> Vec<Outcome> {
    let is_enhanced_5_3 = |result: &RecipientResult| matches!(result, RecipientResult::Reply(_, reply) if reply.enhanced.is_some_and(|code| (code.subject, code.detail) == (5, 3)));
    let none_accepted = !results.iter().any(is_accepted);
    let outcome = |result: &RecipientResult| {
        let outcome = outcome_of(result);
        if none_accepted && outcome.class == Some(C::TooManyRecipients) && !is_enhanced_5_3(result) {
            return Outcome { class: Some(C::Quota), ..outcome };
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
        Ended::Refused(phase, reply) => classify(*phase, reply),
        Ended::Lost(_, lost) => not_sent(*lost),
        Ended::NoTls => {
            Outcome::new(K::Soft, Some(C::TlsPolicy), 0, "4.7.4 the receiver does not offer STARTTLS")
        }
        Ended::Injected => Outcome::new(
            K::Soft,
            Some(C::TlsPolicy),
            0,
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

/// Returns the signal of a transaction for its lane.
#[must_use]
pub fn signal_of(results: &[RecipientResult]) -> Signal {
    let mut signal = Signal::Served;
    for result in results {
        match result {
            RecipientResult::Reply(phase, reply) if asks_to_slow_down(*phase, reply) => {
                return Signal::Refused(reply.to_string().into());
            }
            RecipientResult::Reply(phase, reply) if is_congestion(*phase, reply) => {
                signal = Signal::Failed(reply.to_string().into());
            }
            // A transaction that we aborted says nothing about the site.
            RecipientResult::NotSent(Lost::Aborted) | RecipientResult::Unknown(Lost::Aborted) => {
                if signal == Signal::Served {
                    signal = Signal::Silent;
                }
            }
            RecipientResult::NotSent(lost) | RecipientResult::Unknown(lost) => {
                signal = Signal::Failed(text_of(*lost).into())
            }
            RecipientResult::Reply(..) | RecipientResult::Unsupported(_) | RecipientResult::BareNewline => {}
        }
    }
    signal
}

/// Returns the signal of a session that ended before a transaction.
#[must_use]
pub fn signal_of_session(ended: &Ended) -> Signal {
    match ended {
        // A refusal of the connection or of EHLO concerns all mail from this source (D-036, D-038).
        Ended::Refused(Phase::Greeting | Phase::Hello, reply) => Signal::Refused(reply.to_string().into()),
        Ended::Refused(_, reply) => Signal::Failed(reply.to_string().into()),
        Ended::Lost(_, lost) => Signal::Failed(text_of(*lost).into()),
        Ended::NoTls => Signal::Failed("no TLS".into()),
        Ended::Injected => Signal::Failed("plaintext after the reply to STARTTLS".into()),
        Ended::Quit | Ended::Idle => Signal::Failed(text_of(Lost::Closed).into()),
    }
}

/// Returns true when the same host may be tried again without TLS, under a policy that does not require it (D-039).
/// After injected plaintext it may not: that is what an attacker wants.
#[must_use]
pub fn is_tls_failure(ended: &Ended) -> bool {
    matches!(ended, Ended::Refused(Phase::StartTls, _) | Ended::Lost(Phase::StartTls, _))
}

/// Returns the positions of recipients refused as too many in one transaction: they are sent in the next one
/// (D-035, RFC 5321 4.5.3.1.10). Empty if no recipient was accepted: then their number is not the reason.
#[must_use]
pub fn over_recipient_limit(results: &[RecipientResult]) -> Vec<usize> {
    let too_many = |result: &RecipientResult| {
        matches!(result, RecipientResult::Reply(Phase::Recipient, _))
            && outcome_of(result).class == Some(C::TooManyRecipients)
    };
    if !results.iter().any(is_accepted) {
        return Vec::new();
    }
    (0..results.len()).filter(|position| too_many(&results[*position])).collect()
}

/// D-036: 421 in any phase, and 4.7.x in reply to MAIL.
fn asks_to_slow_down(phase: Phase, reply: &Reply) -> bool {
    let by_policy = reply.is_transient() && reply.enhanced.is_some_and(|enhanced| enhanced.subject == 7);
    reply.code == 421 || (phase == Phase::Mail && by_policy)
}

fn is_congestion(phase: Phase, reply: &Reply) -> bool {
    let outcome = classify(phase, reply);
    outcome.kind == K::SiteSoft && outcome.class == Some(C::RateLimited)
}

fn not_sent(lost: Lost) -> Outcome {
    let kind = match lost {
        Lost::Protocol(_) => K::SiteSoft,
        Lost::Aborted => K::Internal,
        Lost::Closed | Lost::TimedOut(_) => K::Soft,
    };
    Outcome::new(kind, Some(class_of(lost)), 0, &text_of(lost))
}

fn class_of(lost: Lost) -> C {
    match lost {
        Lost::Closed | Lost::Aborted => C::Connection,
        Lost::TimedOut(_) => C::Timeout,
        Lost::Protocol(_) => C::Protocol,
    }
}

fn text_of(lost: Lost) -> String {
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
    fn d_011_d_012_d_013_a_permanent_dns_error_ends_the_delivery() {
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

    #[test]
    fn d_036_a_refusal_of_the_message_is_no_refusal_by_the_site() {
        let refused = |results: &[RecipientResult]| matches!(signal_of(results), Signal::Refused(_));
        let failed = |results: &[RecipientResult]| matches!(signal_of(results), Signal::Failed(_));
        assert!(refused(&[reply(Phase::Mail, 421, "busy")]));
        assert!(refused(&[enhanced(Phase::Mail, 451, 7, 0)]));
        assert!(refused(&[reply(Phase::Message, 250, "ok"), reply(Phase::Recipient, 421, "enough")]));
        assert!(failed(&[enhanced(Phase::Recipient, 450, 2, 1)]));
        assert!(failed(&[RecipientResult::Unknown(Lost::Closed)]));
        for served in [
            reply(Phase::Message, 250, "ok"),
            enhanced(Phase::Recipient, 550, 1, 1),
            enhanced(Phase::Recipient, 451, 7, 1),
            enhanced(Phase::Mail, 451, 1, 8),
        ] {
            let results = [served];
            assert!(!refused(&results), "{results:?}");
        }
        assert_eq!(signal_of(&[reply(Phase::Message, 250, "ok")]), Signal::Served);
        assert_eq!(signal_of(&[enhanced(Phase::Recipient, 451, 7, 1)]), Signal::Served);
        assert_eq!(signal_of(&[RecipientResult::NotSent(Lost::Aborted)]), Signal::Silent);
        assert!(refused(&[RecipientResult::Unknown(Lost::Aborted), reply(Phase::Recipient, 421, "enough")]));
    }

    #[test]
    fn d_035_recipients_over_the_limit_go_in_another_transaction() {
        let accepted = || reply(Phase::Message, 250, "ok");
        let too_many = || enhanced(Phase::Recipient, 452, 5, 3);
        assert_eq!(
            over_recipient_limit(&[accepted(), too_many(), reply(Phase::Recipient, 552, "too many")]),
            [1, 2]
        );
        assert!(over_recipient_limit(&[too_many(), too_many()]).is_empty());
        assert!(over_recipient_limit(&[accepted(), enhanced(Phase::Recipient, 452, 2, 2)]).is_empty());
        assert!(over_recipient_limit(&[accepted(), enhanced(Phase::Recipient, 550, 1, 1)]).is_empty());
        // The message was refused after one recipient was accepted: the other one is sent again.
        assert_eq!(over_recipient_limit(&[reply(Phase::Message, 554, "no"), too_many()]), [1]);
    }

    #[test]
    fn d_035_452_with_no_recipient_accepted_means_out_of_storage() {
        let check = |results: &[RecipientResult], index: usize, class| {
            let outcome = &outcomes_of(results)[index];
            assert_eq!((outcome.kind, outcome.class), (K::Soft, Some(class)), "{results:?}");
        };
        let accepted = reply(Phase::Message, 250, "ok");
        let no_storage = reply(Phase::Recipient, 452, "requested action not taken");
        check(std::slice::from_ref(&no_storage), 0, C::Quota);
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
