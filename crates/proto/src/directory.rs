//! The directory on the wire and in its log: items, changes, updates and commands.

mod item;
mod put;
mod suspension;

use std::{fmt::Display, net::IpAddr};

use bytes::Bytes;
use ipnet::IpNet;
use postroad_core::{Domain, Epoch, NodeId, SourceId, Timestamp};
use postroad_directory::{Change, Command, Delta};
use prost::Message;

use crate::{
    convert::{Malformed, required},
    log::BatchError,
};

pub use crate::generated::directory as wire;

/// About how many bytes of items one frame of an update holds; a larger update is split.
const FRAME_BYTES: usize = 1 << 20;

/// Commands that were committed together: the head of a log entry of group 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// To be applied in this order.
    pub commands: Vec<Command>,
    /// The commands depend on what the leader knew in this term, and are void in any other; `None` for any term.
    pub term: Option<u64>,
}

impl Entry {
    /// Writes the entry as the head of a log entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let commands = self.commands.iter().map(|command| wire::Command { command: Some(command.into()) });
        let term = self.term.unwrap_or_default();
        wire::Entry { commands: commands.collect(), term }.encode_to_vec().into()
    }

    /// Reads the head of a log entry.
    ///
    /// # Errors
    /// The bytes were written by a newer version, or are not an entry.
    pub fn decode(head: Bytes) -> Result<Self, BatchError> {
        let entry = wire::Entry::decode(head)?;
        let commands = entry.commands.into_iter();
        let commands = commands.map(|command| required(command.command, "command")?.try_into());
        let term = Some(entry.term).filter(|term| *term != 0);
        Ok(Self { commands: commands.collect::<Result<_, Malformed>>()?, term })
    }
}

/// Splits a delta into frames that fit the transport; all but the last say that more follows.
#[must_use]
pub fn update_frames(delta: &Delta) -> Vec<wire::Update> {
    let frame = |full| wire::Update { revision: delta.revision, full, more: true, ..Default::default() };
    let (mut frames, mut current, mut bytes) = (Vec::new(), frame(delta.full), 0);
    for item in &delta.items {
        let item = wire::Item::from(item);
        if bytes + item.encoded_len() > FRAME_BYTES && !current.items.is_empty() {
            frames.push(std::mem::replace(&mut current, frame(false)));
            bytes = 0;
        }
        bytes += item.encoded_len();
        current.items.push(item);
    }
    current.removed = delta.removed.iter().map(Into::into).collect();
    current.more = false;
    frames.push(current);
    frames
}

/// Puts the frames of updates together.
#[derive(Debug, Default)]
pub struct UpdateReader {
    delta: Delta,
}

impl UpdateReader {
    /// Reads a frame and returns the update it completes, if it does.
    ///
    /// # Errors
    /// The frame holds something that this version does not know.
    pub fn read(&mut self, frame: wire::Update) -> Result<Option<Delta>, Malformed> {
        self.delta.revision = frame.revision;
        self.delta.full |= frame.full;
        for item in frame.items {
            self.delta.items.push(item.try_into()?);
        }
        for name in frame.removed {
            self.delta.removed.push(name.try_into()?);
        }
        Ok((!frame.more).then(|| std::mem::take(&mut self.delta)))
    }
}

impl From<&Change> for wire::Change {
    fn from(change: &Change) -> Self {
        use wire::change::Change as Wire;
        let change = match change {
            Change::Put(put) => Wire::Put(put.into()),
            Change::Remove(name) => Wire::Remove(name.into()),
        };
        Self { change: Some(change) }
    }
}

impl TryFrom<wire::Change> for Change {
    type Error = Malformed;

    fn try_from(change: wire::Change) -> Result<Self, Malformed> {
        use wire::change::Change as Wire;
        match required(change.change, "change")? {
            Wire::Put(put) => put.try_into().map(Self::Put),
            Wire::Remove(name) => name.try_into().map(Self::Remove),
        }
    }
}

impl From<&Command> for wire::command::Command {
    fn from(command: &Command) -> Self {
        match command {
            Command::Change(changes) => {
                Self::Change(wire::Changes { changes: changes.iter().map(Into::into).collect() })
            }
            Command::Claim { node, incarnation } => {
                Self::Claim(wire::Claim { node: node.0, incarnation: *incarnation })
            }
            Command::Grant { source, node, incarnation } => {
                Self::Grant(wire::Grant { source: source.0, node: node.0, incarnation: *incarnation })
            }
            Command::Revoke { node, incarnation } => {
                Self::Revoke(wire::Revoke { node: node.0, incarnation: *incarnation })
            }
            Command::ReleaseSource { source, node, incarnation, epoch } => {
                Self::ReleaseSource(wire::ReleaseSource {
                    source: source.0,
                    node: node.0,
                    incarnation: *incarnation,
                    epoch: epoch.0,
                })
            }
            Command::EndSuspension { name, until } => Self::EndSuspension(wire::EndSuspension {
                name: name.to_string(),
                until_millis: until.as_millis(),
            }),
        }
    }
}

impl TryFrom<wire::command::Command> for Command {
    type Error = Malformed;

    fn try_from(command: wire::command::Command) -> Result<Self, Malformed> {
        use wire::command::Command as Wire;
        Ok(match command {
            Wire::Change(changes) => {
                let changes = changes.changes.into_iter().map(Change::try_from);
                Self::Change(changes.collect::<Result<_, _>>()?)
            }
            Wire::Claim(claim) => Self::Claim { node: NodeId(claim.node), incarnation: claim.incarnation },
            Wire::Grant(grant) => Self::Grant {
                source: SourceId(grant.source),
                node: NodeId(grant.node),
                incarnation: grant.incarnation,
            },
            Wire::Revoke(revoke) => {
                Self::Revoke { node: NodeId(revoke.node), incarnation: revoke.incarnation }
            }
            Wire::ReleaseSource(release) => Self::ReleaseSource {
                source: SourceId(release.source),
                node: NodeId(release.node),
                incarnation: release.incarnation,
                epoch: Epoch(release.epoch),
            },
            Wire::EndSuspension(end) => {
                Self::EndSuspension { name: end.name.into(), until: Timestamp::from_millis(end.until_millis) }
            }
        })
    }
}

fn texts<T: Display>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

fn domain(text: &str) -> Result<Domain, Malformed> {
    Domain::parse(text).map_err(|_| Malformed("domain"))
}

fn address(text: Option<String>) -> Result<Option<IpAddr>, Malformed> {
    text.map(|text| text.parse().map_err(|_| Malformed("address"))).transpose()
}

fn networks(texts: &[String]) -> Result<Vec<IpNet>, Malformed> {
    texts.iter().map(|text| text.parse().map_err(|_| Malformed("networks"))).collect()
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn nodes(numbers: Vec<u64>) -> Vec<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

#[cfg(test)]
mod tests;
