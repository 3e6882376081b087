//! A simulated file system in memory, with power cuts, full disks and damaged files.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

use crate::{
    fs::{Fs, Store},
    log::BLOCK,
};

/// A directory in memory, shared by its handles; [`SimFs::power_cut`] returns what a disk might hold after one.
#[derive(Clone, Default)]
pub struct SimFs(Arc<Mutex<State>>, Arc<Condvar>);

#[derive(Default)]
struct State {
    /// What a reader sees.
    names: BTreeMap<String, Arc<Mutex<Inode>>>,
    /// Names as of the last sync of the directory.
    durable_names: BTreeMap<String, Arc<Mutex<Inode>>>,
    /// Operations until the power fails; `None` for never.
    operations_left: Option<u64>,
    operations: u64,
    /// The operation to be held, and whether it is being held now.
    held: Option<(u64, bool)>,
    /// Bytes of all files together, at most.
    capacity: Option<u64>,
    /// Syncs of files succeed without doing anything.
    forgets: bool,
    /// Syncs of files do not return.
    stalls: bool,
}

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    /// As of the last sync of the file.
    durable: Vec<u8>,
    /// Blocks written since: each may or may not have reached the disk.
    dirty: Vec<u64>,
}

impl SimFs {
    /// Makes every operation after the next `operations` fail, as if the power had failed.
    pub fn fail_after(&self, operations: u64) {
        let mut state = self.0.lock();
        state.operations_left = Some(operations);
    }

    /// Returns how many operations there have been.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Holds the operation with this number until [`SimFs::resume`], while others go on. The next operation has the number
    /// that [`SimFs::operations`] returns.
    pub fn hold_at(&self, operation: u64) {
        self.0.lock().held = Some((operation, false));
    }

    /// Waits until the operation is being held.
    pub fn wait_until_held(&self) {
        let mut state = self.0.lock();
        while state.held.is_some_and(|(_, is_held)| !is_held) {
            self.1.wait(&mut state);
        }
    }

    /// Resumes the held operation.
    pub fn resume(&self) {
        self.0.lock().held = None;
        self.1.notify_all();
    }

    /// Bounds the bytes of all files together; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Makes syncs of files do nothing from now on, also after a power cut: to show that a test would notice.
    pub fn forget_syncs(&self) {
        self.0.lock().forgets = true;
    }

    /// Makes syncs of files hang until the power fails: a disk slower than all others.
    pub fn stall_syncs(&self) {
        self.0.lock().stalls = true;
    }

    /// Returns the disk after a power cut: `random` decides for each unsynced block whether it was written, and renames
    /// since the last sync of the directory are undone.
    #[must_use]
    pub fn power_cut(&self, mut random: impl FnMut() -> bool) -> Self {
        let state = self.0.lock();
        let mut names = BTreeMap::new();
        for (name, inode) in &state.durable_names {
            let inode = inode.lock();
            let mut kept = inode.durable.clone();
            for block in inode.dirty.iter().filter(|_| random()) {
                let start = usize::try_from(*block).unwrap_or(usize::MAX).saturating_mul(BLOCK);
                let end = (start + BLOCK).min(inode.now.len());
                if kept.len() < end {
                    kept.resize(end, 0);
                }
                kept[start..end].copy_from_slice(&inode.now[start..end]);
            }
            let kept = Inode { now: kept.clone(), durable: kept, dirty: Vec::new() };
            names.insert(name.clone(), Arc::new(Mutex::new(kept)));
        }
        let State { capacity, forgets, .. } = *state;
        let durable_names = names.clone();
        let after = State { names, durable_names, capacity, forgets, ..State::default() };
        Self(Arc::new(Mutex::new(after)), Arc::default())
    }

    /// Changes one bit of a file, on the disk and for readers.
    ///
    /// # Panics
    /// There is no such file or location.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        let state = self.0.lock();
        let mut inode = state.names.get(name).expect("the file exists").lock();
        inode.now[offset] ^= 1 << bit;
        inode.durable[offset] ^= 1 << bit;
    }

    /// Returns what a file holds.
    ///
    /// # Panics
    /// There is no such file.
    #[must_use]
    pub fn contents(&self, name: &str) -> Vec<u8> {
        self.0.lock().names.get(name).expect("the file exists").lock().now.clone()
    }

    fn is_stalled(&self) -> bool {
        let state = self.0.lock();
        state.stalls && state.operations_left != Some(0)
    }

    fn operate(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.0.lock();
        let number = state.operations;
        state.operations += 1;
        while state.held.is_some_and(|(held, _)| held == number) {
            state.held = Some((number, true));
            self.1.notify_all();
            self.1.wait(&mut state);
        }
        if let Some(left) = &mut state.operations_left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the power failed"))?;
        }
        Ok(state)
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file `{name}`"))
}

impl Fs for SimFs {
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.operate()?.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Store>> {
        let state = self.operate()?;
        let inode = state.names.get(name).ok_or_else(|| missing(name))?.clone();
        Ok(Arc::new(SimStore { fs: self.clone(), inode }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Store>> {
        let mut state = self.operate()?;
        let inode = Arc::<Mutex<Inode>>::default();
        state.names.insert(name.to_owned(), inode.clone());
        Ok(Arc::new(SimStore { fs: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        let inode = state.names.remove(from).ok_or_else(|| missing(from))?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate()?.names.remove(name).map(drop).ok_or_else(|| missing(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.operate()?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn fatal(&self, _: &io::Error) {}
}

struct SimStore {
    fs: SimFs,
    inode: Arc<Mutex<Inode>>,
}

impl SimStore {
    fn grow(&self, state: &State, bytes: usize) -> io::Result<()> {
        let used: usize = state.names.values().map(|inode| inode.lock().now.len()).sum();
        let mut inode = self.inode.lock();
        let more = bytes.saturating_sub(inode.now.len());
        if more > 0 && state.capacity.is_some_and(|capacity| (used + more) as u64 > capacity) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full"));
        }
        if more > 0 {
            inode.now.resize(bytes, 0);
        }
        Ok(())
    }
}

impl Store for SimStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let state = self.fs.operate()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        self.grow(&state, start + bytes.len())?;
        let mut inode = self.inode.lock();
        inode.now[start..start + bytes.len()].copy_from_slice(bytes);
        let blocks = offset / BLOCK as u64..(offset + bytes.len() as u64).div_ceil(BLOCK as u64);
        inode.dirty.extend(blocks);
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let inode = self.inode.lock();
        let found = inode.now.get(start..start + bytes.len());
        bytes.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        while self.fs.is_stalled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Kept locked, so that no power cut happens in between.
        let state = self.fs.operate()?;
        if state.forgets {
            return Ok(());
        }
        let mut inode = self.inode.lock();
        inode.durable = inode.now.clone();
        inode.dirty.clear();
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let state = self.fs.operate()?;
        self.grow(&state, usize::try_from(bytes).map_err(io::Error::other)?)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.inode.lock().now.len() as u64)
    }
}
