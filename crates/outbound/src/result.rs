//! What the end of a transaction or of a session means: an outcome for the recipient and a signal for the lane.

use postroad_core::{BounceClass, Outcome, OutcomeKind, Reply};
use postroad_dns::DnsError;
use postroad_smtp::client::{Ended, Extension, Fate, Lost, Phase};

use crate::{classify::classify, lane::Signal};

use BounceClass as C;
use OutcomeKind as K;

/// Returns the outcome of a recipient from what became of it in a transaction.
#[must_use]
pub fn outcome_of(fate: &Fate) -> Outcome {
    match fate {
        Fate::Reply(phase, reply) => classify(*phase, reply),
        Fate::NotSent(lost) => not_sent(*lost),
        // D-034: the dot was sent and no reply was read; the receiver may have it.
        Fate::Unknown(lost) => Outcome::new(
            K::Unknown,
            Some(class_of(*lost)),
            0,
            &format!("after the final dot: {}", text_of(*lost)),
        ),
        Fate::Unsupported(Extension::Smtputf8) => Outcome::new(
            K::Hard,
            Some(C::Other),
            0,
            "5.6.7 the receiver takes no internationalized addresses",
        ),
        Fate::Unsupported(Extension::EightBitMime) => {
            Outcome::new(K::Hard, Some(C::Other), 0, "5.6.3 the receiver takes no 8-bit content")
        }
        Fate::BareNewline => {
            Outcome::new(K::Hard, Some(C::Other), 0, "5.6.0 the content has a line end that is not CRLF")
        }
    }
}

/// Returns the outcomes of a transaction's recipients.
///
/// Where none was taken, 452 is not about their number unless it says so: the receiver has no room.
#[must_use]
pub fn outcomes_of(fates: &[Fate]) -> Vec<Outcome> {
    let says_so = |fate: &Fate| matches!(fate, Fate::Reply(_, reply) if reply.enhanced.is_some_and(|code| (code.subject, code.detail) == (5, 3)));
    let none_taken = !fates.iter().any(is_taken);
    let outcome = |fate: &Fate| {
        let outcome = outcome_of(fate);
        if none_taken && outcome.class == Some(C::TooManyRecipients) && !says_so(fate) {
            return Outcome { class: Some(C::Quota), ..outcome };
        }
        outcome
    };
    fates.iter().map(outcome).collect()
}

/// The server answered 2xx to this recipient.
fn is_taken(fate: &Fate) -> bool {
    !matches!(fate, Fate::Reply(Phase::Recipient | Phase::Mail, _) | Fate::NotSent(_))
}

/// Returns the outcome of an attempt whose session ended before a transaction.
#[must_use]
pub fn outcome_of_session(ended: &Ended) -> Outcome {
    match ended {
        Ended::Refused(phase, reply) => classify(*phase, reply),
        Ended::Lost(_, lost) => not_sent(*lost),
        Ended::NoTls => Outcome::new(K::Soft, Some(C::TlsPolicy), 0, "4.7.4 the receiver offers no TLS"),
        Ended::Quit | Ended::Idle => not_sent(Lost::Closed),
    }
}

/// Returns the outcome of an attempt for which the DNS named no host.
#[must_use]
pub fn outcome_of_dns(error: &DnsError) -> Outcome {
    let (kind, class, status) = match error {
        DnsError::NoSuchDomain | DnsError::NoMailHost => (K::Hard, C::BadDomain, "5.1.2"),
        DnsError::NullMx => (K::Hard, C::BadDomain, "5.1.10"),
        DnsError::BadTarget => (K::Hard, C::BadDomain, "5.4.4"),
        DnsError::NoAddress | DnsError::Temporary(_) => (K::Soft, C::Dns, "4.4.3"),
    };
    Outcome::new(kind, Some(class), 0, &format!("{status} {error}"))
}

/// Returns what the replies and losses of a transaction say about the site.
#[must_use]
pub fn signal_of(fates: &[Fate]) -> Signal {
    let mut signal = Signal::Served;
    for fate in fates {
        match fate {
            Fate::Reply(phase, reply) if asks_to_slow_down(*phase, reply) => {
                return Signal::Refused(reply.to_string().into());
            }
            Fate::Reply(phase, reply) if is_congestion(*phase, reply) => {
                signal = Signal::Failed(reply.to_string().into());
            }
            // What we broke off ourselves says nothing about the site.
            Fate::NotSent(Lost::Withdrawn) | Fate::Unknown(Lost::Withdrawn) => {
                if signal == Signal::Served {
                    signal = Signal::Silent;
                }
            }
            Fate::NotSent(lost) | Fate::Unknown(lost) => signal = Signal::Failed(text_of(*lost).into()),
            Fate::Reply(..) | Fate::Unsupported(_) | Fate::BareNewline => {}
        }
    }
    signal
}

