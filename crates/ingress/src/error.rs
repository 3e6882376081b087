//! Errors: why the role cannot start, and why a message is refused.

use std::{fmt, net::SocketAddr};

use postroad_cluster::SubmitError;
use postroad_core::{ByteSize, Domain, Reply};
use tonic::Code;

/// Why the role did not start; always a fault of this node's configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not open its address.
    #[error("cannot listen on `{0}`")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// A listener with implicit TLS has no certificate.
    #[error("the listener on `{0}` uses implicit TLS and needs a certificate")]
    NoCertificate(SocketAddr),
    /// API keys would be sent in the clear over a network.
    #[error(
        "gRPC on `{0}` (`grpc_listen`) needs a certificate; `grpc_plaintext = true` sends API keys in the clear"
    )]
    GrpcWithoutCertificate(SocketAddr),
}

/// A refusal of mail, for the reference.
#[derive(Clone, Debug)]
pub struct Described {
    /// The SMTP reply.
    pub reply: Reply,
    /// The gRPC status.
    pub code: Code,
    /// The reason in the status' details.
    pub reason: &'static str,
    /// What happened, and what helps.
    pub meaning: &'static str,
}

/// Returns every refusal of mail, in the order of the reference, with examples of values.
#[must_use]
pub fn refusals() -> Vec<Described> {
    let describe = |refusal: Refusal| {
        let Row { code, reason, meaning, .. } = refusal.row();
        Described { reply: refusal.reply(), code, reason, meaning }
    };
    Refusal::every().into_iter().map(describe).collect()
}

/// What the protocols, metrics and the reference say of a refusal.
struct Row {
    reply: (u16, u16, u16),
    code: Code,
    reason: &'static str,
    label: &'static str,
    field: Option<&'static str>,
    meaning: &'static str,
}

/// Declares the refusals: what happened and what helps, for the reference; the text; the name, and an example of its value;
/// SMTP's code with subject and detail of the enhanced one; the gRPC status and reason; the label in metrics and in the mail
/// log; the field of a gRPC request that is at fault.
macro_rules! refusals {
    ($(
        $(#[doc = $meaning:literal])+
        #[error $text:tt]
        $name:ident $(($type:ty, $example:expr))?
            = $code:literal, $subject:literal, $detail:literal; $status:ident, $reason:literal; $label:literal; $field:expr;
    )+) => {
        /// Why a client or a message is refused.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        pub(crate) enum Refusal {
            $($(#[doc = $meaning])+ #[error $text] $name $(($type))?,)+
        }

        impl Refusal {
            fn every() -> Vec<Self> {
                vec![$(Self::$name $(($example))?),+]
            }

            fn row(&self) -> Row {
                match self {
                    $(Self::$name { .. } => Row {
                        reply: ($code, $subject, $detail),
                        code: Code::$status,
                        reason: $reason,
                        label: $label,
                        field: $field,
                        meaning: concat!($($meaning),+).trim_ascii(),
                    },)+
                }
            }
        }
    };
}

/// The size of a message, at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeLimit(pub(crate) u64);

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ByteSize(self.0).in_words())
    }
}

const SENDER: Option<&str> = Some("envelope.sender");
const RECIPIENTS: Option<&str> = Some("envelope.recipients");
const CONTENT: Option<&str> = Some("content");

