//! A simulated file system in memory, whose disk fails in every way that a disk does.
//!
//! Nothing is random here: what happens is the faults that were armed, and what the caller of a power cut decides.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    fs::{Fs, Store},
    log::BLOCK,
};

mod fault;
mod file;
mod names;

pub use fault::{Call, DiskFault, FaultKind, Fired};
pub use names::Names;

use fault::Armed;
use file::{File, SECTOR};
use names::{Directory, Inode};

/// A directory in memory, shared by its handles; [`SimFs::power_cut`] returns what a disk might hold after one.
#[derive(Clone, Default)]
pub struct SimFs(Arc<Disk>);

#[derive(Default)]
struct Disk {
    state: Mutex<State>,
    changed: Condvar,
    /// Shared with the disks that come after it.
    fired: Arc<Mutex<Fired>>,
}

#[derive(Default)]
struct State {
    directory: Directory,
    /// Bytes of all files that have a name.
    used: u64,
    /// Bytes of all files together, at most.
    capacity: Option<u64>,
    operations: u64,
    /// The operation to be held, and whether it is being held now.
    held: Option<(u64, bool)>,
    armed: Armed,
    /// A call hangs, which is not simulated but waits on its thread.
    is_hung: bool,
    power_is_off: bool,
    /// The process was to be aborted.
    is_fatal: bool,
}

/// How the power fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerCut {
    /// Which changes of names may be lost.
    pub names: Names,
    /// A block of 4,096 bytes is not written whole, but each of its sectors.
    pub tears: bool,
}

impl SimFs {
    /// Arms a fault; it takes effect when a call comes that it strikes.
    pub fn arm(&self, fault: impl Into<DiskFault>) {
        self.0.state.lock().armed.arm(fault.into());
    }

    /// Takes all armed faults back: from now on the disk works. A simulated one that is busy stays so until its
    /// `Environment::free_disk`.
    pub fn disarm(&self) {
        let mut state = self.0.state.lock();
        state.armed.disarm();
        state.is_hung = false;
    }

    /// Returns how often each kind of fault took effect, on this disk and those that it follows.
    #[must_use]
    pub fn fired(&self) -> Fired {
        self.0.fired.lock().clone()
    }

