//! The log under power cuts, full disks, damage and random use, on a simulated file system.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::Ordering, mpsc},
};

use bytes::Bytes;
use postroad_core::{ClusterId, GroupId, NodeId};
use postroad_storage::{
    Checkpoint, Disk, DiskId, EntryId, FormatError, Fs, Identity, Log, LogConfig, OpenError, Origin, Record,
    Room, format,
    log::BLOCK,
    sim::{DiskFault, FaultKind, SimFs},
};
use proptest::prelude::*;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), node: NodeId(1) };
const GROUP: GroupId = GroupId(1);

fn config() -> LogConfig {
    LogConfig { segment_bytes: 256 << 10, batch_bytes_max: 64 << 10, tail_bytes_max: 16 << 10, spares_max: 2 }
}

const DISK: Disk = Disk { id: DiskId(1), origin: Origin::Form };

fn open(fs: &SimFs) -> Result<Log, OpenError> {
    // A formatted directory stays as it is; one that cannot be formatted cannot be opened either.
    let _ = format(fs, IDENTITY, DISK);
    Log::open(Arc::new(fs.clone()), config(), IDENTITY)
}

fn body(index: u64, slot: u32, bytes: usize) -> Bytes {
    let seed = index.wrapping_mul(31).wrapping_add(u64::from(slot));
    (0..bytes as u64).map(|place| (seed.wrapping_mul(place + 7) >> 3) as u8).collect::<Vec<_>>().into()
}

fn record(term: u64, index: u64, bytes: usize) -> Record {
    let head = format!("head {term}.{index}").into();
    let bodies = (0..index % 3).map(|slot| body(index, u32::try_from(slot).unwrap(), bytes)).collect();
    Record { id: EntryId { term, index }, kind: 1, head, bodies }
}

/// Waits for the write that `start` queues.
fn durable(start: impl FnOnce(postroad_storage::Done)) -> io::Result<()> {
    let (sender, result) = mpsc::channel();
    start(Box::new(move |written| drop(sender.send(written))));
    result.recv().unwrap()
}

fn append(log: &Log, group: GroupId, records: Vec<Record>) -> io::Result<()> {
    durable(|done| log.append(group, records, done))
}

fn all(log: &Log, group: GroupId) -> Vec<Record> {
    let state = log.group(group);
    let end = state.last.map_or(0, |last| last.index + 1);
    let mut records = Vec::new();
    let mut next = state.first_index;
    while next < end {
        let read = log.read(group, next..end, 50 << 10).unwrap();
        assert!(!read.is_empty(), "entry {next} of {end} can be read");
        next += read.len() as u64;
        records.extend(read);
    }
    records
}

#[test]
fn acknowledged_writes_are_there_after_a_restart() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    let records: Vec<Record> = (1..200).map(|index| record(1, index, 3000)).collect();
    for some in records.chunks(7) {
        append(&log, GROUP, some.to_vec()).unwrap();
    }
    durable(|done| log.save_vote(GROUP, "vote".into(), done)).unwrap();
    assert_eq!(all(&log, GROUP), records);
    drop(log);
    let log = open(&fs.power_cut(|| false)).unwrap();
    assert_eq!(all(&log, GROUP), records);
    assert_eq!(log.group(GROUP).vote, Some("vote".into()));
}

#[test]
fn later_entries_replace_earlier_ones() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    append(&log, GROUP, (1..=10).map(|index| record(1, index, 100)).collect()).unwrap();
    log.truncate_after(GROUP, Some(7));
    append(&log, GROUP, (8..=9).map(|index| record(2, index, 100)).collect()).unwrap();
    let expected: Vec<Record> =
        (1..=7).map(|i| record(1, i, 100)).chain((8..=9).map(|i| record(2, i, 100))).collect();
    assert_eq!(all(&log, GROUP), expected);
    drop(log);
    assert_eq!(all(&open(&fs).unwrap(), GROUP), expected);
}

