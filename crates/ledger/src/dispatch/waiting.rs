//! Why a delivery waits: what the dispatcher knows, and what outbound nodes report of their lanes.

use std::sync::Arc;

use postroad_core::{PoolId, Scope, SourceId, TenantId, Timestamp};

use super::Dispatcher;
use crate::{
    Ledger,
    lanes::{LaneReports, RateState},
};

/// Why a delivery waits, the nearest to being sent first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaitReason {
    /// Nothing keeps it: it is assigned next.
    Next,
    /// As many deliveries as the lane's window allows are assigned and not yet reported.
    WindowFull {
        /// The source of the lane.
        source: SourceId,
    },
    /// The lane has sent as many messages as its rates allow.
    RateUsedUp {
        /// When the next message may be sent; `None` for never, because a rate is 0.
        until: Option<Timestamp>,
        /// The source of the lane.
        source: SourceId,
    },
    /// The receiver asked the lane to slow down, or could not be reached.
    LanePaused {
        /// When the pause ends.
        until: Timestamp,
        /// The source of the lane.
        source: SourceId,
        /// The receiver's reply, or the error.
        reason: Arc<str>,
    },
    /// The outbound nodes that own the sources of its pool are not connected to this leader.
    NotConnected,
    /// No outbound node owns a source of its pool.
    NoOwner,
    /// Its pool has no source with a weight above 0.
    NoSource,
    /// An operator has suspended this.
    Suspended(Scope),
    /// It is not due before this.
    NotDue(Timestamp),
    /// An operator holds it.
    Held,
}

impl WaitReason {
    /// The words for all reasons.
    pub const NAMES: &'static [&'static str] = &[
        "next",
        "window_full",
        "rate_used_up",
        "lane_paused",
        "not_connected",
        "no_owner",
        "no_source",
        "suspended",
        "not_due",
        "held",
    ];

    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::WindowFull { .. } => "window_full",
            Self::RateUsedUp { .. } => "rate_used_up",
            Self::LanePaused { .. } => "lane_paused",
            Self::NotConnected => "not_connected",
            Self::NoOwner => "no_owner",
            Self::NoSource => "no_source",
            Self::Suspended(_) => "suspended",
            Self::NotDue(_) => "not_due",
            Self::Held => "held",
        }
    }
}

impl WaitReason {
    /// Orders the reasons of a pool's lanes: the one that is nearest to sending has the least.
    fn nearness(&self) -> (u8, Timestamp) {
        match self {
            Self::Next => (0, Timestamp::ZERO),
            Self::WindowFull { .. } => (1, Timestamp::ZERO),
            Self::RateUsedUp { until: Some(until), .. } | Self::LanePaused { until, .. } => (2, *until),
            Self::RateUsedUp { until: None, .. } => (3, Timestamp::ZERO),
            Self::NotConnected => (4, Timestamp::ZERO),
            Self::NoOwner => (5, Timestamp::ZERO),
            Self::NoSource => (6, Timestamp::ZERO),
            Self::Suspended(_) => (7, Timestamp::ZERO),
            Self::NotDue(due) => (8, *due),
            Self::Held => (9, Timestamp::ZERO),
        }
    }
}

/// Queued or deferred deliveries that wait for the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// Whose they are.
    pub tenant: TenantId,
    /// The pool whose sources may send them.
    pub pool: PoolId,
    /// Where they go.
    pub site: &'a Arc<str>,
    /// When they are due.
    pub due: Timestamp,
}

impl Dispatcher {
    /// Returns why queued or deferred deliveries wait.
    ///
    /// With several sources in the pool it is the reason of the one that is nearest to sending.
    #[must_use]
    pub fn why_waits(
        &self,
        ledger: &Ledger,
        lanes: &LaneReports,
        now: Timestamp,
        waiting: Waiting<'_>,
    ) -> WaitReason {
        let Waiting { tenant, pool, site, due } = waiting;
        let suspended = self.suspended.tenant(tenant).or_else(|| self.suspended_queue(pool, site));
        if let Some(scope) = suspended {
            return WaitReason::Suspended(scope);
        }
        let members = self.members(pool);
        if due > now {
            return WaitReason::NotDue(due);
        }
        let reasons = members.iter().map(|member| self.why_lane(ledger, lanes, now, member.source, waiting));
        reasons.min_by_key(WaitReason::nearness).unwrap_or(WaitReason::NoSource)
    }

    /// Returns what keeps a whole queue: its pool or site, or every lane of it.
    pub(super) fn suspended_queue(&self, pool: PoolId, site: &Arc<str>) -> Option<Scope> {
        if let Some(scope) = self.suspended.queue(pool, site) {
            return Some(scope);
        }
        let mut lanes = self.members(pool).iter().map(|member| self.suspended_lane(member.source, site));
        let first = lanes.next()??;
        lanes.all(|scope| scope.is_some()).then_some(first)
    }

    fn suspended_lane(&self, source: SourceId, site: &Arc<str>) -> Option<Scope> {
        self.suspended.lane(source, self.owner(source), site)
    }

    fn why_lane(
        &self,
        ledger: &Ledger,
        lanes: &LaneReports,
        now: Timestamp,
        source: SourceId,
        Waiting { site, .. }: Waiting<'_>,
    ) -> WaitReason {
        if let Some(scope) = self.suspended_lane(source, site) {
            return WaitReason::Suspended(scope);
        }
        let Some(owned) = self.sources.get(&source) else { return WaitReason::NoOwner };
        if owned.windows.is_none() {
            return WaitReason::NotConnected;
        }
        if self.room(ledger, source, site, 0) > 0 {
            return WaitReason::Next;
        }
        let Some(lane) = lanes.get(owned.grant.node, source, site) else {
            return WaitReason::WindowFull { source };
        };
        if let Some(pause) = lane.pause.as_ref().filter(|pause| pause.until > now) {
            return WaitReason::LanePaused { until: pause.until, source, reason: pause.reason.clone() };
        }
        match lane.rate {
            RateState::Never => WaitReason::RateUsedUp { until: None, source },
            RateState::From(at) if at > now => WaitReason::RateUsedUp { until: Some(at), source },
            RateState::Ready | RateState::From(_) => WaitReason::WindowFull { source },
        }
    }
}