    /// Returns whether the process that uses the disk is dead: it was to be aborted, or the power has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let state = self.0.state.lock();
        state.is_fatal || state.power_is_off
    }

    /// Makes every operation after the next `operations` fail, as if the power had failed.
    pub fn fail_after(&self, operations: u64) {
        if operations == 0 {
            self.0.state.lock().power_is_off = true;
        } else {
            self.arm(DiskFault { skip: operations, ..FaultKind::PowerFails.into() });
        }
    }

    /// Returns how many operations there have been, without reads.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.state.lock().operations
    }

    /// Holds the operation with this number until [`SimFs::resume`], while others go on. The next operation has the number
    /// that [`SimFs::operations`] returns.
    pub fn hold_at(&self, operation: u64) {
        self.0.state.lock().held = Some((operation, false));
    }

    /// Waits until the operation is being held.
    pub fn wait_until_held(&self) {
        let mut state = self.0.state.lock();
        while state.held.is_some_and(|(_, is_held)| !is_held) {
            self.0.changed.wait(&mut state);
        }
    }

    /// Resumes the held operation.
    pub fn resume(&self) {
        self.0.state.lock().held = None;
        self.0.changed.notify_all();
    }

    /// Bounds the bytes of all files together; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.state.lock().capacity = bytes;
    }

    /// Makes syncs of files do nothing from now on, also after a power cut: to show that a test would notice.
    pub fn forget_syncs(&self) {
        self.arm(DiskFault { lasts: true, ..FaultKind::SyncForgotten.into() });
    }

    /// Makes syncs of files hang until the power fails: a disk slower than all others.
    pub fn stall_syncs(&self) {
        self.arm(DiskFault { lasts: true, ..FaultKind::Hung(Call::Sync).into() });
    }

    /// Returns the disk after a power cut: `random` decides for each unsynced block whether it was written, and how many of
    /// the changes of names since the last sync of the directory were.
    #[must_use]
    pub fn power_cut(&self, random: impl FnMut() -> bool) -> Self {
        self.power_cut_as(PowerCut::default(), random)
    }

    /// As [`SimFs::power_cut`], with a choice of what may be lost.
    #[must_use]
    pub fn power_cut_as(&self, cut: PowerCut, mut random: impl FnMut() -> bool) -> Self {
        let state = self.0.state.lock();
        let (kept, lost_names) = state.directory.after_cut(cut.names, &mut random);
        self.count("name change lost", lost_names);
        // Of a rename without a journal both names may be left: they lead to one file.
        let mut copies: BTreeMap<*const Mutex<File>, Inode> = BTreeMap::new();
        let files = kept.into_iter().map(|(name, file)| {
            let copy = copies.entry(Arc::as_ptr(&file)).or_insert_with(|| {
                let (after, lost) = file.lock().after_cut(cut.tears, &mut random);
                self.count("unsynced block lost", lost.blocks);
                self.count("block torn by a power cut", lost.torn);
                Arc::new(Mutex::new(after))
            });
            (name, copy.clone())
        });
        let files: BTreeMap<String, Inode> = files.collect();
        let armed = state.armed.after_cut();
        self.followed_by(files, state.capacity, armed)
    }

    /// Returns a new, empty disk in the place of this one, which is lost.
    #[must_use]
    pub fn lost(&self) -> Self {
        self.count("lost disk", 1);
        self.followed_by(BTreeMap::new(), self.0.state.lock().capacity, Armed::default())
    }

    /// Returns a disk that holds what `old` holds, an earlier [`SimFs::snapshot`], in the place of this one.
    #[must_use]
    pub fn restored(&self, old: &Self) -> Self {
        self.count("restored old disk", 1);
        let copy = old.snapshot();
        let directory = std::mem::take(&mut copy.0.state.lock().directory);
        let (files, _) = directory.after_cut(Names::Journalled, &mut || true);
        self.followed_by(files, self.0.state.lock().capacity, Armed::default())
    }

    /// Returns a copy of what is on the disk for certain.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let state = self.0.state.lock();
        let (files, _) = state.directory.after_cut(Names::Journalled, &mut || false);
        let copy = |file: &Inode| Arc::new(Mutex::new(file.lock().after_cut(false, &mut || false).0));
        let files = files.iter().map(|(name, file)| (name.clone(), copy(file))).collect();
        Self::default().followed_by(files, state.capacity, Armed::default())
    }

    fn followed_by(&self, files: BTreeMap<String, Inode>, capacity: Option<u64>, armed: Armed) -> Self {
        let directory = Directory::of(files);
        let used = directory.files().map(|file| file.lock().bytes()).sum();
        let state = State { directory, used, capacity, armed, ..State::default() };
        let fired = self.0.fired.clone();
        Self(Arc::new(Disk { state: Mutex::new(state), changed: Condvar::new(), fired }))
    }

    /// Returns the disk as the next process finds it after this one was killed: everything written is there.
    #[must_use]
    pub fn reopened(&self) -> Self {
        let state = self.0.state.lock();
        let directory = state.directory.clone();
        let State { used, capacity, .. } = *state;
        let armed = state.armed.after_cut();
        let after = State { directory, used, capacity, armed, ..State::default() };
        Self(Arc::new(Disk {
            state: Mutex::new(after),
            changed: Condvar::new(),
            fired: self.0.fired.clone(),
        }))
    }

    /// Returns the bytes of all files together.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.state.lock().used
    }

    /// Changes one bit of a file, on the disk and for readers.
    ///
    /// # Panics
    /// There is no such file or location.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        let state = self.0.state.lock();
        let mut file = state.directory.get(name).expect("the file exists").lock();
        assert!((offset as u64) < file.bytes(), "the location exists");
        file.flip(offset as u64, bit);
    }

    /// Returns what a file holds.
    ///
    /// # Panics
    /// There is no such file.
    #[must_use]
    pub fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.0.state.lock();
        let file = state.directory.get(name).expect("the file exists").lock();
        let mut bytes = vec![0; usize::try_from(file.bytes()).expect("it fits memory")];
        file.read(&mut bytes, 0);
        bytes
    }

    fn count(&self, name: &'static str, times: u64) {
        if times > 0 {
            *self.0.fired.lock().entry(name).or_default() += times;
        }
    }

    /// Begins a call: numbers it, holds it, and lets the faults strike that end or delay it. Returns one that changes it.
    ///
    /// The state stays locked, so that no power cut happens in the middle.
    fn call(&self, call: Call, file: &str) -> io::Result<(MutexGuard<'_, State>, Option<FaultKind>)> {
        let mut state = self.0.state.lock();
        if call != Call::Read {
            let number = state.operations;
            state.operations += 1;
            while state.held.is_some_and(|(held, _)| held == number) {
                state.held = Some((number, true));
                self.0.changed.notify_all();
                self.0.changed.wait(&mut state);
            }
            state.needs_power()?;
        }
        let fault = state.armed.strike(call, file);
        if let Some(fault) = fault {
            self.count(fault.name(), 1);
        }
        match fault {
            Some(FaultKind::PowerFails) => Err(state.fail_power()),
            Some(FaultKind::Error(_)) => Err(input_output_error()),
            Some(FaultKind::Slow(_, delay)) => {
                drop(state);
                if !postroad_env::occupy_disk(delay) {
                    postroad_env::pause(delay);
                }
                Ok((self.0.state.lock(), None))
            }
            Some(FaultKind::Hung(_)) => {
                drop(state);
                Ok((self.hang()?, None))
            }
            fault => Ok((state, fault)),
        }
    }

    /// Hangs: in a simulation the rest of the node goes on, otherwise this thread waits until the power fails or the disk
    /// works again.
    fn hang(&self) -> io::Result<MutexGuard<'_, State>> {
        if postroad_env::occupy_disk(FOREVER) {
            return Ok(self.0.state.lock());
        }
        self.0.state.lock().is_hung = true;
        loop {
            let state = self.0.state.lock();
            state.needs_power()?;
            if !state.is_hung {
                return Ok(state);
            }
            drop(state);
            postroad_env::pause(Duration::from_millis(1));
        }
    }
}

