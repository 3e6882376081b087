//! What a reader that knows one revision needs to know another.

use crate::{
    directory::{Directory, Row},
    item::{Item, ItemName},
};

/// What changed between two revisions, or everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The revision a reader is at once it has taken this over.
    pub revision: u64,
    /// These items are all there are; what the reader knew besides is gone.
    pub full: bool,
    /// Items that are not what they were, by kind and name.
    pub items: Vec<Item>,
    /// What is gone. An item may be here and in `items`: it was removed and made anew.
    pub removed: Vec<ItemName>,
}

impl Delta {
    /// Returns true when there is nothing to take over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.full && self.items.is_empty() && self.removed.is_empty()
    }
}

/// The revision lies further back than removals are remembered: only everything helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld;

impl std::fmt::Display for TooOld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the revision lies too far back")
    }
}

impl std::error::Error for TooOld {}

impl Directory {
    /// Returns what a reader at `revision` lacks. One that is further than this replica lacks nothing it could be told.
    ///
    /// # Errors
    /// Removals since then have been forgotten; see [`Directory::everything`].
    pub fn changes_since(&self, revision: u64) -> Result<Delta, TooOld> {
        if revision < self.forgotten {
            return Err(TooOld);
        }
        let newer = |row: &&Row| row.revision > revision;
        let removed = self.removed.iter().filter(|(at, _)| *at > revision);
        Ok(Delta {
            revision: self.revision.max(revision),
            full: false,
            items: self.rows.values().filter(newer).map(|row| row.item.clone()).collect(),
            removed: removed.map(|(_, name)| name.clone()).collect(),
        })
    }

    /// Returns what a reader needs who knows nothing.
    #[must_use]
    pub fn everything(&self) -> Delta {
        let items = self.items().cloned().collect();
        Delta { revision: self.revision, full: true, items, removed: Vec::new() }
    }
}
