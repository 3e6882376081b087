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
