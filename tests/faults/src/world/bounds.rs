//! Bounds that every node keeps, whatever is wrong elsewhere.

use std::time::Duration;

use postroad_ledger::STAGED_FOR;

use super::{Node, World, name};
use crate::process::{Memory, Process};

/// How long a start may need more memory than what follows it.
const STARTED_AFTER: Duration = Duration::from_secs(5);
/// How much more.
const START_BYTES_MAX: i64 = 16 << 20;
/// How long a leader may wait for its disk: 2 s, and a second in which somebody else becomes leader.
const LEADS_WITHOUT_DISK_MAX: Duration = Duration::from_secs(3);
/// How long a new disk may take to get what the others have over narrow links, which carry it several times meanwhile.
const REJOINS_WITHIN: Duration = Duration::from_secs(20);
/// How long a process runs before another one does while all is quiet.
const IDLE_TICK: Duration = Duration::from_millis(100);
/// How long after their time chunks may be kept whose message did not come.
const STAGED_SLACK: Duration = Duration::from_secs(5);

impl World {
    /// Looks at each queue node.
    pub(super) fn check_bounds(&mut self) {
        let mut problems = Vec::new();
        for (number, node) in &mut self.nodes {
            let Some(replicas) = node.groups.replicas() else { continue };
            if self.now == node.started_at + STARTED_AFTER
                && let Some(Memory { held, peak }) = node.process.as_ref().map(Process::memory)
                && peak - held > START_BYTES_MAX
            {
                let (name, more) = (name(*number), (peak - held) >> 20);
                problems.push(format!("{name} needed {more} MiB more while it started than afterwards"));
            }
            if node
                .waits_for_disk_since(self.now)
                .is_some_and(|since| since + LEADS_WITHOUT_DISK_MAX == self.now)
                && let Some((group, _)) = replicas.leading().first()
            {
                problems.push(format!("{} leads group {group} without a disk", name(*number)));
            }
        }
        for problem in problems {
            self.trace.note(format_args!("{problem}"), &[]);
            self.problems.push(format!("{:.3} s: {problem}", self.now.as_secs_f64()));
        }
    }

    /// Looks at nodes with a new disk before faults end.
    pub(super) fn check_rejoins(&mut self) {
        if !self.net.is_narrow() {
            return;
        }
        let late = self.observer.rejoining().filter(|(_, since)| *since + REJOINS_WITHIN < self.now);
        let late = late.map(|(node, since)| {
            let took = (self.now - since).as_secs();
            format!("{} has had a new disk for {took} s and does not vote", name(node))
        });
        self.problems.extend(late);
    }

    /// Where clients gave up in the middle of messages, waits until nothing of these may be left.
    pub(super) fn check_staged(&mut self) {
        if !self.place.abandons_chunks() {
            return;
        }
        // Nothing happens meanwhile that needs a fine clock.
        self.tick = IDLE_TICK;
        let end = self.now + STAGED_FOR + STAGED_SLACK;
        while self.now < end {
            self.tick();
        }
        let left = self.staged_chunks();
        if left > 0 {
            self.problems.push(format!("{left} chunks of messages that never came are kept"));
        }
    }

    fn staged_chunks(&self) -> usize {
        let replicas = self.nodes.values().filter_map(|node| node.groups.replicas());
        replicas.map(|replicas| replicas.staged_chunks()).sum()
    }
}

impl Node {
    /// Returns since when a call of its disk has not returned.
    fn waits_for_disk_since(&mut self, now: Duration) -> Option<Duration> {
        let is_busy = self.suspended.is_none() && self.process.as_ref().is_some_and(Process::disk_is_busy);
        self.disk_busy_since = is_busy.then(|| self.disk_busy_since.unwrap_or(now));
        self.disk_busy_since
    }
}
