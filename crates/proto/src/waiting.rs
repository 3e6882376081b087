//! Lanes and the reasons for waiting, on the wire and in words.

use std::{fmt::Write as _, sync::Arc};

use postroad_core::{SourceId, Timestamp};
use postroad_ledger::lanes::{LanePause, LaneReport, RateState};

use crate::{
    Malformed,
    queue::{self as wire, WaitKind},
};

/// The most lanes in one frame of reports.
pub const LANES_PER_FRAME_MAX: usize = 256;

/// The most bytes of a site; a report of a longer one is malformed.
const SITE_BYTES_MAX: usize = 255;

/// The bytes that are kept of why a lane is paused.
const PAUSE_REASON_BYTES_MAX: usize = 512;

/// A lane's source and site, and what its node reports of it; `None` for a lane that the node no longer keeps.
pub type ReportedLane = (SourceId, Arc<str>, Option<LaneReport>);

/// Reads what an outbound node reports of a lane; times count from `now`.
///
/// # Errors
/// The report is malformed.
pub fn parse_lane_report(report: wire::LaneReport, now: Timestamp) -> Result<ReportedLane, Malformed> {
    let after = |millis| now.after(std::time::Duration::from_millis(millis));
    if report.site.len() > SITE_BYTES_MAX {
        return Err(Malformed("site"));
    }
    let name = (SourceId(report.source), Arc::from(report.site));
    if report.forgotten {
        return Ok((name.0, name.1, None));
    }
    let pause = |mut pause: wire::LanePause| {
        pause.reason.truncate(pause.reason.floor_char_boundary(PAUSE_REASON_BYTES_MAX));
        LanePause { until: after(pause.left_millis), reason: pause.reason.into() }
    };
    let parsed = LaneReport {
        connections: report.connections,
        connections_max: report.connections_max,
        waiting: report.waiting,
        delivered: report.delivered,
        failed: report.failed,
        pause: report.pause.map(pause),
        rate: match (report.rate_never, report.rate_ready_in_millis) {
            (true, _) => RateState::Never,
            (false, 0) => RateState::Ready,
            (false, millis) => RateState::From(after(millis)),
        },
    };
    Ok((name.0, name.1, Some(parsed)))
}

impl From<&LaneReport> for wire::LaneView {
    /// Without the lane's name and what the queue knows of it.
    fn from(report: &LaneReport) -> Self {
        let (rate_ready_at_millis, rate_never) = match report.rate {
            RateState::Ready => (0, false),
            RateState::From(at) => (at.as_millis(), false),
            RateState::Never => (0, true),
        };
        Self {
            connections: report.connections,
            connections_max: report.connections_max,
            waiting: report.waiting,
            delivered: report.delivered,
            failed: report.failed,
            paused_until_millis: report.pause.as_ref().map_or(0, |pause| pause.until.as_millis()),
            pause_reason: report.pause.as_ref().map(|pause| pause.reason.to_string()).unwrap_or_default(),
            rate_ready_at_millis,
            rate_never,
            ..Self::default()
        }
    }
}

impl WaitKind {
    /// Returns the word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Next => "next",
            Self::WindowFull => "window_full",
            Self::RateUsedUp => "rate_used_up",
            Self::LanePaused => "lane_paused",
            Self::NotConnected => "not_connected",
            Self::NoOwner => "no_owner",
            Self::NoSource => "no_source",
            Self::Suspended => "suspended",
            Self::NotDue => "not_due",
            Self::Held => "held",
        }
    }
}

