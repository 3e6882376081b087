//! `postroad queue`: how much waits, for whom, and why.

use std::{cmp::Reverse, collections::BTreeMap};

use futures::future::join_all;
use postroad_cluster::CallError;
use postroad_core::{GroupId, Timestamp};
use postroad_proto::queue::{
    QueueDepth, SummarizeQueueRequest, SummarizeQueueResponse, WaitCount, WaitReason,
};
use serde::Serialize;

use super::{
    Operator, OperatorError, WITHIN, client,
    text::{age, time},
};
use crate::{
    cli::queue::{GroupedBy, QueueCommand, QueueListArgs},
    output::{self, Column, Row, Screen, Shown, number, table, text},
};

/// Rows asked of every ledger group, at least: the largest of all groups together may be small in each.
const ROWS_PER_GROUP_MIN: usize = 1000;

/// How the subject of a wait begins that is about a lane.
const LANE: &str = "lane";

/// Runs `postroad queue`.
///
/// # Errors
/// The cluster cannot be reached, or a part of it did not answer.
pub async fn queue(command: &QueueCommand) -> anyhow::Result<String> {
    let QueueCommand::List(args) = command;
    list(args).await
}

async fn list(args: &QueueListArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let depths = Depths::read(&operator, args.by, args.top).await?;
    let text = args.output.output.show(&depths)?;
    if depths.groups_without_answer.is_empty() {
        return Ok(text);
    }
    output::print(&text)?;
    let groups = depths.groups_without_answer;
    Err(OperatorError::Incomplete { cause: format!("ledger groups {groups:?} did not answer") }.into())
}

/// How much waits, over all ledger groups.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Depths {
    /// What the rows are by.
    pub(super) by: &'static str,
    /// When the oldest of the counts was made.
    pub(super) counted_at: Option<String>,
    pub(super) rows: Vec<DepthRow>,
    /// All that is in no row.
    pub(super) other: Option<DepthRow>,
    pub(super) total: DepthRow,
    pub(super) groups_without_answer: Vec<u16>,
}

/// Deliveries that have not ended, counted together.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct DepthRow {
    /// The site, tenant, pool, source or sender domain; empty for deliveries without one.
    pub(super) key: String,
    pub(super) queued: u64,
    pub(super) deferred: u64,
    pub(super) sending: u64,
    pub(super) held: u64,
    pub(super) oldest_accepted_at: Option<String>,
    pub(super) next_try_at: Option<String>,
    /// What queued and deferred ones wait for, the most frequent first.
    pub(super) waits: Vec<Wait>,
    pub(super) last_reply: Option<LastReply>,
    #[serde(skip)]
    times: Times,
}

/// What deliveries wait for, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Wait {
    /// The word for it, such as `not_due`.
    reason: &'static str,
    deliveries: u64,
    /// What it is about, such as the lane or what is suspended.
    subject: String,
    /// Such as the receiver's reply, or who suspended it and why.
    detail: String,
    until: Option<String>,
    #[serde(skip)]
    until_millis: u64,
}

/// How the latest attempt ended of the deliveries that wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LastReply {
    at: String,
    /// 0 without a reply.
    code: u32,
    text: String,
}

/// Times as numbers, 0 where there is none, and when they are seen from.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    now: u64,
    oldest: u64,
    next: u64,
    last: u64,
}

impl Depths {
    /// Asks the leader of every ledger group.
    pub(super) async fn read(operator: &Operator, by: GroupedBy, top: usize) -> Result<Self, OperatorError> {
        let groups = operator.ledger_groups("count what waits").await?;
        let rows_max = u32::try_from(top.saturating_mul(4).max(ROWS_PER_GROUP_MIN)).unwrap_or(u32::MAX);
        let answers = join_all(groups.iter().map(|group| summarize(operator, *group, by, rows_max))).await;
        let mut answered = Vec::new();
        let mut missing = Vec::new();
        for (group, answer) in groups.iter().zip(answers) {
            match answer {
                Ok(answer) => answered.push(answer),
                Err(CallError::Unavailable { .. }) => missing.push(group.0),
                Err(error) => return Err(operator.failed("count what waits", error)),
            }
        }
        Ok(Self::merge(by, top, answered, missing, postroad_env::wall()))
    }

