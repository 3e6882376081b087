//! Each fault of the simulated disk takes effect and is counted, and a log outlives each of them at every call.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{io, rc::Rc, sync::Arc, sync::mpsc, time::Duration};

use bytes::Bytes;
use postroad_core::{ClusterId, GroupId, NodeId, Timestamp};
use postroad_env::Environment;
use postroad_storage::{
    Checkpoint, Disk, DiskId, Done, EntryId, Fs, Identity, Log, LogConfig, OpenError, Origin, Record, Room,
    format,
    log::BLOCK,
    sim::{Call, DiskFault, FaultKind, Names, PowerCut, SimFs},
};

const IDENTITY: Identity = Identity { cluster: ClusterId(7), node: NodeId(1) };
const DISK: Disk = Disk { id: DiskId(1), origin: Origin::Form };
const GROUP: GroupId = GroupId(1);
const CONFIG: LogConfig =
    LogConfig { segment_bytes: 64 << 10, batch_bytes_max: 32 << 10, tail_bytes_max: 0, spares_max: 1 };

/// What a script of calls saw: its error, or the last thing that it read.
type Seen = io::Result<Vec<u8>>;

/// Two blocks of ones are durable, then a fault is armed, and twos are written over them, synced and read.
fn overwrite(fs: &SimFs) -> Seen {
    fs.list()?;
    let file = fs.open("file")?;
    file.allocate(3 * BLOCK as u64)?;
    file.write_at(&[2; 2 * BLOCK], 0)?;
    file.sync()?;
    let mut read = vec![0; 3 * BLOCK];
    file.read_at(&mut read, 0)?;
    let _ = fs.create("new")?;
    fs.rename("new", "other")?;
    fs.sync_dir()?;
    fs.remove("other")?;
    Ok(read)
}

fn ones() -> SimFs {
    let fs = SimFs::default();
    let file = fs.create("file").unwrap();
    file.write_at(&[1; 2 * BLOCK], 0).unwrap();
    file.sync().unwrap();
    fs.sync_dir().unwrap();
    fs
}

/// Checks that a fault takes effect, is counted, and is what `is_right` says of what was seen and of the disk after a power
/// cut.
fn check(kind: FaultKind, is_right: impl Fn(Seen, Vec<u8>) -> bool) {
    let fs = ones();
    let unharmed = overwrite(&fs).unwrap();
    assert_eq!(unharmed, [vec![2; 2 * BLOCK], vec![0; BLOCK]].concat());
    let fs = ones();
    fs.arm(kind);
    let seen = overwrite(&fs);
    assert_eq!(fs.fired(), [(kind.name(), 1)].into(), "{kind:?}");
    let after = fs.power_cut(|| false);
    assert_eq!(after.fired().get(kind.name()), Some(&1), "the next disk counts on");
    assert!(is_right(seen, after.contents("file")), "{kind:?}");
    // It was armed for one call.
    assert!(overwrite(&after).is_ok(), "{kind:?}");
    assert_eq!(after.fired().get(kind.name()), Some(&1));
}

fn kind_of(seen: &Seen) -> Option<io::ErrorKind> {
    seen.as_ref().err().map(io::Error::kind)
}

#[test]
fn r_13_and_r_14_a_call_that_fails_is_counted_by_its_kind() {
    for call in Call::ALL {
        check(FaultKind::Error(call), |seen, _| seen.unwrap_err().raw_os_error() == Some(5));
    }
    let full = |seen: &Seen| kind_of(seen) == Some(io::ErrorKind::StorageFull);
    check(FaultKind::NoSpace { bytes: 0 }, |seen, after| full(&seen) && after[0] == 1);
    let fs = ones();
    fs.arm(DiskFault { skip: 1, ..FaultKind::NoSpace { bytes: 700 }.into() });
    assert!(full(&overwrite(&fs)));
    assert_eq!(fs.contents("file")[698..702], [2, 2, 1, 1], "the disk was full in the middle of the write");
}

#[test]
fn r_15_a_short_or_interrupted_write_is_completed_or_fails() {
    let is_whole = |seen: Seen, _| seen.unwrap()[..2 * BLOCK] == [2; 2 * BLOCK];
    check(FaultKind::Short { bytes: 700 }, is_whole);
    check(FaultKind::Interrupted, is_whole);
    check(FaultKind::ShortThenError { bytes: 700 }, |seen, after| seen.is_err() && after[0] == 1);
}

