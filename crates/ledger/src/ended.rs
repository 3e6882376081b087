//! The ids of messages that ended, kept while they might be proposed again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use postroad_core::{MessageId, Timestamp};

use crate::codec::{Corrupt, Put, Take};

/// Ids are kept for this long after their timestamp; older ids are refused.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(15 * 60);

/// Ids are grouped by timestamp, so that old ones are dropped together and a copy costs a pointer per group.
const BIN: Duration = Duration::from_secs(4);

#[derive(Clone, Debug, Default)]
pub(crate) struct EndedIds {
    bins: BTreeMap<u64, Arc<BTreeSet<MessageId>>>,
}

impl EndedIds {
    pub(crate) fn insert(&mut self, id: MessageId) {
        Arc::make_mut(self.bins.entry(bin(id.at())).or_default()).insert(id);
    }

    pub(crate) fn contains(&self, id: MessageId) -> bool {
        self.bins.get(&bin(id.at())).is_some_and(|ids| ids.contains(&id))
    }

    /// Drops ids with a timestamp before [`Self::oldest`].
    pub(crate) fn forget_before(&mut self, now: Timestamp) {
        let oldest = bin(Self::oldest(now));
        while self.bins.first_key_value().is_some_and(|(bin, _)| *bin < oldest) {
            self.bins.pop_first();
        }
    }

    /// Ids with an earlier timestamp are not kept.
    pub(crate) fn oldest(now: Timestamp) -> Timestamp {
        now.before(REMEMBERED_FOR)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.count(self.bins.values().map(|ids| ids.len()).sum());
        for id in self.bins.values().flat_map(|ids| ids.iter()) {
            out.id(*id);
        }
    }

    pub(crate) fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        let mut ended = Self::default();
        for _ in 0..from.count(16)? {
            ended.insert(from.id()?);
        }
        Ok(ended)
    }
}

fn bin(at: Timestamp) -> u64 {
    at.as_millis() / BIN.as_millis() as u64
}
