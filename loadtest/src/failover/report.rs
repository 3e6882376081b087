//! The report of a failover run, as text and as JSON.

use std::{fmt, time::Instant};

use anyhow::ensure;
use postroad_core::GroupId;
use postroad_testkit::{
    checker::Findings,
    failover::{Kill, longest_gap, worst_gap},
};
use serde::Serialize;

use super::{FailoverArgs, GROUPS};
use crate::report::{Answers, Tally};

/// How long a group may take to accept again after its leader was killed, in seconds.
const GAP_BAR_SECS: f64 = 2.0;

/// The report of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    messages: u64,
    rate: f64,
    size: usize,
    connections: usize,
    kills_per_group: u16,
    #[serde(flatten)]
    answers: Answers,
    /// Acknowledged, and not at the sink.
    lost: usize,
    /// Copies at the sink beyond the first of each message.
    extra_copies: usize,
    /// Messages with more copies than their attempts that ended `unknown` explain.
    unexplained: usize,
    /// Messages sent once and at the sink under more than one id.
    accepted_twice: usize,
    /// At the sink, and not acknowledged; unanswered messages may be among them.
    unacknowledged: usize,
    gap_bar_s: f64,
    groups: Vec<GroupReport>,
}

/// The kills of one group's leader.
#[derive(Debug, Serialize)]
struct GroupReport {
    group: u16,
    kills: Vec<KillReport>,
    /// Over the whole run: a killed node may also lead groups other than the one it is killed for.
    worst_gap_s: f64,
    /// The longest time until another node led.
    worst_led_s: f64,
    within_bar: bool,
}

/// One kill; times in seconds.
#[derive(Clone, Debug, Serialize)]
struct KillReport {
    node: String,
    /// From the start of the load.
    at_s: f64,
    /// Until another node led the group.
    led_s: f64,
    /// The longest time between two acknowledgements of the group, from the last before this kill to the last before the
    /// next; for the directory, which acknowledges no mail, between two of any group.
    gap_s: f64,
    /// Until the killed node was ready again.
    ready_s: f64,
}

/// The facts of a run.
pub(super) struct Run<'a> {
    /// When the load began.
    pub(super) started: Instant,
    /// When its last message was answered.
    pub(super) ended: Instant,
    pub(super) kills: &'a [Kill],
    pub(super) findings: &'a Findings,
}

impl Report {
    pub(super) fn new(
        arguments: &FailoverArgs,
        tally: &Tally,
        run: &Run<'_>,
        name: impl Fn(usize) -> String,
    ) -> Self {
        let Run { started, ended, kills, findings } = *run;
        let accepted = tally.accepted();
        let times_of = |group: GroupId| -> Vec<Instant> {
            let of_group = |id: postroad_core::MessageId| group == GroupId::DIRECTORY || id.group() == group;
            accepted.iter().filter(|accepted| accepted.id.is_some_and(of_group)).map(|a| a.at).collect()
        };
        let ends: Vec<Instant> = kills.iter().skip(1).map(|kill| kill.at).chain([ended]).collect();
        let groups = GROUPS.map(|group| {
            let times = times_of(group);
            let of_group = kills.iter().zip(&ends).filter(|(kill, _)| kill.group == group);
            let kills = of_group.map(|(kill, end)| KillReport {
                node: name(kill.index),
                at_s: kill.at.duration_since(started).as_secs_f64(),
                led_s: kill.led_after.as_secs_f64(),
                gap_s: longest_gap(&times, kill.at, *end).as_secs_f64(),
                ready_s: kill.ready_after.as_secs_f64(),
            });
            let worst_gap = worst_gap(&times, started, ended);
            GroupReport::new(group, worst_gap.as_secs_f64(), kills.collect())
        });
        Self {
            messages: arguments.messages,
            rate: arguments.rate,
            size: arguments.size,
            connections: arguments.clients.connections,
            kills_per_group: arguments.kills,
            answers: tally.answers(started),
            lost: findings.lost.len(),
            extra_copies: findings.duplicates.iter().map(|duplicate| duplicate.copies - 1).sum(),
            unexplained: findings.duplicates.iter().filter(|duplicate| !duplicate.is_explained()).count(),
            accepted_twice: findings.accepted_twice.len(),
            unacknowledged: findings.unacknowledged,
            gap_bar_s: GAP_BAR_SECS,
            groups: groups.into(),
        }
    }

