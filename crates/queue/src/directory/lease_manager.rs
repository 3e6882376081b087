//! Manages the leases while this node leads: one [`Leases`] for each term, and one proposal at a time. It also ends the
//! suspensions whose time is over.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_directory::{Command, View};
use postroad_proto::directory::Entry;
use postroad_raft::{Group, Status};
use tokio::{
    sync::{Notify, watch},
    time,
};

use super::{
    leases::{LeaseTimes, Leases},
    machine::DirectoryMachine,
    metrics,
    suspensions::{self, SuspensionEnds},
};
use crate::clock;

/// The leases that this node manages; `None` while it does not lead.
pub(super) type SharedLeases = Arc<Mutex<Option<Leases>>>;

/// Pause after a failed proposal.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// The longest pause between two decisions.
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct LeaseManager {
    pub(super) group: Group<DirectoryMachine>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) leases: SharedLeases,
    pub(super) times: LeaseTimes,
    /// Notified when a node claims or renews.
    pub(super) wake: Arc<Notify>,
    pub(super) ends: SuspensionEnds,
}

impl LeaseManager {
    /// Runs until the group stops.
    pub(super) async fn run(mut self) {
        let mut status = self.group.status();
        loop {
            let led = status.wait_for(|status| status.leading || status.stopped).await;
            let term = led.ok().filter(|status| !status.stopped).map(|status| status.term);
            let Some(term) = term else { return };
            *self.leases.lock() = Some(Leases::new(self.times, term, postroad_env::now()));
            self.lead(term, &mut status).await;
            *self.leases.lock() = None;
        }
    }

    async fn lead(&mut self, term: u64, status: &mut watch::Receiver<Status>) {
        while leads(&status.borrow_and_update(), term) {
            let (entries, next) = self.decide();
            let mut pause = if entries.is_empty() {
                next.map_or(IDLE_MAX, |next| next.min(IDLE_MAX))
            } else {
                Duration::ZERO
            };
            for commands in entries {
                if !self.propose(term, commands).await {
                    pause = RETRY_AFTER;
                }
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = self.view.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = time::sleep(pause) => {}
            }
        }
    }

    /// Returns the entries to propose now, each bounded, and how long until there may be more.
    fn decide(&mut self) -> (Vec<Vec<Command>>, Option<Duration>) {
        let mut leases = self.leases.lock();
        // Read under the lock: the next holder must not see an earlier view.
        let view = self.view.borrow_and_update().clone();
        let Some(leases) = leases.as_mut() else { return (Vec::new(), None) };
        let (now, wall) = (postroad_env::now(), clock::now());
        let mut entries = vec![leases.decide(now, &view), self.ends.decide(&view, now, wall)];
        entries.retain(|commands| !commands.is_empty());
        metrics::unowned(view.sources().filter(|source| source.owner.is_none()).count());
        let next = leases.next_decision(&view).map(|next| next.saturating_duration_since(now));
        (entries, next.into_iter().chain(suspensions::next_end(&view, wall)).min())
    }

    /// Proposes what was decided; returns true when all of it took effect.
    async fn propose(&self, term: u64, commands: Vec<Command>) -> bool {
        let entry = Entry { commands, term: Some(term) };
        let committed = match self.group.propose(entry.encode(), Vec::new()).await {
            Ok(committed) => committed,
            Err(error) => {
                tracing::debug!(%error, "a decision of the directory's leader was not committed");
                return false;
            }
        };
        for (command, reply) in entry.commands.iter().zip(&committed.reply) {
            if reply.as_ref().is_ok_and(|done| done.changed > 0) {
                note(command);
            }
        }
        committed.reply.iter().all(Result::is_ok)
    }
}

fn leads(status: &Status, term: u64) -> bool {
    status.leading && status.term == term && !status.stopped
}

fn note(command: &Command) {
    match command {
        Command::Revoke { node, incarnation } => {
            metrics::decision("revoke");
            tracing::warn!(%node, incarnation, "the lease of an outbound node ended");
        }
        Command::Grant { source, node, incarnation } => {
            metrics::decision("grant");
            tracing::info!(%source, %node, incarnation, "source granted to an outbound node");
        }
        Command::EndSuspension { name, .. } => {
            tracing::warn!(scope = %name, "resumed: the time of its suspension is over");
        }
        Command::Change(_) | Command::Claim { .. } | Command::ReleaseSource { .. } => {}
    }
}
