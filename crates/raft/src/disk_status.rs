//! Whether this node's disk is the one that the other queue nodes know, and holds everything the node acknowledged.
//!
//! Every call says which disk the caller knows and what it saw acknowledged (docs/adr/0005); the answer is decided here.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use postroad_core::GroupId;
use postroad_storage::{DiskId, EntryId, Log, Origin};
use tokio::sync::watch;
use tonic::Status as Refusal;

use crate::wire;

/// This node's disk as the other queue nodes see it, the worst last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskStatus {
    /// No call has been refused.
    #[default]
    Accepted,
    /// Others know a different disk for this node: it neither votes nor follows until it has rejoined.
    OtherDisk(DiskId),
    /// The disk holds less than this node acknowledged: it is an old copy, and is not used again.
    RolledBack,
}

/// What a node has acknowledged: its term, and the last entry it had then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Acknowledged {
    pub(crate) term: u64,
    pub(crate) last: EntryId,
}

impl Acknowledged {
    /// Formats it for the metadata of a call.
    pub(crate) fn to_text(self) -> String {
        format!("{}.{}.{}", self.term, self.last.term, self.last.index)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse::<u64>().ok());
        let (term, last_term, index) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Self { term, last: EntryId { term: last_term, index } })
    }
}

/// What peers have acknowledged to this node, by group and node; kept in memory only.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerAcknowledgements(Arc<Mutex<BTreeMap<(GroupId, u64), AcknowledgedByDisk>>>);

#[derive(Clone, Copy, Debug)]
struct AcknowledgedByDisk {
    disk: u64,
    acknowledged: Acknowledged,
}

impl PeerAcknowledgements {
    pub(crate) fn get(&self, group: GroupId, node: u64, disk: u64) -> Acknowledged {
        let peers = self.0.lock();
        peers
            .get(&(group, node))
            .filter(|known| known.disk == disk)
            .map(|known| known.acknowledged)
            .unwrap_or_default()
    }

    /// Keeps the highest.
    pub(crate) fn note(&self, group: GroupId, node: u64, disk: u64, acknowledged: Acknowledged) {
        let mut peers = self.0.lock();
        let known = peers.entry((group, node)).or_insert(AcknowledgedByDisk { disk, acknowledged });
        if known.disk != disk || known.acknowledged < acknowledged {
            *known = AcknowledgedByDisk { disk, acknowledged };
        }
    }
}

/// Refuses calls that are meant for another disk, and keeps the status.
#[derive(Clone, Debug)]
pub(crate) struct DiskGuard {
    log: Log,
    found: Arc<Mutex<Found>>,
    /// What is known outside: an old copy only once its mark is on the disk.
    status: Arc<watch::Sender<DiskStatus>>,
}

/// What the calls have shown. It counts for every call at once, however long the disk takes to write the mark.
#[derive(Debug, Default)]
struct Found {
    /// By the last call of each group.
    groups: BTreeMap<GroupId, DiskStatus>,
    /// The mark of an old copy is on the disk, or the disk refused it.
    is_marked: bool,
}

impl Found {
    fn is_rolled_back(&self) -> bool {
        self.groups.values().any(|status| *status == DiskStatus::RolledBack)
    }

    fn published(&self) -> DiskStatus {
        let statuses = self.groups.values().copied();
        let known = statuses.filter(|status| self.is_marked || *status != DiskStatus::RolledBack);
        known.max().unwrap_or_default()
    }
}