/// Longer than any simulation.
const FOREVER: Duration = Duration::from_secs(3600 * 24 * 365);

impl State {
    fn needs_power(&self) -> io::Result<()> {
        if self.power_is_off { Err(io::Error::other("the power failed")) } else { Ok(()) }
    }

    fn fail_power(&mut self) -> io::Error {
        self.power_is_off = true;
        io::Error::other("the power failed")
    }

    /// Makes a file at least as long as `bytes`.
    fn grow(&mut self, file: &mut File, bytes: u64) -> io::Result<()> {
        let more = bytes.saturating_sub(file.bytes());
        if more > 0 && self.capacity.is_some_and(|capacity| self.used + more > capacity) {
            return Err(no_space());
        }
        if file.is_linked {
            self.used += more;
        }
        file.grow(bytes);
        Ok(())
    }

    fn write(&mut self, file: &mut File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.grow(file, offset + bytes.len() as u64)?;
        file.write(bytes, offset);
        Ok(bytes.len())
    }

    /// Counts a file out that no name leads to.
    fn unlink(&mut self, file: Option<Inode>) {
        if let Some(file) = file {
            let mut file = file.lock();
            file.is_linked = false;
            self.used -= file.bytes();
        }
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file `{name}`"))
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "the disk is full")
}

fn input_output_error() -> io::Error {
    rustix::io::Errno::IO.into()
}

