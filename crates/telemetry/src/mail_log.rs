//! The mail log: one line for everything that happens to a message.
//!
//! A record is a struct below; the order of its fields is the order on the line, and `docs/reference/mail-log.md` is made
//! from their comments. A role writes a record where the thing is decided. Records go to the process log, where
//! `log_filter` lets the target `mail` through, and to the file `mail_log` where that is set.
//! Writing never waits for a disk or a pipe: a line is copied into a bounded buffer, and a thread writes what has gathered.

use std::net::{IpAddr, SocketAddr};

use postroad_core::{AttemptNumber, MessageId};

mod line;
mod writer;

pub use line::line;
pub use line::{Line, Mailbox, Put, Said, Secs, Trace, Value};
pub(crate) use writer::{LOOK_EVERY, MailLog, Options};
pub use writer::{is_enabled, reopen, write};

/// The target of its lines, for `log_filter`.
pub(crate) const TARGET: &str = "mail";

macro_rules! events {
    ($($(#[doc = $help:literal])+ $name:ident = $word:literal,)+) => {
        /// What a line is about: the word it begins with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event { $($(#[doc = $help])+ $name,)+ }

        impl Event {
            /// Every event, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Returns the word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// Returns when such a line is written.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($help),+).trim_ascii(),)+ }
            }
        }
    };
}

events! {
    /// A message was accepted: a majority of the queue's disks has synced it, and the client gets its 250 or OK.
    Accepted = "accepted",
    /// A client, a sender, a recipient or a message was refused; after a reply of 4xx the client may try again.
    /// Limited: see `omitted`.
    Rejected = "rejected",
    /// A login or an API key was wrong, or could not be checked.
    /// Limited: see `omitted`.
    LoginFailed = "login_failed",
    /// An attempt to deliver to one recipient ended, with whatever outcome.
    Attempt = "attempt",
    /// A delivery ended: the receiver took the message.
    Delivered = "delivered",
    /// A delivery ended: the receiver refused the message for good, or it cannot be delivered.
    Bounced = "bounced",
    /// A delivery ended: the message expired before it was delivered.
    Expired = "expired",
    /// A delivery ended: it was cancelled.
    Cancelled = "cancelled",
    /// A delivery ended: the recipient is suppressed.
    Suppressed = "suppressed",
    /// A delivery was put on hold: no attempt is made until it is released.
    Held = "held",
    /// A delivery that was on hold was released: it is due at once.
    Released = "released",
    /// A delivery that was queued or deferred was made due at once, because an operator asked for an attempt now.
    Retried = "retried",
    /// Lines of this event were left out, because there were more than `telemetry.rejected_lines_per_sec_max` in a second.
    Omitted = "omitted",
    /// Lines were lost, because the buffer was full or the file could not be written.
    Lost = "lost",
}

/// Something that the mail log can say.
pub trait Record {
    /// Returns what it is about.
    fn event(&self) -> Event;

    /// Writes its fields in order.
    fn put(&self, to: &mut Line<'_>);
}

/// A field of a record, for the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
}

/// Declares a record: its struct, the fields for the reference, and how they are written.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident <$life:lifetime> ($self:ident => $event:expr) {
        $(@ $kind:ident: Event,)?
        $($(#[doc = $help:literal])+ $field:ident: $type:ty,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<$life> {
            $(/// What happened.
            pub $kind: Event,)?
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        impl $name<'_> {
            const FIELDS: &'static [Field] = &[$(Field {
                name: stringify!($field),
                help: concat!($($help),+).trim_ascii(),
            },)+];
        }

        impl Record for $name<'_> {
            fn event(&$self) -> Event {
                $event
            }

            fn put(&self, to: &mut Line<'_>) {
                $(to.put(stringify!($field), &self.$field);)+
            }
        }
    };
}

/// The records, for the reference: the events that share fields, who writes them, and the fields.
pub const RECORDS: &[(&[Event], &str, &[Field])] = &[
    (&[Event::Accepted], "ingress", Accepted::FIELDS),
    (&[Event::Rejected], "ingress", Rejected::FIELDS),
    (&[Event::LoginFailed], "ingress", LoginFailed::FIELDS),
    (&[Event::Attempt], "the outbound node that made the attempt", Attempt::FIELDS),
    (
        &[
            Event::Delivered,
            Event::Bounced,
            Event::Expired,
            Event::Cancelled,
            Event::Suppressed,
            Event::Held,
            Event::Released,
            Event::Retried,
        ],
        "the queue node that leads the message's group",
        Delivery::FIELDS,
    ),
    (&[Event::Omitted, Event::Lost], "every role", LeftOut::FIELDS),
];