impl DiskGuard {
    pub(crate) fn new(log: Log) -> Self {
        Self { log, found: Arc::default(), status: Arc::new(watch::Sender::new(DiskStatus::Accepted)) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<DiskStatus> {
        self.status.subscribe()
    }

    pub(crate) fn is_rolled_back(&self) -> bool {
        self.found.lock().is_rolled_back()
    }

    /// Refuses a call for a different disk, and any call once the disk has lost something it acknowledged.
    pub(crate) fn check(
        &self,
        group: GroupId,
        to: DiskId,
        acknowledged: Acknowledged,
    ) -> Result<(), Refusal> {
        let ours = self.log.disk().id;
        let is_behind = || self.on_disk(group).is_none_or(|on_disk| on_disk < acknowledged);
        let status = match to == ours {
            _ if self.is_rolled_back() => DiskStatus::RolledBack,
            false => DiskStatus::OtherDisk(to),
            true if is_behind() => DiskStatus::RolledBack,
            true => DiskStatus::Accepted,
        };
        self.set_status(group, status);
        let refuse = |what| Err(Refusal::failed_precondition(what));
        match status {
            DiskStatus::Accepted => Ok(()),
            DiskStatus::OtherDisk(_) => refuse(format!("this node has disk `{ours}`, not `{to}`")),
            DiskStatus::RolledBack => refuse(format!("disk `{ours}` of this node is an old copy")),
        }
    }

    fn set_status(&self, group: GroupId, status: DiskStatus) {
        {
            let mut found = self.found.lock();
            let before = found.groups.get(&group).copied().unwrap_or_default();
            // Rolled back is final, whatever a concurrent call found; the first that finds it writes the mark.
            if before == status || found.is_rolled_back() {
                return;
            }
            found.groups.insert(group, status);
        }
        // What others see of an old copy is on the disk too: it is refused after a restart at any moment.
        self.log_change(group, status);
        let mut found = self.found.lock();
        found.is_marked |= status == DiskStatus::RolledBack;
        self.status.send_replace(found.published());
    }

    /// What the disk holds, to compare with what was acknowledged; `None` when the vote is unreadable.
    fn on_disk(&self, group: GroupId) -> Option<Acknowledged> {
        let state = self.log.group(group);
        let term = match &state.vote {
            Some(vote) => wire::decode_vote(vote).ok()?.leader_id.term,
            None => 0,
        };
        Some(Acknowledged { term, last: state.last.unwrap_or_default() })
    }

    fn log_change(&self, group: GroupId, status: DiskStatus) {
        let disk = self.log.disk().id;
        match status {
            DiskStatus::Accepted => tracing::info!(%group, %disk, "the other queue nodes accept this disk"),
            DiskStatus::OtherDisk(known) if self.log.disk().origin == Origin::Rejoin => {
                tracing::warn!(%group, %disk, %known, "this node's new disk has not joined yet");
            }
            DiskStatus::OtherDisk(known) => tracing::error!(
                %group, %disk, %known,
                "the other queue nodes know a different disk for this node: it neither votes nor follows until it rejoins"
            ),
            DiskStatus::RolledBack => {
                tracing::error!(
                    %group, %disk,
                    "the disk holds less than this node acknowledged, as an old copy would: it is not used again"
                );
                if let Err(error) = self.log.mark_rolled_back() {
                    tracing::error!(%error, "cannot record that this disk is stale");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postroad_core::{ClusterId, NodeId};
    use postroad_storage::{Disk, Identity, LogConfig, format, sim::SimFs};

    use super::*;

    #[test]
    fn r_25_an_old_copy_takes_part_in_nothing_while_its_mark_is_written() {
        let (fs, identity) = (SimFs::default(), Identity { cluster: ClusterId(1), node: NodeId(1) });
        let disk = format(&fs, identity, Disk { id: DiskId(7), origin: Origin::Form }).unwrap();
        let log = Log::open(Arc::new(fs.clone()), LogConfig::default(), identity).unwrap();
        let guard = DiskGuard::new(log);
        let nothing = Acknowledged::default();
        assert!(guard.check(GroupId(1), disk.id, nothing).is_ok());

        fs.hold_at(fs.operations());
        let marking = postroad_env::thread("marking", {
            let guard = guard.clone();
            move || guard.check(GroupId(1), disk.id, acknowledged(3, (3, 10)))
        });
        let marking = marking.unwrap();
        fs.wait_until_held();
        let refused = guard.is_rolled_back() && guard.check(GroupId(2), disk.id, nothing).is_err();
        let published = *guard.subscribe().borrow();
        fs.resume();
        assert!(refused, "a caller who has seen nothing was answered");
        assert_eq!(published, DiskStatus::Accepted, "nobody may rely on a mark that is not on the disk");
        assert!(marking.join().unwrap().is_err());
        let until = postroad_env::now() + Duration::from_secs(20);
        while *guard.subscribe().borrow() != DiskStatus::RolledBack {
            assert!(postroad_env::now() < until, "the mark was not published");
            std::thread::yield_now();
        }
    }

    fn acknowledged(term: u64, last: (u64, u64)) -> Acknowledged {
        Acknowledged { term, last: EntryId { term: last.0, index: last.1 } }
    }

    #[test]
    fn a_later_term_excuses_a_shorter_log() {
        // A later leader may have truncated the log; within a term nothing acknowledged is lost.
        assert!(acknowledged(3, (3, 9)) < acknowledged(3, (3, 10)));
        assert!(acknowledged(3, (2, 10)) < acknowledged(3, (3, 9)));
        assert!(acknowledged(4, (2, 5)) > acknowledged(3, (3, 10)));
    }

    #[test]
    fn acknowledgements_of_another_disk_do_not_count() {
        let (peers, group) = (PeerAcknowledgements::default(), GroupId(1));
        peers.note(group, 2, 7, acknowledged(3, (3, 10)));
        peers.note(group, 2, 7, acknowledged(3, (3, 9)));
        assert_eq!(peers.get(group, 2, 7), acknowledged(3, (3, 10)));
        assert_eq!(peers.get(group, 2, 8), Acknowledged::default());
        peers.note(group, 2, 8, acknowledged(1, (1, 1)));
        assert_eq!(peers.get(group, 2, 8), acknowledged(1, (1, 1)));
    }

    #[test]
    fn an_acknowledgement_is_parsed_back_and_nonsense_is_refused() {
        assert_eq!(Acknowledged::parse(&acknowledged(3, (2, 10)).to_text()), Some(acknowledged(3, (2, 10))));
        for nonsense in ["", "1", "1.2", "1.2.x", "-1.2.3"] {
            assert_eq!(Acknowledged::parse(nonsense), None, "{nonsense}");
        }
    }
}
