//! Disks that the log has filled: no mail is accepted until deliveries have freed space.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use futures::{StreamExt, stream};
use postroad_cluster::SubmitError;
use postroad_core::MessageId;
use support::{
    Cluster, GROUP, PATIENCE,
    deliverer::{Deliverer, Deliveries},
    outbound::Outbound,
};
use tokio::time;

/// Space for some mail besides the reserve.
const DISK_BYTES: u64 = 48 << 20;

async fn submit(cluster: &Cluster) -> Result<MessageId, SubmitError> {
    let (id, submission) = cluster.message(vec![b'x'; 100_000]);
    cluster.submitter.submit(id, submission).await.map(|_| id)
}

/// Submits until mail is refused; returns what was acknowledged.
async fn fill(cluster: &Cluster) -> Vec<MessageId> {
    let mut acknowledged = Vec::new();
    let mut submitted = stream::iter(0..).map(|_| submit(cluster)).buffer_unordered(16);
    let full = async {
        while let Some(result) = submitted.next().await {
            match result {
                Ok(id) => acknowledged.push(id),
                Err(SubmitError::StorageFull) => return,
                Err(error) => panic!("{error}"),
            }
        }
    };
    time::timeout(PATIENCE, full).await.expect("the disk fills");
    // Submissions that were under way when the first was refused.
    acknowledged.extend(submitted.take(16).filter_map(async |result| result.ok()).collect::<Vec<_>>().await);
    acknowledged
}

/// Everything acknowledged is delivered, and then mail is accepted again without an operator.
async fn recovers(cluster: &Cluster, acknowledged: &[MessageId]) {
    for id in acknowledged {
        assert!(cluster.view(*id).await.is_some(), "what was acknowledged is there");
    }
    let outbound = Outbound::start(cluster, 11, 1, None).await;
    let deliverer = Deliverer::new(outbound, 200, Deliveries::default());
    let again = async {
        for id in acknowledged {
            cluster.until_ended(*id).await;
        }
        while submit(cluster).await.is_err() {
            time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = deliverer.run(cluster) => {}
        again = time::timeout(PATIENCE, again) => again.expect("mail is accepted again"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_13_a_log_that_filled_the_disk_frees_space_when_mail_ends() {
    let cluster = Cluster::start(1).await;
    cluster.set_disk_capacity(0, Some(DISK_BYTES));
    let acknowledged = fill(&cluster).await;
    recovers(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_13_a_full_node_still_frees_space_after_a_restart() {
    let cluster = Cluster::start(1).await;
    cluster.set_disk_capacity(0, Some(DISK_BYTES));
    let acknowledged = fill(&cluster).await;
    for _ in 0..2 {
        cluster.kill(0);
        cluster.restart(0).await;
        cluster.view(acknowledged[0]).await.unwrap();
        cluster.stop(0).await;
        cluster.restart(0).await;
        cluster.view(acknowledged[0]).await.unwrap();
    }
    recovers(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_13_mail_for_full_followers_does_not_block_reports() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader(GROUP).await;
    for place in (0..3).filter(|place| *place != leader) {
        cluster.set_disk_capacity(place, Some(DISK_BYTES));
    }
    let acknowledged = fill(&cluster).await;
    recovers(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_13_a_full_follower_gets_no_more_mail_while_the_other_one_is_down() {
    let cluster = Cluster::start(3).await;
    // A leader that begins while a node is down has had no answer from it, and counts it as down from its first moment.
    (0..3).for_each(|place| cluster.kill(place));
    let mut leaders = cluster.leaders.clone();
    let no_leader = leaders.wait_for(|leaders| leaders.is_empty());
    time::timeout(PATIENCE, no_leader).await.expect("every connection ends").unwrap();
    for place in 0..2 {
        cluster.restart(place).await;
    }
    let leader = cluster.leader(GROUP).await;
    cluster.set_disk_capacity(1 - leader, Some(DISK_BYTES));
    let acknowledged = fill(&cluster).await;
    recovers(&cluster, &acknowledged).await;
}
