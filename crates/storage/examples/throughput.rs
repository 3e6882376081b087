//! How fast this disk takes mail: 64 bodies of 8 KiB per batch, one group.
//!
//! `cargo run --release -p postroad-storage --example throughput -- [DIR]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people at a terminal")]

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
};

use bytes::Bytes;
use postroad_core::{ClusterId, GroupId, NodeId};
use postroad_storage::{
    Checkpoint, Disk, DiskId, EntryId, Identity, Log, LogConfig, Origin, RealFs, Record, format,
};

const BATCHES: u64 = 5000;
const BODIES: usize = 64;
const BYTES: usize = 8192;

fn main() {
    let dir =
        std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("postroad-log"), PathBuf::from);
    let identity = Identity { cluster: ClusterId(1), node: NodeId(1) };
    let fs = RealFs::new(&dir);
    format(&fs, identity, Disk { id: DiskId(1), origin: Origin::Form }).unwrap();
    let log = Log::open(Arc::new(fs), LogConfig::default(), identity).unwrap();
    let group = GroupId(1);
    let first = log.group(group).last.map_or(1, |last| last.index + 1);
    let bodies: Vec<Bytes> = (0..BODIES).map(|body| Bytes::from(vec![body as u8; BYTES])).collect();
    let start = postroad_env::now();
    for index in first..first + BATCHES {
        let id = EntryId { term: 1, index };
        let record = Record { id, kind: 1, head: Bytes::from(vec![0; BODIES * 150]), bodies: bodies.clone() };
        let (sender, done) = mpsc::channel();
        log.append(group, vec![record], Box::new(move |result| drop(sender.send(result))));
        done.recv().unwrap().unwrap();
        if index % 200 == 0 {
            log.write_checkpoint(group, &Checkpoint { at: id, meta: Bytes::new(), state: Bytes::new() })
                .unwrap();
            log.purge(group, id);
            log.release(group, index, &[]).unwrap();
            log.prepare().unwrap();
        }
    }
    let seconds = postroad_env::since(start).as_secs_f64();
    let stats = log.stats();
    let (written, body) = (stats.written_bytes.load(Relaxed) as f64, stats.body_bytes.load(Relaxed) as f64);
    println!(
        "{:.0} bodies/s, {:.0} MB/s, {:.0} syncs/s, {:.3} bytes written per body byte, {} segments recycled",
        (BATCHES as usize * BODIES) as f64 / seconds,
        body / seconds / 1e6,
        stats.batches.load(Relaxed) as f64 / seconds,
        written / body,
        stats.recycled.load(Relaxed),
    );
}
