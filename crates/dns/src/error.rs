//! Why mail for a domain has no way, and whether to come back.

use postroad_core::{EnhancedCode, reply::enhanced};

/// Why a domain has no mail hosts that can be tried now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The domain does not exist (NXDOMAIN).
    #[error("the domain does not exist")]
    NoSuchDomain,
    /// The domain says that it takes no mail (RFC 7505).
    #[error("the domain takes no mail")]
    NullMx,
    /// The domain exists, has no MX, and has no address to stand in for one.
    #[error("the domain has neither a mail host nor an address")]
    NoMailHost,
    /// Every mail host is named in a way that leads nowhere: an address, `localhost`, a single label.
    #[error("the mail hosts of the domain are not host names")]
    BadTarget,
    /// None of the mail hosts has an address just now.
    #[error("none of the mail hosts has an address")]
    NoAddress,
    /// The question was not answered: a server failed, could not be reached or took too long.
    #[error("the domain cannot be looked up just now: {0}")]
    Temporary(String),
}

impl DnsError {
    /// Returns true when the same question will have the same answer later: the receiver's fault, and no reason to retry.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NoSuchDomain | Self::NullMx | Self::NoMailHost | Self::BadTarget => true,
            Self::NoAddress | Self::Temporary(_) => false,
        }
    }

    /// Returns true when the failure is on our side or between us and the answer, and so says nothing about the domain.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Temporary(_))
    }

    /// Returns the SMTP reply code and the enhanced code that tell a sender the same.
    #[must_use]
    pub fn codes(&self) -> (u16, EnhancedCode) {
        match self {
            Self::NoSuchDomain => (550, enhanced(5, 1, 2)),
            // RFC 7505 4.2.
            Self::NullMx => (556, enhanced(5, 1, 10)),
            Self::NoMailHost | Self::BadTarget => (550, enhanced(5, 4, 4)),
            Self::NoAddress => (451, enhanced(4, 4, 4)),
            Self::Temporary(_) => (451, enhanced(4, 4, 3)),
        }
    }
}
