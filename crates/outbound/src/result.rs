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
fn outcome_of<'r>(result: &'r RecipientResult, replies: &mut Replies<'r>) -> Outcome {
    match result {
        RecipientResult::Reply(phase, reply) => replies.read(*phase, reply),
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

/// What a transaction came to.
#[derive(Debug)]
pub struct Reading {
    /// The outcome of each recipient. Those in `over_limit` get theirs only if no transaction follows at once.
    pub outcomes: Vec<Outcome>,
    /// The positions of recipients that were too many for one transaction: they go in the next one
    /// (D-035, RFC 5321 4.5.3.1.10).
    pub over_limit: Vec<usize>,
    /// How many recipients the next transaction may have, if there were too many for the message.
    pub recipients_max: Option<usize>,
}

/// Reads the results of a transaction.
///
/// Too many recipients is no failure, and no attempt, of a recipient that was left over while others were sent to. Where
/// nobody was sent to it is both: otherwise the same transaction would be tried every few minutes.
#[must_use]
pub fn read_transaction(results: &[RecipientResult]) -> Reading {
    let accepted = results.iter().filter(|result| is_accepted(result)).count();
    let (mut outcomes, mut over_limit) = (Vec::with_capacity(results.len()), Vec::new());
    let mut recipients_max = None;
    let mut replies = Replies { accepted, known: Vec::new() };
    let together = if accepted > 0 { accepted } else { ended_together(results, &mut replies) };
    for (position, result) in results.iter().enumerate() {
        let outcome = outcome_of(result, &mut replies);
        let Some((phase, reply)) = too_many(result, &outcome, accepted) else {
            outcomes.push(outcome);
            continue;
        };
        let left_over = phase == Phase::Recipient && accepted > 0;
        if !left_over && together > 1 {
            recipients_max = Some(together / 2);
        }
        if left_over || together > 1 {
            over_limit.push(position);
        }
        outcomes.push(match (left_over, outcome.class) {
            (true, Some(C::TooManyRecipients)) => outcome,
            (true, _) => by_transaction(&outcome, C::TooManyRecipients, LEFT_OVER),
            (false, _) if together == 0 => {
                by_transaction(&outcome, class_of_refused_alone(reply), NONE_ACCEPTED)
            }
            (false, _) => by_transaction(&outcome, C::RateLimited, REFUSED_TOGETHER),
        });
    }
    Reading { outcomes, over_limit, recipients_max }
}

/// Returns how many recipients are answered by one 421 to RCPT that is about their number: it ended the connection, and
/// what was said to them before is lost. Zero for one recipient, whose number is not the reason.
fn ended_together<'r>(results: &'r [RecipientResult], replies: &mut Replies<'r>) -> usize {
    let mut ended = |result: &&'r RecipientResult| match result {
        RecipientResult::Reply(Phase::Recipient, reply) if reply.code == 421 => {
            replies.read(Phase::Recipient, reply).class == Some(C::TooManyRecipients)
        }
        _ => false,
    };
    let count = results.iter().filter(|result| ended(result)).count();
    if count > 1 { count } else { 0 }
}

/// Returns the reply of a refusal that is about the number of recipients.
///
/// Beside accepted recipients a 452 or 552 to RCPT that says nothing else means so too (RFC 5321 4.5.3.1.10).
fn too_many<'r>(
    result: &'r RecipientResult,
    outcome: &Outcome,
    accepted: usize,
) -> Option<(Phase, &'r Reply)> {
    let RecipientResult::Reply(phase, reply) = result else { return None };
    let says_nothing = outcome.class == Some(C::Other) && *phase == Phase::Recipient;
    let is_over = accepted > 0 && says_nothing && matches!(reply.code, 452 | 552);
    (outcome.class == Some(C::TooManyRecipients) || is_over).then_some((*phase, reply))
}

