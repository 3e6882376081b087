//! Why a domain has no usable mail host, and whether to retry.

use postroad_core::{EnhancedCode, reply::enhanced};

/// Why a domain has no mail hosts to try now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The domain does not exist (NXDOMAIN).
    #[error("the domain does not exist")]
    NoSuchDomain,
    /// The domain has a null MX: it accepts no mail (RFC 7505).
    #[error("the domain accepts no mail (null MX)")]
    NullMx,
    /// The domain exists but has neither MX nor address records.
    #[error("the domain has neither MX nor address records")]
    NoMailHost,
    /// All MX targets are unusable: an IP address, `localhost`, a single label.
    #[error("the MX records of the domain name no valid host")]
    BadTarget,
    /// None of the mail hosts has an address.
    #[error("no mail host of the domain has an address")]
    NoAddress,
    /// The lookup failed: a name server failed, was unreachable or timed out.
    #[error("DNS lookup failed: {0}")]
    Temporary(String),
    /// This node could not ask: it is out of descriptors or buffers.
    #[error("DNS lookup not possible: {0}")]
    Exhausted(String),
}

impl DnsError {
    /// Returns true when a retry is pointless: the fault is in the receiver's DNS records.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NoSuchDomain | Self::NullMx | Self::NoMailHost | Self::BadTarget => true,
            Self::NoAddress | Self::Temporary(_) | Self::Exhausted(_) => false,
        }
    }

    /// Returns true when the lookup itself failed, which says nothing about the domain.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Temporary(_) | Self::Exhausted(_))
    }

    /// Returns the matching SMTP reply code and enhanced code.
    #[must_use]
    pub fn codes(&self) -> (u16, EnhancedCode) {
        match self {
            Self::NoSuchDomain => (550, enhanced(5, 1, 2)),
            // RFC 7505 4.2.
            Self::NullMx => (556, enhanced(5, 1, 10)),
            Self::NoMailHost | Self::BadTarget => (550, enhanced(5, 4, 4)),
            Self::NoAddress => (451, enhanced(4, 4, 4)),
            Self::Temporary(_) | Self::Exhausted(_) => (451, enhanced(4, 4, 3)),
        }
    }
}