#[test]
fn r_16_a_power_failure_leaves_whole_sectors_of_a_write() {
    check(FaultKind::PowerFails, |seen, after| seen.is_err() && after == [1; 2 * BLOCK]);
    let is_torn = |seen: Seen, after: Vec<u8>| seen.is_err() && after[511..514] == [2, 1, 1];
    check(FaultKind::Torn { sectors: 1 }, is_torn);

    let fs = ones();
    fs.open("file").unwrap().write_at(&[2; BLOCK], 0).unwrap();
    let mut turn = false;
    let after = fs.power_cut_as(PowerCut { tears: true, ..PowerCut::default() }, || {
        turn = !turn;
        turn
    });
    assert_eq!(after.contents("file")[510..514], [2, 2, 1, 1]);
    assert_eq!(after.fired(), [("block torn by a power cut", 1)].into());
    let after = fs.power_cut(|| false);
    assert_eq!(after.fired().get("unsynced block lost"), Some(&1));
}

#[test]
fn r_17_and_r_18_a_disk_that_lies_is_counted() {
    let old = |seen: Seen, after: Vec<u8>| {
        seen.unwrap()[..BLOCK] == [1; BLOCK] && after[..2 * BLOCK] == [1; 2 * BLOCK]
    };
    check(FaultKind::Dropped, old);
    check(FaultKind::Misdirected { blocks: 0 }, |seen, after| {
        let seen = seen.unwrap();
        seen[0] == 1 && seen[BLOCK] == 2 && seen[2 * BLOCK] == 2 && after == seen
    });
    check(FaultKind::SyncForgotten, |seen, after| seen.unwrap()[0] == 2 && after[0] == 1);
    check(FaultKind::Zeroed { page: 1 }, |seen, after| seen.unwrap()[BLOCK] == 0 && after[BLOCK] == 0);
    check(FaultKind::FlippedAtRest { bit: 8 }, |seen, after| seen.unwrap()[1] == 3 && after[1] == 3);
    check(FaultKind::FlippedOnRead { bit: 8 }, |seen, after| seen.unwrap()[1] == 3 && after[1] == 2);
}

#[test]
fn a_fault_that_lasts_strikes_its_files_until_it_is_taken_back() {
    let fs = ones();
    let kind = FaultKind::Error(Call::Open);
    fs.arm(DiskFault { kind, file: "f".to_owned(), skip: 1, lasts: true });
    let _ = fs.create("other").unwrap();
    assert!(fs.open("file").is_ok());
    assert!(fs.open("file").is_err() && fs.open("file").is_err() && fs.open("other").is_ok());
    let fs = fs.power_cut(|| true);
    assert!(fs.open("file").is_err(), "the same disk is as bad after a power cut");
    fs.disarm();
    assert!(fs.open("file").is_ok());
    assert_eq!(fs.fired().get(kind.name()), Some(&3));
}

#[test]
fn r_07_a_power_cut_loses_the_last_changes_of_names_or_any_of_them() {
    let fs = ones();
    fs.rename("file", "renamed").unwrap();
    let _ = fs.create("later").unwrap();
    let after = |names, kept: &[bool]| {
        let mut kept = kept.iter().copied();
        let cut = PowerCut { names, tears: false };
        fs.power_cut_as(cut, || kept.next().unwrap_or_default()).list().unwrap()
    };
    assert_eq!(after(Names::Journalled, &[false, true]), ["file"]);
    assert_eq!(after(Names::Journalled, &[true, false]), ["renamed"]);
    assert_eq!(after(Names::Journalled, &[true, true]), ["later", "renamed"]);
    assert_eq!(after(Names::Separate, &[true, false, false]), ["file", "renamed"]);
    assert_eq!(after(Names::Separate, &[false, true, true]), ["later"]);
    assert!(fs.fired()["name change lost"] >= 4);
}

#[test]
fn r_24_and_r_25_a_disk_is_lost_or_replaced_by_an_old_one() {
    let fs = ones();
    let old = fs.snapshot();
    overwrite(&fs).unwrap();
    let restored = fs.restored(&old);
    assert_eq!(restored.contents("file")[0], 1);
    restored.open("file").unwrap().write_at(&[3; BLOCK], 0).unwrap();
    assert_eq!((old.contents("file")[0], fs.contents("file")[0]), (1, 2), "copies are apart");
    let lost = restored.lost();
    assert!(lost.list().unwrap().is_empty());
    assert_eq!(lost.fired(), [("lost disk", 1), ("restored old disk", 1)].into());
}

