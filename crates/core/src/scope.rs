//! What an operator can suspend.

use std::sync::Arc;

use crate::{NodeId, PoolId, SourceId, TenantId};

/// A part of the mail flow that can be suspended: no attempt in it starts until it is resumed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Mail to a site, from every source.
    Site(Arc<str>),
    /// Mail from one source to one site.
    Lane {
        /// The source.
        source: SourceId,
        /// The site.
        site: Arc<str>,
    },
    /// Mail from a source, to every site.
    Source(SourceId),
    /// Mail that is sent from the sources of a pool.
    Pool(PoolId),
    /// A tenant's mail.
    Tenant(TenantId),
    /// An outbound node: it owns no sources.
    Node(NodeId),
}

impl Scope {
    /// The word for each kind of scope.
    pub const KINDS: &'static [&'static str] = &["site", "lane", "source", "pool", "tenant", "node"];

    /// Returns the word for its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Site(_) => "site",
            Self::Lane { .. } => "lane",
            Self::Source(_) => "source",
            Self::Pool(_) => "pool",
            Self::Tenant(_) => "tenant",
            Self::Node(_) => "node",
        }
    }
}