#[test]
fn r_16_a_torn_last_batch_is_cut_whichever_blocks_reached_the_disk() {
    for seed in 0..200_u64 {
        let fs = SimFs::default();
        let log = open(&fs).unwrap();
        let first: Vec<Record> = (1..20).map(|index| record(1, index, 3000)).collect();
        append(&log, GROUP, first.clone()).unwrap();
        // The write of the next batch happens, its sync fails.
        fs.fail_after(1);
        let lost = append(&log, GROUP, vec![record(1, 20, 9000), record(1, 21, 9000)]);
        assert!(lost.is_err(), "nothing is acknowledged without a sync");
        drop(log);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let after = fs.power_cut(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % 3 != 0
        });
        let log = open(&after).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let found = all(&log, GROUP);
        assert_eq!(found[..19], first, "seed {seed}");
        assert!(found.len() == 19 || found.len() == 21, "seed {seed}: a batch is there or not");
        // Later writes go to a new segment and are kept.
        append(&log, GROUP, vec![record(2, 20, 10)]).unwrap();
        drop(log);
        assert_eq!(all(&open(&after).unwrap(), GROUP)[19], record(2, 20, 10), "seed {seed}");
    }
}

#[test]
fn r_16_a_last_record_that_is_cut_at_any_byte_is_there_or_not() {
    let name = "log-0000000000000001";
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    let first: Vec<Record> = (1..4).map(|index| record(1, index, 300)).collect();
    append(&log, GROUP, first.clone()).unwrap();
    let before = fs.contents(name);
    append(&log, GROUP, vec![record(1, 4, 300)]).unwrap();
    drop(log);
    let after = fs.contents(name);
    let changed = |at: &usize| before.get(*at).copied().unwrap_or_default() != after[*at];
    let start = (0..after.len()).find(changed).unwrap();
    let end = (0..after.len()).rfind(changed).unwrap() + 1;
    assert!(end - start > 300, "the record has a body");
    for cut in start..=end {
        let torn = fs.power_cut(|| false);
        let mut bytes = after.clone();
        for (at, byte) in bytes.iter_mut().enumerate().take(end).skip(cut) {
            *byte = before.get(at).copied().unwrap_or_default();
        }
        let file = torn.create(name).unwrap();
        file.write_at(&bytes, 0).unwrap();
        let log = open(&torn).unwrap_or_else(|error| panic!("cut at {cut} of {start}..{end}: {error}"));
        let found = all(&log, GROUP);
        assert_eq!(found[..3], first, "cut at {cut} of {start}..{end}");
        assert_eq!(found.len(), 3 + usize::from(cut == end), "cut at {cut} of {start}..{end}");
    }
}

#[test]
fn r_06_and_r_07_and_r_42_power_may_fail_at_any_operation() {
    let total = {
        let fs = SimFs::default();
        script(&fs, &mut Acknowledged::default());
        fs.operations()
    };
    for at in 0..total {
        let fs = SimFs::default();
        fs.fail_after(at);
        let mut acknowledged = Acknowledged::default();
        script(&fs, &mut acknowledged);
        let after = fs.power_cut(|| at % 2 == 0);
        let log = open(&after).unwrap_or_else(|error| panic!("cut at {at}: {error}"));
        let checkpoint = log.load_checkpoint(GROUP).unwrap().map_or(0, |checkpoint| checkpoint.at.index);
        let vote = log.group(GROUP).vote.map_or(0, |vote| u64::from(vote[0]));
        assert!(vote >= acknowledged.vote, "cut at {at}: vote {vote} is older than {}", acknowledged.vote);
        for record in acknowledged.records.iter().filter(|record| record.id.index > checkpoint) {
            let read = log.read(GROUP, record.id.index..record.id.index + 1, 1 << 20).unwrap();
            assert_eq!(read.first(), Some(record), "cut at {at}: an acknowledged entry is there");
        }
        for record in acknowledged.records.iter().filter(|record| record.id.index == 5) {
            let body = log.body(GROUP, 5, 0).unwrap_or_else(|error| panic!("cut at {at}: {error}"));
            assert_eq!(body, record.bodies[0], "cut at {at}: a live body outlives its entry");
        }
    }
}

#[derive(Default)]
struct Acknowledged {
    records: Vec<Record>,
    vote: u64,
}