/// A 452 or 552 to RCPT that says nothing else, beside recipients that were accepted.
const LEFT_OVER: &str = "recipients_left_over";
/// A refusal for the number of recipients where none was accepted.
const NONE_ACCEPTED: &str = "none_accepted";
/// A refusal of the message, or an end of the connection, for the number of recipients; for one recipient too, where no
/// smaller transaction is left to try.
const REFUSED_TOGETHER: &str = "recipients_refused_together";

/// Returns the class of a refusal for the number of recipients where none was accepted, so that this number is not the
/// reason. RFC 5321 4.2.3: 552 is exceeded storage; anything else counts over time.
fn class_of_refused_alone(reply: &Reply) -> C {
    let is_enhanced_5_3 = reply.enhanced.is_some_and(|code| (code.subject, code.detail) == (5, 3));
    if reply.code == 552 && !is_enhanced_5_3 { C::Quota } else { C::RateLimited }
}

/// Replaces what the rules made of a reply by what it means in its transaction: all of it, so that the record agrees.
fn by_transaction(outcome: &Outcome, class: C, rule: &str) -> Outcome {
    let soft = Outcome::new(K::Soft, Some(class), outcome.code, &outcome.text);
    Outcome { party: Some(Party::Receiver), rule: rule.into(), ..soft }
}

/// Returns the outcome of a recipient that waited for a smaller transaction, which the lane does not allow now.
#[must_use]
pub fn left_for_later() -> Outcome {
    let text = "4.5.3 the receiver takes fewer recipients in one transaction";
    about(Party::Receiver, K::Soft, C::TooManyRecipients, text)
}

/// The server answered 2xx to this recipient.
fn is_accepted(result: &RecipientResult) -> bool {
    !matches!(result, RecipientResult::Reply(Phase::Recipient | Phase::Mail, _) | RecipientResult::NotSent(_))
}

