//! Whether this node may count as itself: it has the disk that others know, with everything it once acknowledged.
//!
//! Others say in every call what they know (docs/adr/0005); what follows from that is decided here.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use postroad_core::GroupId;
use postroad_storage::{DiskId, EntryId, Log, Origin};
use tokio::sync::watch;
use tonic::Status as Refusal;

use crate::wire;

/// What others make of this node, the worst last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nobody has complained.
    #[default]
    Good,
    /// Others know another disk for this node: this one neither votes nor follows until it is taken in.
    OtherDisk(DiskId),
    /// The disk holds less than this node once acknowledged: it is an old copy, and is not used again.
    GoneBack,
}

/// What a peer has acknowledged: a term it has heard of, and an entry it had then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) term: u64,
    pub(crate) last: EntryId,
}

impl Seen {
    /// As it stands in the metadata of a call.
    pub(crate) fn to_text(self) -> String {
        format!("{}.{}.{}", self.term, self.last.term, self.last.index)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse::<u64>().ok());
        let (term, last_term, index) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Self { term, last: EntryId { term: last_term, index } })
    }
}

/// What this node's peers have acknowledged to it, by group and node; kept while the process lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenPeers(Arc<Mutex<BTreeMap<(GroupId, u64), SeenOfDisk>>>);

#[derive(Clone, Copy, Debug)]
struct SeenOfDisk {
    disk: u64,
    seen: Seen,
}

impl SeenPeers {
    pub(crate) fn of(&self, group: GroupId, node: u64, disk: u64) -> Seen {
        let peers = self.0.lock();
        peers
            .get(&(group, node))
            .filter(|known| known.disk == disk)
            .map(|known| known.seen)
            .unwrap_or_default()
    }

    /// Remembers what is more than was known.
    pub(crate) fn note(&self, group: GroupId, node: u64, disk: u64, seen: Seen) {
        let mut peers = self.0.lock();
        let known = peers.entry((group, node)).or_insert(SeenOfDisk { disk, seen });
        if known.disk != disk || known.seen < seen {
            *known = SeenOfDisk { disk, seen };
        }
    }
}

/// Keeps the standing of this node.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    log: Log,
    /// As the last caller of each group saw it.
    groups: Arc<Mutex<BTreeMap<GroupId, Standing>>>,
    standing: Arc<watch::Sender<Standing>>,
}

impl Door {
    pub(crate) fn new(log: Log) -> Self {
        Self { log, groups: Arc::default(), standing: Arc::new(watch::Sender::new(Standing::Good)) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(crate) fn has_gone_back(&self) -> bool {
        *self.standing.borrow() == Standing::GoneBack
    }

    /// Lets a call in whose caller knows this disk, and nothing that it has forgotten.
    pub(crate) fn admit(&self, group: GroupId, to: DiskId, seen: Seen) -> Result<(), Refusal> {
        let ours = self.log.disk().id;
        let has_forgotten = || self.own(group).is_none_or(|own| own < seen);
        let standing = match to == ours {
            _ if self.has_gone_back() => Standing::GoneBack,
            false => Standing::OtherDisk(to),
            true if has_forgotten() => Standing::GoneBack,
            true => Standing::Good,
        };
        self.set(group, standing);
        let refuse = |what| Err(Refusal::failed_precondition(what));
        match standing {
            Standing::Good => Ok(()),
            Standing::OtherDisk(_) => refuse(format!("this node has disk `{ours}`, not `{to}`")),
            Standing::GoneBack => refuse(format!("disk `{ours}` of this node has gone back")),
        }
    }

    fn set(&self, group: GroupId, standing: Standing) {
        let mut groups = self.groups.lock();
        let before = groups.get(&group).copied().unwrap_or_default();
        // A disk that has gone back stays so, whatever a call that came at the same time has found.
        if before != standing && before != Standing::GoneBack {
            groups.insert(group, standing);
            let worst = groups.values().max().copied().unwrap_or_default();
            self.standing.send_replace(worst);
            drop(groups);
            self.tell(group, standing);
        }
    }

    /// What this node has, to be compared with what it has acknowledged; `None` when it cannot be read.
    fn own(&self, group: GroupId) -> Option<Seen> {
        let state = self.log.group(group);
        let term = match &state.vote {
            Some(vote) => wire::decode_vote(vote).ok()?.leader_id.term,
            None => 0,
        };
        Some(Seen { term, last: state.last.unwrap_or_default() })
    }

    fn tell(&self, group: GroupId, standing: Standing) {
        let disk = self.log.disk().id;
        match standing {
            Standing::Good => tracing::info!(%group, %disk, "the other queue nodes know this disk"),
            Standing::OtherDisk(known) if self.log.disk().origin == Origin::Rejoin => {
                tracing::warn!(%group, %disk, %known, "the other queue nodes have not taken this disk in yet");
            }
            Standing::OtherDisk(known) => tracing::error!(
                %group, %disk, %known,
                "the other queue nodes know another disk for this node: it does not count until it has rejoined"
            ),
            Standing::GoneBack => {
                tracing::error!(
                    %group, %disk,
                    "the disk holds less than this node once acknowledged, as an old copy would: it is not used again"
                );
                if let Err(error) = self.log.give_up() {
                    tracing::error!(%error, "that the disk is an old copy cannot be written down");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(term: u64, last: (u64, u64)) -> Seen {
        Seen { term, last: EntryId { term: last.0, index: last.1 } }
    }

    #[test]
    fn a_later_term_excuses_a_shorter_log() {
        // What a leader of a later term replaced may be shorter; within a term nothing acknowledged goes.
        assert!(seen(3, (3, 9)) < seen(3, (3, 10)));
        assert!(seen(3, (2, 10)) < seen(3, (3, 9)));
        assert!(seen(4, (2, 5)) > seen(3, (3, 10)));
    }

    #[test]
    fn what_was_seen_of_another_disk_does_not_count() {
        let (peers, group) = (SeenPeers::default(), GroupId(1));
        peers.note(group, 2, 7, seen(3, (3, 10)));
        peers.note(group, 2, 7, seen(3, (3, 9)));
        assert_eq!(peers.of(group, 2, 7), seen(3, (3, 10)));
        assert_eq!(peers.of(group, 2, 8), Seen::default());
        peers.note(group, 2, 8, seen(1, (1, 1)));
        assert_eq!(peers.of(group, 2, 8), seen(1, (1, 1)));
    }

    #[test]
    fn it_survives_the_wire_and_nonsense_does_not() {
        assert_eq!(Seen::parse(&seen(3, (2, 10)).to_text()), Some(seen(3, (2, 10))));
        for nonsense in ["", "1", "1.2", "1.2.x", "-1.2.3"] {
            assert_eq!(Seen::parse(nonsense), None, "{nonsense}");
        }
    }
}
