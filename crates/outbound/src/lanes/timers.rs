//! The timers of lanes: end pauses, give back jobs that waited too long, and write the journal.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{LaneHandle, Lanes, State};
use crate::{context::DeliveryContext, pending_attempts::LaneName};

impl Lanes {
    /// Sets the lane's timer, unless it fires early enough.
    pub(super) fn set_timer(&self, handle: &LaneHandle, state: &mut State) {
        let Some(at) = state.lane.next_tick() else { return };
        if state.timer.is_some_and(|timer| timer <= at) {
            return;
        }
        let id = |at: Instant| (at, (handle.id, handle.source, handle.site.clone()));
        let mut timers = self.timers.lock();
        if let Some(before) = state.timer.replace(at) {
            timers.remove(&id(before));
        }
        timers.insert(id(at));
        let is_first = timers.first().is_some_and(|(first, _)| *first == at);
        drop(timers);
        if is_first {
            self.timer_moved.notify_one();
        }
    }

    /// Ends pauses, gives back jobs that waited too long and forgets unused lanes, until dropped.
    pub(crate) async fn run_timers(self: Arc<Self>, context: Arc<DeliveryContext>) {
        const NOTHING_DUE: Duration = Duration::from_secs(3600);
        loop {
            let now = postroad_env::now();
            let first = self.timers.lock().first().map(|(at, _)| *at);
            let wait = first.map_or(NOTHING_DUE, |at| at.saturating_duration_since(now));
            if wait.is_zero() {
                self.fire_timers(&context, now);
            } else {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.timer_moved.notified() => {}
                }
            }
        }
    }

    fn fire_timers(self: &Arc<Self>, context: &Arc<DeliveryContext>, now: Instant) {
        loop {
            let due = {
                let mut timers = self.timers.lock();
                if timers.first().is_none_or(|(at, _)| *at > now) {
                    return;
                }
                timers.pop_first()
            };
            let Some((_, (id, source, site))) = due else { return };
            if let Some(handle) = self.find(&LaneName { source, site }).filter(|handle| handle.id == id) {
                self.tick(context, &handle, now);
            }
        }
    }

    fn tick(self: &Arc<Self>, context: &Arc<DeliveryContext>, handle: &Arc<LaneHandle>, now: Instant) {
        let (back, wake, forget) = {
            let mut state = handle.state.lock();
            state.timer = None;
            let back = self.change(handle, &mut state, now, |lane| lane.tick(now));
            let forget = state.lane.is_forgettable(now);
            if forget {
                state.lane.close();
            }
            (back, state.lane.wake(now), forget)
        };
        if forget {
            let mut sources = self.sources.lock();
            if let Some(owned) = sources.get_mut(&handle.source)
                && owned.lanes.get(&handle.site).is_some_and(|found| found.id == handle.id)
            {
                owned.lanes.remove(&handle.site);
            }
            self.count_lanes(&sources);
            self.journal.forget(&handle.name());
        }
        self.give_back(back);
        self.wake(context, handle, wake);
    }

    /// Observes all lanes and gives back what was refused, every second, until dropped.
    pub(crate) async fn run_observer(self: Arc<Self>) {
        const EVERY: Duration = Duration::from_secs(1);
        loop {
            tokio::time::sleep(EVERY).await;
            let now = postroad_env::now();
            self.observed.observe(now, self.observations(now));
            self.return_refused(Some(now));
        }
    }

    /// Writes to the journal what lanes with rates have sent, every second, until dropped.
    pub(crate) async fn run_journal(self: Arc<Self>) {
        const EVERY: Duration = Duration::from_secs(1);
        loop {
            tokio::time::sleep(EVERY).await;
            let changed = self.journal.take_changed();
            if changed.is_empty() {
                continue;
            }
            let lanes = self.clone();
            // Writing may block on the disk.
            let written = postroad_env::blocking(move || {
                let handles: Vec<Arc<LaneHandle>> =
                    changed.iter().filter_map(|name| lanes.find(name)).collect();
                lanes.write_journal(&handles, false);
            });
            if written.await.is_err() {
                tracing::error!("cannot write the lane journal");
            }
        }
    }

    /// Writes the final records of all lanes with rates; no lane may send afterwards. Blocks.
    pub(crate) fn close_journal(&self) {
        let sources = self.sources.lock();
        let handles: Vec<Arc<LaneHandle>> =
            sources.values().flat_map(|owned| owned.lanes.values()).cloned().collect();
        drop(sources);
        self.write_journal(&handles, true);
        self.journal.flush();
    }

    pub(super) fn write_journal(&self, handles: &[Arc<LaneHandle>], complete: bool) {
        let record = |handle: &Arc<LaneHandle>| {
            let state = handle.state.lock();
            let windows = state.lane.has_rates().then(|| state.lane.record(postroad_env::now()))?;
            Some((handle.name(), self.journal.record(state.source.epoch, complete, windows)))
        };
        let records: Vec<_> = handles.iter().filter_map(record).collect();
        self.journal.write(&records);
    }
}
