//! Parts of a message, written without joining them.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// The most parts of one write.
pub(super) const SLICES_MAX: usize = 64;

/// The parts that remain to be written.
#[derive(Debug)]
pub(super) struct Parts {
    parts: Vec<Bytes>,
    /// Parts before this one are written.
    first: usize,
}

impl Parts {
    pub(super) fn new(parts: Vec<Bytes>) -> Self {
        let mut all = Self { parts, first: 0 };
        all.skip_empty();
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == self.parts.len()
    }

    /// Returns how many bytes are left.
    pub(super) fn bytes(&self) -> u64 {
        self.parts[self.first..].iter().map(|part| part.len() as u64).sum()
    }

    /// Fills `slices` from the front; returns the number of filled slices.
    pub(super) fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let left = &self.parts[self.first..];
        for (slice, part) in slices.iter_mut().zip(left) {
            *slice = IoSlice::new(part);
        }
        left.len().min(SLICES_MAX)
    }

    pub(super) fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let part = &mut self.parts[self.first];
            let here = written.min(part.len());
            part.advance(here);
            written -= here;
            self.skip_empty();
        }
    }

    fn skip_empty(&mut self) {
        while self.parts.get(self.first).is_some_and(Bytes::is_empty) {
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_partial_writes() {
        for step in 1..20 {
            let texts = ["", "a", "", "bcd", "efghijk", ""];
            let mut parts =
                Parts::new(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect());
            let mut written = String::new();
            while !parts.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = parts.fill(&mut slices);
                let bytes: Vec<u8> =
                    slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(step).collect();
                written.push_str(std::str::from_utf8(&bytes).unwrap());
                parts.advance(bytes.len());
            }
            assert_eq!((written.as_str(), parts.bytes()), ("abcdefghijk", 0));
        }
    }
}
