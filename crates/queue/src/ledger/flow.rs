//! What becomes of deliveries, counted by the leader of a group from when it began to lead.

use std::time::Duration;

use postroad_core::FinalState;
use postroad_ledger::event::{Changed, Event, EventKind, NextState};
use postroad_proto::queue as wire;

/// The last bucket holds all that take longer than 12 days.
const BUCKETS: usize = 32;

/// Counts that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    accepted: u64,
    delivered: u64,
    deferred: u64,
    bounced: u64,
    ended_otherwise: u64,
    /// Deliveries by the time from acceptance to delivery: the nth counts those from 2^(n-1) to 2^n milliseconds.
    delivered_within: [u64; BUCKETS],
}

impl Flow {
    pub(crate) fn count(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Accepted(accepted) => self.accepted += accepted.recipients.len() as u64,
            EventKind::Attempt(attempt) => match attempt.next_state {
                NextState::Retry(_) => self.deferred += 1,
                NextState::Ended(FinalState::Delivered) => {
                    self.count_delivered(event.at.since(attempt.delivery.message.at()));
                }
                NextState::Ended(FinalState::Bounced) => self.bounced += 1,
                NextState::Ended(_) => self.ended_otherwise += 1,
                NextState::Held | NextState::Unchanged => {}
            },
            EventKind::Ended(..) => self.ended_otherwise += 1,
            EventKind::Changed(changed) => {
                self.ended_otherwise += u64::from(changed.what == Changed::Cancelled);
            }
            EventKind::Gap { .. } => {}
        }
    }

    fn count_delivered(&mut self, took: Duration) {
        self.delivered += 1;
        let bits = (u128::BITS - took.as_millis().leading_zeros()) as usize;
        self.delivered_within[bits.min(BUCKETS - 1)] += 1;
    }

    pub(crate) fn wire(&self) -> wire::Flow {
        wire::Flow {
            accepted: self.accepted,
            delivered: self.delivered,
            deferred: self.deferred,
            bounced: self.bounced,
            ended_otherwise: self.ended_otherwise,
            delivered_within: self.delivered_within.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_counts_in_the_bucket_whose_bound_it_is_below() {
        let mut flow = Flow::default();
        for millis in [0, 1, 2, 3, 4, 1023, 1024, u64::MAX] {
            flow.count_delivered(Duration::from_millis(millis));
        }
        let counts = flow.wire().delivered_within;
        let filled: Vec<_> = counts.iter().enumerate().filter(|(_, count)| **count > 0).collect();
        assert_eq!(filled, [(0, &1), (1, &1), (2, &2), (3, &1), (10, &1), (11, &1), (31, &1)]);
        assert_eq!(flow.wire().delivered, 8);
    }
}