/// A node of a simulation, whose time passes when the test says so.
struct Node(Rc<Environment>);

impl Node {
    fn new() -> Self {
        Self(Environment::new(postroad_env::now(), Timestamp::from_millis(5_000), 1))
    }

    /// Lets time pass until a write has been acknowledged; `None` if it never is.
    async fn durable(&self, start: impl FnOnce(Done)) -> Option<io::Result<()>> {
        let (sender, result) = mpsc::channel();
        start(Box::new(move |written| drop(sender.send(written))));
        for _ in 0..100 {
            self.0.step_workers();
            if let Ok(written) = result.try_recv() {
                return Some(written);
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        None
    }

    async fn append(&self, log: &Log, index: u64) -> Option<io::Result<()>> {
        self.durable(|done| log.append(GROUP, vec![record(index)], done)).await
    }

    /// Tries work again while the disk is full.
    async fn retry<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match work() {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tokio::time::advance(Duration::from_millis(100)).await;
                    self.0.step_workers();
                }
                done => return done,
            }
        }
    }
}

fn open(fs: &SimFs) -> Result<Log, OpenError> {
    let _ = format(fs, IDENTITY, DISK);
    Log::open(Arc::new(fs.clone()), CONFIG, IDENTITY)
}

fn record(index: u64) -> Record {
    let body = Bytes::from(vec![index as u8; 9000]);
    Record { id: EntryId { term: 1, index }, kind: 1, head: "head".into(), bodies: vec![body] }
}

#[tokio::test(start_paused = true)]
async fn r_20_a_slow_disk_delays_acknowledgements_and_a_hung_one_acknowledges_nothing() {
    let node = Node::new();
    let _entered = node.0.enter();
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    fs.arm(FaultKind::Slow(Call::Sync, Duration::from_secs(5)));
    let began = postroad_env::now();
    node.append(&log, 1).await.unwrap().unwrap();
    #[expect(clippy::disallowed_methods, reason = "the machine's clock shows that no thread waited")]
    let waited = began.elapsed();
    assert_eq!(waited.as_secs(), 0);
    assert_eq!((postroad_env::now() - began).as_secs(), 5);
    fs.arm(FaultKind::Hung(Call::Write));
    assert!(node.append(&log, 2).await.is_none());
    node.0.free_disk();
    node.append(&log, 3).await.unwrap().unwrap();
    assert_eq!(fs.fired(), [("hung disk", 1), ("slow disk", 1)].into());
}

