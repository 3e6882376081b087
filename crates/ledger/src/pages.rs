//! A slab whose clone costs a pointer per page, so that a snapshot never stalls `apply`.

use std::sync::Arc;

const ROWS_PER_PAGE: usize = 64;

/// Rows in numbered slots. A clone shares all pages; a page is copied at its first write after that.
#[derive(Clone, Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Arc<Vec<Option<T>>>>,
    /// Free slots, reused last in, first out.
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Pages<T> {
    /// Puts a row into a free slot and returns the slot.
    pub(crate) fn insert(&mut self, row: T) -> u32 {
        self.len += 1;
        if let Some(slot) = self.free.pop() {
            let (page, place) = split(slot);
            Arc::make_mut(&mut self.pages[page])[place] = Some(row);
            return slot;
        }
        if self.pages.last().is_none_or(|page| page.len() == ROWS_PER_PAGE) {
            self.pages.push(Arc::new(Vec::with_capacity(ROWS_PER_PAGE)));
        }
        let page = self.pages.len() - 1;
        let rows = Arc::make_mut(&mut self.pages[page]);
        rows.push(Some(row));
        let slot = page * ROWS_PER_PAGE + rows.len() - 1;
        u32::try_from(slot).expect("four billion rows do not fit into memory")
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        let (page, place) = split(slot);
        self.pages.get(page)?.get(place)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let (page, place) = split(slot);
        let page = self.pages.get_mut(page)?;
        // A slot that is free must not cost the copy of a shared page.
        page.get(place)?.as_ref()?;
        Arc::make_mut(page)[place].as_mut()
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let (page, place) = split(slot);
        let page = self.pages.get_mut(page)?;
        page.get(place)?.as_ref()?;
        let row = Arc::make_mut(page)[place].take();
        self.free.push(slot);
        self.len -= 1;
        row
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the rows from a slot on, each with its slot, in the order of the slots.
    pub(crate) fn iter_from(&self, slot: u32) -> impl Iterator<Item = (u32, &T)> {
        let (page, place) = split(slot);
        let first = self.pages.get(page).into_iter().flat_map(move |page| page.iter().skip(place));
        let rest = self.pages.iter().skip(page + 1).flat_map(|page| page.iter());
        (slot..).zip(first.chain(rest)).filter_map(|(slot, row)| Some((slot, row.as_ref()?)))
    }

    /// Returns every row with its slot, in the order of the slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        // Only the last page may be short, so places count up without a hole.
        let places = self.pages.iter().flat_map(|page| page.iter());
        (0..).zip(places).filter_map(|(slot, row)| Some((slot, row.as_ref()?)))
    }
}

fn split(slot: u32) -> (usize, usize) {
    let slot = slot as usize;
    (slot / ROWS_PER_PAGE, slot % ROWS_PER_PAGE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_are_a_map_and_a_clone_does_not_change(
            ops in prop::collection::vec((any::<bool>(), 0_u32..300), 0..600), copy_at in 0_usize..600
        ) {
            let mut pages = Pages::default();
            let mut model = BTreeMap::new();
            let mut copy = None;
            for (step, (insert, value)) in ops.into_iter().enumerate() {
                if insert {
                    prop_assert!(model.insert(pages.insert(value), value).is_none());
                } else {
                    prop_assert_eq!(pages.remove(value), model.remove(&value));
                }
                if let Some(row) = pages.get_mut(value / 2) {
                    *row += 1;
                    *model.get_mut(&(value / 2)).unwrap() += 1;
                }
                if step == copy_at {
                    copy = Some((pages.clone(), model.clone()));
                }
            }
            for (pages, model) in copy.into_iter().chain([(pages, model)]) {
                prop_assert_eq!(pages.len(), model.len());
                let rows: BTreeMap<u32, u32> = pages.iter().map(|(slot, row)| (slot, *row)).collect();
                prop_assert_eq!(&rows, &model);
                for from in [0, 1, 63, 64, 65, 200, 1000] {
                    let rows: BTreeMap<u32, u32> = pages.iter_from(from).map(|(slot, row)| (slot, *row)).collect();
                    let model: BTreeMap<u32, u32> = model.range(from..).map(|(slot, row)| (*slot, *row)).collect();
                    prop_assert_eq!(rows, model);
                }
            }
        }
    }
}
