//! Probes of sites that operators asked for: sent to an outbound node, and answered by it, in one session.

use std::collections::{BTreeMap, VecDeque};

use postroad_proto::queue::{Probe, ProbeResult};
use tokio::sync::oneshot;

/// Probes of one node at a time.
const PROBES_MAX: usize = 16;

/// The probes of one session. Dropping it ends them without a result.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    last: u64,
    unsent: VecDeque<Probe>,
    asked: BTreeMap<u64, oneshot::Sender<ProbeResult>>,
}

impl Probes {
    /// Queues a probe, whose number is chosen here; `None` when there are too many.
    pub(crate) fn ask(&mut self, probe: Probe) -> Option<oneshot::Receiver<ProbeResult>> {
        // A caller that has gone makes room.
        self.asked.retain(|_, answer| !answer.is_closed());
        if self.asked.len() >= PROBES_MAX {
            return None;
        }
        self.last += 1;
        let (answer, receiver) = oneshot::channel();
        self.asked.insert(self.last, answer);
        self.unsent.push_back(Probe { id: self.last, ..probe });
        Some(receiver)
    }

    /// Returns the next probe to send.
    pub(crate) fn next(&mut self) -> Option<Probe> {
        self.unsent.pop_front()
    }

    /// Hands a result to its caller.
    pub(crate) fn finish(&mut self, result: ProbeResult) {
        if let Some(answer) = self.asked.remove(&result.id) {
            // The caller may be gone; a dropped result is harmless.
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_bounded_and_each_result_goes_to_its_caller() {
        let mut probes = Probes::default();
        let ask = |probes: &mut Probes| probes.ask(Probe::default());
        let mut receivers: Vec<_> = (0..PROBES_MAX).map(|_| ask(&mut probes).unwrap()).collect();
        assert!(ask(&mut probes).is_none());
        assert_eq!(probes.next().map(|probe| probe.id), Some(1));
        probes.finish(ProbeResult { id: 2, site: "x".to_owned(), ..ProbeResult::default() });
        assert_eq!(receivers[1].try_recv().unwrap().site, "x");
        assert!(receivers[0].try_recv().is_err());
        receivers.remove(0);
        assert!(ask(&mut probes).is_some() && ask(&mut probes).is_some());
        // A result that is sent twice, or of an unknown probe, is dropped.
        probes.finish(ProbeResult { id: 2, ..ProbeResult::default() });
        probes.finish(ProbeResult { id: 99, ..ProbeResult::default() });
    }
}
