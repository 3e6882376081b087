//! The errors of SMTP sessions in one table, which the code and the reference are made from.
//!
//! What a policy refuses of a message has its reply from the policy.

use std::fmt::Display;

use postroad_core::Reply;

/// Declares the errors: a name, the code, subject and detail of the enhanced code, and the text, in which `{}` is replaced.
/// The comment says, for the reference, what happened and what helps.
macro_rules! errors {
    ($($(#[doc = $meaning:literal])+ $name:ident = $code:literal, $subject:literal, $detail:literal, $text:literal;)+) => {
        /// An error of a client or a server, whatever the message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum SessionError {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl SessionError {
            /// Every error, in the order of a session.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns what happened and what helps.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($meaning),+).trim_ascii(),)+
                }
            }

            /// Returns the reply, with `value` in the place that its text may have for one.
            #[must_use]
            pub fn reply_with(self, value: impl Display) -> Reply {
                let (code, subject, detail, text) = match self {
                    $(Self::$name => ($code, $subject, $detail, $text),)+
                };
                Reply::new(code, subject, detail, text.replace("{}", &value.to_string()))
            }
        }
    };
}

errors! {
    /// The listener has as many connections as `connections_max` allows; try again, or another ingress node. With implicit TLS the connection is closed without a word.
    TooManyConnections = 421, 3, 2, "{} too many connections";
    /// The client's address, of IPv6 its /64, has as many connections as `connections_per_network_max` allows.
    TooManyConnectionsOfNetwork = 421, 7, 0, "{} too many connections from your network";
    /// The node cannot reach a quorum of the queue. The connection is closed; try again, or another ingress node.
    CannotStore = 421, 3, 2, "{} cannot store mail now, try again later";
    /// The client sent something before the greeting: it does not wait for replies. The connection is closed.
    TooEarly = 554, 5, 0, "SMTP protocol synchronization error: wait for the greeting";
    /// The client began TLS at once. Use the port with implicit TLS, or STARTTLS. The connection is closed.
    NotATlsPort = 221, 7, 0, "this port expects plaintext SMTP";
    /// The client speaks another protocol, such as HTTP. The connection is closed.
    OtherProtocol = 221, 7, 0, "this is an SMTP server";
    /// SMTP has no such command.
    UnknownCommand = 500, 5, 1, "unknown command";
    /// The command exists, and this server does not offer it.
    NotImplemented = 502, 5, 1, "command not implemented";
    /// The bytes of the command are not UTF-8.
    NotUtf8 = 501, 5, 2, "command is not valid UTF-8";
    /// The arguments of the command are not what RFC 5321 allows.
    Syntax = 501, 5, 4, "syntax error in arguments";
    /// MAIL or RCPT has a parameter that the reply to EHLO does not offer.
    UnknownParameter = 555, 5, 4, "unknown parameter";
    /// A command is longer than 512 bytes, after EHLO 4,096; the whole line was skipped.
    LineTooLong = 500, 5, 2, "Line too long";
    /// An AUTH command or response is longer than 12,288 bytes; the whole line was skipped.
    AuthLineTooLong = 500, 5, 6, "Line too long";
    /// A line has no end within 64 KiB. The connection is closed.
    LineWithoutEnd = 421, 7, 0, "Line too long";
    /// A command has a CR or LF by itself: where it ends is not certain. The connection is closed.
    BareNewlineInCommand = 521, 5, 2, "bare CR/LF not allowed";
    /// MAIL and AUTH come after EHLO or HELO.
    NoHello = 503, 5, 1, "send EHLO first";
    /// STARTTLS was given before.
    TlsActive = 503, 5, 1, "TLS already active";
    /// The listener has no certificate (`tls.certificate`).
    TlsUnavailable = 454, 7, 0, "TLS not available";
    /// Commands were sent with STARTTLS, before the TLS handshake. The connection is closed.
    PipelinedAfterStartTls = 554, 5, 0, "no pipelining after STARTTLS";
    /// Credentials are taken only on a connection with TLS: send STARTTLS first.
    AuthNeedsTls = 538, 7, 11, "encryption required for the requested authentication mechanism";
    /// The client is logged in already, or a transaction is open.
    AuthNotNow = 503, 5, 1, "AUTH not permitted now";
    /// Commands were sent with AUTH, before its reply. The connection is closed.
    PipelinedAfterAuth = 554, 5, 0, "no pipelining after AUTH";
    /// The mechanism is neither PLAIN nor LOGIN.
    UnknownMechanism = 504, 5, 4, "mechanism not supported";
    /// The client ended the exchange with `*`.
    AuthCancelled = 501, 7, 0, "authentication cancelled";
    /// What the client sent in the exchange is not base64 of UTF-8.
    InvalidBase64 = 501, 5, 2, "invalid base64";
    /// The response lacks one of the three parts of RFC 4616.
    MalformedPlain = 501, 5, 2, "malformed AUTH PLAIN response";
    /// Login or password is wrong, or the client asks to act for somebody else.
    CredentialsInvalid = 535, 7, 8, "authentication credentials invalid";
    /// The credentials could not be checked: the node has not read the directory yet, or too many logins are checked at once.
    AuthUnavailable = 454, 7, 0, "temporary authentication failure";
    /// Three logins failed. The connection is closed.
    TooManyLogins = 421, 7, 0, "Too many authentication failures";
    /// A submission port takes mail only after AUTH, or from a network that is a credential.
    NoIdentity = 530, 7, 0, "authentication required";
    /// MAIL was accepted already: finish the transaction, or send RSET.
    NestedMail = 503, 5, 1, "nested MAIL command";
    /// The reverse path is not an address.
    BadSender = 501, 1, 7, "bad sender address";
    /// The recipient is not an address.
    BadRecipient = 501, 1, 3, "bad recipient address";
    /// The address has characters that are not ASCII: MAIL needs the parameter SMTPUTF8.
    NeedsSmtputf8 = 553, 6, 7, "address requires SMTPUTF8";
    /// The size that MAIL announced, or that of the message, is over `message_size_max` of the node or of the tenant.
    TooLarge = 552, 3, 4, "message exceeds the limit of {}";
    /// RCPT or DATA without a MAIL that was accepted.
    NeedsMail = 503, 5, 1, "need MAIL command";
    /// The transaction has `recipients_max` recipients: send these, and the others in another transaction.
    TooManyRecipients = 452, 5, 3, "too many recipients";
    /// DATA, and no recipient was accepted.
    NoRecipients = 554, 5, 1, "no valid recipients";
    /// The message has a CR or LF by itself, which is how messages are smuggled through servers. End every line with CRLF.
    BareNewline = 550, 5, 2, "bare CR/LF not allowed";
    /// The message has a NUL byte.
    Nul = 554, 6, 0, "NUL byte not allowed";
    /// The message has passed more than 50 servers: it goes in a circle.
    TooManyHops = 554, 4, 6, "too many hops";
    /// A line of the header has no colon, or no field name.
    BadHeader = 554, 6, 0, "header contains a line that is not a field";
    /// RFC 5322 requires one From field.
    NoFrom = 554, 6, 0, "message has no From field";
    /// RFC 5322 requires one From field; with several, filters and readers see different senders.
    TwoFroms = 554, 6, 0, "message has more than one From field";
    /// The client made more than 20 errors, sent more than 100 commands in a row that send no mail, or had more refusals than `refusals_max`. The connection is closed.
    TooManyErrors = 421, 7, 0, "Too many errors";
    /// The client was silent for longer than `command_timeout` or `data_timeout`. The connection is closed.
    TimedOut = 421, 4, 2, "{} timed out";
    /// The server is being stopped. The connection is closed; try another ingress node.
    ShuttingDown = 421, 3, 2, "{} shutting down";
}

impl SessionError {
    /// Returns the reply of an error whose text is always the same.
    #[must_use]
    pub fn reply(self) -> Reply {
        self.reply_with("")
    }
}
