//! Opening a log: restores what was synced, cuts an unsynced tail, and refuses damage.

use std::{collections::HashMap, io};

use bytes::Bytes;

use crate::{
    batch::Locations,
    format::{BatchHeader, HEADER_BYTES, Kind, RecordFront, take_front},
    fs::{Fs, Store},
    index::{Index, Location},
    log::{BLOCK, Identity, OpenError},
    segment::{Segment, SegmentId, SegmentKind, parse_spare, round_up},
};

/// The contents of all segments.
pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) segments: HashMap<SegmentId, Segment>,
    pub(crate) spares: Vec<u64>,
    pub(crate) next_number: u64,
    /// The newest entry segment, and where it ends.
    pub(crate) previous: Option<(u64, u64)>,
}

pub(crate) fn read_all(file: &dyn Store) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.bytes()?).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads the fronts of all batches of all segments.
pub(crate) fn read_segments(fs: &dyn Fs, identity: Identity) -> Result<Recovered, OpenError> {
    let names = fs.list()?;
    let mut ids: Vec<SegmentId> = names.iter().filter_map(|name| SegmentId::parse(name)).collect();
    // Entries first, in order; then moved bodies, whose locations are newer.
    ids.sort_unstable_by_key(|id| (id.kind, id.number));
    let spares: Vec<u64> = names.iter().filter_map(|name| parse_spare(name)).collect();
    let next_number = ids.iter().map(|id| id.number).chain(spares.iter().copied()).max().map_or(1, |n| n + 1);
    let mut found =
        Recovered { index: Index::default(), segments: HashMap::new(), spares, next_number, previous: None };
    let mut scans = Vec::new();
    for id in ids {
        let segment = Segment { id, file: fs.open(&id.name())? };
        scans.push(Scan::read(&segment, identity)?);
        found.segments.insert(id, segment);
    }
    check_ends(&scans)?;
    for scan in &scans {
        scan.replay(&mut found.index);
    }
    if let Some((group, _)) = found.index.groups.iter().find(|(_, state)| state.has_gap()) {
        return Err(OpenError::Missing(*group));
    }
    let newest =
        scans.iter().rev().find(|scan| scan.segment.kind == SegmentKind::Entries && !scan.batches.is_empty());
    found.previous = newest.map(|scan| (scan.segment.number, scan.end));
    Ok(found)
}

/// Every segment must be intact up to the end that the next segment names.
fn check_ends(scans: &[Scan]) -> Result<(), OpenError> {
    for scan in scans {
        let Some((number, end)) = scan.previous() else { continue };
        let before = scans
            .iter()
            .find(|scan| scan.segment.kind == SegmentKind::Entries && scan.segment.number == number);
        // A missing one has been freed.
        if let Some(before) = before
            && before.end < end
        {
            return Err(before.damaged(before.end, "synced data is damaged"));
        }
    }
    Ok(())
}

/// The intact batches of one segment.
struct Scan {
    segment: SegmentId,
    batches: Vec<(u64, Vec<RecordFront>)>,
    end: u64,
}

impl Scan {
    fn read(segment: &Segment, identity: Identity) -> Result<Self, OpenError> {
        let bytes = segment.file.bytes()?;
        let mut scan = Self { segment: segment.id, batches: Vec::new(), end: 0 };
        let mut last_header = None;
        while let Some(header) = read_header(segment, scan.end, bytes)? {
            if header.identity != identity {
                return Err(OpenError::Foreign(header.identity));
            }
            let Some(fronts) = read_front(segment, scan.end, &header, bytes)? else { break };
            scan.batches.push((scan.end, fronts));
            last_header = Some(header);
            scan.end += round_up(header.bytes);
        }
        if let Some(later) = scan.find_later(segment, bytes)? {
            // A later batch was written after this place had been synced: this is damage, not an unsynced tail.
            if later.synced > scan.end {
                return Err(scan.damaged(scan.end, "synced data is damaged"));
            }
        }
        // Only the last batch can be an unsynced tail: verify its bodies too.
        if let Some(header) = last_header
            && let Some((start, fronts)) = scan.batches.last()
            && !bodies_are_intact(segment, *start, fronts)?
        {
            scan.end = header.offset;
            scan.batches.pop();
        }
        Ok(scan)
    }

