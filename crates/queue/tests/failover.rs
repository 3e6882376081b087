//! Three queue nodes, of which one dies or leaves while mail flows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how long nobody led is for people to read")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_core::GroupId;
use postroad_proto::{message_id, queue::SummaryRequest};
use support::{
    Cluster, GROUP, PATIENCE,
    deliverer::{Deliverer, Deliveries},
    outbound::Outbound,
};
use tokio::time;

/// Messages that were acknowledged, and the longest time none was.
#[derive(Default)]
struct Acknowledged {
    ids: Vec<Bytes>,
    longest_gap: Duration,
    last: Option<Instant>,
}

impl Acknowledged {
    fn add(&mut self, id: Bytes) {
        let now = Instant::now();
        let gap = self.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        self.longest_gap = self.longest_gap.max(gap);
        self.ids.push(id);
    }
}

/// Submits one message after the other until it is told to stop.
async fn submit(cluster: &Cluster, acknowledged: &Mutex<Acknowledged>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let (id, submission) = cluster.message(vec![b'x'; 4000]);
        if cluster.submitter.submit(id, submission).await.is_ok() {
            acknowledged.lock().add(message_id(id));
        }
    }
}

/// Lets mail flow while `disturb` does its worst; everything that was acknowledged must have been delivered once.
async fn check(cluster: Cluster, disturb: impl AsyncFnOnce(&Cluster)) {
    let messages = Arc::new(Mutex::new(BTreeMap::new()));
    let deliveries = Deliveries { messages: Some(messages.clone()), ..Deliveries::default() };
    let outbound = Outbound::start(&cluster, 11, 1, None).await;
    let deliverer = Deliverer::new(outbound, 200, deliveries);
    let (acknowledged, stop) = (Mutex::new(Acknowledged::default()), AtomicBool::new(false));
    let disturbed = async {
        time::sleep(Duration::from_millis(500)).await;
        disturb(&cluster).await;
        time::sleep(Duration::from_millis(500)).await;
        stop.store(true, Ordering::Relaxed);
    };
    let submitters = futures::future::join_all((0..16).map(|_| submit(&cluster, &acknowledged, &stop)));
    let all_delivered = async {
        tokio::join!(disturbed, submitters);
        while !acknowledged.lock().ids.iter().all(|id| messages.lock().contains_key(id)) {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = deliverer.run(&cluster) => {}
        delivered = time::timeout(PATIENCE, all_delivered) => delivered.expect("something acknowledged is lost"),
    }
    let Acknowledged { ids, longest_gap, .. } = acknowledged.into_inner();
    println!("{} acknowledged, at most {longest_gap:?} without", ids.len());
    // The owner of the source never changed, so nothing was sent twice.
    assert!(messages.lock().values().all(|count| *count == 1));
    agree(&cluster).await;
}

/// Replicas that have applied as much as each other are equal.
async fn agree(cluster: &Cluster) {
    let same = async {
        loop {
            let mut states = Vec::new();
            for place in cluster.running() {
                let request = SummaryRequest { group: GROUP.0.into() };
                let summary = cluster.client(place).summary(request).await.unwrap().into_inner();
                states.push((summary.applied_index, summary.state_hash));
            }
            if states.iter().all(|(applied, _)| *applied == states[0].0) {
                assert!(states.iter().all(|state| *state == states[0]), "replicas differ: {states:?}");
                return;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, same).await.expect("the replicas do not catch up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_02_a_leader_is_killed_and_nothing_acknowledged_is_lost() {
    check(Cluster::start(3).await, async |cluster| {
        let leader = cluster.leader(GROUP).await;
        cluster.kill(leader);
        time::sleep(Duration::from_secs(3)).await;
        cluster.restart(leader).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_asked_to_stop_hands_over_first() {
    check(Cluster::start(3).await, async |cluster| {
        let leader = cluster.leader(GROUP).await;
        cluster.stop(leader).await;
        cluster.restart(leader).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_directory_dies_and_mail_flows_on() {
    check(Cluster::start(3).await, async |cluster| {
        let leader = cluster.leader(GroupId::DIRECTORY).await;
        cluster.kill(leader);
        time::sleep(Duration::from_secs(2)).await;
        cluster.restart(leader).await;
    })
    .await;
}

/// Takes mail, cuts the power of all three nodes at once and starts them again; returns how much of what was acknowledged
/// is still there.
async fn known_after_a_power_cut(cluster: Cluster, prepare: impl Fn(&Cluster)) -> (usize, usize) {
    prepare(&cluster);
    let accepted = futures::future::join_all((0..60).map(|_| cluster.accept(vec![b'x'; 4000]))).await;
    (0..3).for_each(|place| cluster.kill(place));
    for place in 0..3 {
        cluster.restart(place).await;
    }
    let mut known = 0;
    for id in &accepted {
        known += usize::from(cluster.view(*id).await.is_some());
    }
    (accepted.len(), known)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_power_goes_everywhere_and_what_was_acknowledged_is_there() {
    let (acknowledged, known) = known_after_a_power_cut(Cluster::start(3).await, |_| {}).await;
    assert_eq!(known, acknowledged);
}

/// Without the sync the test before must fail: here it would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_disks_that_do_not_sync_are_found_out() {
    let forget = |cluster: &Cluster| (0..3).for_each(|place| cluster.forget_syncs(place));
    let (acknowledged, known) = known_after_a_power_cut(Cluster::start(3).await, forget).await;
    assert!(known < acknowledged, "all {acknowledged} are there although nothing was synced");
}
