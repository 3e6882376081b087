//! The names of simulated files, and which of their changes outlive a power cut.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::file::File;

pub(super) type Inode = Arc<Mutex<File>>;

/// Which changes of names a power cut may undo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// As with a journal: the last ones, a rename whole.
    #[default]
    Journalled,
    /// As without a journal: each entry of the directory by itself, so that of a rename one half may be there.
    Separate,
}

/// An entry of the directory was set, or cleared.
type Change = (String, Option<Inode>);

/// The directory.
#[derive(Clone, Default)]
pub(super) struct Directory {
    now: BTreeMap<String, Inode>,
    /// As of the last sync of the directory.
    durable: BTreeMap<String, Inode>,
    /// The operations since, each with its changes.
    since: Vec<Vec<Change>>,
}

impl Directory {
    pub(super) fn of(files: BTreeMap<String, Inode>) -> Self {
        Self { durable: files.clone(), now: files, since: Vec::new() }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.now.keys()
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &Inode> {
        self.now.values()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Inode> {
        self.now.get(name)
    }

    /// Makes a name lead to a file; returns the file that it led to.
    pub(super) fn create(&mut self, name: &str, file: Inode) -> Option<Inode> {
        self.since.push(vec![(name.to_owned(), Some(file.clone()))]);
        self.now.insert(name.to_owned(), file)
    }

    /// Renames a file; returns the file that the new name led to.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Option<Inode> {
        let file = self.now.remove(from)?;
        self.since.push(vec![(to.to_owned(), Some(file.clone())), (from.to_owned(), None)]);
        self.now.insert(to.to_owned(), file)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Inode> {
        self.since.push(vec![(name.to_owned(), None)]);
        self.now.remove(name)
    }

    pub(super) fn sync(&mut self) {
        for (name, file) in self.since.drain(..).flatten() {
            set(&mut self.durable, name, file);
        }
    }

    /// Returns the names after a power cut, and how many changes were lost; `random` decides what reached the disk.
    pub(super) fn after_cut(
        &self,
        names: Names,
        random: &mut dyn FnMut() -> bool,
    ) -> (BTreeMap<String, Inode>, u64) {
        let (mut kept, mut lost) = (self.durable.clone(), 0);
        for operation in &self.since {
            let is_after_a_lost_one = names == Names::Journalled && lost > 0;
            let whole = names == Names::Journalled && !is_after_a_lost_one && random();
            for (name, file) in operation {
                if whole || names == Names::Separate && random() {
                    set(&mut kept, name.clone(), file.clone());
                } else {
                    lost += 1;
                }
            }
        }
        (kept, lost)
    }
}

fn set(names: &mut BTreeMap<String, Inode>, name: String, file: Option<Inode>) {
    match file {
        Some(file) => drop(names.insert(name, file)),
        None => drop(names.remove(&name)),
    }
}