impl wire::WaitReason {
    /// Returns it as a sentence for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { subject, detail, until_millis, .. } = self;
        let mut text = match self.kind() {
            WaitKind::Unspecified => "unknown: use the same version as the cluster".to_owned(),
            WaitKind::Next => "is sent next".to_owned(),
            WaitKind::WindowFull => format!("{subject}: window full"),
            WaitKind::RateUsedUp if *until_millis == 0 => format!("{subject}: stopped by a rate of 0"),
            WaitKind::RateUsedUp => format!("{subject}: rate used up"),
            WaitKind::LanePaused => format!("{subject} paused"),
            WaitKind::NotConnected => "the outbound node that owns the source is not connected".to_owned(),
            WaitKind::NoOwner => "no outbound node owns a source of the pool".to_owned(),
            WaitKind::NoSource => "the pool has no source with a weight above 0".to_owned(),
            WaitKind::Suspended => format!("{subject} suspended"),
            WaitKind::NotDue => "not due".to_owned(),
            WaitKind::Held => "held".to_owned(),
        };
        if *until_millis != 0 {
            let _ = write!(text, " until {}", Timestamp::from_millis(*until_millis));
        }
        if !detail.is_empty() {
            let _ = write!(text, ": {detail}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_read_with_its_times_counted_from_now() {
        let now = Timestamp::from_millis(1000);
        let report = wire::LaneReport {
            source: 3,
            site: "x.example".to_owned(),
            connections: 2,
            connections_max: 5,
            waiting: 7,
            delivered: 11,
            failed: 13,
            pause: Some(wire::LanePause { left_millis: 500, reason: "421 busy".to_owned() }),
            rate_ready_in_millis: 250,
            ..Default::default()
        };
        let (source, site, lane) = parse_lane_report(report.clone(), now).unwrap();
        let lane = lane.unwrap();
        assert_eq!((source, &*site), (SourceId(3), "x.example"));
        assert_eq!(lane.rate, RateState::From(Timestamp::from_millis(1250)));
        let view = wire::LaneView::from(&lane);
        assert_eq!((view.paused_until_millis, &*view.pause_reason), (1500, "421 busy"));
        assert_eq!((view.connections, view.waiting, view.rate_ready_at_millis), (2, 7, 1250));
        let never = wire::LaneReport { rate_never: true, pause: None, ..report.clone() };
        let lane = parse_lane_report(never, now).unwrap().2.unwrap();
        assert_eq!((lane.rate, lane.pause), (RateState::Never, None));
        let forgotten = wire::LaneReport { forgotten: true, ..report.clone() };
        assert_eq!(parse_lane_report(forgotten, now).unwrap().2, None);
        // A reason is cut, and a site is not one of another length.
        let reason = "ä".repeat(400);
        let long =
            wire::LaneReport { pause: Some(wire::LanePause { left_millis: 1, reason }), ..report.clone() };
        let pause = parse_lane_report(long, now).unwrap().2.unwrap().pause.unwrap();
        assert_eq!(&*pause.reason, "ä".repeat(256));
        let site = |bytes| wire::LaneReport { site: "x".repeat(bytes), ..report.clone() };
        assert!(parse_lane_report(site(255), now).is_ok() && parse_lane_report(site(256), now).is_err());
    }

    #[test]
    fn every_reason_is_a_sentence() {
        let check = |kind: WaitKind, subject: &str, detail: &str, until_millis, expected: &str| {
            let (subject, detail) = (subject.to_owned(), detail.to_owned());
            let reason = wire::WaitReason { kind: kind.into(), subject, detail, until_millis };
            assert_eq!(reason.sentence(), expected);
        };
        check(WaitKind::Next, "", "", 0, "is sent next");
        check(WaitKind::WindowFull, "lane s/x.example", "", 0, "lane s/x.example: window full");
        check(WaitKind::RateUsedUp, "lane s/x", "", 0, "lane s/x: stopped by a rate of 0");
        check(
            WaitKind::RateUsedUp,
            "lane s/x",
            "",
            1000,
            "lane s/x: rate used up until 1970-01-01T00:00:01.000Z",
        );
        check(
            WaitKind::LanePaused,
            "lane s/x",
            "421 busy",
            1000,
            "lane s/x paused until 1970-01-01T00:00:01.000Z: 421 busy",
        );
        check(WaitKind::Suspended, "site x", "abuse (eve@laptop)", 0, "site x suspended: abuse (eve@laptop)");
        check(WaitKind::NotDue, "", "", 1000, "not due until 1970-01-01T00:00:01.000Z");
    }
}
