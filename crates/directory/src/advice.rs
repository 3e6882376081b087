//! What is legal and probably a mistake: a change that names what does not exist, or comes before what it needs.
//!
//! The state machine accepts both, so that a repeated command changes nothing and items may come in any order.
//! The service tells the operator before it proposes the command.

use std::fmt;

use postroad_core::NodeId;

use crate::{
    change::{Change, Put, PutSource, PutSuspension, ScopeName},
    directory::Directory,
    item::{ItemName, Kind},
};

/// A change that is applied and may not do what was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A source is pinned to nodes of which these have never claimed a lease, or have given it up.
    UnknownNodes {
        /// The source.
        source: ItemName,
        /// The nodes.
        nodes: Vec<NodeId>,
        /// No other node may own it: nothing is sent from it for now.
        is_unusable: bool,
    },
    /// A node is suspended that has never claimed a lease, or has given it up.
    SuspendedNodeUnknown(NodeId),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNodes { source, nodes, is_unusable } => {
                let nodes: Vec<String> = nodes.iter().map(|node| format!("`{node}`")).collect();
                let nodes = nodes.join(", ");
                write!(f, "`{source}`: no outbound node {nodes} is running in this cluster")?;
                if *is_unusable { f.write_str("; nothing is sent from it until one starts") } else { Ok(()) }
            }
            Self::SuspendedNodeUnknown(node) => {
                write!(
                    f,
                    "no outbound node `{node}` is running in this cluster; once it starts it gets no sources"
                )
            }
        }
    }
}

impl Directory {
    /// Returns the items that a change would remove and that do not exist.
    #[must_use]
    pub fn missing(&self, changes: &[Change]) -> Vec<ItemName> {
        let absent = |change: &Change| match change {
            Change::Remove(name) => self.item(name).is_none().then(|| name.clone()),
            Change::Put(_) => None,
        };
        changes.iter().filter_map(absent).collect()
    }

    /// Returns what is probably not meant.
    #[must_use]
    pub fn warnings(&self, changes: &[Change]) -> Vec<Warning> {
        let warnings = changes.iter().filter_map(|change| match change {
            Change::Put(Put::Source(source)) => self.unknown_nodes(source),
            Change::Put(Put::Suspension(PutSuspension { scope: ScopeName::Node(node), .. })) => {
                (!self.is_running(*node)).then_some(Warning::SuspendedNodeUnknown(*node))
            }
            _ => None,
        });
        warnings.collect()
    }

    fn is_running(&self, node: NodeId) -> bool {
        self.item(&ItemName::node(node)).is_some()
    }

    fn unknown_nodes(&self, source: &PutSource) -> Option<Warning> {
        let nodes: Vec<NodeId> =
            source.nodes.iter().copied().filter(|node| !self.is_running(*node)).collect();
        let is_unusable = nodes.len() == source.nodes.len();
        let name = ItemName::new(Kind::Source, source.name.clone());
        (!nodes.is_empty()).then_some(Warning::UnknownNodes { source: name, nodes, is_unusable })
    }
}
