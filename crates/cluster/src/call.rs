//! Unary calls to the leader of a group, which is found by asking.
//!
//! A node that is not the leader answers UNAVAILABLE, and names the likely leader in the metadata `postroad-leader`.
//! A call may be sent more than once, so only calls that can be repeated are made like this.

use std::time::Duration;

use postroad_core::{GroupId, NodeId};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tonic::{Code, Status, transport::Channel};

use crate::{Endpoints, LeaderTable};

/// The metadata that names the likely leader.
pub const LEADER_METADATA: &str = "postroad-leader";

/// How long to wait for one node before asking another.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// Pause after every node has refused.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No leader answered in time; the call may have taken effect. May be tried again.
    #[error("no leader of group `{group}` answered: {last}")]
    Unavailable {
        /// The group.
        group: GroupId,
        /// The last error.
        last: String,
    },
    /// The leader refused it, and would refuse it again.
    #[error("refused: {message}")]
    Refused {
        /// The gRPC status code.
        code: Code,
        /// The gRPC status message.
        message: String,
    },
}

/// Reads the likely leader from a refusal.
fn hint(status: &Status) -> Option<NodeId> {
    status.metadata().get(LEADER_METADATA)?.to_str().ok()?.parse().ok()
}

/// Calls leaders. A clone is cheap.
#[derive(Clone, Debug)]
pub struct LeaderCalls {
    endpoints: Endpoints,
    leaders: watch::Receiver<LeaderTable>,
}

impl LeaderCalls {
    /// Calls the leaders among `endpoints`; `leaders` says where to ask first.
    #[must_use]
    pub fn new(endpoints: &Endpoints, leaders: &watch::Receiver<LeaderTable>) -> Self {
        Self { endpoints: endpoints.clone(), leaders: leaders.clone() }
    }

    /// Calls the leader of `group`, and again until it answers or `within` has passed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<T, F>(
        &self,
        group: GroupId,
        within: Duration,
        // Not `AsyncFn`: its future cannot be named as `Send`, and then no task could make calls.
        call: impl Fn(Channel) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let deadline = Instant::now() + within;
        let mut last = Status::unavailable("no queue node is configured");
        let mut hinted = None;
        loop {
            for (node, channel) in self.in_order(group, hinted.take()) {
                let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_MAX);
                last = match time::timeout_at(attempt_deadline, call(channel)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) if !may_be_repeated(status.code()) => {
                        return Err(CallError::Refused {
                            code: status.code(),
                            message: status.message().to_owned(),
                        });
                    }
                    Ok(Err(status)) => status,
                    Err(_) => Status::deadline_exceeded(format!("node `{node}` did not answer")),
                };
                hinted = hint(&last).filter(|hinted| *hinted != node);
                if hinted.is_some() || Instant::now() >= deadline {
                    break;
                }
            }
            if Instant::now() + RETRY_AFTER >= deadline {
                return Err(CallError::Unavailable { group, last: with_sources(&last) });
            }
            // During an election two nodes may name each other.
            time::sleep(RETRY_AFTER / if hinted.is_some() { 10 } else { 1 }).await;
        }
    }

    /// Every node, the likeliest leader first.
    fn in_order(&self, group: GroupId, hinted: Option<NodeId>) -> Vec<(NodeId, Channel)> {
        let known = self.leaders.borrow().get(&group).map(|leader| leader.node);
        let first = hinted.or(known);
        let mut nodes: Vec<(NodeId, Channel)> =
            self.endpoints.iter().map(|(node, channel)| (*node, channel.clone())).collect();
        nodes.sort_by_key(|(node, _)| Some(*node) != first);
        nodes
    }
}

/// Returns a status message with its causes: that of a failed connection alone names no reason.
fn with_sources(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// UNAVAILABLE means that the node is not the leader, or that the connection broke.
fn may_be_repeated(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled | Code::Unknown
    )
}
