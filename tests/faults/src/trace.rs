//! What happened, as a running hash: two runs of one seed have the same.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

/// The trace of one simulation; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    hash: Xxh3,
    notes: u64,
    /// The latest notes, where they are wanted.
    kept: Option<Vec<String>>,
}

impl Trace {
    /// Keeps every note as a line.
    pub(crate) fn keep(&self) {
        self.0.lock().kept = Some(Vec::new());
    }

    /// Notes that something happened, with its bytes.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>, bytes: &[u8]) {
        let mut state = self.0.lock();
        state.notes += 1;
        state.hash.update(bytes);
        let line = what.to_string();
        state.hash.update(line.as_bytes());
        let digest = state.hash.digest();
        if let Some(kept) = &mut state.kept {
            kept.push(format!("{line} {digest:x}"));
        }
    }

    /// Returns the number of notes and their hash.
    #[must_use]
    pub(crate) fn digest(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.notes, state.hash.digest())
    }

    /// Takes the lines that were kept.
    #[must_use]
    pub(crate) fn take(&self) -> Vec<String> {
        self.0.lock().kept.take().unwrap_or_default()
    }
}
