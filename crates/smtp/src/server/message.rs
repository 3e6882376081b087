//! Messages: from the first byte of the data to the question whether to store them.

use std::time::Instant;

use bytes::BytesMut;
use postroad_core::{ByteSize, Reply};

use super::{
    Message, Output, PendingQuestion, Question, ServerSession, Service, SessionError, State,
    transaction::Envelope,
};
use crate::{
    data::{DataDecoder, Decoded},
    headers::{self, HOPS_MAX},
    tolerance::{Tolerance, Tolerances},
};

impl<I> ServerSession<I> {
    /// Receives the message; when it is complete and valid, asks policy to store it.
    pub(super) fn receive(
        &mut self,
        envelope: Envelope,
        mut decoder: DataDecoder,
        until: Instant,
        input: &mut BytesMut,
    ) -> Option<Output> {
        if !decoder.decode(input) {
            self.state = State::Data { envelope, decoder, until };
            return Some(Output::Read(until));
        }
        self.state = State::Ready;
        let syntax = self.syntax();
        let mut tolerances = Tolerances::new(syntax);
        let lf_lines = syntax >= Tolerance::LfLines.least();
        let content = match if lf_lines { decoder.finish_tolerant() } else { decoder.finish() } {
            Decoded::Content(content) => content,
            Decoded::LfLines(content) => {
                tolerances.accept(Tolerance::LfLines);
                content
            }
            refused => {
                self.refusal_reply(&refusal_of(&refused, self.message_size_max));
                return None;
            }
        };
        let content = headers::without_mbox_line(content, &mut tolerances);
        if let Some(refusal) = self.header_refusal(&content, &mut tolerances) {
            self.refusal_reply(&refusal);
            return None;
        }
        self.tolerated.extend(tolerances.into_accepted());
        self.state = State::AwaitingAnswer(PendingQuestion::Message);
        let Envelope { mail, recipients, .. } = envelope;
        Some(Output::Ask(Question::Message(Box::new(Message { mail, recipients, content, syntax }))))
    }

    fn header_refusal(&self, content: &[u8], tolerances: &mut Tolerances) -> Option<Reply> {
        let header = headers::summarise_tolerated(content, tolerances);
        if header.received > HOPS_MAX {
            return Some(SessionError::TooManyHops.reply());
        }
        if self.config.service == Service::Relay {
            return None;
        }
        match (header.ended_by_text, header.from) {
            (true, _) => Some(SessionError::BadHeader.reply()),
            (false, 0) => Some(SessionError::NoFrom.reply()),
            (false, 1) => None,
            (false, _) => Some(SessionError::TwoFroms.reply()),
        }
    }
}

fn refusal_of(refused: &Decoded, limit: u64) -> Reply {
    match refused {
        Decoded::TooLarge => SessionError::TooLarge.reply_with(ByteSize(limit).in_words()),
        Decoded::BareNewline => SessionError::BareNewline.reply(),
        Decoded::Nul | Decoded::Content(_) | Decoded::LfLines(_) => SessionError::Nul.reply(),
    }
}
