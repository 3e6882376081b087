//! One group's part of the node's log, as openraft's log storage.

use std::{fmt::Debug, io, ops::RangeBounds};

use openraft::{
    LogState, OptionalSend,
    storage::{IOFlushed, RaftLogReader, RaftLogStorage},
};
use postroad_core::GroupId;
use postroad_storage::{GroupState, Log};

use crate::{
    types::{LogId, RaftEntry, Types, Vote},
    wire,
};

/// Bytes of entries read at a time for a follower.
const READ_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) group: GroupId,
    pub(crate) log: Log,
}

impl Store {
    async fn read(&self, range: std::ops::Range<u64>, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        let (log, group) = (self.log.clone(), self.group);
        let in_memory = log.is_in_memory(group, range.clone());
        let read = move || log.read(group, range, bytes_max);
        let records = if in_memory {
            read()?
        } else {
            postroad_env::blocking(read).await.map_err(io::Error::other)??
        };
        records.into_iter().map(wire::from_record).collect()
    }

    fn end(&self) -> u64 {
        self.log.group(self.group).last.map_or(0, |last| last.index + 1)
    }
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<RaftEntry>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match range.start_bound() {
            Included(start) => *start,
            Excluded(start) => start + 1,
            Unbounded => 0,
        };
        let end = match range.end_bound() {
            Included(end) => end + 1,
            Excluded(end) => *end,
            Unbounded => self.end(),
        };
        self.read(start..end.min(self.end()), usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.group(self.group).vote.as_ref().map(wire::decode_vote).transpose()
    }

    /// Only replication calls it. Nothing is returned of what was purged or truncated meanwhile: openraft may purge what a
    /// stream that it is about to end still reads, and stops the group if that fails. Its follower is sent a snapshot.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        let entries = self.read(start..end, READ_BYTES_MAX).await?;
        if entries.first().is_some_and(|first| first.log_id.index == start) {
            return Ok(entries);
        }
        let GroupState { purged, last, .. } = self.log.group(self.group);
        let is_dropped =
            purged.is_some_and(|purged| start <= purged.index) || last.is_none_or(|last| last.index < start);
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("entry {start} is missing"));
        is_dropped.then(Vec::new).ok_or_else(missing)
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.log.group(self.group);
        Ok(LogState {
            last_purged_log_id: state.purged.map(wire::from_entry_id),
            last_log_id: state.last.map(wire::from_entry_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// Durable on return: a lost vote can elect two leaders.
    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (sender, saved) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        self.log.save_vote(self.group, wire::encode_vote(vote), done);
        saved.await.map_err(io::Error::other)?
    }

    /// Not stored: after a restart the leader says what is committed.
    async fn save_committed(&mut self, _: Option<LogId>) -> io::Result<()> {
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries.into_iter().map(wire::to_record).collect();
        self.log.append(self.group, records, Box::new(move |result| flushed.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(self.group, last.map(|id| id.index));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(self.group, wire::entry_id(&upto));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postroad_core::{ClusterId, NodeId};
    use postroad_storage::{Disk, DiskId, EntryId, Identity, LogConfig, Origin, Record, format, sim::SimFs};

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn store() -> Store {
        let identity = Identity { cluster: ClusterId(1), node: NodeId(1) };
        let fs = SimFs::default();
        format(&fs, identity, Disk { id: DiskId(1), origin: Origin::Form }).unwrap();
        let log = Log::open(Arc::new(fs), LogConfig::default(), identity).unwrap();
        Store { group: GROUP, log }
    }

    fn blank(index: u64) -> Record {
        let entry = RaftEntry {
            log_id: wire::from_entry_id(EntryId { term: 1, index }),
            payload: openraft::EntryPayload::Blank,
        };
        wire::to_record(entry)
    }

    async fn indexes(store: &mut Store, start: u64, end: u64) -> Vec<u64> {
        let entries = store.limited_get_log_entries(start, end).await.unwrap();
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    #[tokio::test]
    async fn a_follower_that_needs_purged_entries_is_sent_none() {
        let mut store = store();
        store.log.append(GROUP, (0..9).map(blank).collect(), Box::new(|_| ()));
        assert_eq!(indexes(&mut store, 3, 6).await, [3, 4, 5]);
        store.log.purge(GROUP, EntryId { term: 1, index: 4 });
        assert_eq!(indexes(&mut store, 3, 6).await, [0; 0], "what is left of it does not follow");
        assert_eq!(indexes(&mut store, 1, 3).await, [0; 0]);
        assert_eq!(indexes(&mut store, 5, 9).await, [5, 6, 7, 8]);
    }
}
