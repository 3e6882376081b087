//! What one queue node costs: messages through submit, commit, assign and report, and its CPU for each of them.
//!
//! `cargo run --release -p postroad-queue --example one_node -- [seconds] [bytes] [submitters] [directory]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measuring")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use postroad_queue::QueueConfig;
use postroad_storage::RealFs;
use support::{
    Cluster, Disk, GROUP, client,
    deliverer::{Deliverer, Deliveries},
    outbound::Outbound,
};
use tokio::time;

/// CPU seconds of the node's threads, and of the whole process.
fn cpu() -> (f64, f64) {
    let (mut node, mut all) = (0.0, 0.0);
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let nanos = read("schedstat").split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
        let seconds = nanos.unwrap_or(0.0) / 1e9;
        all += seconds;
        let name = read("comm");
        if name.starts_with("queue-") || name.starts_with("log-writer") {
            node += seconds;
        }
    }
    (node, all)
}

async fn consume(cluster: &Cluster) {
    loop {
        let request = postroad_proto::queue::EventsRequest { group: GROUP.0.into(), from: 1, batch_max: 0 };
        let Ok(stream) = cluster.client(0).events(request).await else { continue };
        let mut stream = stream.into_inner();
        while let Ok(Some(batch)) = stream.message().await {
            let through = batch.events.last().map_or(0, |event| event.sequence);
            let consume = postroad_proto::queue::ConsumeRequest {
                group: GROUP.0.into(),
                consumer: "control".to_owned(),
                through,
            };
            let _ = client(cluster.channel(0)).consume(consume).await;
        }
    }
}

async fn submit(cluster: &Cluster, bytes: usize, accepted: &AtomicU64, until: Instant) {
    let content = Bytes::from(vec![b'x'; bytes]);
    while postroad_env::now() < until {
        let (id, submission) = cluster.message(content.clone());
        cluster.submitter.submit(id, submission).await.unwrap();
        accepted.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(default, |text| text.parse().unwrap());
    let (seconds, bytes, submitters) = (number(10), number(8192), number(256));
    let directory = tempfile::tempdir_in(arguments.next().unwrap_or_else(|| ".".to_owned())).unwrap();
    let disk = Disk::Real(Arc::new(RealFs::new(directory.path())));
    let cluster = Cluster::start_on(vec![disk], QueueConfig::default()).await;
    let outbound = Outbound::start(&cluster, 11, 1, None).await;
    let deliveries = Deliveries::default();
    let deliverer = Deliverer::new(outbound, 5000, deliveries.clone());
    let accepted = AtomicU64::new(0);
    let started = postroad_env::now();
    let until = started + Duration::from_secs(seconds as u64);
    let before = cpu();
    let submitting =
        futures::future::join_all((0..submitters).map(|_| submit(&cluster, bytes, &accepted, until)));
    let measured = async {
        submitting.await;
        while deliveries.count.load(Ordering::Relaxed) < accepted.load(Ordering::Relaxed) {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = measured => {}
        () = deliverer.run(&cluster) => {}
        () = consume(&cluster) => {}
    }
    let (took, after) = (postroad_env::since(started).as_secs_f64(), cpu());
    let count = accepted.load(Ordering::Relaxed) as f64;
    println!("{count} messages of {bytes} bytes in {took:.1} s: {:.0}/s", count / took);
    println!("CPU per message: node {:.1} µs", (after.0 - before.0) / count * 1e6);
    println!("                 with its clients {:.1} µs", (after.1 - before.1) / count * 1e6);
}
