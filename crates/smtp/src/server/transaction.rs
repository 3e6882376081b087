//! Transactions: MAIL, RCPT and DATA (RFC 5321 3.3).

use std::time::Instant;

use postroad_core::{Address, ByteSize, Recipients, Reply};

use super::{PendingQuestion, Question, ServerSession, Service, SessionError, State};
use crate::{command::Mail, data::DataDecoder};

/// What a transaction has so far.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) mail: Mail,
    pub(super) recipients: Recipients,
    /// How many times a recipient was named again.
    pub(super) repeated: usize,
}

impl<I> ServerSession<I> {
    pub(super) fn mail(&mut self, mail: Mail) -> Option<Question> {
        let error = if self.hello.is_none() {
            Some(SessionError::NoHello.reply())
        } else if matches!(self.state, State::Transaction(_)) {
            Some(SessionError::NestedMail.reply())
        } else if self.config.service == Service::Submission && self.peer.identity.is_none() {
            Some(SessionError::NoIdentity.reply())
        } else {
            None
        };
        if let Some(error) = error {
            self.error_reply(&error);
            return None;
        }
        let limit = self.message_size_max;
        if limit != 0 && mail.size > limit {
            self.refusal_reply(&SessionError::TooLarge.reply_with(ByteSize(limit).in_words()));
            return None;
        }
        self.state = State::AwaitingAnswer(PendingQuestion::Sender(mail.clone()));
        Some(Question::Sender(mail))
    }

    pub(super) fn recipient(&mut self, address: Address) -> Option<Question> {
        let mut envelope = match std::mem::replace(&mut self.state, State::Ready) {
            State::Transaction(envelope) => envelope,
            other => {
                self.state = other;
                self.refuse_without_mail();
                return None;
            }
        };
        if !envelope.mail.smtputf8 && !address.is_ascii() {
            self.state = State::Transaction(envelope);
            self.refusal_reply(&SessionError::NeedsSmtputf8.reply());
            return None;
        }
        let repeats = envelope.recipients.has(&address);
        envelope.repeated += usize::from(repeats);
        if repeats && envelope.repeated <= self.config.recipients_max {
            // It is accepted already, and one delivery.
            self.state = State::Transaction(envelope);
            self.reply(&Reply::new(250, 1, 5, "recipient ok"));
            return None;
        }
        if repeats || envelope.recipients.len() >= self.config.recipients_max {
            // RFC 5321 4.5.3.1.10: the recipients before it stay valid.
            self.state = State::Transaction(envelope);
            self.refuse_further_recipient();
            return None;
        }
        self.state = State::AwaitingAnswer(PendingQuestion::Recipient(envelope, address.clone()));
        Some(Question::Recipient(address))
    }

    pub(super) fn data(&mut self, now: Instant) {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Transaction(envelope) if !envelope.recipients.is_empty() => {
                self.reply(&Reply::plain(354, "end data with <CR><LF>.<CR><LF>"));
                let limit = self.message_size_max;
                let size_max = if limit == 0 { u64::MAX } else { limit };
                // The announced size is a hint and reserves at most 64 KiB.
                let expected = usize::try_from(envelope.mail.size.min(64 << 10)).unwrap_or(0).max(4 << 10);
                let decoder = DataDecoder::new(size_max, expected);
                self.state = State::Data { envelope, decoder, until: now + self.config.data_timeout };
            }
            State::Transaction(envelope) => {
                self.state = State::Transaction(envelope);
                self.refusal_reply(&SessionError::NoRecipients.reply());
            }
            other => {
                self.state = other;
                self.refuse_without_mail();
            }
        }
    }

    /// Refuses a recipient over the limit.
    ///
    /// A client with an identity may name any number: it sends the accepted ones and comes again with the others, so
    /// the session must not end before. A stranger tries recipients.
    fn refuse_further_recipient(&mut self) {
        let reply = SessionError::TooManyRecipients.reply();
        if self.peer.identity.is_some() { self.reply(&reply) } else { self.refusal_reply(&reply) }
    }

    /// Refuses RCPT or DATA. They may have been sent in one group with a MAIL that was refused (RFC 2920 3.1), so they
    /// count like the refusal of its recipients.
    fn refuse_without_mail(&mut self) {
        self.refusal_reply(&SessionError::NeedsMail.reply());
    }
}