    fn merge(
        by: GroupedBy,
        top: usize,
        answers: Vec<SummarizeQueueResponse>,
        missing: Vec<u16>,
        now: Timestamp,
    ) -> Self {
        let counted_at = answers.iter().map(|answer| answer.counted_at_millis).min().and_then(time);
        let mut rows: BTreeMap<String, QueueDepth> = BTreeMap::new();
        let mut other = QueueDepth::default();
        for answer in answers {
            for depth in answer.rows {
                add(rows.entry(depth.key.clone()).or_default(), depth);
            }
            answer.other.into_iter().for_each(|depth| add(&mut other, depth));
        }
        let mut total = QueueDepth::default();
        rows.values().cloned().chain([other.clone()]).for_each(|depth| add(&mut total, depth));
        let mut rows: Vec<QueueDepth> = rows.into_values().collect();
        rows.sort_by_key(|depth| Reverse(deliveries(depth)));
        rows.split_off(top.min(rows.len())).into_iter().for_each(|depth| add(&mut other, depth));
        let row = |key: Option<&str>, depth| DepthRow::of(key, depth, now);
        Self {
            by: by.as_str(),
            counted_at,
            rows: rows.into_iter().map(|depth| row(None, depth)).collect(),
            other: (deliveries(&other) > 0).then(|| row(Some("(other)"), other)),
            total: row(Some("(total)"), total),
            groups_without_answer: missing,
        }
    }
}

#[cfg(test)]
impl Depths {
    /// A queue in which a lane is paused.
    pub(super) fn example() -> Self {
        use postroad_proto::queue::WaitKind;

        let depth =
            tests::depth("big.example", 12, &[(WaitKind::LanePaused, tests::NOW + 240_000, 12)], tests::NOW);
        let answer = tests::answer(vec![depth]);
        Self::merge(GroupedBy::Site, 10, vec![answer], Vec::new(), Timestamp::from_millis(tests::NOW))
    }
}

async fn summarize(
    operator: &Operator,
    group: GroupId,
    by: GroupedBy,
    rows_max: u32,
) -> Result<SummarizeQueueResponse, CallError> {
    let request = SummarizeQueueRequest { group: group.0.into(), by: by.wire().into(), rows_max };
    let call = async |channel| client(channel).summarize_queue(request).await;
    operator.calls().call(group, WITHIN, call).await.map(tonic::Response::into_inner)
}

fn deliveries(depth: &QueueDepth) -> u64 {
    depth.queued + depth.deferred + depth.sending + depth.held
}

/// Adds the deliveries of another group of the ledger.
fn add(sum: &mut QueueDepth, depth: QueueDepth) {
    if sum.key.is_empty() {
        sum.key = depth.key;
    }
    sum.queued += depth.queued;
    sum.deferred += depth.deferred;
    sum.sending += depth.sending;
    sum.held += depth.held;
    sum.oldest_accepted_at_millis = earlier(sum.oldest_accepted_at_millis, depth.oldest_accepted_at_millis);
    sum.next_due_at_millis = earlier(sum.next_due_at_millis, depth.next_due_at_millis);
    if depth.last_at_millis > sum.last_at_millis {
        sum.last_at_millis = depth.last_at_millis;
        (sum.last_code, sum.last_response) = (depth.last_code, depth.last_response);
    }
    for wait in depth.waits {
        match sum.waits.iter_mut().find(|known| known.reason == wait.reason) {
            Some(known) => known.deliveries += wait.deliveries,
            None => sum.waits.push(wait),
        }
    }
    sum.waits.sort_by_key(|wait| Reverse(wait.deliveries));
}

/// The earlier of two times, where 0 is none.
fn earlier(one: u64, other: u64) -> u64 {
    if one == 0 || other == 0 { one.max(other) } else { one.min(other) }
}

impl DepthRow {
    fn of(key: Option<&str>, depth: QueueDepth, now: Timestamp) -> Self {
        let last = (depth.last_at_millis > 0).then(|| LastReply {
            at: Timestamp::from_millis(depth.last_at_millis).to_string(),
            code: depth.last_code,
            text: depth.last_response,
        });
        Self {
            key: key.map_or(depth.key, str::to_owned),
            queued: depth.queued,
            deferred: depth.deferred,
            sending: depth.sending,
            held: depth.held,
            oldest_accepted_at: time(depth.oldest_accepted_at_millis),
            next_try_at: time(depth.next_due_at_millis),
            waits: depth.waits.into_iter().map(Wait::of).collect(),
            last_reply: last,
            times: Times {
                now: now.as_millis(),
                oldest: depth.oldest_accepted_at_millis,
                next: depth.next_due_at_millis,
                last: depth.last_at_millis,
            },
        }
    }

    /// Returns how many deliveries there are.
    pub(super) fn deliveries(&self) -> u64 {
        self.queued + self.deferred + self.sending + self.held
    }

    /// Returns why they wait, in one line.
    pub(super) fn why(&self) -> String {
        let waits = Wait::over_lanes(&self.waits);
        let waiting: u64 = waits.iter().map(|wait| wait.deliveries).sum();
        let reason = |wait: &Wait| {
            let count =
                if wait.deliveries == waiting { String::new() } else { format!("{} ", wait.deliveries) };
            format!("{count}{}", wait.words(self.times.now))
        };
        waits.iter().map(reason).collect::<Vec<_>>().join("; ")
    }

