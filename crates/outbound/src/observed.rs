//! What this node observes of its lanes, for the leaders of all groups: each is sent what has changed since the last frame.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use postroad_core::SourceId;
use postroad_proto::queue::{LanePause, LaneReport};
use tokio::sync::watch;

use crate::lane::{Observation, RateReady};

/// How long it is remembered that a lane was forgotten: a session that sends nothing for longer has broken.
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);

type Name = (SourceId, Arc<str>);

/// The lanes as they were last observed. Each change has a number of its own, so that it can be sent in parts.
#[derive(Debug)]
pub(crate) struct ObservedLanes {
    state: Mutex<State>,
    /// The number of the last change.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    lanes: BTreeMap<Name, Observed>,
    /// Every lane by the number of its last change.
    by_change: BTreeMap<u64, Name>,
}

#[derive(Debug)]
struct Observed {
    /// `None` once the lane is forgotten.
    lane: Option<Observation>,
    change: u64,
    at: Instant,
}

impl ObservedLanes {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::channel(0).0 }
    }

    /// Takes all lanes as they are now.
    pub(crate) fn observe(&self, now: Instant, all: BTreeMap<Name, Observation>) {
        let before = *self.changed.borrow();
        let last = self.state.lock().observe(now, all, before);
        if last != before {
            self.changed.send_replace(last);
        }
    }

    /// Returns a receiver that sees when there is something to send.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns up to `max` lanes that changed after change number `since`, the oldest changes first, and the number of the
    /// last of them.
    pub(crate) fn changed_since(&self, now: Instant, since: u64, max: usize) -> (Vec<LaneReport>, u64) {
        let State { lanes, by_change } = &*self.state.lock();
        let mut last = since;
        let changed = by_change.range(since + 1..).take(max).map(|(change, name)| {
            last = *change;
            report(now, name, lanes.get(name).and_then(|entry| entry.lane.as_ref()))
        });
        let reports = changed.collect();
        (reports, last)
    }
}

impl State {
    /// Returns the number of the last change; `last` is that of the one before.
    fn observe(&mut self, now: Instant, all: BTreeMap<Name, Observation>, mut last: u64) -> u64 {
        let Self { lanes, by_change } = self;
        let mut note = |name: &Name, entry: &mut Observed, lane: Option<Observation>| {
            last += 1;
            by_change.remove(&entry.change);
            by_change.insert(last, name.clone());
            *entry = Observed { lane, change: last, at: now };
        };
        for (name, entry) in lanes.iter_mut() {
            if entry.lane.is_some() && !all.contains_key(name) {
                note(name, entry, None);
            }
        }
        for (name, lane) in all {
            let entry = lanes.entry(name.clone()).or_insert(Observed { lane: None, change: 0, at: now });
            if entry.lane.as_ref() != Some(&lane) {
                note(&name, entry, Some(lane));
            }
        }
        lanes.retain(|_, entry| {
            let is_kept = entry.lane.is_some() || now < entry.at + FORGOTTEN_FOR;
            if !is_kept {
                by_change.remove(&entry.change);
            }
            is_kept
        });
        last
    }
}

fn report(now: Instant, (source, site): &Name, lane: Option<&Observation>) -> LaneReport {
    let named = LaneReport { source: source.0, site: site.to_string(), ..LaneReport::default() };
    let Some(lane) = lane else { return LaneReport { forgotten: true, ..named } };
    let left = |at: Instant| {
        let left = at.saturating_duration_since(now).as_millis();
        u64::try_from(left).unwrap_or(u64::MAX)
    };
    let pause = lane.pause.as_ref();
    LaneReport {
        connections: lane.connections,
        connections_max: lane.connections_max,
        waiting: lane.waiting,
        delivered: lane.delivered,
        failed: lane.failed,
        pause: pause
            .map(|pause| LanePause { left_millis: left(pause.until), reason: pause.reason.to_string() }),
        rate_ready_in_millis: match lane.rate {
            RateReady::At(at) => left(at),
            RateReady::Now | RateReady::Never => 0,
        },
        rate_never: lane.rate == RateReady::Never,
        ..named
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Pause;

    fn lane(waiting: u32) -> Observation {
        Observation {
            connections: 1,
            connections_max: 5,
            waiting,
            delivered: 0,
            failed: 0,
            pause: None,
            rate: RateReady::Now,
        }
    }

    fn name(site: &str) -> Name {
        (SourceId(1), site.into())
    }

    fn sites(reports: &[LaneReport]) -> Vec<(&str, u32)> {
        reports.iter().map(|report| (&*report.site, report.waiting)).collect()
    }

    #[test]
    fn a_session_is_sent_every_lane_once_and_then_what_changes() {
        let (observed, now) = (ObservedLanes::new(), postroad_env::now());
        observed.observe(now, [(name("a"), lane(1)), (name("b"), lane(2)), (name("c"), lane(3))].into());
        let (first, seen) = observed.changed_since(now, 0, 2);
        assert_eq!(sites(&first), [("a", 1), ("b", 2)]);
        let (second, seen) = observed.changed_since(now, seen, 2);
        assert_eq!(sites(&second), [("c", 3)]);
        assert_eq!(observed.changed_since(now, seen, 2), (Vec::new(), seen));
        let watching = observed.watch();
        observed.observe(now, [(name("a"), lane(1)), (name("b"), lane(2)), (name("c"), lane(3))].into());
        assert!(!watching.has_changed().unwrap(), "nothing changed");
        let paused = Pause { until: now + Duration::from_secs(3), reason: "421 busy".into() };
        let paused = Observation { pause: Some(paused), rate: RateReady::Never, ..lane(0) };
        observed.observe(now, [(name("a"), lane(1)), (name("c"), paused)].into());
        assert!(watching.has_changed().unwrap());
        let later = now + Duration::from_secs(1);
        let (changed, seen) = observed.changed_since(later, seen, 9);
        assert!(changed[0].forgotten && changed[0].site == "b", "{changed:?}");
        let pause = changed[1].pause.as_ref().unwrap();
        assert_eq!((pause.left_millis, &*pause.reason, changed[1].rate_never), (2000, "421 busy", true));
        assert_eq!(observed.changed_since(later, seen, 9).0, []);
        // Another session gets everything, also that a lane is gone, for a while.
        assert_eq!(observed.changed_since(later, 0, 9).0.len(), 3);
        observed.observe(now + FORGOTTEN_FOR, [(name("a"), lane(1))].into());
        assert_eq!(observed.changed_since(later, 0, 9).0.len(), 2);
        let state = observed.state.lock();
        assert_eq!(state.by_change.len(), state.lanes.len(), "a lane is listed under its last change only");
    }
}