    /// Looks for an intact batch beyond the first damaged one.
    fn find_later(&self, segment: &Segment, bytes: u64) -> io::Result<Option<BatchHeader>> {
        let mut at = self.end + BLOCK as u64;
        // A damaged batch hides at most the bytes of one batch.
        let until = bytes.min(at + (16 << 20));
        while at < until {
            if let Some(header) = read_header(segment, at, bytes)? {
                return Ok(Some(header));
            }
            at += BLOCK as u64;
        }
        Ok(None)
    }

    fn previous(&self) -> Option<(u64, u64)> {
        let (_, fronts) = self.batches.first()?;
        let first = fronts.first().filter(|front| front.kind == Kind::Previous)?;
        Some((first.id.term, first.id.index))
    }

    fn damaged(&self, offset: u64, what: &'static str) -> OpenError {
        OpenError::Damaged { segment: self.segment.name(), offset, what }
    }

    fn replay(&self, index: &mut Index) {
        for (start, fronts) in &self.batches {
            for (front, (head, bodies)) in
                fronts.iter().zip(Locations::new(self.segment, *start, fronts.iter()))
            {
                replay(index, front, head, &bodies);
            }
        }
    }
}

fn replay(index: &mut Index, front: &RecordFront, head: Location, bodies: &[Location]) {
    match front.kind {
        Kind::Entry => index.recover(front.group, front.id, front.user_kind, head, bodies),
        Kind::Vote => index.group(front.group).vote = Some(front.head.clone()),
        Kind::Truncate => {
            let last_kept = (front.id.term != 0).then_some(front.id.index);
            if let Some(highest) = index.truncate_after(front.group, last_kept) {
                index.note_highest(head.segment, front.group, highest);
            }
        }
        Kind::Purge => {
            index.purge(front.group, front.id);
            index.purge_is_durable(front.group, front.id);
        }
        Kind::Body => {
            if let (Ok(slot), [location]) = (u32::try_from(front.id.term), bodies) {
                index.set_body_location(front.group, (front.id.index, slot), *location);
            }
        }
        Kind::Previous => {}
    }
}

/// Reads the header at `at`, if it belongs to this segment and offset.
fn read_header(segment: &Segment, at: u64, bytes: u64) -> io::Result<Option<BatchHeader>> {
    if at + BLOCK as u64 > bytes {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES];
    segment.file.read_at(&mut header, at)?;
    Ok(BatchHeader::take(&header)
        .filter(|header| header.generation == segment.id.number && header.offset == at))
}

fn read_front(
    segment: &Segment,
    at: u64,
    header: &BatchHeader,
    bytes: u64,
) -> io::Result<Option<Vec<RecordFront>>> {
    if at + header.bytes > bytes || HEADER_BYTES as u64 + u64::from(header.front_bytes) > header.bytes {
        return Ok(None);
    }
    let mut front = vec![0; header.front_bytes as usize];
    segment.file.read_at(&mut front, at + HEADER_BYTES as u64)?;
    if xxhash_rust::xxh3::xxh3_64(&front) != header.front_hash {
        return Ok(None);
    }
    Ok(take_front(&Bytes::from(front), header.records))
}

fn bodies_are_intact(segment: &Segment, start: u64, fronts: &[RecordFront]) -> io::Result<bool> {
    for (_, bodies) in Locations::new(segment.id, start, fronts.iter()) {
        for location in bodies {
            let mut body = vec![0; location.bytes as usize];
            segment.file.read_at(&mut body, location.offset)?;
            if crc32fast::hash(&body) != location.crc {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
