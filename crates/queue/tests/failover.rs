//! Three queue nodes: leaders die, stop or lose power under load.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the time without a leader is printed for people")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_core::{GroupId, MessageId};
use postroad_proto::{message_id, queue::SummaryRequest};
use postroad_queue::StartError;
use postroad_testkit::failover::{Queues, kill_leader};
use support::{
    Cluster, GROUP, PATIENCE,
    deliverer::{Deliverer, Deliveries},
    outbound::Outbound,
};
use tokio::time;

/// Clients that send one message after the other.
const SUBMITTERS: usize = 16;

/// A cluster under load, and a record of what was acknowledged and delivered.
struct Mail {
    cluster: Cluster,
    acknowledged: Mutex<Acknowledged>,
    /// How often each message was delivered.
    delivered: Arc<Mutex<BTreeMap<Bytes, u32>>>,
    /// While set, nothing is delivered.
    resting: Arc<AtomicBool>,
    stop: AtomicBool,
    /// The number of clients that still send.
    submitting: AtomicUsize,
}

/// The acknowledged messages, and the longest time without an acknowledgement.
#[derive(Default)]
struct Acknowledged {
    ids: Vec<MessageId>,
    longest_gap: Duration,
    last: Option<Instant>,
}

impl Acknowledged {
    fn add(&mut self, id: MessageId) {
        let now = postroad_env::now();
        let gap = self.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        self.longest_gap = self.longest_gap.max(gap);
        self.ids.push(id);
    }
}

impl Mail {
    fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            acknowledged: Mutex::default(),
            delivered: Arc::default(),
            resting: Arc::default(),
            stop: AtomicBool::new(false),
            submitting: AtomicUsize::new(SUBMITTERS),
        }
    }

    /// Sends and delivers mail while `course` runs; returns its result.
    async fn flow<T>(&self, course: impl AsyncFnOnce(&Self) -> T) -> T {
        let outbound = Outbound::start(&self.cluster, 11, 1, None).await;
        let deliveries = Deliveries { messages: Some(self.delivered.clone()), ..Deliveries::default() };
        let mut deliverer = Deliverer::new(outbound, 200, deliveries);
        deliverer.resting = self.resting.clone();
        let submitters = async {
            futures::future::join_all((0..SUBMITTERS).map(|_| self.submit())).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = deliverer.run(&self.cluster) => unreachable!("it delivers for ever"),
            () = submitters => unreachable!("the submitters end only after the test stops them"),
            result = course(self) => result,
        }
    }

    /// Submits one message after the other until stopped.
    async fn submit(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let (id, submission) = self.cluster.message(vec![b'x'; 4000]);
            if self.cluster.submitter.submit(id, submission).await.is_ok() {
                self.acknowledged.lock().add(id);
            }
        }
        self.submitting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Stops the clients, and waits for their last answers.
    async fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        until(|| self.submitting.load(Ordering::Relaxed) == 0).await;
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().ids.len()
    }

    /// Waits until this many more messages are acknowledged.
    async fn more(&self, number: usize) {
        let goal = self.acknowledged() + number;
        until(|| self.acknowledged() >= goal).await;
    }

    /// The messages that were acknowledged and not delivered.
    fn undelivered(&self) -> Vec<MessageId> {
        let (acknowledged, delivered) = (self.acknowledged.lock(), self.delivered.lock());
        let ids = acknowledged.ids.iter().copied();
        ids.filter(|id| !delivered.contains_key(&message_id(*id))).collect()
    }

    /// The number of acknowledged messages that are neither delivered nor in the queue.
    async fn lost(&self) -> usize {
        let mut lost = 0;
        for id in self.undelivered() {
            lost += usize::from(self.cluster.view(id).await.is_none());
        }
        lost
    }
}

/// Waits for a condition.
#[track_caller]
fn until(condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let met = async {
            while !condition() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(PATIENCE, met).await.unwrap_or_else(|_| panic!("{caller} waits in vain"));
    }
}

/// Sends mail while `disturb` runs; every acknowledged message must be delivered exactly once.
async fn check(cluster: Cluster, disturb: impl AsyncFnOnce(&Mail)) {
    let mail = Mail::new(cluster);
    mail.flow(async |mail| {
        mail.more(100).await;
        disturb(mail).await;
        mail.more(100).await;
        mail.stop().await;
        until(|| mail.undelivered().is_empty()).await;
    })
    .await;
    let longest_gap = mail.acknowledged.lock().longest_gap;
    println!("{} acknowledged, at most {longest_gap:?} without", mail.acknowledged());
    // The owner of the source did not change, so nothing may be sent twice.
    assert!(mail.delivered.lock().values().all(|count| *count == 1));
    agree(&mail.cluster).await;
}