/// Returns what a session that ended before a transaction says about the site.
#[must_use]
pub fn signal_of_session(ended: &Ended) -> Signal {
    match ended {
        // A greeting or EHLO that is refused is meant for all that come from this source (D-036, D-038).
        Ended::Refused(Phase::Greeting | Phase::Hello, reply) => Signal::Refused(reply.to_string().into()),
        Ended::Refused(_, reply) => Signal::Failed(reply.to_string().into()),
        Ended::Lost(_, lost) => Signal::Failed(text_of(*lost).into()),
        Ended::NoTls => Signal::Failed("no TLS".into()),
        Ended::Quit | Ended::Idle => Signal::Failed(text_of(Lost::Closed).into()),
    }
}

/// Returns true when the same host may be asked once more without TLS, under a policy that does not require it (D-039).
#[must_use]
pub fn is_tls_failure(ended: &Ended) -> bool {
    matches!(ended, Ended::Refused(Phase::StartTls, _) | Ended::Lost(Phase::StartTls, _))
}

/// Returns the places of recipients that the server had no room for beside others: they go in a transaction of their own
/// (D-035, RFC 5321 4.5.3.1.10). Where it took none, it is not the number of recipients that troubles it.
#[must_use]
pub fn left_over(fates: &[Fate]) -> Vec<usize> {
    let too_many = |fate: &Fate| {
        matches!(fate, Fate::Reply(Phase::Recipient, _))
            && outcome_of(fate).class == Some(C::TooManyRecipients)
    };
    if !fates.iter().any(is_taken) {
        return Vec::new();
    }
    (0..fates.len()).filter(|place| too_many(&fates[*place])).collect()
}

/// D-036: 421 wherever it is said, and 4.7.x to MAIL.
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
        Lost::Withdrawn => K::Internal,
        Lost::Closed | Lost::TimedOut(_) => K::Soft,
    };
    Outcome::new(kind, Some(class_of(lost)), 0, &text_of(lost))
}

fn class_of(lost: Lost) -> C {
    match lost {
        Lost::Closed | Lost::Withdrawn => C::Connection,
        Lost::TimedOut(_) => C::Timeout,
        Lost::Protocol(_) => C::Protocol,
    }
}

fn text_of(lost: Lost) -> String {
    match lost {
        Lost::Closed => "4.4.2 the connection was closed".to_owned(),
        Lost::TimedOut(phase) => format!("4.4.2 no answer in time {}", words_of(phase)),
        Lost::Protocol(_) => "4.5.0 the receiver sent something that is no reply".to_owned(),
        Lost::Withdrawn => "4.4.2 broken off: the source was given up".to_owned(),
    }
}

fn words_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Greeting => "from the greeting on",
        Phase::Hello => "to EHLO",
        Phase::StartTls => "to STARTTLS",
        Phase::Mail => "to MAIL",
        Phase::Recipient => "to RCPT",
        Phase::Data => "to DATA",
        Phase::Message => "to the message",
    }
}

#[cfg(test)]
mod tests {
    use postroad_smtp::reply::ReplyError;

    use super::*;

    fn reply(phase: Phase, code: u16, text: &'static str) -> Fate {
        Fate::Reply(phase, Reply::plain(code, text))
    }

    fn enhanced(phase: Phase, code: u16, subject: u16, detail: u16) -> Fate {
        Fate::Reply(phase, Reply::new(code, subject, detail, "said so"))
    }