    /// Returns in how long the first of them may be tried; nothing where no time is known.
    fn next_try(&self) -> String {
        let Times { now, next, .. } = self.times;
        let is_stopped = !self.waits.is_empty() && self.waits.iter().all(Wait::is_for_an_operator);
        let goes = next > now || self.waits.is_empty() || self.waits.iter().any(Wait::may_go_now);
        let at = if goes && !is_stopped {
            next
        } else {
            self.waits.iter().map(|wait| wait.until_millis).filter(|until| *until > 0).min().unwrap_or(0)
        };
        match at {
            0 => String::new(),
            at if at <= now => "now".to_owned(),
            at => format!("in {}", age(at - now)),
        }
    }
}

impl Wait {
    fn of(wait: WaitCount) -> Self {
        let reason = wait.reason.unwrap_or_default();
        let (kind, until_millis) = (reason.kind().word(), reason.until_millis);
        let WaitReason { subject, detail, .. } = reason;
        let until = time(until_millis);
        Self { reason: kind, deliveries: wait.deliveries, subject, detail, until, until_millis }
    }

    /// Adds up what differs in the lane alone: a row of a site or tenant has many.
    fn over_lanes(waits: &[Self]) -> Vec<Self> {
        let mut sums: Vec<Self> = Vec::new();
        for wait in waits {
            let is_same = |sum: &&mut Self| {
                let is_lane = |wait: &Self| wait.subject.starts_with(LANE);
                let same_subject = sum.subject == wait.subject || (is_lane(sum) && is_lane(wait));
                (sum.reason, &sum.detail, same_subject) == (wait.reason, &wait.detail, true)
            };
            match sums.iter_mut().find(is_same) {
                Some(sum) => {
                    sum.deliveries += wait.deliveries;
                    sum.until_millis = earlier(sum.until_millis, wait.until_millis);
                }
                None => sums.push(wait.clone()),
            }
        }
        sums.sort_by_key(|wait| Reverse(wait.deliveries));
        sums
    }

    /// Whether nothing keeps these from an attempt but the work before them.
    fn may_go_now(&self) -> bool {
        matches!(self.reason, "next" | "rate_used_up" | "window_full")
    }

    /// Whether these wait until an operator, or the end of what an operator did.
    fn is_for_an_operator(&self) -> bool {
        matches!(self.reason, "suspended" | "held")
    }

    fn words(&self, now: u64) -> String {
        let until = match self.until_millis {
            0 => String::new(),
            until => format!(" for {}", age(until.saturating_sub(now))),
        };
        reason_words(self.reason, &self.subject, &until, &self.detail)
    }
}

/// Why a delivery waits, in words for a person; for a narrow column: the row names the site.
fn reason_words(reason: &str, subject: &str, until: &str, detail: &str) -> String {
    let words = match reason {
        "next" => "assigned next",
        "not_due" => "not due yet",
        "window_full" => "window full",
        "rate_used_up" => "rate used up",
        "lane_paused" => "lane paused",
        "not_connected" => "outbound node not connected",
        "no_owner" => "no outbound node has a source of the pool",
        "no_source" => "pool has no source",
        other => other,
    };
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    // The lane is known from the row.
    let subject = if subject.starts_with(LANE) { "" } else { subject };
    let space = if subject.is_empty() { "" } else { " " };
    format!("{words}{space}{subject}{until}{detail}")
}

impl Shown for Depths {
    fn text(&self, screen: Screen) -> String {
        let rows = self.rows.iter().chain(&self.other);
        let total = (self.total.deliveries() > 0).then_some(&self.total);
        table(rows.chain(total), screen, "nothing waits")
    }
}

impl Row for DepthRow {
    const COLUMNS: &'static [Column] = &[
        text("FOR"),
        number("QUEUED"),
        number("DEFERRED"),
        number("SENDING"),
        number("HELD"),
        number("OLDEST"),
        number("NEXT TRY"),
        text("WHY"),
        text("LAST REPLY"),
    ];

    fn cells(&self) -> Vec<String> {
        let Times { now, oldest, last, .. } = self.times;
        let past = |at: u64| if at == 0 { String::new() } else { age(now.saturating_sub(at)) };
        let reply = self.last_reply.as_ref().map_or_else(String::new, |reply| {
            let code = if reply.code == 0 { String::new() } else { format!("{} ", reply.code) };
            format!("{} ago: {code}{}", past(last), reply.text)
        });
        let key = if self.key.is_empty() { "(none)".to_owned() } else { self.key.clone() };
        let counts = [self.queued, self.deferred, self.sending, self.held].map(|count| count.to_string());
        let [queued, deferred, sending, held] = counts;
        vec![key, queued, deferred, sending, held, past(oldest), self.next_try(), self.why(), reply]
    }
}