/// Checks that replicas at the same entry are equal.
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
    time::timeout(PATIENCE, same).await.expect("the replicas catch up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_02_a_leader_is_killed_and_nothing_acknowledged_is_lost() {
    check(Cluster::start(3).await, async |mail| {
        let leader = mail.cluster.leader(GROUP).await;
        mail.cluster.kill(leader);
        time::sleep(Duration::from_secs(3)).await;
        mail.cluster.restart(leader).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_34_a_leader_transfers_leadership_before_it_stops() {
    check(Cluster::start(3).await, async |mail| {
        let leader = mail.cluster.leader(GROUP).await;
        mail.cluster.stop(leader).await;
        mail.cluster.restart(leader).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_flows_while_the_leader_of_the_directory_is_down() {
    check(Cluster::start(3).await, async |mail| {
        let leader = mail.cluster.leader(GroupId::DIRECTORY).await;
        mail.cluster.kill(leader);
        time::sleep(Duration::from_secs(2)).await;
        mail.cluster.restart(leader).await;
    })
    .await;
}

/// How often the power of each group's leader is cut.
const CUTS: usize = 3;

/// Queue nodes in this process, whose power can be cut: unsynced writes are lost.
struct PowerCuts<'a>(&'a Mail);

impl Queues for PowerCuts<'_> {
    type Error = StartError;

    async fn leader(&mut self, group: GroupId) -> Option<usize> {
        self.0.cluster.known_leader(group)
    }

    async fn kill(&mut self, place: usize) -> Result<(), StartError> {
        self.0.cluster.kill(place);
        Ok(())
    }

    async fn start_again(&mut self, place: usize) -> Result<(), StartError> {
        self.0.cluster.try_restart(place).await?;
        self.0.cluster.until_ready(place).await;
        Ok(())
    }

    fn acknowledged(&self, _: GroupId) -> u64 {
        self.0.acknowledged() as u64
    }
}

/// The result of the power cuts.
#[derive(Debug, PartialEq, Eq)]
enum AfterCuts {
    /// Every acknowledged message is delivered or in the queue.
    Whole,
    /// This many acknowledged messages are neither.
    Lost(usize),
    /// A node did not start from its disk, or a group did not accept mail again.
    Stopped,
}

/// Cuts the power of one leader after the other, and finally of all nodes at once with mail in the queue.
///
/// Waits at most `patience` for each recovery.
async fn cut_power(mail: &Mail, patience: Duration) -> AfterCuts {
    for group in [GroupId::DIRECTORY, GROUP].repeat(CUTS) {
        let kill = time::timeout(patience, kill_leader(&mut PowerCuts(mail), group)).await;
        let Ok(Ok(kill)) = kill else { return AfterCuts::Stopped };
        println!("group {group}: led after {:?}, accepts after {:?}", kill.led_after, kill.accepted_after);
    }
    mail.resting.store(true, Ordering::Relaxed);
    let lost = time::timeout(patience, lost_by_a_cut_everywhere(mail)).await;
    mail.resting.store(false, Ordering::Relaxed);
    match lost {
        Ok(Ok(0)) => AfterCuts::Whole,
        Ok(Ok(lost)) => AfterCuts::Lost(lost),
        Ok(Err(_)) | Err(_) => AfterCuts::Stopped,
    }
}

async fn lost_by_a_cut_everywhere(mail: &Mail) -> Result<usize, StartError> {
    mail.more(100).await;
    mail.cluster.running().into_iter().for_each(|place| mail.cluster.kill(place));
    for place in 0..3 {
        mail.cluster.try_restart(place).await?;
    }
    Ok(mail.lost().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_and_r_07_nothing_acknowledged_is_lost_when_one_leader_after_the_other_loses_power() {
    check(Cluster::start(3).await, async |mail| {
        assert_eq!(cut_power(mail, PATIENCE).await, AfterCuts::Whole);
    })
    .await;
}

/// Shows that the test above would fail without syncs.
///
/// A node that lost what it acknowledged may also be detected before mail is lost; it is then not used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_disks_that_do_not_sync_fail_the_test_under_load() {
    let cluster = Cluster::start(3).await;
    (0..3).for_each(|place| cluster.forget_syncs(place));
    let mail = Mail::new(cluster);
    let after = mail.flow(async |mail| cut_power(mail, Duration::from_secs(10)).await).await;
    assert_ne!(after, AfterCuts::Whole, "{} acknowledged, although nothing was synced", mail.acknowledged());
}

/// Accepts mail, cuts the power of all three nodes at once and restarts them; returns how many acknowledged messages are
/// still there, and how many there were.
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
async fn r_06_and_r_07_everything_acknowledged_is_there_after_a_power_cut_of_all_nodes() {
    let (acknowledged, known) = known_after_a_power_cut(Cluster::start(3).await, |_| {}).await;
    assert_eq!(known, acknowledged);
}

/// Shows that the test above would fail without syncs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_06_disks_that_do_not_sync_fail_the_test() {
    let forget = |cluster: &Cluster| (0..3).for_each(|place| cluster.forget_syncs(place));
    let (acknowledged, known) = known_after_a_power_cut(Cluster::start(3).await, forget).await;
    assert!(known < acknowledged, "all {acknowledged} are there although nothing was synced");
}
