//! Checkpoints: a group's state at one entry, in a file that is replaced atomically.

use std::io;

use bytes::{BufMut, Bytes};
use postroad_core::GroupId;

use crate::{
    EntryId,
    fs::Fs,
    log::{BLOCK, Identity},
    recovery::read_all,
    segment::AlignedBuffer,
};

const MAGIC: &[u8; 8] = b"PRCKPT01";
const HEADER_BYTES: usize = 8 + 8 + 8 + 8 + 8 + 8 + 8 + 8 + 8;

/// A group's state after it had applied an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The entry.
    pub at: EntryId,
    /// Metadata of the caller; small.
    pub meta: Bytes,
    /// The state.
    pub state: Bytes,
}

fn name(group: GroupId) -> String {
    format!("checkpoint-{group}")
}

pub(crate) fn write(
    fs: &dyn Fs,
    identity: Identity,
    group: GroupId,
    checkpoint: &Checkpoint,
) -> io::Result<()> {
    let header = header(identity, group, checkpoint);
    let bytes = header.len() + checkpoint.meta.len() + checkpoint.state.len();
    let mut buffer = AlignedBuffer::default();
    buffer.resize(bytes.next_multiple_of(BLOCK));
    let mut out = buffer.as_mut_slice();
    out.put_slice(&header);
    out.put_slice(&checkpoint.meta);
    out.put_slice(&checkpoint.state);
    out.fill(0);
    let new = format!("{}.new", name(group));
    let file = fs.create(&new)?;
    let written = file.write_at(buffer.as_slice(), 0).and_then(|()| file.sync());
    if let Err(error) = written {
        let _ = fs.remove(&new);
        return Err(error);
    }
    fs.rename(&new, &name(group))?;
    fs.sync_dir()
}

fn header(identity: Identity, group: GroupId, checkpoint: &Checkpoint) -> Vec<u8> {
    let Checkpoint { at, meta, state } = checkpoint;
    let mut header = Vec::with_capacity(HEADER_BYTES + 4);
    header.put_slice(MAGIC);
    header.put_u64_le(identity.cluster.0);
    header.put_u64_le(identity.node.0);
    header.put_u64_le(u64::from(group.0));
    header.put_u64_le(at.term);
    header.put_u64_le(at.index);
    header.put_u64_le(meta.len() as u64);
    header.put_u64_le(state.len() as u64);
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(meta);
    hash.update(state);
    header.put_u64_le(hash.digest());
    let crc = crc32fast::hash(&header);
    header.put_u32_le(crc);
    header
}

pub(crate) fn read(fs: &dyn Fs, identity: Identity, group: GroupId) -> io::Result<Option<Checkpoint>> {
    if !fs.list()?.contains(&name(group)) {
        return Ok(None);
    }
    let bytes = Bytes::from(read_all(fs.open(&name(group))?.as_ref())?);
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is damaged", name(group)));
    let checkpoint = parse(&bytes).ok_or_else(invalid)?;
    // Compute the header of what was read: an equal header means intact contents of our group and node.
    if bytes[..HEADER_BYTES + 4] != header(identity, group, &checkpoint) {
        return Err(invalid());
    }
    Ok(Some(checkpoint))
}

fn parse(bytes: &Bytes) -> Option<Checkpoint> {
    let number = |field: usize| {
        let at = 8 * field;
        bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
    };
    let length = |field: usize| usize::try_from(number(field)?).ok();
    let meta_end = (HEADER_BYTES + 4).checked_add(length(6)?)?;
    let state_end = meta_end.checked_add(length(7)?)?;
    if state_end > bytes.len() {
        return None;
    }
    Some(Checkpoint {
        at: EntryId { term: number(4)?, index: number(5)? },
        meta: bytes.slice(HEADER_BYTES + 4..meta_end),
        state: bytes.slice(meta_end..state_end),
    })
}
