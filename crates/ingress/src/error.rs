//! What can go wrong: when the role starts, and with one message.

use std::net::SocketAddr;

use postroad_cluster::SubmitError;
use postroad_core::{Domain, Reply};
use tonic::{Code, Status};

/// Why the role did not start; all of them are faults of this node's configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on `{0}`")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// A listener wants TLS from the first byte, and there is no certificate.
    #[error("the listener on `{0}` needs a certificate")]
    NoCertificate(SocketAddr),
}

/// Why a message, or a client, is refused.
///
/// The first group is the client's to mend; with the second the same message may be sent again.
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
    #[error("the From field is not one list of addresses")]
    From,
    #[error("mail to address literals is not carried")]
    RecipientLiteral,
    #[error("a message may have {0} bytes at most")]
    TooLarge(u64),
    #[error("the message has {0} From fields")]
    FromFields(usize),
    #[error("the header is ended by a line that is no field")]
    Header,
    #[error("too many hops")]
    Hops,
    #[error("NUL is not allowed")]
    Nul,
    #[error("the queue refused it: {0}")]
    Invalid(String),

    #[error("who may send is not known yet")]
    NoDirectory,
    #[error("too much mail is waiting")]
    Busy,
    #[error("the message cannot be stored just now")]
    Unavailable,
    #[error("it is not known whether the message was stored")]
    Unknown,
    #[error("the queue's disk is full")]
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
    /// The SMTP reply: the house's choice where the standards leave one.
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

    /// The gRPC status, as the comment of the service's definition promises it.
    pub(crate) fn status(&self) -> Status {
        let message = match self.field() {
            Some(field) => format!("{field}: {self}"),
            None => self.to_string(),
        };
        Status::new(self.code(), message)
    }

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

    fn field(&self) -> Option<&'static str> {
        match self {
            Self::SenderLiteral | Self::NullSender => Some("envelope.sender"),
            Self::RecipientLiteral => Some("envelope.recipients"),
            Self::From | Self::FromFields(_) | Self::Header | Self::Hops | Self::Nul | Self::TooLarge(_) => {
                Some("content")
            }
            _ => None,
        }
    }

    /// The label in metrics.
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