/// Appends, votes, checkpoints, purges and frees segments until an operation fails; entry 5 stays live.
fn script(fs: &SimFs, acknowledged: &mut Acknowledged) {
    let Ok(log) = open(fs) else { return };
    for index in 1..120 {
        let next = record(1, index, 5000);
        if append(&log, GROUP, vec![next.clone()]).is_err() {
            return;
        }
        acknowledged.records.push(next);
        if index % 10 == 0 {
            let vote = Bytes::from(vec![u8::try_from(index).unwrap()]);
            if durable(|done| log.save_vote(GROUP, vote, done)).is_err() {
                return;
            }
            acknowledged.vote = index;
        }
        if index % 30 == 0 {
            let at = EntryId { term: 1, index };
            let checkpoint = Checkpoint { at, meta: "m".into(), state: body(index, 0, 9000) };
            if log.write_checkpoint(GROUP, &checkpoint).is_err() {
                return;
            }
            log.purge(GROUP, at);
            if log.release(GROUP, index, &[(5, 0)]).is_err() {
                return;
            }
        }
    }
    assert!(log.stats().recycled.load(std::sync::atomic::Ordering::Relaxed) > 0, "segments were freed");
}

#[test]
fn r_17_damage_to_synced_data_is_refused_and_never_cut() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    for index in 1..10 {
        append(&log, GROUP, vec![record(1, index, 3000)]).unwrap();
    }
    drop(log);
    let name = "log-0000000000000001";
    for offset in [0, 20, 70, 100] {
        let damaged = fs.power_cut(|| false);
        damaged.flip_bit(name, BLOCK + offset, 3);
        match open(&damaged) {
            Err(OpenError::Damaged { segment, .. }) => assert_eq!(segment, name),
            other => panic!("a bit at {offset} of the second batch: {other:?}"),
        }
    }
    // A body is verified when it is read; other bodies stay readable.
    let damaged = fs.power_cut(|| false);
    let place = find(&damaged.contents(name), &body(5, 0, 3000));
    damaged.flip_bit(name, place + 1000, 0);
    let log = open(&damaged).unwrap();
    assert_eq!(log.body(GROUP, 5, 0).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(log.body(GROUP, 5, 1).unwrap(), body(5, 1, 3000));
}

fn find(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).position(|window| window == needle).unwrap()
}

#[test]
fn r_13_a_full_disk_loses_nothing_and_writes_resume_by_themselves() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    append(&log, GROUP, vec![record(1, 1, 3000)]).unwrap();
    fs.set_capacity(Some(256 << 10));
    let (sender, result) = mpsc::channel();
    for index in 2..60 {
        let sender = sender.clone();
        log.append(GROUP, vec![record(1, index, 9000)], Box::new(move |done| drop(sender.send(done))));
    }
    while log.room() != Room::None {
        std::thread::yield_now();
    }
    fs.set_capacity(None);
    for _ in 2..60 {
        result.recv().unwrap().unwrap();
    }
    log.prepare().unwrap();
    assert_eq!(log.room(), Room::Plenty);
    assert_eq!(all(&log, GROUP).len(), 59);
}

/// Fills a disk of 6 MiB with live bodies; returns the last entry.
fn fill(fs: &SimFs) -> u64 {
    let log = open(fs).unwrap();
    fs.set_capacity(Some(6 << 20));
    checkpoint(&log, EntryId::default()).unwrap();
    log.prepare().unwrap();
    (1..)
        .find(|index| {
            append(&log, GROUP, vec![record(1, *index, 9000)]).unwrap();
            log.prepare().unwrap();
            log.room() != Room::Plenty
        })
        .unwrap()
}

fn checkpoint(log: &Log, at: EntryId) -> io::Result<()> {
    log.write_checkpoint(GROUP, &Checkpoint { at, meta: Bytes::new(), state: vec![1; 900_000].into() })
}

fn live(last: u64) -> Vec<(u64, u32)> {
    (1..=last)
        .flat_map(|index| (0..index % 3).map(move |slot| (index, u32::try_from(slot).unwrap())))
        .collect()
}

/// What a restarted node does: saves a vote, appends an entry of the new term, writes a checkpoint and frees segments.
fn write_as_after_a_restart(log: &Log, term: u64, index: u64, live: &[(u64, u32)]) {
    let at = EntryId { term, index };
    durable(|done| log.save_vote(GROUP, Bytes::from(vec![u8::try_from(term).unwrap()]), done)).unwrap();
    append(log, GROUP, vec![Record { id: at, kind: 0, head: Bytes::new(), bodies: Vec::new() }]).unwrap();
    checkpoint(log, at).unwrap();
    log.purge(GROUP, at);
    log.release(GROUP, index, live).unwrap();
    log.prepare().unwrap();
}

