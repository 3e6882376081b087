//! Faults of a disk as data: a plan holds, prints and shrinks them; the disk counts those that took effect.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

/// Armed faults beyond these replace the oldest.
const ARMED_MAX: usize = 1024;

/// A call of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// Of the names of all files.
    List,
    /// Of a file that exists.
    Open,
    /// Of a new file.
    Create,
    /// Of a file over another.
    Rename,
    /// Of a file.
    Remove,
    /// Of the names.
    SyncDir,
    /// To a file.
    Write,
    /// From a file.
    Read,
    /// Of a file.
    Sync,
    /// Of space for a file.
    Allocate,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::List,
        Self::Open,
        Self::Create,
        Self::Rename,
        Self::Remove,
        Self::SyncDir,
        Self::Write,
        Self::Read,
        Self::Sync,
        Self::Allocate,
    ];
}

/// What goes wrong. Numbers are taken modulo what the call has, so that any number is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The power fails before any call but a read: this and all later calls fail.
    PowerFails,
    /// EIO.
    Error(Call),
    /// ENOSPC: at once when a file is created or allocated, or after so many bytes of a write.
    NoSpace {
        /// Bytes of the write that were written.
        bytes: u64,
    },
    /// The call writes some bytes only; the rest follows in another call.
    Short {
        /// Bytes that were written.
        bytes: u64,
    },
    /// The call writes some bytes only; the next one fails with EIO.
    ShortThenError {
        /// Bytes that were written.
        bytes: u64,
    },
    /// EINTR: the call is made again. Never lasts.
    Interrupted,
    /// The power fails in the middle of a write.
    Torn {
        /// Sectors of 512 bytes that reached the disk.
        sectors: u64,
    },
    /// The bytes of a write land in other blocks of the file; where they belong the old ones stay.
    Misdirected {
        /// How many blocks further, from the end on at the beginning.
        blocks: u64,
    },
    /// A write succeeds and never reaches the disk.
    Dropped,
    /// A sync of a file succeeds without doing anything.
    SyncForgotten,
    /// A page is zeros on the disk when it is read.
    Zeroed {
        /// Which of those that the call reads.
        page: u64,
    },
    /// A bit has changed on the disk when it is read.
    FlippedAtRest {
        /// Which of those that the call reads.
        bit: u64,
    },
    /// A bit is read as it is not on the disk.
    FlippedOnRead {
        /// Which of those that the call reads.
        bit: u64,
    },
    /// The call takes its time, and the disk does nothing else meanwhile.
    Slow(Call, Duration),
    /// The call does not return before the power fails.
    Hung(Call),
}

impl FaultKind {
    /// Names the kind, without its numbers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerFails => "power failure",
            Self::Error(Call::List) => "EIO at list",
            Self::Error(Call::Open) => "EIO at open",
            Self::Error(Call::Create) => "EIO at create",
            Self::Error(Call::Rename) => "EIO at rename",
            Self::Error(Call::Remove) => "EIO at remove",
            Self::Error(Call::SyncDir) => "EIO at directory sync",
            Self::Error(Call::Write) => "EIO at write",
            Self::Error(Call::Read) => "EIO at read",
            Self::Error(Call::Sync) => "EIO at sync",
            Self::Error(Call::Allocate) => "EIO at allocate",
            Self::NoSpace { .. } => "ENOSPC",
            Self::Short { .. } => "short write",
            Self::ShortThenError { .. } => "short write, then EIO",
            Self::Interrupted => "EINTR",
            Self::Torn { .. } => "torn write",
            Self::Misdirected { .. } => "misdirected write",
            Self::Dropped => "dropped write",
            Self::SyncForgotten => "forgotten sync",
            Self::Zeroed { .. } => "zeroed page",
            Self::FlippedAtRest { .. } => "flipped bit at rest",
            Self::FlippedOnRead { .. } => "flipped bit on read",
            Self::Slow(..) => "slow disk",
            Self::Hung(_) => "hung disk",
        }
    }

    fn strikes(self, call: Call) -> bool {
        match self {
            Self::PowerFails => call != Call::Read,
            Self::Error(at) | Self::Slow(at, _) | Self::Hung(at) => call == at,
            Self::NoSpace { .. } => matches!(call, Call::Create | Call::Write | Call::Allocate),
            Self::Short { .. }
            | Self::ShortThenError { .. }
            | Self::Interrupted
            | Self::Torn { .. }
            | Self::Misdirected { .. }
            | Self::Dropped => call == Call::Write,
            Self::SyncForgotten => call == Call::Sync,
            Self::Zeroed { .. } | Self::FlippedAtRest { .. } | Self::FlippedOnRead { .. } => {
                call == Call::Read
            }
        }
    }
}

/// A fault, and when it takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// How the names of the files begin that it strikes; empty for all. A call of the directory has no name.
    pub file: String,
    /// How many calls that it could strike pass before.
    pub skip: u64,
    /// Strikes each call from then on, until [`super::SimFs::disarm`]; otherwise one.
    pub lasts: bool,
}

impl From<FaultKind> for DiskFault {
    /// Strikes the next call, whatever the file, once.
    fn from(kind: FaultKind) -> Self {
        Self { kind, file: String::new(), skip: 0, lasts: false }
    }
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        if !self.file.is_empty() {
            write!(f, " of `{}*`", self.file)?;
        }
        if self.skip > 0 {
            write!(f, " after {} calls", self.skip)?;
        }
        if self.lasts { write!(f, ", from then on") } else { Ok(()) }
    }
}

/// The faults that wait for their call.
#[derive(Clone, Debug, Default)]
pub(super) struct Armed(VecDeque<DiskFault>);

impl Armed {
    pub(super) fn arm(&mut self, fault: DiskFault) {
        if self.0.len() >= ARMED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(fault);
    }

    pub(super) fn disarm(&mut self) {
        self.0.clear();
    }

    /// The faults that the same disk still has after a power cut.
    pub(super) fn after_cut(&self) -> Self {
        let ends = |kind: FaultKind| matches!(kind, FaultKind::PowerFails | FaultKind::Hung(_));
        let is_of_the_disk = |fault: &&DiskFault| !ends(fault.kind);
        Self(self.0.iter().filter(is_of_the_disk).cloned().collect())
    }

    /// Returns the fault that strikes a call: the oldest that is due.
    pub(super) fn strike(&mut self, call: Call, file: &str) -> Option<FaultKind> {
        let mut due = None;
        for (place, fault) in self.0.iter_mut().enumerate() {
            if fault.kind.strikes(call) && file.starts_with(&fault.file) {
                match fault.skip.checked_sub(1) {
                    Some(left) => fault.skip = left,
                    None => due = due.or(Some(place)),
                }
            }
        }
        let fault = &self.0[due?];
        let kind = fault.kind;
        if !fault.lasts || kind == FaultKind::Interrupted {
            self.0.remove(due?);
        }
        Some(kind)
    }
}

/// How often each kind took effect, by name.
pub type Fired = BTreeMap<&'static str, u64>;