    /// Fails the run for wrong results; long gaps do not fail it.
    ///
    /// # Errors
    /// A message is lost, was accepted twice, or has an unexplained duplicate.
    pub(super) fn require_nothing_wrong(&self) -> anyhow::Result<()> {
        let Self { lost, unexplained, accepted_twice, .. } = self;
        ensure!(
            [lost, unexplained, accepted_twice] == [&0; 3],
            "{lost} lost, {unexplained} with unexplained duplicates, {accepted_twice} accepted twice"
        );
        Ok(())
    }
}

impl GroupReport {
    fn new(group: GroupId, worst_gap_s: f64, kills: Vec<KillReport>) -> Self {
        let worst_led_s = kills.iter().map(|kill| kill.led_s).fold(0.0, f64::max);
        let within_bar = worst_gap_s.max(worst_led_s) <= GAP_BAR_SECS;
        Self { group: group.0, worst_gap_s, worst_led_s, within_bar, kills }
    }
}

/// Returns the name of a group in the report.
pub(super) fn name_of(group: GroupId) -> String {
    if group == GroupId::DIRECTORY { "the directory".to_owned() } else { format!("group {group}") }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "killed         node      at        led by another  longest gap  ready again")?;
        for group in &self.groups {
            for KillReport { node, at_s, led_s, gap_s, ready_s } in &group.kills {
                let name = name_of(GroupId(group.group));
                writeln!(
                    f,
                    "{name:<14} {node:<9} {at_s:5.0} s   {led_s:9.2} s     {gap_s:7.2} s    {ready_s:6.2} s"
                )?;
            }
        }
        writeln!(f)?;
        for group in &self.groups {
            let GroupReport { kills, worst_gap_s, worst_led_s, within_bar, .. } = group;
            writeln!(
                f,
                "{:<14} {} kills, longest gap {worst_gap_s:.2} s, led by another after {worst_led_s:.2} s at most: {} {:.0} s",
                name_of(GroupId(group.group)),
                kills.len(),
                if *within_bar { "within" } else { "MISSES" },
                self.gap_bar_s,
            )?;
        }
        writeln!(f)?;
        self.answers.write_counts(f)?;
        let Self { lost, extra_copies, unexplained, accepted_twice, unacknowledged, .. } = self;
        writeln!(
            f,
            "at the sink      {lost} lost, {extra_copies} extra copies, {unexplained} messages with unexplained copies"
        )?;
        writeln!(
            f,
            "                 {accepted_twice} accepted twice, {unacknowledged} unacknowledged (unanswered messages may be among them)"
        )?;
        self.answers.write_latencies(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_time_can_miss_the_bar() {
        let check = |worst_gap_s, led: &[f64], expected: (f64, bool)| {
            let kill = |led_s: &f64| KillReport {
                node: "queue-1".to_owned(),
                at_s: 1.0,
                led_s: *led_s,
                gap_s: 0.1,
                ready_s: 3.0,
            };
            let group = GroupReport::new(GroupId(1), worst_gap_s, led.iter().map(kill).collect());
            assert_eq!((group.worst_led_s, group.within_bar), expected);
        };
        check(1.5, &[0.5, 0.6, 0.4], (0.6, true));
        check(2.1, &[0.5], (0.5, false));
        check(1.0, &[0.5, 2.5], (2.5, false));
        check(0.1, &[], (0.0, true));
    }
}