#[test]
fn r_13_a_log_that_filled_the_disk_frees_space_also_after_restarts() {
    let fs = SimFs::default();
    let last = fill(&fs);
    let mut log = open(&fs).unwrap();
    for term in 2..8 {
        write_as_after_a_restart(&log, term, last + term - 1, &live(last));
        assert_eq!(log.room(), Room::Reserve, "everything is alive, and the disk is as full as before");
        drop(log);
        log = open(&fs).unwrap();
        assert!(log.load_checkpoint(GROUP).unwrap().is_some());
        log.prepare().unwrap();
        assert_eq!(log.room(), Room::Reserve, "a node that is started sees that the disk is full");
    }
    assert_eq!(log.body(GROUP, 5, 1).unwrap(), body(5, 1, 9000));
    assert_eq!(log.group(GROUP).vote, Some(Bytes::from_static(&[7])));
    // The mail has ended.
    write_as_after_a_restart(&log, 8, last + 7, &[]);
    assert_eq!(log.room(), Room::Plenty);
    for index in last + 8..last + 100 {
        append(&log, GROUP, vec![record(8, index, 9000)]).unwrap();
        log.prepare().unwrap();
    }
}

#[test]
fn r_13_a_full_disk_refuses_the_bodies_of_a_snapshot_and_still_writes_votes_and_entries() {
    let fs = SimFs::default();
    let last = fill(&fs);
    let log = open(&fs).unwrap();
    // More than the reserve holds, as a snapshot on a disk that is too small.
    let bodies = (1..=200).map(|index| (index, 0, body(index, 0, 9000))).collect();
    let stored = durable(|done| log.put_bodies(GROUP, bodies, done));
    assert_eq!(stored.unwrap_err().kind(), io::ErrorKind::StorageFull);
    durable(|done| log.save_vote(GROUP, "vote".into(), done)).unwrap();
    let id = EntryId { term: 1, index: last + 1 };
    append(&log, GROUP, vec![Record { id, kind: 0, head: "outcome".into(), bodies: Vec::new() }]).unwrap();
    assert_eq!(log.room(), Room::Reserve);
}

#[test]
fn bodies_that_a_full_disk_refused_take_none_of_the_next_job_with_them() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    let names = |fs: &SimFs| BTreeSet::from_iter(fs.list().unwrap());
    let before = names(&fs);
    durable(|done| log.put_bodies(GROUP, vec![(1, 0, body(1, 0, 9000))], done)).unwrap();
    let after = names(&fs);
    let segment = after.difference(&before).next().unwrap().clone();
    // Both jobs are queued before the writer goes on, so that the second of three batches has the end of one and the
    // beginning of the other.
    fs.hold_at(fs.operations());
    log.save_vote(GROUP, "vote".into(), Box::new(|_| ()));
    fs.wait_until_held();
    let job = |first: u64| (first..first + 10).map(|index| (index, 0, body(index, 0, 9000))).collect();
    let results = [10, 20].map(|first| {
        let (sender, result) = mpsc::channel();
        log.put_bodies(GROUP, job(first), Box::new(move |written| drop(sender.send(written))));
        result
    });
    fs.arm(DiskFault { file: segment, ..FaultKind::NoSpace { bytes: 0 }.into() });
    fs.resume();
    let [first, second] = results.map(|result| result.recv().unwrap());
    assert_eq!(first.unwrap_err().kind(), io::ErrorKind::StorageFull);
    second.unwrap();
    assert_eq!(log.body(GROUP, 29, 0).unwrap(), body(29, 0, 9000));
}

/// Returns the highest number of a segment or spare; opening or creating one takes a number.
fn highest_number(fs: &SimFs) -> u64 {
    let numbers = fs.list().unwrap().into_iter().filter_map(|name| {
        let number = name.strip_prefix("log-").or_else(|| name.strip_prefix("spare-"))?;
        u64::from_str_radix(number, 16).ok()
    });
    numbers.max().unwrap()
}

