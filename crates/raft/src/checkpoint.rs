//! When to write a checkpoint, how much log to keep after it, and when to free segments.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use openraft::{Raft, async_runtime::WatchReceiver as _};
use postroad_storage::Room;

use crate::{host::Host, node::NodeConfig, types::Types};

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A checkpoint is due after this many times its size of log.
const CHECKPOINT_SHARE: u64 = 16;

/// While the disk is full, checkpoints are written to free space, at most so many bytes per second.
const FULL_BYTES_PER_SEC: u64 = 16 << 20;

/// Writes checkpoints and frees segments of one group until it stops.
pub(crate) async fn run(raft: Raft<Types, Host>, host: Host, config: NodeConfig) {
    let (mut asked_to_purge, mut released) = (0, (0, 0));
    let mut triggered = postroad_env::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        prepare(&host).await;
        let covered = host.shared.live.lock().as_ref().map_or(0, |(index, _)| *index);
        if is_due(&host, &config) || is_full(&host, covered, triggered) {
            triggered = postroad_env::now();
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
        if covered > asked_to_purge {
            asked_to_purge = purge_to(&raft, &host, covered, &config);
            if raft.trigger().purge_log(asked_to_purge).await.is_err() {
                return;
            }
        }
        // openraft purges asynchronously.
        let purged = host.log.group(host.group).purged.map_or(0, |purged| purged.index);
        if released != (covered, purged) && release(&host).await {
            released = (covered, purged);
        }
    }
}

/// On a full disk: entries since the last checkpoint may have ended mail, whose space is needed now (faults R-13).
fn is_full(host: &Host, covered: u64, triggered: Instant) -> bool {
    let bytes = host.shared.checkpoint_bytes.load(Ordering::Relaxed);
    let pause = Duration::from_secs(1 + bytes / FULL_BYTES_PER_SEC);
    host.log.room() != Room::Plenty
        && host.shared.applied.load(Ordering::Relaxed) > covered
        && postroad_env::since(triggered) > pause
}

fn is_due(host: &Host, config: &NodeConfig) -> bool {
    let since = host.shared.bytes_since_checkpoint.load(Ordering::Relaxed);
    let last = host.shared.checkpoint_bytes.load(Ordering::Relaxed);
    since > config.checkpoint_bytes.max(last.saturating_mul(CHECKPOINT_SHARE))
}

/// Keeps what a follower still needs, unless that is too much or the disk is full.
fn purge_to(raft: &Raft<Types, Host>, host: &Host, covered: u64, config: &NodeConfig) -> u64 {
    let metrics = raft.metrics().borrow_watched().clone();
    let slowest = metrics
        .replication
        .iter()
        .flatten()
        .map(|(_, matched)| matched.as_ref().map_or(0, |id| id.index))
        .min()
        .unwrap_or(covered);
    let kept = host.log.bytes_from(host.group, slowest);
    let is_too_much = kept > config.log_retain_bytes_max || host.log.room() != Room::Plenty;
    if is_too_much { covered } else { covered.min(slowest) }
}

async fn prepare(host: &Host) {
    let log = host.log.clone();
    let prepared = postroad_env::blocking(move || log.prepare()).await;
    if let Ok(Err(error)) = prepared {
        tracing::warn!(%error, "cannot prepare a log segment");
    }
}

/// Returns false when it must be tried again.
async fn release(host: &Host) -> bool {
    // A snapshot in transfer reads bodies that the state may no longer refer to.
    if Arc::strong_count(&host.shared.pin) > 1 {
        return false;
    }
    let Some((upto, live)) = host.shared.live.lock().clone() else { return true };
    let (log, group) = (host.log.clone(), host.group);
    let released = postroad_env::blocking(move || log.release(group, upto, &live)).await;
    match released {
        // The log says that it waits for space.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::StorageFull => return false,
        Ok(Err(error)) => tracing::warn!(%group, %error, "cannot free log segments"),
        _ => {}
    }
    true
}
