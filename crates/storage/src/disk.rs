//! The name of a disk: what a data directory is formatted with once, and refused without.

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

/// Names one formatting of a directory: one that was wiped, or another one in its place, has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u64);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a directory was formatted for, and so what its node may do while it holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A new cluster: it may form groups.
    Form,
    /// A node whose disk was lost: it waits until its groups take it in.
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

/// A disk that was formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name.
    pub id: DiskId,
    /// What for.
    pub origin: Origin,
}

/// Why a directory was not formatted. It has not been changed.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system said no, or another process uses it.
    #[error("the log directory cannot be used")]
    Io(#[from] io::Error),
    /// It holds what might be somebody's mail.
    #[error("the log directory holds `{0}`: what is there must be moved away first")]
    Occupied(String),
    /// It is somebody else's, or of another version.
    #[error("the log directory cannot be made anew")]
    Refused(#[source] OpenError),
}

/// Formats a directory that holds no log, and returns its disk. One that was formatted for the same before stays as it is.
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

/// Writes down that the disk holds an older state than it once had: it is not opened again.
pub(crate) fn write_rolled_back(fs: &dyn Fs, identity: Identity, disk: Disk) -> io::Result<()> {
    write(fs, identity, disk, true)
}

/// Reads the disk's name; a directory of somebody else, or of nobody, is refused.
pub(crate) fn read(fs: &dyn Fs, identity: Identity) -> Result<Disk, OpenError> {
    let names = fs.list()?;
    if !names.iter().any(|name| name == IDENTITY) {
        // Never take over what might be somebody's mail.
        let segment = names.into_iter().find(|name| holds_state(name));
        return Err(segment.map_or(OpenError::Unformatted, |segment| OpenError::Damaged {
            segment,
            offset: 0,
            what: "there is no `identity`",
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
        return Err(OpenError::Damaged { segment, offset: 0, what: "it names no disk" });
    };
    if field("rolled-back ").is_some() {
        return Err(OpenError::RolledBack(DiskId(id)));
    }
    Ok(Disk { id: DiskId(id), origin })
}
