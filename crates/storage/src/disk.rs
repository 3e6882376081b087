//! Formatting a data directory as a disk with a name of its own; an unformatted directory is not opened.

use std::{fmt, io};

use postroad_core::{ClusterId, NodeId};

use crate::{
    fs::Fs,
    log::{BLOCK, Identity, OpenError},
    recovery::read_all,
    segment::{AlignedBuffer, SegmentId},
};

const IDENTITY: &str = "identity";
const FORMAT: &str = "2";

/// The name of a disk, drawn when a directory is formatted: a wiped or replaced directory gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u64);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a directory was formatted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A new cluster: the node may form groups.
    Form,
    /// A node that lost its disk: it rejoins its groups.
    Rejoin,
}

impl Origin {
    fn as_str(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Rejoin => "rejoin",
        }
    }
}

/// A formatted disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name.
    pub id: DiskId,
    /// What it was formatted for.
    pub origin: Origin,
}

/// Why a directory was not formatted. It has not been changed.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// An error of the operating system, or another process uses the directory.
    #[error("cannot use the log directory")]
    Io(#[from] io::Error),
    /// It contains files that may hold mail.
    #[error("the log directory contains `{0}`: move its files away first")]
    Occupied(String),
    /// It belongs to another node or version.
    #[error("the log directory cannot be formatted")]
    Refused(#[source] OpenError),
}

/// Formats a directory without a log, and returns its disk. Changes nothing if it is already formatted for the same.
///
/// # Errors
/// See [`FormatError`].
pub fn format(fs: &dyn Fs, identity: Identity, disk: Disk) -> Result<Disk, FormatError> {
    fs.lock()?;
    match read(fs, identity) {
        Ok(found) if found.origin == disk.origin => return Ok(found),
        Ok(_) | Err(OpenError::Unformatted | OpenError::Damaged { .. } | OpenError::RolledBack(_)) => {}
        Err(error) => return Err(FormatError::Refused(error)),
    }
    if let Some(name) = fs.list()?.into_iter().find(|name| holds_state(name)) {
        return Err(FormatError::Occupied(name));
    }
    write(fs, identity, disk, false)?;
    Ok(disk)
}

/// Returns the disk that a directory is; `None` where the directory is empty, or does not exist. Changes nothing.
///
/// # Errors
/// The directory cannot be read, or this node cannot open what is in it.
pub fn formatted(fs: &dyn Fs, identity: Identity) -> Result<Option<Disk>, OpenError> {
    match read(fs, identity) {
        Ok(disk) => Ok(Some(disk)),
        Err(OpenError::Unformatted) => Ok(None),
        Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn holds_state(name: &str) -> bool {
    SegmentId::parse(name).is_some() || name.starts_with("checkpoint-")
}

fn write(fs: &dyn Fs, identity: Identity, disk: Disk, is_rolled_back: bool) -> io::Result<()> {
    let Identity { cluster, node } = identity;
    let Disk { id, origin } = disk;
    let rolled_back = if is_rolled_back { "rolled-back yes\n" } else { "" };
    let text = format!(
        "postroad log\nformat {FORMAT}\ncluster {cluster}\nnode {node}\ndisk {id}\norigin {}\n{rolled_back}",
        origin.as_str()
    );
    let mut buffer = AlignedBuffer::default();
    buffer.resize(BLOCK);
    buffer.as_mut_slice().fill(b'\n');
    buffer.as_mut_slice()[..text.len()].copy_from_slice(text.as_bytes());
    let file = fs.create("identity.new")?;
    file.write_at(buffer.as_slice(), 0)?;
    file.sync()?;
    fs.rename("identity.new", IDENTITY)?;
    fs.sync_dir()
}

/// Marks the disk as rolled back, so that it is not opened again.
pub(crate) fn write_rolled_back(fs: &dyn Fs, identity: Identity, disk: Disk) -> io::Result<()> {
    write(fs, identity, disk, true)
}

/// Reads the disk's name; refuses a directory of another node, or without a name.
pub(crate) fn read(fs: &dyn Fs, identity: Identity) -> Result<Disk, OpenError> {
    let names = fs.list()?;
    if !names.iter().any(|name| name == IDENTITY) {
        // Files without an identity may hold mail.
        let segment = names.into_iter().find(|name| holds_state(name));
        return Err(segment.map_or(OpenError::Unformatted, |segment| OpenError::Damaged {
            segment,
            offset: 0,
            what: "the file `identity` is missing",
        }));
    }
    let text = read_all(fs.open(IDENTITY)?.as_ref())?;
    let text = String::from_utf8_lossy(&text);
    let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let format = field("format ").unwrap_or("none");
    if format != FORMAT {
        return Err(OpenError::Format(format.to_owned()));
    }
    let number = |key| field(key).and_then(|value| value.parse().ok()).unwrap_or(0);
    let found = Identity { cluster: ClusterId(number("cluster ")), node: NodeId(number("node ")) };
    if found != identity {
        return Err(OpenError::Foreign(found));
    }
    let id = field("disk ").and_then(|value| u64::from_str_radix(value, 16).ok());
    let origin = [Origin::Form, Origin::Rejoin].into_iter().find(|o| field("origin ") == Some(o.as_str()));
    let (Some(id), Some(origin)) = (id, origin) else {
        let segment = IDENTITY.to_owned();
        return Err(OpenError::Damaged { segment, offset: 0, what: "no disk name" });
    };
    if field("rolled-back ").is_some() {
        return Err(OpenError::RolledBack(DiskId(id)));
    }
    Ok(Disk { id: DiskId(id), origin })
}
