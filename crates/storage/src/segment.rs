//! Segment files: names, allocation, and aligned memory for direct I/O.

use std::{io, sync::Arc};

use crate::{
    fs::{Fs, Store},
    log::BLOCK,
};

/// Names a segment; numbers are never reused in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId {
    pub(crate) number: u64,
    pub(crate) kind: SegmentKind,
}

/// What a segment holds. Recovery reads the kinds in this order: a body that was moved is found where it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SegmentKind {
    /// Entries with their bodies, votes and purge points.
    Entries,
    /// Bodies without their entries: moved out of segments that are freed, or fetched for a snapshot.
    Bodies,
}

impl SegmentKind {
    /// The beginning of the names of its files.
    fn prefix(self) -> &'static str {
        match self {
            Self::Entries => "log",
            Self::Bodies => "cold",
        }
    }
}

impl SegmentId {
    pub(crate) fn name(self) -> String {
        format!("{}-{:016x}", self.kind.prefix(), self.number)
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (prefix, number) = name.split_once('-')?;
        let number = u64::from_str_radix(number, 16).ok()?;
        let kind =
            [SegmentKind::Entries, SegmentKind::Bodies].into_iter().find(|kind| kind.prefix() == prefix)?;
        Some(Self { number, kind })
    }
}

/// Names a spare segment: one that is free to be reused.
pub(crate) fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}")
}

pub(crate) fn parse_spare(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("spare-")?, 16).ok()
}

/// Allocates a file of `bytes` for the reserve.
pub(crate) fn reserve(fs: &dyn Fs, name: &str, bytes: u64) -> io::Result<()> {
    make(fs, name, |file| file.allocate(bytes))
}

/// Fills a new file with zeros, so that later writes change only data and no metadata.
pub(crate) fn prepare(fs: &dyn Fs, name: &str, bytes: u64) -> io::Result<()> {
    make(fs, name, |file| fill(file, bytes))
}

fn make(fs: &dyn Fs, name: &str, fill: impl FnOnce(&dyn Store) -> io::Result<()>) -> io::Result<()> {
    let file = fs.create(name)?;
    let made = fill(file.as_ref()).and_then(|()| fs.sync_dir());
    if made.is_err() {
        // Remove the partial file: the disk may be full.
        let _ = fs.remove(name);
    }
    made
}

fn fill(file: &dyn Store, bytes: u64) -> io::Result<()> {
    file.allocate(bytes)?;
    let mut zeros = AlignedBuffer::default();
    zeros.resize(1 << 20);
    let mut at = 0;
    while at < bytes {
        let part = usize::try_from((bytes - at).min(1 << 20)).expect("at most a mebibyte");
        file.write_at(&zeros.as_slice()[..part], at)?;
        at += part as u64;
    }
    file.sync()
}

/// An open segment.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) file: Arc<dyn Store>,
}

/// Memory aligned to the block size, as direct I/O requires.
#[derive(Default)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Sets the length to `len` bytes. The contents are unspecified if the buffer has to grow.
    pub(crate) fn resize(&mut self, len: usize) {
        if self.start + len > self.memory.len() || self.memory.is_empty() {
            self.memory = vec![0; len + BLOCK];
            self.start = self.memory.as_ptr().align_offset(BLOCK);
        }
        self.len = len;
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Rounds up to a multiple of the block size.
pub(crate) fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}
