//! The contents of a simulated file: what readers see, what has reached the disk, and what lies between.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use crate::log::BLOCK;

/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;

type Page = [u8; BLOCK];

/// Bytes by page; pages of zeros are not stored, and a copy shares the others.
#[derive(Clone, Default)]
struct Pages {
    pages: BTreeMap<u64, Arc<Page>>,
    bytes: u64,
}

/// Splits a range into its page, the range in that page, and the range in the whole.
fn parts(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = usize::try_from(at % BLOCK as u64).expect("less than a page");
        let length = (bytes - done).min(BLOCK - start);
        let whole = done..done + length;
        done += length;
        (length > 0).then(|| (at / BLOCK as u64, start..start + length, whole))
    })
}

impl Pages {
    fn read(&self, bytes: &mut [u8], offset: u64) {
        for (page, inside, whole) in parts(offset, bytes.len()) {
            match self.pages.get(&page) {
                Some(page) => bytes[whole].copy_from_slice(&page[inside]),
                None => bytes[whole].fill(0),
            }
        }
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        self.bytes = self.bytes.max(offset + bytes.len() as u64);
        for (page, inside, whole) in parts(offset, bytes.len()) {
            let part = &bytes[whole];
            let is_zero = part.iter().all(|byte| *byte == 0);
            if is_zero && inside.len() == BLOCK {
                self.pages.remove(&page);
            } else if !is_zero || self.pages.contains_key(&page) {
                let page = self.pages.entry(page).or_insert_with(|| Arc::new([0; BLOCK]));
                Arc::make_mut(page)[inside].copy_from_slice(part);
            }
        }
    }

    fn copy_page(&mut self, from: &Self, page: u64) {
        match from.pages.get(&page) {
            Some(found) => drop(self.pages.insert(page, found.clone())),
            None => drop(self.pages.remove(&page)),
        }
    }
}

/// What a power cut did to a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lost {
    /// Blocks that did not reach the disk.
    pub(super) blocks: u64,
    /// Blocks of which a part did.
    pub(super) torn: u64,
}

/// A file.
#[derive(Clone, Default)]
pub(super) struct File {
    now: Pages,
    /// As of the last sync, and what reached the disk without one.
    durable: Pages,
    /// Pages written since: each may or may not have reached the disk.
    dirty: BTreeSet<u64>,
    /// Whether a name leads to it, so that its bytes count.
    pub(super) is_linked: bool,
}

impl File {
    /// Makes an empty file that a name leads to.
    pub(super) fn linked() -> Self {
        Self { is_linked: true, ..Self::default() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.now.bytes
    }

    pub(super) fn grow(&mut self, bytes: u64) {
        self.now.bytes = self.now.bytes.max(bytes);
    }

    /// Fills `bytes`; returns false where the file ends before.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> bool {
        let is_there = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.now.bytes);
        if is_there {
            self.now.read(bytes, offset);
        }
        is_there
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.now.write(bytes, offset);
        for (page, ..) in parts(offset, bytes.len()) {
            // Zeros over zeros change nothing.
            if self.now.pages.contains_key(&page) || self.durable.pages.contains_key(&page) {
                self.dirty.insert(page);
            }
        }
    }

    /// Writes bytes that are on the disk at once.
    pub(super) fn write_durably(&mut self, bytes: &[u8], offset: u64) {
        self.now.write(bytes, offset);
        self.durable.write(bytes, offset);
    }

    /// Changes one bit, on the disk and for readers; the bits of bytes that have not reached the disk are not on it.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        for pages in [&mut self.now, &mut self.durable] {
            if offset < pages.bytes {
                let mut byte = [0];
                pages.read(&mut byte, offset);
                pages.write(&[byte[0] ^ 1 << bit], offset);
            }
        }
    }

    /// Makes a page zeros, on the disk and for readers.
    pub(super) fn zero_page(&mut self, page: u64) {
        self.now.pages.remove(&page);
        self.durable.pages.remove(&page);
        self.dirty.remove(&page);
    }

    pub(super) fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            self.durable.copy_page(&self.now, page);
        }
        self.durable.bytes = self.now.bytes;
    }

    /// Returns the file after a power cut; `random` decides for each unsynced block, or each sector where a block `tears`,
    /// whether it reached the disk.
    pub(super) fn after_cut(&self, tears: bool, random: &mut dyn FnMut() -> bool) -> (Self, Lost) {
        let (mut kept, mut lost) = (self.durable.clone(), Lost::default());
        for page in &self.dirty {
            let start = page * BLOCK as u64;
            let sectors = if tears { BLOCK / SECTOR } else { 1 };
            let mut reached = 0;
            for sector in 0..sectors {
                let offset = start + (sector * BLOCK / sectors) as u64;
                if random() {
                    reached += 1;
                    let mut bytes = vec![0; BLOCK / sectors];
                    self.now.read(&mut bytes, offset);
                    let end = usize::try_from(self.now.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
                    kept.write(&bytes[..end.min(bytes.len())], offset);
                }
            }
            lost.blocks += u64::from(reached == 0);
            lost.torn += u64::from(0 < reached && reached < sectors);
        }
        if kept.bytes < self.now.bytes && random() {
            kept.bytes = self.now.bytes;
        }
        let after = Self { now: kept.clone(), durable: kept, dirty: BTreeSet::new(), is_linked: true };
        (after, lost)
    }
}