impl Fs for SimFs {
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let (state, _) = self.call(Call::List, "")?;
        Ok(state.directory.names().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Store>> {
        let (state, _) = self.call(Call::Open, name)?;
        let file = state.directory.get(name).ok_or_else(|| missing(name))?.clone();
        Ok(Arc::new(SimStore { fs: self.clone(), name: name.to_owned(), file }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Store>> {
        let (mut state, fault) = self.call(Call::Create, name)?;
        if fault.is_some() {
            return Err(no_space());
        }
        let file = Arc::new(Mutex::new(File::linked()));
        let replaced = state.directory.create(name, file.clone());
        state.unlink(replaced);
        Ok(Arc::new(SimStore { fs: self.clone(), name: name.to_owned(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut state, _) = self.call(Call::Rename, from)?;
        state.directory.get(from).ok_or_else(|| missing(from))?;
        let replaced = state.directory.rename(from, to);
        state.unlink(replaced);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (mut state, _) = self.call(Call::Remove, name)?;
        state.directory.get(name).ok_or_else(|| missing(name))?;
        let removed = state.directory.remove(name);
        state.unlink(removed);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let (mut state, _) = self.call(Call::SyncDir, "")?;
        state.directory.sync();
        Ok(())
    }

    fn fatal(&self, _: &io::Error) {
        self.0.state.lock().is_fatal = true;
    }
}

struct SimStore {
    fs: SimFs,
    name: String,
    file: Inode,
}

impl SimStore {
    /// Writes some bytes, and returns how many.
    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (mut state, fault) = self.fs.call(Call::Write, &self.name)?;
        let mut file = self.file.lock();
        let length = bytes.len() as u64;
        let part = |limit: u64| usize::try_from(limit % length).expect("less than the write");
        match fault {
            Some(FaultKind::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(FaultKind::Short { bytes: limit }) => {
                state.write(&mut file, offset, &bytes[..part(limit).max(1)])
            }
            Some(FaultKind::ShortThenError { bytes: limit }) => {
                state.write(&mut file, offset, &bytes[..part(limit)]).and(Err(input_output_error()))
            }
            Some(FaultKind::NoSpace { bytes: limit }) => {
                state.write(&mut file, offset, &bytes[..part(limit)]).and(Err(no_space()))
            }
            Some(FaultKind::Torn { sectors }) => {
                let all = length.div_ceil(SECTOR as u64);
                let reached = usize::try_from(sectors % all).expect("less than the write") * SECTOR;
                file.write_durably(&bytes[..reached], offset);
                Err(state.fail_power())
            }
            Some(FaultKind::Misdirected { blocks }) => {
                state.grow(&mut file, offset + length)?;
                let elsewhere = misdirected(offset, length, file.bytes(), blocks);
                file.write_durably(bytes, elsewhere);
                Ok(bytes.len())
            }
            Some(FaultKind::Dropped) => {
                state.grow(&mut file, offset + length)?;
                Ok(bytes.len())
            }
            _ => state.write(&mut file, offset, bytes),
        }
    }
}

/// Returns where a write of `length` bytes lands that misses its place in a file of `total` bytes.
fn misdirected(offset: u64, length: u64, total: u64, blocks: u64) -> u64 {
    let places = (total.saturating_sub(length)) / BLOCK as u64 + 1;
    let others = places.saturating_sub(1).max(1);
    (offset / BLOCK as u64 + 1 + blocks % others) % places * BLOCK as u64
}

impl Store for SimStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut written = 0;
        // As a real file does: what is left after a short or interrupted call is written by another one.
        while written < bytes.len() {
            match self.write_some(&bytes[written..], offset + written as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                some => written += some?,
            }
        }
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let (_state, fault) = self.fs.call(Call::Read, &self.name)?;
        let mut file = self.file.lock();
        let bits = (bytes.len() as u64 * 8).max(1);
        match fault {
            Some(FaultKind::FlippedAtRest { bit }) => {
                let bit = bit % bits;
                file.flip(offset + bit / 8, (bit % 8) as u8);
            }
            Some(FaultKind::Zeroed { page }) => {
                let first = offset / BLOCK as u64;
                let pages = (offset + bytes.len() as u64).div_ceil(BLOCK as u64) - first;
                file.zero_page(first + page % pages.max(1));
            }
            _ => {}
        }
        if !file.read(bytes, offset) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(FaultKind::FlippedOnRead { bit }) = fault
            && !bytes.is_empty()
        {
            let bit = bit % bits;
            bytes[usize::try_from(bit / 8).expect("in the buffer")] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let (_state, fault) = self.fs.call(Call::Sync, &self.name)?;
        if fault.is_none() {
            self.file.lock().sync();
        }
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let (mut state, fault) = self.fs.call(Call::Allocate, &self.name)?;
        if fault.is_some() {
            return Err(no_space());
        }
        state.grow(&mut self.file.lock(), bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.lock().bytes())
    }
}
