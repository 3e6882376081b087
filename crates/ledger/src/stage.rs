//! Chunks of large messages, staged until the message itself is accepted.

use std::{collections::BTreeMap, time::Duration};

use postroad_core::{MessageId, Timestamp};

use crate::{
    codec::{Corrupt, Put, Take},
    command::Refusal,
    row::BodyRef,
};

/// Chunks are dropped after this long without their message.
pub const STAGED_FOR: Duration = Duration::from_secs(10 * 60);

/// Chunks by message; ids sort by their timestamp, so the oldest come first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    messages: BTreeMap<MessageId, BTreeMap<u32, BodyRef>>,
    chunks: usize,
}

impl Stage {
    /// Stores a chunk; one that is staged again replaces the first.
    pub(crate) fn put_chunk(
        &mut self,
        now: Timestamp,
        message: MessageId,
        number: u32,
        part: BodyRef,
        chunks_max: usize,
    ) -> Result<(), Refusal> {
        self.forget_before(now.before(STAGED_FOR));
        if message.at() < now.before(STAGED_FOR) {
            return Err(Refusal::TooOld);
        }
        if self.chunks >= chunks_max {
            return Err(Refusal::StageFull);
        }
        if self.messages.entry(message).or_default().insert(number, part).is_none() {
            self.chunks += 1;
        }
        Ok(())
    }

    fn forget_before(&mut self, oldest: Timestamp) {
        while let Some(first) = self.messages.first_entry().filter(|entry| entry.key().at() < oldest) {
            self.chunks -= first.remove().len();
        }
    }

    /// Takes the chunks of a message if all `count` of them are there.
    pub(crate) fn take_chunks(&mut self, message: MessageId, count: u32) -> Option<Box<[BodyRef]>> {
        let chunks = self.messages.get(&message)?;
        let complete = count > 0 && chunks.len() == count as usize && chunks.keys().copied().eq(0..count);
        if !complete {
            return None;
        }
        let chunks = self.messages.remove(&message)?;
        self.chunks -= chunks.len();
        Some(chunks.into_values().collect())
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = BodyRef> {
        self.messages.values().flat_map(|chunks| chunks.values().copied())
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.count(self.chunks);
        for (message, chunks) in &self.messages {
            for (number, part) in chunks {
                out.id(*message);
                out.u32(*number);
                out.u64(part.index);
                out.u32(part.slot);
            }
        }
    }

    pub(crate) fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        let mut stage = Self::default();
        for _ in 0..from.count(32)? {
            let (message, number) = (from.id()?, from.u32()?);
            let part = BodyRef { index: from.u64()?, slot: from.u32()? };
            if stage.messages.entry(message).or_default().insert(number, part).is_some() {
                return Err(Corrupt);
            }
            stage.chunks += 1;
        }
        Ok(stage)
    }
}