#[tokio::test(start_paused = true)]
async fn r_13_a_log_without_space_waits_without_blocking_and_refuses_what_can_wait() {
    let node = Node::new();
    let _entered = node.0.enter();
    let fs = SimFs::default();
    let log = open(&fs).unwrap();
    node.append(&log, 1).await.unwrap().unwrap();
    fs.set_capacity(Some(0));
    let (sender, results) = mpsc::channel();
    for index in 2..20 {
        let sender = sender.clone();
        log.append(GROUP, vec![record(index)], Box::new(move |done| drop(sender.send(done))));
    }
    assert_eq!(log.barrier().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(
        log.barrier().unwrap_err().kind(),
        io::ErrorKind::StorageFull,
        "also behind the waiting batch"
    );
    let stored = node.durable(|done| log.put_bodies(GROUP, vec![(2, 0, "body".into())], done)).await;
    assert_eq!(stored.unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(log.room(), Room::None);
    let before = results.try_iter().count();
    fs.set_capacity(None);
    node.append(&log, 20).await.unwrap().unwrap();
    assert_eq!(before + results.try_iter().map(Result::unwrap).count(), 18);
    assert_eq!(log.read(GROUP, 1..21, 1 << 20).unwrap().len(), 20);
    assert!(!fs.has_failed());
}

#[derive(Default)]
struct Acknowledged {
    last: u64,
    vote: u8,
    checkpoint: u64,
}

/// What a node does, until an operation fails; entry 3 stays live.
async fn script(node: &Node, fs: &SimFs, acknowledged: &mut Acknowledged) -> Option<()> {
    let log = open(fs).ok()?;
    for index in 1..=16_u64 {
        node.append(&log, index).await.expect("an answer").ok()?;
        acknowledged.last = index;
        if index % 4 == 0 {
            let vote = index as u8;
            node.durable(|done| log.save_vote(GROUP, vec![vote].into(), done))
                .await
                .expect("an answer")
                .ok()?;
            acknowledged.vote = vote;
        }
        if index % 8 == 0 {
            let at = EntryId { term: 1, index };
            let checkpoint = Checkpoint { at, meta: "m".into(), state: vec![1; 9000].into() };
            node.retry(|| log.write_checkpoint(GROUP, &checkpoint)).await.ok()?;
            acknowledged.checkpoint = index;
            log.purge(GROUP, at);
            node.retry(|| log.release(GROUP, index, &[(3, 0)])).await.ok()?;
            log.prepare().ok()?;
        }
    }
    Some(())
}

/// Checks that a log holds everything acknowledged.
fn check_log(fs: &SimFs, acknowledged: &Acknowledged) -> Result<(), String> {
    let log = open(fs).map_err(|error| format!("{error}: {error:?}"))?;
    let checkpoint = log.load_checkpoint(GROUP).map_err(|error| error.to_string())?;
    let covered = checkpoint.map_or(0, |checkpoint| checkpoint.at.index);
    if covered < acknowledged.checkpoint {
        return Err(format!("checkpoint {covered} before {}", acknowledged.checkpoint));
    }
    let vote = log.group(GROUP).vote.map_or(0, |vote| vote[0]);
    if vote < acknowledged.vote {
        return Err(format!("vote {vote} before {}", acknowledged.vote));
    }
    for index in (covered + 1..=acknowledged.last).chain((acknowledged.last >= 3).then_some(3)) {
        let body = log.body(GROUP, index, 0).map_err(|error| format!("body {index}: {error}"))?;
        if body != record(index).bodies[0] {
            return Err(format!("body {index} differs"));
        }
    }
    Ok(())
}

/// Runs the script with a fault at each call that it can strike, and returns the violations and how many calls there were.
async fn sweep(kind: FaultKind, names: Names) -> (Vec<String>, u64) {
    let mut violations = Vec::new();
    for skip in 0.. {
        let node = Node::new();
        let _entered = node.0.enter();
        let (fs, mut acknowledged) = (SimFs::default(), Acknowledged::default());
        fs.arm(DiskFault { skip, ..kind.into() });
        let _ = script(&node, &fs, &mut acknowledged).await;
        if fs.fired().is_empty() {
            return (violations, skip);
        }
        let mut random = skip.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut coin = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % 3 != 0
        };
        let cut = PowerCut { names, tears: true };
        let after =
            [fs.power_cut_as(cut, || false), fs.power_cut_as(cut, || true), fs.power_cut_as(cut, &mut coin)];
        for (fs, what) in after.iter().zip(["nothing", "everything", "some"]) {
            if let Err(error) = check_log(fs, &acknowledged) {
                violations.push(format!("{kind:?} at call {skip}, {what} unsynced kept: {error}"));
            }
        }
    }
    unreachable!("the loop ends when no call is left");
}

/// Every fault that damages nothing that was synced.
fn harmless() -> Vec<FaultKind> {
    let others = [
        FaultKind::PowerFails,
        FaultKind::Torn { sectors: 3 },
        FaultKind::Torn { sectors: 0 },
        FaultKind::Short { bytes: 700 },
        FaultKind::ShortThenError { bytes: 700 },
        FaultKind::Interrupted,
        FaultKind::NoSpace { bytes: 700 },
        FaultKind::NoSpace { bytes: 4096 },
    ];
    Call::ALL.into_iter().map(FaultKind::Error).chain(others).collect()
}

#[tokio::test(start_paused = true)]
async fn r_13_to_r_16_and_r_22_a_log_outlives_a_fault_at_every_call_and_a_power_cut_after_it() {
    for names in [Names::Journalled, Names::Separate] {
        let (mut violations, mut calls) = (Vec::new(), 0);
        for kind in harmless() {
            let (found, swept) = sweep(kind, names).await;
            assert!(swept > 0, "{kind:?} never struck");
            violations.extend(found);
            calls += swept;
        }
        assert!(calls > 400, "{calls}");
        assert!(violations.is_empty(), "{names:?}, {calls} calls: {violations:#?}");
    }
}