refusals! {
    /// The credential was removed since the client logged in, or there was none.
    #[error("authentication required")]
    NoIdentity = 530, 7, 0; Unauthenticated, "AUTHENTICATION_REQUIRED"; "identity"; None;
    /// The client has no credential, and mail is taken from those that have one: log in, or give its network a credential.
    #[error("relay access denied")]
    RelayDenied = 550, 7, 1; PermissionDenied, "RELAY_DENIED"; "relay"; None;
    /// The domain is not one of the tenant's `domains`, in MAIL or in From: add it to the tenant, or send with another.
    #[error("this client may not send as `{0}`")]
    Sender(Domain, Domain::parse("sender.example").expect("it is valid"))
        = 550, 7, 1; PermissionDenied, "SENDER_NOT_ALLOWED"; "sender"; None;
    /// The sender is an address such as `<ann@[192.0.2.1]>`.
    #[error("this client may not send with an address literal")]
    SenderLiteral = 550, 7, 1; PermissionDenied, "SENDER_NOT_ALLOWED"; "sender"; SENDER;
    /// `MAIL FROM:<>` has no domain, and the tenant may send only with its `domains`.
    #[error("this client may not send with the null sender")]
    NullSender = 550, 7, 1; PermissionDenied, "SENDER_NOT_ALLOWED"; "sender"; SENDER;
    /// Who wrote the message cannot be read from it, so it cannot be compared with the tenant's domains.
    #[error("the From or Sender field is not a valid list of addresses")]
    From = 550, 7, 1; InvalidArgument, "FROM_NOT_ALLOWED"; "sender"; CONTENT;
    /// A recipient is an address such as `<ann@[192.0.2.1]>`.
    #[error("mail to address literals is not accepted")]
    RecipientLiteral = 550, 7, 1; InvalidArgument, "ADDRESS_LITERAL"; "recipient"; RECIPIENTS;
    /// Over `message_size_max` of the node or of the tenant.
    #[error("message exceeds the limit of {0}")]
    TooLarge(SizeLimit, SizeLimit(25 << 20)) = 552, 3, 4; ResourceExhausted, "MESSAGE_TOO_LARGE"; "size"; CONTENT;
    /// RFC 5322 requires one From field.
    #[error("the message has {0} From fields")]
    FromFields(usize, 2) = 554, 6, 0; InvalidArgument, "CONTENT_INVALID"; "content"; CONTENT;
    /// A line of the header has no colon, or no field name.
    #[error("the header contains a line that is not a field")]
    Header = 554, 6, 0; InvalidArgument, "CONTENT_INVALID"; "content"; CONTENT;
    /// The message has passed more than 50 servers: it goes in a circle.
    #[error("too many hops")]
    Hops = 554, 4, 6; InvalidArgument, "TOO_MANY_HOPS"; "content"; CONTENT;
    /// The message has a NUL byte.
    #[error("NUL byte not allowed")]
    Nul = 554, 6, 0; InvalidArgument, "CONTENT_INVALID"; "content"; CONTENT;
    /// The queue checks again what ingress has checked: the versions of the nodes differ, or this is a bug.
    #[error("the queue refused the message: {0}")]
    Invalid(String, "…".to_owned()) = 554, 6, 0; InvalidArgument, "REFUSED_BY_QUEUE"; "invalid"; None;
    /// The node has just started and knows no tenants and credentials yet.
    #[error("directory not loaded yet, try again later")]
    NoDirectory = 451, 7, 0; Unavailable, "DIRECTORY_NOT_LOADED"; "no_directory"; None;
    /// Messages in progress use all of `in_flight_bytes_max`: the queue is slower than the clients.
    #[error("too many messages in progress, try again later")]
    Busy = 452, 3, 1; Unavailable, "TOO_MANY_IN_PROGRESS"; "busy"; None;
    /// No majority of the queue confirmed the message within `submit_timeout`, and it was not stored.
    #[error("cannot store the message now, try again later")]
    Unavailable = 451, 3, 0; Unavailable, "QUEUE_UNAVAILABLE"; "unavailable"; None;
    /// The connection to the queue broke at the wrong moment: the message may have been stored, so sending it again may make a second copy.
    #[error("the queue did not answer: the message may have been stored")]
    Unknown = 451, 3, 0; Unavailable, "OUTCOME_UNKNOWN"; "unknown"; None;
    /// The disks of the queue are full: see the alert PostroadDiskFull.
    #[error("queue storage full, try again later")]
    StorageFull = 452, 3, 1; Unavailable, "STORAGE_FULL"; "storage_full"; None;
}

/// Declares the errors of gRPC calls that are not about a message: what happened and what helps, for the reference; the name;
/// the status, the reason and the text.
macro_rules! call_errors {
    ($($(#[doc = $meaning:literal])+ $name:ident = $status:ident, $reason:literal, $text:literal;)+) => {
        /// An error of a gRPC call, whatever the message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GrpcError {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl GrpcError {
            /// Every error, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the status, and the reason in its details.
            #[must_use]
            pub const fn code_and_reason(self) -> (Code, &'static str) {
                match self {
                    $(Self::$name => (Code::$status, $reason),)+
                }
            }

            /// Returns what happened and what helps.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($meaning),+).trim_ascii(),)+
                }
            }

            pub(crate) const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

call_errors! {
    /// The call has no metadata `authorization: Bearer KEY`.
    NoKey = Unauthenticated, "API_KEY_MISSING", "an API key is required";
    /// No credential has this key, or it may not be used from this address.
    InvalidKey = Unauthenticated, "API_KEY_INVALID", "invalid API key";
    /// A field is missing or malformed; `BadRequest` names it.
    InvalidField = InvalidArgument, "FIELD_INVALID", "a field is invalid";
    /// `GetMessage`: the tenant has no message with this id, or it is no longer kept.
    NoMessage = NotFound, "MESSAGE_NOT_FOUND", "no such message";
    /// `GetMessage`: no queue node answers.
    NoAnswer = Unavailable, "QUEUE_UNAVAILABLE", "the queue does not answer, try again later";
    /// The node is being stopped and ends the stream, after the answer to every request that it has read: send those without an answer again, over a new connection.
    Stopping = Unavailable, "SHUTTING_DOWN", "this node is being stopped";
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Unavailable => Self::Unavailable,
            SubmitError::Unknown => Self::Unknown,
            SubmitError::StorageFull => Self::StorageFull,
            SubmitError::Invalid(why) => Self::Invalid(why),
        }
    }
}

impl Refusal {
    /// Returns the SMTP reply.
    pub(crate) fn reply(&self) -> Reply {
        let (code, subject, detail) = self.row().reply;
        Reply::new(code, subject, detail, self.to_string())
    }

    /// Returns the gRPC code that submission.proto documents.
    pub(crate) fn code(&self) -> Code {
        self.row().code
    }

    /// Returns the field of a gRPC request that is at fault.
    pub(crate) fn field(&self) -> Option<&'static str> {
        self.row().field
    }

    /// Returns the reason in gRPC's error details: stable, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        self.row().reason
    }

    /// Returns the label in metrics and in the mail log: one of [`Self::LABELS`].
    pub(crate) fn label(&self) -> &'static str {
        self.row().label
    }

    /// Returns true when nothing was stored and the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::NoDirectory | Self::Busy | Self::Unavailable | Self::StorageFull)
    }

    /// Every label, in the order of the reference.
    pub(crate) const LABELS: &[&str] = &[
        "identity",
        "relay",
        "sender",
        "recipient",
        "size",
        "content",
        "invalid",
        "no_directory",
        "busy",
        "unavailable",
        "unknown",
        "storage_full",
    ];
}
