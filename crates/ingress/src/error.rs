//! Errors: why the role cannot start, and why a message is refused.

use std::net::SocketAddr;

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

/// A refusal, for the reference.
#[derive(Clone, Debug)]
pub struct Described {
    /// The SMTP reply, with `…` for values.
    pub reply: Reply,
    /// The gRPC status.
    pub code: Code,
    /// The reason in the status' details.
    pub reason: &'static str,
    /// What happened, and what helps.
    pub meaning: &'static str,
}

/// Returns every refusal of mail, in the order of the reference.
#[must_use]
pub fn refusals() -> Vec<Described> {
    let describe = |refusal: Refusal| Described {
        reply: refusal.reply(),
        code: refusal.code(),
        reason: refusal.reason(),
        meaning: refusal.meaning(),
    };
    std::iter::successors(Some(Refusal::NoIdentity), Refusal::next).map(describe).collect()
}

/// Why a client or a message is refused.
///
/// The first group is permanent; after an error of the second group the client may retry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("authentication required")]
    NoIdentity,
    #[error("relay access denied")]
    RelayDenied,
    #[error("this client may not send as `{0}`")]
    Sender(Domain),
    #[error("this client may not send with an address literal")]
    SenderLiteral,
    #[error("this client may not send with the null sender")]
    NullSender,
    #[error("the From or Sender field is not a valid list of addresses")]
    From,
    #[error("mail to address literals is not accepted")]
    RecipientLiteral,
    #[error("message exceeds the limit of {}", ByteSize(*.0).in_words())]
    TooLarge(u64),
    #[error("the message has {0} From fields")]
    FromFields(usize),
    #[error("the header contains a line that is not a field")]
    Header,
    #[error("too many hops")]
    Hops,
    #[error("NUL byte not allowed")]
    Nul,
    #[error("the queue refused the message: {0}")]
    Invalid(String),

    #[error("directory not loaded yet, try again later")]
    NoDirectory,
    #[error("too many messages in progress, try again later")]
    Busy,
    #[error("cannot store the message now, try again later")]
    Unavailable,
    #[error("the queue did not answer: the message may have been stored")]
    Unknown,
    #[error("queue storage full, try again later")]
    StorageFull,
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
        let (code, subject, detail) = match self {
            Self::NoIdentity => (530, 7, 0),
            Self::RelayDenied
            | Self::Sender(_)
            | Self::SenderLiteral
            | Self::NullSender
            | Self::From
            | Self::RecipientLiteral => (550, 7, 1),
            Self::TooLarge(_) => (552, 3, 4),
            Self::Hops => (554, 4, 6),
            Self::FromFields(_) | Self::Header | Self::Nul | Self::Invalid(_) => (554, 6, 0),
            Self::NoDirectory => (451, 7, 0),
            Self::Unavailable | Self::Unknown => (451, 3, 0),
            Self::Busy | Self::StorageFull => (452, 3, 1),
        };
        Reply::new(code, subject, detail, self.to_string())
    }

    /// Returns the next one in the order of the reference: a new variant has a place in it, or this does not compile.
    fn next(&self) -> Option<Self> {
        Some(match self {
            Self::NoIdentity => Self::RelayDenied,
            Self::RelayDenied => Self::Sender(Domain::parse("sender.example").expect("it is valid")),
            Self::Sender(_) => Self::SenderLiteral,
            Self::SenderLiteral => Self::NullSender,
            Self::NullSender => Self::From,
            Self::From => Self::RecipientLiteral,
            Self::RecipientLiteral => Self::TooLarge(32 << 20),
            Self::TooLarge(_) => Self::FromFields(2),
            Self::FromFields(_) => Self::Header,
            Self::Header => Self::Hops,
            Self::Hops => Self::Nul,
            Self::Nul => Self::Invalid("…".to_owned()),
            Self::Invalid(_) => Self::NoDirectory,
            Self::NoDirectory => Self::Busy,
            Self::Busy => Self::Unavailable,
            Self::Unavailable => Self::Unknown,
            Self::Unknown => Self::StorageFull,
            Self::StorageFull => return None,
        })
    }

    /// Returns what happened and what helps, for the reference.
    fn meaning(&self) -> &'static str {
        match self {
            Self::NoIdentity => "The credential was removed since the client logged in, or there was none.",
            Self::RelayDenied => {
                "The client has no credential, and mail is taken from those that have one: log in, or give its network a credential."
            }
            Self::Sender(_) => {
                "The domain is not one of the tenant's `domains`, in MAIL or in From: add it to the tenant, or send with another."
            }
            Self::SenderLiteral => "The sender is an address such as `<ann@[192.0.2.1]>`.",
            Self::NullSender => {
                "`MAIL FROM:<>` has no domain, and the tenant may send only with its `domains`."
            }
            Self::From => {
                "Who wrote the message cannot be read from it, so it cannot be compared with the tenant's domains."
            }
            Self::RecipientLiteral => "A recipient is an address such as `<ann@[192.0.2.1]>`.",
            Self::TooLarge(_) => "Over `message_size_max` of the node or of the tenant.",
            Self::FromFields(_) => "RFC 5322 requires one From field.",
            Self::Header => "A line of the header has no colon, or no field name.",
            Self::Hops => "The message has passed more than 50 servers: it goes in a circle.",
            Self::Nul => "The message has a NUL byte.",
            Self::Invalid(_) => {
                "The queue checks again what ingress has checked: the versions of the nodes differ, or this is a bug."
            }
            Self::NoDirectory => "The node has just started and knows no tenants and credentials yet.",
            Self::Busy => {
                "Messages in progress use all of `in_flight_bytes_max`: the queue is slower than the clients."
            }
            Self::Unavailable => {
                "No majority of the queue confirmed the message within `submit_timeout`, and it was not stored."
            }
            Self::Unknown => {
                "The connection to the queue broke at the wrong moment: the message may have been stored, so sending it again may make a second copy."
            }
            Self::StorageFull => "The disks of the queue are full: see the alert PostroadDiskFull.",
        }
    }

    /// Returns the gRPC code that submission.proto documents.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoIdentity => Code::Unauthenticated,
            Self::RelayDenied | Self::Sender(_) | Self::SenderLiteral | Self::NullSender => {
                Code::PermissionDenied
            }
            Self::From
            | Self::RecipientLiteral
            | Self::FromFields(_)
            | Self::Header
            | Self::Hops
            | Self::Nul
            | Self::Invalid(_) => Code::InvalidArgument,
            Self::TooLarge(_) => Code::ResourceExhausted,
            Self::NoDirectory | Self::Busy | Self::Unavailable | Self::Unknown | Self::StorageFull => {
                Code::Unavailable
            }
        }
    }

    /// Returns the field of a gRPC request that is at fault.
    pub(crate) fn field(&self) -> Option<&'static str> {
        match self {
            Self::SenderLiteral | Self::NullSender => Some("envelope.sender"),
            Self::RecipientLiteral => Some("envelope.recipients"),
            Self::From | Self::FromFields(_) | Self::Header | Self::Hops | Self::Nul | Self::TooLarge(_) => {
                Some("content")
            }
            _ => None,
        }
    }

    /// Returns the reason in gRPC's error details: stable, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoIdentity => "AUTHENTICATION_REQUIRED",
            Self::RelayDenied => "RELAY_DENIED",
            Self::Sender(_) | Self::SenderLiteral | Self::NullSender => "SENDER_NOT_ALLOWED",
            Self::From => "FROM_NOT_ALLOWED",
            Self::RecipientLiteral => "ADDRESS_LITERAL",
            Self::TooLarge(_) => "MESSAGE_TOO_LARGE",
            Self::FromFields(_) | Self::Header | Self::Nul => "CONTENT_INVALID",
            Self::Hops => "TOO_MANY_HOPS",
            Self::Invalid(_) => "REFUSED_BY_QUEUE",
            Self::NoDirectory => "DIRECTORY_NOT_LOADED",
            Self::Busy => "TOO_MANY_IN_PROGRESS",
            Self::Unavailable => "QUEUE_UNAVAILABLE",
            Self::Unknown => "OUTCOME_UNKNOWN",
            Self::StorageFull => "STORAGE_FULL",
        }
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

    /// Returns the label in metrics and in the mail log: one of [`Self::LABELS`].
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NoIdentity => "identity",
            Self::RelayDenied => "relay",
            Self::Sender(_) | Self::SenderLiteral | Self::NullSender | Self::From => "sender",
            Self::RecipientLiteral => "recipient",
            Self::TooLarge(_) => "size",
            Self::FromFields(_) | Self::Header | Self::Hops | Self::Nul => "content",
            Self::Invalid(_) => "invalid",
            Self::NoDirectory => "no_directory",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::StorageFull => "storage_full",
        }
    }
}
