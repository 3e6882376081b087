//! The difference between two revisions of the directory.

use crate::{
    directory::{Directory, Row},
    item::{Item, ItemName},
};

/// What changed between two revisions, or everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The revision of a reader that has applied this.
    pub revision: u64,
    /// `items` are all items there are.
    pub full: bool,
    /// Items that changed, by kind and name.
    pub items: Vec<Item>,
    /// Removed items. One may also be in `items`: it was removed and created again.
    pub removed: Vec<ItemName>,
}

impl Delta {
    /// Returns true when nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.full && self.items.is_empty() && self.removed.is_empty()
    }
}

/// The revision is older than the removals that are kept: the reader needs [`Directory::everything`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld;

impl std::fmt::Display for TooOld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the revision is too old")
    }
}

impl std::error::Error for TooOld {}

impl Directory {
    /// Returns what a reader at `revision` lacks; nothing where the reader is ahead of this replica.
    ///
    /// # Errors
    /// Removals since then are no longer kept; see [`Directory::everything`].
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

    /// Returns all items, for a reader that has none.
    #[must_use]
    pub fn everything(&self) -> Delta {
        let items = self.items().cloned().collect();
        Delta { revision: self.revision, full: true, items, removed: Vec::new() }
    }
}
