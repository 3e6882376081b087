//! An outbound node that reports everything as delivered at once, and reconnects whenever the leader changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_core::OutcomeKind;
use postroad_proto::queue::{Assignment, AttemptId, queue_frame::Frame as In};
use tokio::time;
use tonic::Status;

use super::{
    Cluster,
    outbound::{Outbound, Session, attempts},
};

/// The deliveries so far; clones share them.
#[derive(Clone, Default)]
pub struct Deliveries {
    pub count: Arc<AtomicU64>,
    /// How often each message was delivered; only counted where enabled.
    pub messages: Option<Arc<Mutex<BTreeMap<Bytes, u32>>>>,
}

/// Delivers for ever.
pub struct Deliverer {
    pub outbound: Outbound,
    pub window: u32,
    pub deliveries: Deliveries,
    /// While set, nothing is delivered, so that accepted mail stays in the queue.
    pub resting: Arc<AtomicBool>,
    /// Reported and not acknowledged, by number of the report.
    unacknowledged: BTreeMap<u64, Vec<AttemptId>>,
    taken: BTreeSet<(Bytes, u32, u32)>,
}

impl Deliverer {
    pub fn new(outbound: Outbound, window: u32, deliveries: Deliveries) -> Self {
        Self {
            outbound,
            window,
            deliveries,
            resting: Arc::default(),
            unacknowledged: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }

    pub async fn run(mut self, cluster: &Cluster) {
        loop {
            let pending: Vec<AttemptId> = self.unacknowledged.values().flatten().cloned().collect();
            match self.outbound.try_connect(cluster, pending, self.window).await {
                Ok(session) => drop(self.serve(session).await),
                Err(_) => time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn serve(&mut self, mut session: Session) -> Result<(), Status> {
        let again: Vec<AttemptId> =
            std::mem::take(&mut self.unacknowledged).into_values().flatten().collect();
        if !again.is_empty() {
            self.report(&mut session, again).await;
        }
        loop {
            while self.resting.load(Ordering::Relaxed) {
                time::sleep(Duration::from_millis(5)).await;
            }
            match session.next().await? {
                In::Assignments(assignments) => {
                    let mut done = Vec::new();
                    for assignment in assignments.assignments {
                        done.extend(self.deliver(&assignment));
                    }
                    self.report(&mut session, done).await;
                }
                In::ReportAck(ack) => {
                    self.unacknowledged = self.unacknowledged.split_off(&(ack.through + 1));
                }
                In::Leading(_) | In::Recalls(_) | In::Probe(_) => {}
            }
        }
    }

    fn deliver(&mut self, assignment: &Assignment) -> Vec<AttemptId> {
        let attempts = attempts(assignment);
        if let Some(messages) = &self.deliveries.messages {
            for attempt in &attempts {
                let key = (attempt.message_id.clone(), attempt.recipient, attempt.attempt);
                assert!(self.taken.insert(key), "one attempt was assigned twice");
                *messages.lock().entry(attempt.message_id.clone()).or_default() += 1;
            }
        }
        self.deliveries.count.fetch_add(attempts.len() as u64, Ordering::Relaxed);
        attempts
    }

    async fn report(&mut self, session: &mut Session, attempts: Vec<AttemptId>) {
        let number = session.report(attempts.clone(), OutcomeKind::Delivered).await;
        self.unacknowledged.insert(number, attempts);
    }
}
