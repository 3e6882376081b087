//! When a checkpoint is written, how much log is kept after it, and when segments become free.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::{Raft, async_runtime::WatchReceiver as _};

use crate::{host::Host, machine::Machine, node::NodeConfig, types::Types};

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A checkpoint is worth its writing when this many times its size of log has gone by.
const CHECKPOINT_SHARE: u64 = 16;

/// Looks after one group until it stops.
pub(crate) async fn run<M: Machine>(raft: Raft<Types, Host<M>>, host: Host<M>, config: NodeConfig) {
    let mut released = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        prepare_spare(&host).await;
        if is_due(&host, &config) && raft.trigger().snapshot().await.is_err() {
            return;
        }
        let covered = host.shared.live.lock().as_ref().map_or(0, |(index, _)| *index);
        if covered > released {
            if raft.trigger().purge_log(purge_to(&raft, &host, covered, &config)).await.is_err() {
                return;
            }
            // The purge itself is openraft's; what it has not purged by now is freed after the next checkpoint.
            tokio::time::sleep(LOOK_EVERY).await;
            release(&host).await;
            released = covered;
        }
    }
}

fn is_due<M>(host: &Host<M>, config: &NodeConfig) -> bool {
    let since = host.shared.octets_since_checkpoint.load(Ordering::Relaxed);
    let last = host.shared.checkpoint_octets.load(Ordering::Relaxed);
    since > config.checkpoint_octets.max(last.saturating_mul(CHECKPOINT_SHARE))
}

/// Keeps what a follower still needs, unless that is too much.
fn purge_to<M: Machine>(
    raft: &Raft<Types, Host<M>>,
    host: &Host<M>,
    covered: u64,
    config: &NodeConfig,
) -> u64 {
    let metrics = raft.metrics().borrow_watched().clone();
    let slowest = metrics
        .replication
        .iter()
        .flatten()
        .map(|(_, matched)| matched.as_ref().map_or(0, |id| id.index))
        .min()
        .unwrap_or(covered);
    let kept = host.log.octets_from(host.group, slowest);
    if kept > config.log_retain_octets_max { covered } else { covered.min(slowest) }
}

async fn prepare_spare<M>(host: &Host<M>) {
    let log = host.log.clone();
    let prepared = tokio::task::spawn_blocking(move || log.prepare_spare()).await;
    // A full disk is told of by the writer, once, when it needs the room.
    if let Ok(Err(error)) = prepared
        && error.kind() != std::io::ErrorKind::StorageFull
    {
        tracing::warn!(%error, "no segment can be prepared");
    }
}

async fn release<M>(host: &Host<M>) {
    // A snapshot in transfer reads bodies that the state may not refer to any more.
    if Arc::strong_count(&host.shared.pin) > 1 {
        return;
    }
    let Some((upto, live)) = host.shared.live.lock().clone() else { return };
    let (log, group) = (host.log.clone(), host.group);
    let released = tokio::task::spawn_blocking(move || log.release(group, upto, &live)).await;
    if let Ok(Err(error)) = released {
        tracing::warn!(%group, %error, "segments cannot be freed");
    }
}
