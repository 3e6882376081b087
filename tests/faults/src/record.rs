//! What is recorded of a run: the history that the oracle judges, and how often each thing happened.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_core::NodeId;
use postroad_oracle::{
    History, Micros, Record, What,
    history::{Fault, NodeChange, Role},
};

/// The recorder of one run; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    now: Duration,
    records: Vec<Record>,
    numbers: u64,
    counts: BTreeMap<String, u64>,
    /// Faults that are in force.
    active: u64,
}

impl Recorder {
    /// Sets the time of what is recorded next.
    pub(crate) fn set_now(&self, now: Duration) {
        self.0.lock().now = now;
    }

    /// Returns the time since the run began.
    pub(crate) fn now(&self) -> Micros {
        micros(self.0.lock().now)
    }

    /// Adds a record.
    pub(crate) fn push(&self, what: What) {
        let mut state = self.0.lock();
        let at = micros(state.now);
        state.records.push(Record { at, what });
    }

    /// Returns a number that this run has not used.
    pub(crate) fn number(&self) -> u64 {
        let mut state = self.0.lock();
        state.numbers += 1;
        state.numbers
    }

    /// Records that a node starts or has ended.
    pub(crate) fn node(&self, node: NodeId, role: Role, runs: bool) {
        self.push(What::Node(NodeChange { node, role, runs }));
    }

    /// Records that a fault begins or ends.
    pub(crate) fn fault(&self, name: &str, nodes: &[NodeId], on: bool) {
        self.push(What::Fault(Fault { name: name.to_owned(), nodes: nodes.to_vec(), on }));
        if on {
            self.count_fault(name, 1);
        }
        let mut state = self.0.lock();
        state.active = if on { state.active + 1 } else { state.active.saturating_sub(1) };
    }

    /// Counts faults that took effect.
    pub(crate) fn count_fault(&self, name: &str, times: u64) {
        *self.0.lock().counts.entry(format!("fault {name}")).or_default() += times;
    }

    /// Counts that something happened, apart for the times with a fault and those without.
    pub(crate) fn count(&self, what: &str, times: u64) {
        if times == 0 {
            return;
        }
        let mut state = self.0.lock();
        let during = if state.active > 0 { "under fault" } else { "quiet" };
        *state.counts.entry(format!("{what}, {during}")).or_default() += times;
    }

    /// Returns the history, and the counts.
    pub(crate) fn finish(&self) -> (History, BTreeMap<String, u64>) {
        let mut state = self.0.lock();
        (History::new(std::mem::take(&mut state.records)), std::mem::take(&mut state.counts))
    }
}

fn micros(time: Duration) -> Micros {
    Micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