/// Returns the outcome of an attempt whose session ended before a transaction.
#[must_use]
pub fn outcome_of_session(ended: &Ended) -> Outcome {
    match ended {
        Ended::Refused(phase, reply) => read(*phase, reply, 0),
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
        Ended::Refused(phase, reply) => match signal_of_one(&read(*phase, reply, 0)) {
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

/// Why a reused connection took nothing of a message that a new one may take at once (D-036).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfConnection {
    /// It has carried as many messages as the receiver takes on one, as far as it says.
    Messages,
    /// Another reason, such as errors or time.
    Other,
}

/// The rule for replies that name the messages of one connection as the reason.
const SESSION_MESSAGES: &str = "session_messages";

/// Returns why the receiver ended a reused connection before it took anything of the message; `None` when it did not, or
/// said something about us: a refusal that pauses the lane must not be asked for again at once.
///
/// A connection that broke ended too, at whatever point of the message: what was sent of that cannot be delivered.
#[must_use]
pub fn end_of_connection(results: &[RecipientResult], outcomes: &[Outcome]) -> Option<EndOfConnection> {
    if results.iter().all(|result| *result == RecipientResult::NotSent(Lost::Closed)) {
        return Some(EndOfConnection::Other);
    }
    let refused_421 = |result: &RecipientResult| matches!(result, RecipientResult::Reply(Phase::Mail, reply) if reply.code == 421);
    let all_421 = results.iter().all(refused_421);
    let all_reconnect = outcomes.iter().all(|outcome| outcome.lane == LaneEffect::Reconnect);
    if outcomes.iter().any(|outcome| outcome.lane == LaneEffect::Pause) || !(all_421 || all_reconnect) {
        return None;
    }
    // A 421 without another reason is how most receivers say so.
    let names_messages = outcomes.iter().all(|outcome| *outcome.rule == *SESSION_MESSAGES);
    let is_messages = names_messages || (all_421 && !all_reconnect);
    Some(if is_messages { EndOfConnection::Messages } else { EndOfConnection::Other })
}

/// Returns true when this host did not take the message and another may: it lacks an extension, refused the session at
/// MAIL, or closed before it had the end of the message, be it after accepted recipients or within the content. What it
/// has of the message it cannot deliver, so another host may have all of it (D-036).
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

/// The replies of a transaction in which this many recipients were accepted. Each is read once, for however many
/// recipients it counts: reading is costly, and the receiver chooses what there is to read.
struct Replies<'r> {
    accepted: usize,
    known: Vec<(Phase, &'r Reply, Outcome)>,
}

impl<'r> Replies<'r> {
    fn read(&mut self, phase: Phase, reply: &'r Reply) -> Outcome {
        let known = self.known.iter().find(|known| (known.0, known.1) == (phase, reply));
        if let Some((_, _, outcome)) = known {
            return outcome.clone();
        }
        let outcome = read(phase, reply, self.accepted);
        self.known.push((phase, reply, outcome.clone()));
        outcome
    }
}

/// Reads a reply by the rules; `accepted` recipients had been accepted in its transaction.
fn read(phase: Phase, reply: &Reply, accepted: usize) -> Outcome {
    let verdict = Rules::builtin().classify(reply_phase(phase), None, reply);
    let refusal = verdict.refusal();
    let class = refusal.map(|refusal| refusal.class);
    let outcome = Outcome::new(verdict.kind(), class, reply.code, &text_of_reply(reply));
    let Some(refusal) = refusal else { return outcome };
    Outcome {
        party: Some(refusal.party),
        retry: refusal.ending.retry(),
        lane: refusal.lane,
        suppress: refusal.ending.suppresses() && is_about_one(phase, accepted),
        rule: refusal.rule.into(),
        ..outcome
    }
}

/// Returns true where a reply can only be about one recipient: what is said to several is no reason to suppress each.
fn is_about_one(phase: Phase, accepted: usize) -> bool {
    match phase {
        Phase::Recipient => true,
        Phase::Data | Phase::Message => accepted == 1,
        Phase::Greeting | Phase::Hello | Phase::StartTls | Phase::Mail => false,
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

    fn outcomes_of(results: &[RecipientResult]) -> Vec<Outcome> {
        read_transaction(results).outcomes
    }

    fn outcome_of_only(result: &RecipientResult) -> Outcome {
        outcome_of(result, &mut Replies { accepted: 1, known: Vec::new() })
    }

    fn reply(phase: Phase, code: u16, text: &'static str) -> RecipientResult {
        RecipientResult::Reply(phase, Reply::plain(code, text))
    }

    fn enhanced(phase: Phase, code: u16, subject: u16, detail: u16) -> RecipientResult {
        RecipientResult::Reply(phase, Reply::new(code, subject, detail, "said so"))
    }

    #[test]
    fn a_reply_is_read_once_for_all_recipients() {
        let unknown = |number: usize| enhanced(Phase::Recipient, 550, 1, number as u16 % 2);
        let at_dot = || reply(Phase::Message, 554, "no");
        let results: Vec<_> =
            (0..100).map(|number| if number < 50 { unknown(number) } else { at_dot() }).collect();
        let mut replies = Replies { accepted: 50, known: Vec::new() };
        results.iter().for_each(|result| drop(outcome_of(result, &mut replies)));
        assert_eq!(replies.known.len(), 3);
    }

    #[test]
    fn d_034_a_connection_lost_after_the_dot_is_unknown() {
        let check = |result: RecipientResult, kind, class| {
            let outcome = outcome_of_only(&result);
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
            let outcome = outcome_of_only(&result(Lost::Protocol(ReplyError::TooLong)));
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
        let at_mail = |text| RecipientResult::Reply(Phase::Mail, Reply::new(421, 7, 0, text));
        // A wish to slow down is no refusal: only one that blocks us pauses the lane.
        assert!(failed(&[at_mail("too many messages from your IP, slow down")]));
        assert!(refused(&[at_mail("your IP is blocked using zen.spamhaus.org")]));
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
        use EndOfConnection::{Messages, Other};
        let check = |results: &[RecipientResult], expected| {
            assert_eq!(end_of_connection(results, &outcomes_of(results)), expected, "{results:?}");
        };
        let at_mail = |code, text| reply(Phase::Mail, code, text);
        check(&[at_mail(421, "4.7.0 enough"), at_mail(421, "4.7.0 enough")], Some(Messages));
        check(&[at_mail(421, "4.7.0 too many messages on this connection")], Some(Messages));
        check(&[reply(Phase::Recipient, 452, "too many messages in this session")], Some(Messages));
        // What follows would be the same after any number of messages.
        check(&[at_mail(451, "4.4.2 timeout exceeded")], Some(Other));
        check(&[at_mail(421, "4.4.2 timeout exceeded")], Some(Other));
        check(&[at_mail(421, "too many errors")], Some(Other));
        check(&[RecipientResult::NotSent(Lost::Closed)], Some(Other));
        check(&[RecipientResult::NotSent(Lost::Closed), enhanced(Phase::Recipient, 550, 1, 1)], None);
        check(&[RecipientResult::NotSent(Lost::TimedOut(Phase::Recipient))], None);
        check(&[at_mail(421, "4.7.1 client host blocked using zen.spamhaus.org")], None);
        check(
            &[
                reply(Phase::Message, 250, "ok"),
                reply(Phase::Recipient, 421, "too many messages in this session"),
            ],
            None,
        );
        check(&[enhanced(Phase::Recipient, 550, 1, 1)], None);
        check(&[enhanced(Phase::Mail, 550, 7, 1)], None);
    }

    #[test]
    fn d_036_another_host_is_tried_where_this_one_cannot_have_the_message() {
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
        assert_eq!(outcome_of_only(&RecipientResult::Unknown(Lost::Closed)).party, Some(Party::Receiver));
        assert_eq!(outcome_of_only(&RecipientResult::Unknown(Lost::Aborted)).party, None);
    }

    #[test]
    fn the_rule_that_read_a_reply_is_named() {
        let outcome = outcome_of_only(&enhanced(Phase::Recipient, 550, 1, 1));
        assert!(outcome.suppress && !outcome.rule.is_empty());
        assert_eq!(outcome.party, Some(Party::Recipient));
    }

    #[test]
    fn d_052_a_reply_suppresses_only_the_recipient_that_it_answered() {
        let unknown =
            |phase| RecipientResult::Reply(phase, Reply::new(550, 1, 1, "<bob@x.example>: user unknown"));
        let check = |results: &[RecipientResult], expected: &[bool]| {
            let suppressed: Vec<bool> = outcomes_of(results).iter().map(|outcome| outcome.suppress).collect();
            assert_eq!(suppressed, expected, "{results:?}");
        };
        check(&[unknown(Phase::Recipient), unknown(Phase::Recipient)], &[true, true]);
        // The reply to the message is about the only recipient that was accepted, or about nobody in particular.
        check(&[unknown(Phase::Message)], &[true]);
        check(&[unknown(Phase::Data), unknown(Phase::Recipient)], &[true, true]);
        check(&vec![unknown(Phase::Message); 50], &[false; 50]);
        check(&[unknown(Phase::Data), unknown(Phase::Data)], &[false, false]);
        // MAIL names no recipient.
        let no_such_user = Reply::new(550, 1, 1, "no such user on this system");
        check(&[RecipientResult::Reply(Phase::Mail, no_such_user)], &[false]);
        check(&[unknown(Phase::Mail)], &[false]);
    }

    #[test]
    fn d_035_recipients_over_the_limit_go_in_another_transaction() {
        let check = |results: &[RecipientResult], over_limit: &[usize], recipients_max| {
            let reading = read_transaction(results);
            assert_eq!(
                (&*reading.over_limit, reading.recipients_max),
                (over_limit, recipients_max),
                "{results:?}"
            );
        };
        let accepted = || reply(Phase::Message, 250, "ok");
        let too_many = || enhanced(Phase::Recipient, 452, 5, 3);
        check(&[accepted(), too_many(), reply(Phase::Recipient, 552, "too many")], &[1, 2], None);
        check(&[too_many(), too_many()], &[], None);
        check(&[accepted(), enhanced(Phase::Recipient, 452, 2, 2)], &[], None);
        check(&[accepted(), enhanced(Phase::Recipient, 550, 1, 1)], &[], None);
        // The message was refused after one recipient was accepted: the other one is sent again.
        check(&[reply(Phase::Message, 554, "no"), too_many()], &[1], None);
        // The message was refused for its recipients: half of them are tried.
        let at_dot = || reply(Phase::Message, 552, "too many recipients, use separate transactions");
        check(&vec![at_dot(); 20], &(0..20).collect::<Vec<_>>(), Some(10));
        check(&[at_dot(), at_dot(), too_many()], &[0, 1, 2], Some(1));
        check(&[at_dot(), too_many()], &[1], None);
        check(&[at_dot()], &[], None);
        // So was the connection: replies to the recipients before are lost.
        let ended = || reply(Phase::Recipient, 421, "too many recipients");
        check(&vec![ended(); 20], &(0..20).collect::<Vec<_>>(), Some(10));
        check(&[ended(), enhanced(Phase::Recipient, 550, 1, 1), ended()], &[0, 2], Some(1));
        check(&[ended()], &[], None);
        check(&vec![reply(Phase::Recipient, 421, "try again later"); 2], &[], None);
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
        check(&[reply(Phase::Recipient, 552, "requested action aborted")], 0, C::Quota);
        check(&[reply(Phase::Recipient, 452, "too many recipients")], 0, C::RateLimited);
        check(&[enhanced(Phase::Recipient, 452, 5, 3)], 0, C::RateLimited);
        check(&[accepted, no_storage], 1, C::TooManyRecipients);
    }

    #[test]
    fn d_050_a_reading_by_the_whole_transaction_names_itself_and_its_party() {
        let check = |results: &[RecipientResult], index: usize, class, rule: &str| {
            let Outcome { class: found, rule: named, party, lane, .. } =
                outcomes_of(results).swap_remove(index);
            assert_eq!((found, &*named), (Some(class), rule), "{results:?}");
            assert_eq!((party, lane), (Some(Party::Receiver), LaneEffect::None), "{results:?}");
        };
        let accepted = || reply(Phase::Message, 250, "ok");
        let no_more = || reply(Phase::Recipient, 452, "requested action not taken");
        let too_many = |phase, code| reply(phase, code, "too many recipients");
        check(&[accepted(), no_more()], 1, C::TooManyRecipients, LEFT_OVER);
        check(&[too_many(Phase::Recipient, 452)], 0, C::RateLimited, NONE_ACCEPTED);
        check(&[too_many(Phase::Message, 552)], 0, C::RateLimited, REFUSED_TOGETHER);
        let by_rule = "recipients_per_transaction";
        check(&[accepted(), too_many(Phase::Recipient, 452)], 1, C::TooManyRecipients, by_rule);
    }

    #[test]
    fn d_035_an_attempt_counts_unless_its_transaction_was_sent_to_others() {
        let check = |results: &[RecipientResult], expected: &[bool]| {
            let counted: Vec<bool> = outcomes_of(results).iter().map(Outcome::is_counted).collect();
            assert_eq!(counted, expected, "{results:?}");
        };
        let too_many =
            || RecipientResult::Reply(Phase::Recipient, Reply::new(452, 5, 3, "too many recipients"));
        let at_dot = || RecipientResult::Reply(Phase::Message, Reply::new(552, 5, 3, "too many recipients"));
        check(&[too_many()], &[true]);
        check(&[too_many(), enhanced(Phase::Recipient, 550, 1, 1)], &[true, true]);
        check(&[reply(Phase::Message, 250, "ok"), too_many()], &[true, false]);
        check(&[at_dot()], &[true]);
        check(&[at_dot(), at_dot()], &[true, true]);
        check(&[at_dot(), at_dot(), too_many()], &[true, true, false]);
        assert!(!left_for_later().is_counted());
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