    #[test]
    fn d_034_what_is_lost_after_the_dot_is_unknown() {
        let check = |fate: Fate, kind, class| {
            let outcome = outcome_of(&fate);
            assert_eq!((outcome.kind, outcome.class), (kind, Some(class)), "{fate:?}");
        };
        check(Fate::Unknown(Lost::Closed), K::Unknown, C::Connection);
        check(Fate::Unknown(Lost::TimedOut(Phase::Message)), K::Unknown, C::Timeout);
        check(Fate::NotSent(Lost::Closed), K::Soft, C::Connection);
        check(Fate::NotSent(Lost::TimedOut(Phase::Data)), K::Soft, C::Timeout);
        check(Fate::NotSent(Lost::Protocol(ReplyError::Malformed)), K::SiteSoft, C::Protocol);
        check(Fate::Unknown(Lost::Withdrawn), K::Unknown, C::Connection);
        check(Fate::NotSent(Lost::Withdrawn), K::Internal, C::Connection);
        check(Fate::BareNewline, K::Hard, C::Other);
        check(Fate::Unsupported(Extension::Smtputf8), K::Hard, C::Other);
    }

    #[test]
    fn d_011_d_012_d_013_what_the_dns_says_for_good_ends_the_delivery() {
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
    }

    #[test]
    fn d_036_the_site_is_told_from_the_message() {
        let refused = |fates: &[Fate]| matches!(signal_of(fates), Signal::Refused(_));
        let failed = |fates: &[Fate]| matches!(signal_of(fates), Signal::Failed(_));
        assert!(refused(&[reply(Phase::Mail, 421, "busy")]));
        assert!(refused(&[enhanced(Phase::Mail, 451, 7, 0)]));
        assert!(refused(&[reply(Phase::Message, 250, "ok"), reply(Phase::Recipient, 421, "enough")]));
        assert!(failed(&[enhanced(Phase::Recipient, 450, 2, 1)]));
        assert!(failed(&[Fate::Unknown(Lost::Closed)]));
        for served in [
            reply(Phase::Message, 250, "ok"),
            enhanced(Phase::Recipient, 550, 1, 1),
            enhanced(Phase::Recipient, 451, 7, 1),
            enhanced(Phase::Mail, 451, 1, 8),
        ] {
            let fates = [served];
            assert!(!refused(&fates), "{fates:?}");
        }
        assert_eq!(signal_of(&[reply(Phase::Message, 250, "ok")]), Signal::Served);
        assert_eq!(signal_of(&[enhanced(Phase::Recipient, 451, 7, 1)]), Signal::Served);
        assert_eq!(signal_of(&[Fate::NotSent(Lost::Withdrawn)]), Signal::Silent);
        assert!(refused(&[Fate::Unknown(Lost::Withdrawn), reply(Phase::Recipient, 421, "enough")]));
    }

    #[test]
    fn d_035_those_who_were_too_many_go_on_in_the_same_session() {
        let taken = || reply(Phase::Message, 250, "ok");
        let too_many = || enhanced(Phase::Recipient, 452, 5, 3);
        assert_eq!(left_over(&[taken(), too_many(), reply(Phase::Recipient, 552, "too many")]), [1, 2]);
        assert!(left_over(&[too_many(), too_many()]).is_empty());
        assert!(left_over(&[taken(), enhanced(Phase::Recipient, 452, 2, 2)]).is_empty());
        assert!(left_over(&[taken(), enhanced(Phase::Recipient, 550, 1, 1)]).is_empty());
        // The message was refused after some recipients had been taken: the others get their own answer.
        assert_eq!(left_over(&[reply(Phase::Message, 554, "no"), too_many()]), [1]);
    }

    #[test]
    fn d_035_a_receiver_without_room_is_told_from_too_many_recipients() {
        let check = |fates: &[Fate], place: usize, class| {
            let outcome = &outcomes_of(fates)[place];
            assert_eq!((outcome.kind, outcome.class), (K::Soft, Some(class)), "{fates:?}");
        };
        let taken = reply(Phase::Message, 250, "ok");
        let no_room = reply(Phase::Recipient, 452, "requested action not taken");
        check(std::slice::from_ref(&no_room), 0, C::Quota);
        check(&[enhanced(Phase::Recipient, 452, 5, 3)], 0, C::TooManyRecipients);
        check(&[taken, no_room], 1, C::TooManyRecipients);
    }

    #[test]
    fn d_039_only_a_tls_failure_is_tried_without() {
        assert!(is_tls_failure(&Ended::Refused(Phase::StartTls, Reply::plain(454, "no"))));
        assert!(is_tls_failure(&Ended::Lost(Phase::StartTls, Lost::Closed)));
        assert!(!is_tls_failure(&Ended::Lost(Phase::Hello, Lost::Closed)));
        assert!(!is_tls_failure(&Ended::NoTls));
    }
}
