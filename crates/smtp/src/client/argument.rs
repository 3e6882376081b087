//! Writes command lines from parsed values only.
//!
//! No function takes a `&str` argument, so an argument cannot contain a line end.

use bytes::{Bytes, BytesMut};
use postroad_core::{Address, Domain};

use super::{Capabilities, Transaction};

/// Command lines that are sent together.
#[derive(Default)]
pub(super) struct CommandLine(BytesMut);

impl CommandLine {
    pub(super) fn ehlo(verb: &'static str, name: &Domain) -> Bytes {
        Bytes::from(format!("{verb} {name}\r\n"))
    }

    pub(super) fn mail(transaction: &Transaction, peer: &Capabilities) -> Self {
        let mut line = Self(BytesMut::with_capacity(128));
        line.0.extend_from_slice(b"MAIL FROM:<");
        if let Some(sender) = &transaction.sender {
            line.0.extend_from_slice(sender.as_str().as_bytes());
        }
        line.0.extend_from_slice(b">");
        if peer.size.is_some() {
            let size: usize = transaction.content.iter().map(Bytes::len).sum();
            line.0.extend_from_slice(format!(" SIZE={size}").as_bytes());
        }
        if transaction.eight_bit {
            line.0.extend_from_slice(b" BODY=8BITMIME");
        }
        if transaction.smtputf8 {
            line.0.extend_from_slice(b" SMTPUTF8");
        }
        line.0.extend_from_slice(b"\r\n");
        line
    }

    pub(super) fn recipient(&mut self, recipient: &Address) {
        self.0.extend_from_slice(b"RCPT TO:<");
        self.0.extend_from_slice(recipient.as_str().as_bytes());
        self.0.extend_from_slice(b">\r\n");
    }

    pub(super) fn data(&mut self) {
        self.0.extend_from_slice(b"DATA\r\n");
    }

    pub(super) fn finish(self) -> Bytes {
        self.0.freeze()
    }
}
