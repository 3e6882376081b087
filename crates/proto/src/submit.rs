//! Submissions: from ingress's message to the ledger's command.

use bytes::{Bytes, BytesMut};
use postroad_core::{TenantId, Timestamp};
use postroad_ledger::command::{Accept, Command, Content, NewRecipient, RECIPIENTS_MAX};

use crate::{
    convert::{Malformed, parse_address, parse_message_id, parse_sender, pool, required, time},
    queue as wire,
};

/// The largest content sent in one piece; larger ones are staged in chunks of at most this.
pub const CONTENT_BYTES_MAX: usize = 768 << 10;

/// Reads a submission: the command, and the body that goes with it as number `slot` of those of the request.
///
/// A message without an expiry of its own gets `expires_by_default`.
///
/// # Errors
/// Names the field that is missing or out of range.
pub fn parse_submission(
    submission: wire::Submission,
    expires_by_default: Timestamp,
    slot: u32,
) -> Result<(Command, Option<Bytes>), Malformed> {
    let message = parse_message_id(&submission.message_id)?;
    if submission.content.iter().map(Bytes::len).sum::<usize>() > CONTENT_BYTES_MAX {
        return Err(Malformed("content"));
    }
    if let Some(number) = submission.chunk {
        let command = Command::StageChunk { message, number, slot };
        return Ok((command, Some(join(submission.content))));
    }
    if !(1..=RECIPIENTS_MAX).contains(&submission.recipients.len()) {
        return Err(Malformed("recipients"));
    }
    let (content, body) = match submission.chunks {
        0 => (Content::Slot(slot), Some(join(submission.content))),
        chunks => (Content::Staged(chunks), None),
    };
    let accept = Accept {
        id: message,
        tenant: TenantId(submission.tenant),
        sender: parse_sender(submission.sender.as_deref())?,
        recipients: submission.recipients.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        content,
        size: u32::try_from(submission.size_bytes).map_err(|_| Malformed("size_bytes"))?,
        smtputf8: submission.smtputf8,
        eight_bit: submission.eight_bit,
        expires_at: match submission.expires_at_millis {
            0 => expires_by_default,
            millis => time(millis),
        },
        subject: submission.subject.into(),
        origin: submission.origin.into(),
        traceparent: submission.traceparent.into(),
    };
    Ok((Command::Accept(Box::new(accept)), body))
}

impl TryFrom<wire::Recipient> for NewRecipient {
    type Error = Malformed;

    fn try_from(recipient: wire::Recipient) -> Result<Self, Malformed> {
        let site = (!recipient.site.is_empty()).then_some(recipient.site);
        Ok(Self {
            address: parse_address(&recipient.address)?,
            site: required(site, "site")?.into(),
            pool: pool(recipient.pool),
            not_before: time(recipient.not_before_millis),
            grant: None,
        })
    }
}

/// A single part is not copied.
fn join(mut parts: Vec<Bytes>) -> Bytes {
    if let [part] = parts.as_mut_slice() {
        return std::mem::take(part);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use postroad_core::{GroupId, MessageId};

    use super::*;

    fn submission() -> wire::Submission {
        let id = MessageId::new(time(1), GroupId(1), 1);
        wire::Submission {
            message_id: crate::convert::message_id(id),
            recipients: vec![wire::Recipient {
                address: "b@receiver.example".to_owned(),
                site: "receiver.example".to_owned(),
                ..Default::default()
            }],
            content: vec![Bytes::from_static(b"head"), Bytes::from_static(b"body")],
            size_bytes: 8,
            ..Default::default()
        }
    }

    fn check(
        change: impl FnOnce(&mut wire::Submission),
        expected: Result<Option<&'static [u8]>, &'static str>,
    ) {
        let mut changed = submission();
        change(&mut changed);
        let parsed = parse_submission(changed, time(9), 0);
        let body = parsed.map(|(_, body)| body).map_err(|Malformed(field)| field);
        assert_eq!(body, expected.map(|body| body.map(Bytes::from_static)));
    }

    #[test]
    fn a_submission_becomes_a_command_and_a_body() {
        check(|_| {}, Ok(Some(b"headbody")));
        check(|s| s.content = vec![Bytes::from_static(b"whole")], Ok(Some(b"whole")));
        check(|s| s.chunks = 2, Ok(None));
        check(|s| s.chunk = Some(0), Ok(Some(b"headbody")));
        check(|s| s.recipients.clear(), Err("recipients"));
        check(|s| s.recipients[0].address = "nobody".to_owned(), Err("address"));
        check(|s| s.recipients[0].site.clear(), Err("site"));
        check(|s| s.message_id = Bytes::new(), Err("message_id"));
        check(|s| s.size_bytes = 1 << 40, Err("size_bytes"));
        check(|s| s.content = vec![vec![0; CONTENT_BYTES_MAX + 1].into()], Err("content"));
    }

    #[test]
    fn a_message_without_an_expiry_gets_the_default() {
        let expiry = |millis| {
            let submission = wire::Submission { expires_at_millis: millis, ..submission() };
            match parse_submission(submission, time(9), 0) {
                Ok((Command::Accept(accept), _)) => accept.expires_at,
                other => panic!("no accept: {other:?}"),
            }
        };
        assert_eq!((expiry(0), expiry(5)), (time(9), time(5)));
    }
}