record! {
    /// A message was accepted.
    Accepted<'a> (self => Event::Accepted) {
        /// The id of the message
        id: MessageId,
        /// The tenant whose message it is
        tenant: &'a str,
        /// The address of the client
        client: Option<IpAddr>,
        /// Bytes of the message as it is stored
        size: u64,
        /// How many recipients it has
        recipients: usize,
        /// The sender of the envelope, `<>` for the null sender
        from: Mailbox<'a>,
        /// The name of the credential that the client showed
        credential: &'a str,
        /// `smtp` or `grpc`
        protocol: &'static str,
        /// What the client called itself in EHLO or HELO
        helo: Option<&'a str>,
        /// TLS version and cipher of the client's connection
        tls: Option<&'a str>,
        /// Seconds from the end of the message to its commit
        seconds: Secs,
        /// The trace that the message belongs to
        trace: Trace<'a>,
    }
}

record! {
    /// A client, a sender, a recipient or a message was refused.
    Rejected<'a> (self => Event::Rejected) {
        /// What was refused: `connect`, `mail`, `rcpt` or `message`; `submit` for a call over gRPC; `session` for what
        /// the SMTP server refuses by its own rules, such as too many recipients or errors
        stage: &'static str,
        /// Why, in one word: for `connect` the label `bound` of `postroad_net_smtp_refused_total`, for `session` always
        /// `protocol`, else the label `reason` of `postroad_ingress_rejections_total`
        reason: &'static str,
        /// The reply to the client, or the status of a call over gRPC
        reply: Said<'a>,
        /// The address of the client
        client: Option<IpAddr>,
        /// The tenant that the client speaks for
        tenant: Option<&'a str>,
        /// The sender of the envelope, `<>` for the null sender
        from: Mailbox<'a>,
        /// The recipient that was refused
        to: Mailbox<'a>,
        /// `smtp` or `grpc`
        protocol: &'static str,
        /// What the client called itself in EHLO or HELO
        helo: Option<&'a str>,
        /// The trace that the client named
        trace: Trace<'a>,
    }
}

record! {
    /// A login or an API key was wrong, or could not be checked.
    LoginFailed<'a> (self => Event::LoginFailed) {
        /// `wrong`, or `unavailable` when it could not be checked in time
        reason: &'static str,
        /// The address of the client
        client: Option<IpAddr>,
        /// The login that the client named; shown as addresses are, since most logins are addresses
        login: Mailbox<'a>,
        /// `smtp` or `grpc`
        protocol: &'static str,
        /// What the client called itself in EHLO or HELO
        helo: Option<&'a str>,
    }
}

record! {
    /// An attempt to deliver to one recipient ended.
    Attempt<'a> (self => Event::Attempt) {
        /// The id of the message
        id: MessageId,
        /// The position of the recipient in the envelope, from 0
        recipient: u32,
        /// The number of the attempt, from 1
        attempt: AttemptNumber,
        /// `delivered`, `hard`, `soft`, `site_soft`, `policy_block`, `unknown` or `internal`
        outcome: &'static str,
        /// Why it was not delivered, in one word
        class: Option<&'static str>,
        /// Whose matter a refusal is: `recipient`, `sender`, `ip`, `domain`, `content` or `receiver`
        party: Option<&'static str>,
        /// The code of the receiver's reply
        code: Option<u16>,
        /// The receiver's reply, or what happened here
        reply: Said<'a>,
        /// The rule that the reply was read by, as `postroad classify` shows it
        rule: Option<&'a str>,
        /// The recipient
        to: Mailbox<'a>,
        /// The source that the message was sent from
        source: &'a str,
        /// The site of the receiver: its set of MX hosts, or the domain
        site: &'a str,
        /// The host that was spoken to
        mx: Option<&'a str>,
        /// Its address and port
        address: Option<SocketAddr>,
        /// TLS version and cipher of the connection to the receiver
        tls: Option<&'a str>,
        /// Seconds that the attempt took
        seconds: Secs,
        /// Seconds since the message was accepted
        delay: Secs,
        /// The trace that the message belongs to
        trace: Trace<'a>,
    }
}

record! {
    /// A delivery ended, was put on hold, was released or was made due.
    Delivery<'a> (self => self.event) {
        @event: Event,
        /// The id of the message
        id: MessageId,
        /// The position of the recipient in the envelope, from 0
        recipient: u32,
        /// How many attempts were made that count
        attempts: u32,
        /// The recipient
        to: Mailbox<'a>,
        /// The tenant whose message it is
        tenant: &'a str,
        /// The site of the receiver: its set of MX hosts, or the domain
        site: &'a str,
        /// How the last attempt ended, in one word
        outcome: Option<&'static str>,
        /// What the last attempt ended with: the receiver's reply, or what happened here
        reply: Said<'a>,
        /// Seconds since the message was accepted
        delay: Secs,
        /// The trace that the message belongs to
        trace: Trace<'a>,
    }
}

record! {
    /// Lines that are missing.
    LeftOut<'a> (self => self.event) {
        @event: Event,
        /// The event of the lines that were left out; `-` where they were of any
        of: Option<&'a str>,
        /// How many lines
        lines: u64,
    }
}
