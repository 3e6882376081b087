//! Names that many rows share, such as those of sites: a row has a number.

use std::{collections::BTreeMap, sync::Arc};

use crate::pages::Pages;

/// Names, each kept once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// Each name, and how many rows use it.
    pub(crate) rows: Pages<(Arc<str>, u32)>,
    slots: BTreeMap<Arc<str>, u32>,
}

impl Names {
    /// Returns the slot of a name, and counts one more use.
    pub(crate) fn intern(&mut self, name: &str) -> u32 {
        if let Some(slot) = self.slots.get(name) {
            self.rows.get_mut(*slot).expect("the index names rows that exist").1 += 1;
            return *slot;
        }
        let name: Arc<str> = name.into();
        let slot = self.rows.insert((name.clone(), 1));
        self.slots.insert(name, slot);
        slot
    }

    /// Counts one more use.
    pub(crate) fn retain(&mut self, slot: u32) {
        self.rows.get_mut(slot).expect("a row has the number of a name that exists").1 += 1;
    }

    /// Counts one use less, and returns the name.
    pub(crate) fn release(&mut self, slot: u32) -> Arc<str> {
        let (name, uses) = self.rows.get_mut(slot).expect("a row has the number of a name that exists");
        *uses -= 1;
        let (name, is_unused) = (name.clone(), *uses == 0);
        if is_unused {
            self.slots.remove(&name);
            self.rows.remove(slot);
        }
        name
    }

    pub(crate) fn name(&self, slot: u32) -> &Arc<str> {
        &self.rows.get(slot).expect("a row has the number of a name that exists").0
    }

    pub(crate) fn slot(&self, name: &str) -> Option<u32> {
        self.slots.get(name).copied()
    }
}