#[test]
fn freed_segments_are_reused_and_no_new_ones_are_created() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    let mut index = 0;
    // Less than a segment, and not needed afterwards.
    let mut live_through_a_part = || {
        for _ in 0..12 {
            index += 1;
            append(&log, GROUP, vec![record(1, index, 9000)]).unwrap();
            log.prepare().unwrap();
        }
        let at = EntryId { term: 1, index };
        checkpoint(&log, at).unwrap();
        log.purge(GROUP, at);
        log.release(GROUP, index, &[]).unwrap();
    };
    (0..10).for_each(|_| live_through_a_part());
    let (before, freed) = (highest_number(&fs), log.stats().recycled.load(Ordering::Relaxed));
    (0..30).for_each(|_| live_through_a_part());
    let freed = log.stats().recycled.load(Ordering::Relaxed) - freed;
    let taken = highest_number(&fs) - before;
    assert!(freed >= 12 && taken <= freed + 2, "{freed} segments were freed, {taken} opened or made");
}

#[test]
fn another_clusters_directory_is_refused_and_left_as_it_was() {
    let fs = SimFs::default();
    drop(open(&fs).unwrap());
    let other = Identity { cluster: ClusterId(8), node: NodeId(1) };
    let refused = Log::open(Arc::new(fs.clone()), config(), other);
    assert!(matches!(refused, Err(OpenError::Foreign(found)) if found == IDENTITY));
    open(&fs).unwrap();
}

#[test]
fn r_24_an_unformatted_directory_is_not_opened() {
    let fs = SimFs::default();
    let refused = Log::open(Arc::new(fs.clone()), config(), IDENTITY);
    assert!(matches!(refused, Err(OpenError::Unformatted)), "{refused:?}");
    assert_eq!(fs.list().unwrap(), [""; 0], "nothing is written to what may be the wrong directory");
    let log = open(&fs).unwrap();
    assert_eq!(log.disk(), DISK);
    drop(log);
    // Formatting again for the same changes nothing; for another purpose it makes another disk, while it is empty.
    let other = |origin| Disk { id: DiskId(2), origin };
    assert_eq!(format(&fs, IDENTITY, other(Origin::Form)).unwrap(), DISK);
    assert_eq!(format(&fs, IDENTITY, other(Origin::Rejoin)).unwrap(), other(Origin::Rejoin));
    append(&open(&fs).unwrap(), GROUP, vec![record(1, 1, 10)]).unwrap();
    assert!(matches!(format(&fs, IDENTITY, other(Origin::Rejoin)), Err(FormatError::Occupied(_))));
}

#[test]
fn r_25_a_rolled_back_disk_is_not_opened_again_and_formatted_only_when_empty() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    append(&log, GROUP, vec![record(1, 1, 10)]).unwrap();
    log.mark_rolled_back().unwrap();
    drop(log);
    let fs = fs.power_cut(|| false);
    assert!(matches!(open(&fs), Err(OpenError::RolledBack(DiskId(1)))));
    let rejoin = Disk { id: DiskId(2), origin: Origin::Rejoin };
    assert!(matches!(format(&fs, IDENTITY, rejoin), Err(FormatError::Occupied(_))));
}

#[test]
fn r_28_a_newer_or_older_format_is_refused_and_left_as_it_was() {
    let fs = SimFs::default();
    drop(open(&fs).unwrap());
    for version in ["1", "3"] {
        let fs = fs.power_cut(|| false);
        let mut text = fs.contents("identity");
        let place = find(&text, b"format 2") + "format ".len();
        text[place] = version.as_bytes()[0];
        let file = fs.create("identity").unwrap();
        file.write_at(&text, 0).unwrap();
        match open(&fs) {
            Err(OpenError::Format(found)) => assert_eq!(found, version),
            other => panic!("{other:?}"),
        }
        assert!(matches!(format(&fs, IDENTITY, DISK), Err(FormatError::Refused(_))));
        assert_eq!(fs.contents("identity"), text);
    }
}

/// A checkpoint covers more than is purged while a follower is behind.
#[test]
fn unpurged_entries_stay_readable_after_a_release_beyond_them() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    let records: Vec<Record> = (1..100).map(|index| record(1, index, 3000)).collect();
    for some in records.chunks(7) {
        append(&log, GROUP, some.to_vec()).unwrap();
    }
    log.purge(GROUP, EntryId { term: 1, index: 40 });
    log.release(GROUP, 90, &[]).unwrap();
    assert_eq!(all(&log, GROUP), records[40..]);
}