#[cfg(test)]
mod tests {
    use postroad_proto::queue::WaitKind;

    use super::*;

    pub(super) const NOW: u64 = 1_800_000_000_000;

    pub(super) fn depth(
        key: &str,
        deferred: u64,
        waits: &[(WaitKind, u64, u64)],
        last_at: u64,
    ) -> QueueDepth {
        let wait = |(kind, until_millis, deliveries): &(WaitKind, u64, u64)| WaitCount {
            reason: Some(WaitReason {
                kind: (*kind).into(),
                until_millis: *until_millis,
                ..WaitReason::default()
            }),
            deliveries: *deliveries,
        };
        QueueDepth {
            key: key.to_owned(),
            deferred,
            oldest_accepted_at_millis: NOW - 90_000,
            next_due_at_millis: NOW + 40_000,
            last_at_millis: last_at,
            last_code: 421,
            last_response: format!("said at {last_at}"),
            waits: waits.iter().map(wait).collect(),
            ..QueueDepth::default()
        }
    }

    pub(super) fn answer(rows: Vec<QueueDepth>) -> SummarizeQueueResponse {
        SummarizeQueueResponse { counted_at_millis: NOW, rows, other: Some(QueueDepth::default()) }
    }

    #[test]
    fn the_next_try_is_when_a_pause_ends_and_lanes_are_added_up() {
        let wait = |kind: WaitKind, subject: &str, until_millis, deliveries| WaitCount {
            reason: Some(WaitReason {
                kind: kind.into(),
                until_millis,
                subject: subject.to_owned(),
                ..WaitReason::default()
            }),
            deliveries,
        };
        let check = |next_due_at_millis, waits: Vec<WaitCount>, expected: [&str; 2]| {
            let depth = QueueDepth { next_due_at_millis, waits, ..depth("a.example", 5, &[], 0) };
            let row = DepthRow::of(None, depth, Timestamp::from_millis(NOW));
            assert_eq!([row.next_try(), row.why()], expected);
        };
        let paused = |lane: &str, secs: u64| wait(WaitKind::LanePaused, lane, NOW + secs * 1000, 2);
        let not_due = wait(WaitKind::NotDue, "", 0, 1);
        let both = vec![paused("lane a/x", 40), not_due.clone(), paused("lane b/x", 30)];
        check(NOW, both, ["in 30s", "4 lane paused for 30s; 1 not due yet"]);
        check(NOW + 9_000, vec![not_due], ["in 9s", "not due yet"]);
        let rate = wait(WaitKind::RateUsedUp, "lane a/x", 0, 2);
        check(NOW, vec![paused("lane b/x", 30), rate], ["now", "2 lane paused for 30s; 2 rate used up"]);
        check(NOW, vec![wait(WaitKind::Suspended, "site x", 0, 5)], ["", "suspended site x"]);
        check(NOW + 9_000, vec![wait(WaitKind::Suspended, "site x", 0, 5)], ["", "suspended site x"]);
        let ends = wait(WaitKind::Suspended, "site x", NOW + 60_000, 5);
        check(NOW + 9_000, vec![ends], ["in 60s", "suspended site x for 60s"]);
        check(NOW, vec![], ["now", ""]);
    }

    #[test]
    fn groups_of_the_ledger_are_added_up_and_the_largest_rows_are_shown() {
        let paused = (WaitKind::LanePaused, NOW + 240_000, 10);
        let answers = vec![
            answer(vec![depth("a.example", 10, &[paused], NOW - 5_000), depth("b.example", 3, &[], 0)]),
            answer(vec![
                depth("a.example", 12, &[paused, (WaitKind::NotDue, 0, 2)], NOW - 4_000),
                depth("c.example", 4, &[], 0),
            ]),
        ];
        let merged = Depths::merge(GroupedBy::Site, 2, answers, vec![3], Timestamp::from_millis(NOW));
        let text = merged.text(Screen { width: None });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "FOR        QUEUED  DEFERRED  SENDING  HELD  OLDEST  NEXT TRY  WHY                                    LAST REPLY",
                "a.example       0        22        0     0     90s    in 40s  20 lane paused for 4m; 2 not due yet  4s ago: 421 said at 1799999996000",
                "c.example       0         4        0     0     90s    in 40s  -                                     -",
                "(other)         0         3        0     0     90s    in 40s  -                                     -",
                "(total)         0        29        0     0     90s    in 40s  20 lane paused for 4m; 2 not due yet  4s ago: 421 said at 1799999996000",
            ]
            .map(|line| line.replace("WHY                                    LAST", "WHY                                   LAST"))
        );
        assert_eq!(merged.groups_without_answer, [3]);
        let none = Depths::merge(GroupedBy::Site, 2, vec![], vec![], Timestamp::from_millis(NOW));
        assert_eq!(none.text(Screen { width: None }), "nothing waits\n");
    }
}
