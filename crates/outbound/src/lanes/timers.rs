//! What lanes do by the clock: pauses end, jobs that waited too long go back, what was sent is written down.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Cell, Lanes, State};
use crate::{context::Workshop, pending_attempts::LaneName};

impl Lanes {
    /// Sets the lane's timer, unless it rings early enough.
    pub(super) fn keep_time(&self, cell: &Cell, state: &mut State) {
        let Some(at) = state.lane.next_tick() else { return };
        if state.timer.is_some_and(|timer| timer <= at) {
            return;
        }
        let id = |at: Instant| (at, (cell.id, cell.source, cell.site.clone()));
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

    /// Ends pauses, gives back what waited too long and forgets lanes nobody uses, until dropped.
    pub(crate) async fn keep_timers(self: Arc<Self>, workshop: Arc<Workshop>) {
        const NOTHING_DUE: Duration = Duration::from_secs(3600);
        loop {
            let now = Instant::now();
            let first = self.timers.lock().first().map(|(at, _)| *at);
            let wait = first.map_or(NOTHING_DUE, |at| at.saturating_duration_since(now));
            if wait.is_zero() {
                self.ring(&workshop, now);
            } else {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.timer_moved.notified() => {}
                }
            }
        }
    }

    fn ring(self: &Arc<Self>, workshop: &Arc<Workshop>, now: Instant) {
        loop {
            let due = {
                let mut timers = self.timers.lock();
                if timers.first().is_none_or(|(at, _)| *at > now) {
                    return;
                }
                timers.pop_first()
            };
            let Some((_, (id, source, site))) = due else { return };
            if let Some(cell) = self.find(&LaneName { source, site }).filter(|cell| cell.id == id) {
                self.tick(workshop, &cell, now);
            }
        }
    }

    fn tick(self: &Arc<Self>, workshop: &Arc<Workshop>, cell: &Arc<Cell>, now: Instant) {
        let (back, call, forget) = {
            let mut state = cell.state.lock();
            state.timer = None;
            let was_paused = state.lane.pause().is_some();
            let back = state.lane.tick(now);
            let resumed = was_paused && state.lane.pause().is_none();
            if resumed {
                self.windows_changed();
            }
            let forget = state.lane.is_forgettable(now);
            if forget {
                state.lane.close();
            } else {
                self.keep_time(cell, &mut state);
            }
            (back, state.lane.call(now), forget)
        };
        if forget {
            let mut sources = self.sources.lock();
            if let Some(owned) = sources.get_mut(&cell.source)
                && owned.lanes.get(&cell.site).is_some_and(|found| found.id == cell.id)
            {
                owned.lanes.remove(&cell.site);
            }
            self.count_lanes(&sources);
            self.journal.forget(&cell.name());
        }
        self.give_back(cell, back);
        self.call(workshop, cell, call);
    }

    /// Writes down what lanes with rates have sent, every second, until dropped.
    pub(crate) async fn keep_journal(self: Arc<Self>) {
        const EVERY: Duration = Duration::from_secs(1);
        loop {
            tokio::time::sleep(EVERY).await;
            let changed = self.journal.take_changed();
            if changed.is_empty() {
                continue;
            }
            let lanes = self.clone();
            // The cache may wait for the disk.
            let written = tokio::task::spawn_blocking(move || {
                let cells: Vec<Arc<Cell>> = changed.iter().filter_map(|name| lanes.find(name)).collect();
                lanes.write_down(&cells, false);
            });
            if written.await.is_err() {
                tracing::error!("the journal of lanes could not be written");
            }
        }
    }

    /// Writes down all that lanes with rates have sent: nothing more will be. Blocks.
    pub(crate) fn close_journal(&self) {
        let sources = self.sources.lock();
        let cells: Vec<Arc<Cell>> =
            sources.values().flat_map(|owned| owned.lanes.values()).cloned().collect();
        drop(sources);
        self.write_down(&cells, true);
        self.journal.flush();
    }

    pub(super) fn write_down(&self, cells: &[Arc<Cell>], complete: bool) {
        let record = |cell: &Arc<Cell>| {
            let state = cell.state.lock();
            let windows = state.lane.has_rates().then(|| state.lane.record(Instant::now()))?;
            Some((cell.name(), self.journal.record(state.source.epoch, complete, windows)))
        };
        let records: Vec<_> = cells.iter().filter_map(record).collect();
        self.journal.write(&records);
    }
}