#[test]
fn r_42_a_live_body_outlives_its_segment() {
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    for index in 1..200 {
        append(&log, GROUP, vec![record(1, index, 5000)]).unwrap();
    }
    let at = EntryId { term: 1, index: 199 };
    log.write_checkpoint(GROUP, &Checkpoint { at, meta: Bytes::new(), state: Bytes::new() }).unwrap();
    log.purge(GROUP, at);
    let live = [(2, 1), (50, 0), (197, 1)];
    log.release(GROUP, 199, &live).unwrap();
    let stats = log.stats();
    assert!(stats.recycled.load(std::sync::atomic::Ordering::Relaxed) >= 3);
    for log in [log, open(&fs).unwrap()] {
        for (index, slot) in live {
            assert_eq!(log.body(GROUP, index, slot).unwrap(), body(index, slot, 5000));
        }
        assert_eq!(log.body(GROUP, 4, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn a_segment_that_replaces_entries_outlives_those_that_hold_them() {
    let (fs, other) = (SimFs::default(), GroupId(7));
    let check = |log: &Log, what: &str| assert_eq!(all(log, GROUP), [record(1, 1, 10)], "{what}");
    let log = open(&fs).unwrap();
    append(&log, other, vec![record(1, 1, 10)]).unwrap();
    append(&log, GROUP, vec![record(1, 1, 10), record(1, 2, 10)]).unwrap();
    drop(log);
    // The truncation is in the next segment, with nothing else.
    let log = open(&fs).unwrap();
    log.truncate_after(GROUP, Some(1));
    log.barrier().unwrap();
    check(&log, "truncated");
    drop(log);
    let log = open(&fs).unwrap();
    let upto = EntryId { term: 1, index: 1 };
    log.purge(other, upto);
    log.release(other, 1, &[]).unwrap();
    drop(log);
    check(&open(&fs).unwrap(), "after the release and a restart");
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8, u8, u16),
    Truncate(u8, u8),
    Purge(u8),
    Vote(u8, u8),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2_u8, 1..12_u8, 0..9000_u16).prop_map(|(group, count, bytes)| Step::Append(group, count, bytes)),
        1 => (0..2_u8, 0..6_u8).prop_map(|(group, back)| Step::Truncate(group, back)),
        1 => (0..2_u8).prop_map(Step::Purge),
        1 => (0..2_u8, any::<u8>()).prop_map(|(group, vote)| Step::Vote(group, vote)),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

#[derive(Default)]
struct Model {
    records: Vec<Record>,
    purged: u64,
    vote: Option<Bytes>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_log_behaves_like_a_naive_model(steps in steps()) {
        let fs = SimFs::default();
        let mut log = open(&fs).unwrap();
        let mut models: BTreeMap<GroupId, Model> = BTreeMap::new();
        let mut term = 1;
        for step in steps {
            match step {
                Step::Append(group, count, bytes) => {
                    let group = GroupId(u16::from(group));
                    let model = models.entry(group).or_default();
                    let next = model.records.last().map_or(model.purged, |last| last.id.index) + 1;
                    let new: Vec<Record> =
                        (next..next + u64::from(count)).map(|i| record(term, i, usize::from(bytes))).collect();
                    model.records.extend(new.clone());
                    append(&log, group, new).unwrap();
                }
                Step::Truncate(group, back) => {
                    let group = GroupId(u16::from(group));
                    let model = models.entry(group).or_default();
                    let keep = model.records.len().saturating_sub(usize::from(back));
                    model.records.truncate(keep);
                    let last = model.records.last().map_or(model.purged, |last| last.id.index);
                    log.truncate_after(group, Some(last));
                    term += 1;
                }
                Step::Purge(group) => {
                    let group = GroupId(u16::from(group));
                    let model = models.entry(group).or_default();
                    let half = model.records.len() / 2;
                    if let Some(upto) = model.records.get(half).map(|record| record.id) {
                        model.records.drain(..=half);
                        model.purged = upto.index;
                        log.purge(group, upto);
                        log.release(group, upto.index, &[]).unwrap();
                    }
                }
                Step::Vote(group, vote) => {
                    let group = GroupId(u16::from(group));
                    let vote = Bytes::from(vec![vote]);
                    models.entry(group).or_default().vote = Some(vote.clone());
                    durable(|done| log.save_vote(group, vote, done)).unwrap();
                }
                Step::Restart => {
                    log.barrier().unwrap();
                    drop(log);
                    log = open(&fs).unwrap();
                }
            }
        }
        for (group, model) in models {
            prop_assert!(all(&log, group) == model.records, "entries of {group} differ");
            prop_assert_eq!(log.group(group).vote, model.vote);
        }
    }
}
