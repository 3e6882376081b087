//! The overview: rates, what is queued, and the leader of each group.

use axum::{extract::State as Shared, response::Response};
use maud::{Markup, html};
use postroad_core::{GroupId, Timestamp};
use postroad_directory::View;
use postroad_proto::queue::SummaryResponse;
use postroad_web as web;
use tokio::task::JoinSet;

use super::Console;
use crate::history::{Gap, MinuteCount};

const HOUR: u64 = 60;
const DAY: u64 = 24 * HOUR;
const REFRESH_SECS: u32 = 5;

/// The outcomes in the table of rates, and their colours.
const OUTCOMES: [(&str, &str); 7] = [
    ("accepted", ""),
    ("delivered", "good"),
    ("deferred", "warn"),
    ("bounced", "bad"),
    ("expired", "bad"),
    ("cancelled", "soft"),
    ("suppressed", "soft"),
];

/// A ledger group as its leader and the history know it.
struct Group {
    id: GroupId,
    /// `None` when no leader answered in time.
    summary: Option<SummaryResponse>,
    /// The last event that is written.
    written: u64,
}

/// What the leaders of the ledger groups have, as far as they answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    groups: usize,
    answered: usize,
    queued: u64,
    sending: u64,
    held: u64,
    /// Of all messages in the queue; 0 without any.
    oldest_millis: u64,
}

impl Totals {
    fn of<'s>(groups: usize, summaries: impl Iterator<Item = &'s SummaryResponse>) -> Self {
        let mut totals = Self { groups, ..Self::default() };
        for summary in summaries {
            totals.answered += 1;
            totals.queued += summary.queued;
            totals.sending += summary.sending;
            totals.held += summary.held;
            let oldest = [totals.oldest_millis, summary.oldest_accepted_at_millis];
            totals.oldest_millis = oldest.into_iter().filter(|at| *at > 0).min().unwrap_or_default();
        }
        totals
    }

    fn silent(&self) -> usize {
        self.groups.saturating_sub(self.answered)
    }

    /// A number of messages: a lower bound when an answer is missing, and nothing when all are.
    fn count(&self, number: u64) -> String {
        self.at_least(thousands(number))
    }

    /// The age of the oldest message.
    fn oldest(&self, now: Timestamp) -> String {
        if self.oldest_millis == 0 { "–".to_owned() } else { self.at_least(age(self.oldest_millis, now)) }
    }

    fn at_least(&self, value: String) -> String {
        match (self.answered, self.silent()) {
            (0, _) => "–".to_owned(),
            (_, 0) => value,
            _ => format!("≥ {value}"),
        }
    }
}

pub(super) async fn page(Shared(console): Shared<Console>) -> Response {
    let now = postroad_env::wall();
    let minute = now.as_millis() / 60_000;
    let read = tokio::try_join!(console.reader.minutes(minute.saturating_sub(DAY)), console.reader.gaps());
    let (minutes, gaps) = match read {
        Ok(read) => read,
        Err(error) => return console.database_failed(&error),
    };
    let groups = match groups(&console).await {
        Ok(groups) => groups,
        Err(error) => return console.database_failed(&error),
    };
    let summaries = groups.iter().filter_map(|group| group.summary.as_ref());
    let totals = Totals::of(console.ledger_groups.into(), summaries);
    let body = html! {
        h1 { "Overview" }
        (tiles(&totals, &minutes, minute, now))
        (suspensions(&console.directory.borrow()))
        h2 { "Recipients" }
        (chart(&minutes, minute))
        (rates(&minutes, minute))
        h2 { "Raft groups" }
        (group_table(&console, &groups, now))
        (lost(&gaps))
    };
    web::refreshing_page(console.nav, "/", "Overview", &body, REFRESH_SECS)
}

/// Asks the leaders of the ledger groups concurrently, as far as they have one.
async fn groups(console: &Console) -> Result<Vec<Group>, sqlx::Error> {
    let known: Vec<GroupId> = console.leaders.borrow().keys().copied().collect();
    let mut calls = JoinSet::new();
    for id in known.into_iter().filter(|id| *id != GroupId::DIRECTORY) {
        let (queue, reader) = (console.queue.clone(), console.reader.clone());
        calls.spawn(async move {
            // A node that does not lead answers with what it has applied, which may be old.
            let summary = queue.summary(id).await.ok().filter(|summary| summary.leading);
            reader.cursor(id.0).await.map(|written| Group { id, summary, written })
        });
    }
    let mut groups = Vec::with_capacity(calls.len());
    while let Some(answer) = calls.join_next().await {
        // A panic in a call leaves its group out of this page.
        if let Ok(group) = answer {
            groups.push(group?);
        }
    }
    groups.sort_unstable_by_key(|group| group.id);
    Ok(groups)
}

/// The sum of an outcome over the minutes from `since` to before `until`.
fn sum(minutes: &[MinuteCount], outcome: &str, since: u64, until: u64) -> u64 {
    let rows = minutes.iter().filter(|row| row.outcome == outcome && (since..until).contains(&row.minute));
    rows.map(|row| row.count).sum()
}

fn tiles(totals: &Totals, minutes: &[MinuteCount], minute: u64, now: Timestamp) -> Markup {
    let day = |outcome| sum(minutes, outcome, minute.saturating_sub(DAY), u64::MAX);
    let tiles = [
        ("queued or deferred", totals.count(totals.queued)),
        ("sending", totals.count(totals.sending)),
        ("held", totals.count(totals.held)),
        ("oldest", totals.oldest(now)),
        ("delivered, 24 h", thousands(day("delivered"))),
        ("bounced, 24 h", thousands(day("bounced"))),
    ];
    html! {
        div.tiles { @for (label, value) in tiles { div { b { (value) } span.soft { (label) } } } }
        @if totals.silent() > 0 {
            p.bad { "No counts of " (totals.silent()) " of " (totals.groups) " ledger groups: ≥ means at least." }
        }
    }
}

/// What operators have stopped: the first thing to know about mail that waits.
fn suspensions(view: &View) -> Markup {
    html! {
        @if view.suspensions().next().is_some() {
            h2 { "Suspended" }
            div.scroll { table {
                thead { tr { th { "What" } th { "Until" } th { "Reason" } th { "By" } th { "Since" } } }
                tbody {
                    @for suspension in view.suspensions() {
                        tr {
                            td.warn { (suspension.name) }
                            td { @match suspension.until { Some(until) => (until), None => "it is resumed" } }
                            td { (suspension.reason) } td { (suspension.actor) } td { (suspension.since) }
                        }
                    }
                }
            } }
        }
    }
}

/// The last hour, minute by minute: bars of delivered, with deferred and bounced stacked on top.
fn chart(minutes: &[MinuteCount], minute: u64) -> Markup {
    const HEIGHT: u64 = 90;
    const KINDS: [(&str, &str); 3] = [("delivered", "good"), ("deferred", "warn"), ("bounced", "bad")];
    let first = minute.saturating_sub(HOUR - 1);
    let bars: Vec<[u64; 3]> =
        (first..=minute).map(|at| KINDS.map(|(outcome, _)| sum(minutes, outcome, at, at + 1))).collect();
    let highest = bars.iter().map(|bar| bar.iter().sum::<u64>()).max().unwrap_or(0).max(1);
    html! {
        svg.chart viewBox={ "0 0 600 " (HEIGHT) } preserveAspectRatio="none" role="img" {
            title { "Delivered, deferred and bounced in each of the last 60 minutes; the highest minute has " (highest) }
            @for (position, bar) in (0_u64..).zip(&bars) {
                @let heights = bar.map(|count| (count * HEIGHT).div_ceil(highest));
                @for (kind, (_, colour)) in KINDS.iter().enumerate() {
                    @let below: u64 = heights[..kind].iter().sum();
                    @if heights[kind] > 0 {
                        rect class=(colour) x=(position * 10) width="8" height=(heights[kind])
                            y=(HEIGHT.saturating_sub(below + heights[kind])) {}
                    }
                }
            }
        }
        p.soft {
            "The last 60 minutes, at most " (thousands(highest)) " a minute: "
            @for (position, (outcome, colour)) in KINDS.iter().enumerate() {
                @if position > 0 { ", " } span class=(colour) { (outcome) }
            }
        }
    }
}

fn rates(minutes: &[MinuteCount], minute: u64) -> Markup {
    html! {
        div.scroll { table.narrow {
            thead { tr {
                th { "" } th.number { "per minute, last 10" } th.number { "last hour" } th.number { "last 24 hours" }
            } }
            tbody {
                @for (outcome, colour) in OUTCOMES {
                    // The current minute is incomplete: counting it would make the rate too low.
                    @let ten = sum(minutes, outcome, minute.saturating_sub(10), minute);
                    tr {
                        td class=(colour) { (outcome) }
                        td.number { (thousands(ten / 10)) "." (ten % 10) }
                        td.number { (thousands(sum(minutes, outcome, minute.saturating_sub(HOUR), u64::MAX))) }
                        td.number { (thousands(sum(minutes, outcome, minute.saturating_sub(DAY), u64::MAX))) }
                    }
                }
            }
        } }
    }
}

fn group_table(console: &Console, groups: &[Group], now: Timestamp) -> Markup {
    let leaders = console.leaders.borrow().clone();
    html! {
        @if leaders.is_empty() {
            p.bad { "Cannot reach any queue node." }
        } @else {
            div.scroll { table {
                thead { tr {
                    th { "Group" } th { "Leader" } th.number { "Term" } th.number { "Messages" } th.number { "Queued or deferred" }
                    th.number { "Sending" } th.number { "Held" } th.number { "Oldest" } th.number { "Events not yet written" }
                } }
                tbody {
                    @for id in (0..=console.ledger_groups).map(GroupId) {
                        @let group = groups.iter().find(|group| group.id == id);
                        tr {
                            td { @if id == GroupId::DIRECTORY { "directory" } @else { "ledger " (id) } }
                            @match leaders.get(&id) {
                                Some(leader) => { td { "node " (leader.node) } td.number { (leader.term) } },
                                None => { td.bad { "no leader" } td {} },
                            }
                            @match group.map(|group| (group, &group.summary)) {
                                Some((group, Some(summary))) => (counts(group, summary, now)),
                                Some((_, None)) => td.bad colspan="6" { "no answer" },
                                None => td colspan="6" {},
                            }
                        }
                    }
                }
            } }
        }
    }
}

fn counts(group: &Group, summary: &SummaryResponse, now: Timestamp) -> Markup {
    let lag = summary.events_next.saturating_sub(1).saturating_sub(group.written);
    let oldest = Some(summary.oldest_accepted_at_millis).filter(|at| *at > 0);
    html! {
        @for count in [summary.messages, summary.queued, summary.sending, summary.held] {
            td.number { (thousands(count)) }
        }
        td.number { (oldest.map_or_else(|| "–".to_owned(), |at| age(at, now))) }
        td.number { (thousands(lag)) }
    }
}

fn lost(gaps: &[Gap]) -> Markup {
    html! {
        @if !gaps.is_empty() {
            h2.bad { "Events missing from this database" }
            p.soft { "The queue no longer has them; the history does not show what they recorded." }
            table.narrow { tbody {
                @for gap in gaps {
                    tr {
                        td.time { (web::time(gap.noticed_at)) }
                        td { "ledger " (gap.group) }
                        td { (thousands(gap.through - gap.first + 1)) " events, " (gap.first) " to " (gap.through) }
                    }
                }
            } }
        }
    }
}

/// How long ago, in a readable unit.
fn age(at_millis: u64, now: Timestamp) -> String {
    let seconds = now.since(Timestamp::from_millis(at_millis)).as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A number with a thin space between thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 * 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use postroad_core::Scope;
    use postroad_directory::{Delta, Item, Suspension};

    use super::*;

    #[test]
    fn totals_without_every_answer_are_lower_bounds() {
        let now = Timestamp::from_millis(1_000_000_000);
        let summary = |queued, age_millis| SummaryResponse {
            queued,
            oldest_accepted_at_millis: now.as_millis() - age_millis,
            ..SummaryResponse::default()
        };
        let check = |groups, summaries: &[SummaryResponse], queued: &str, oldest: &str| {
            let totals = Totals::of(groups, summaries.iter());
            assert_eq!((&*totals.count(totals.queued), &*totals.oldest(now)), (queued, oldest));
        };
        let empty = SummaryResponse::default;
        check(2, &[summary(3, 9_000), summary(4, 60_000)], "7", "60 s");
        check(2, &[summary(3, 9_000), empty()], "3", "9 s");
        check(3, &[summary(3, 9_000), summary(4, 60_000)], "≥ 7", "≥ 60 s");
        check(2, &[empty()], "≥ 0", "–");
        check(1, &[empty()], "0", "–");
        check(2, &[], "–", "–");
    }

    #[test]
    fn what_is_suspended_is_shown_with_reason_actor_and_end() {
        let at = Timestamp::from_millis;
        let suspension = |site: &str, until| Suspension {
            name: format!("site {site}").into(),
            scope: Scope::Site(site.into()),
            reason: "they <block> us".into(),
            actor: "operator/1 (eve@laptop)".into(),
            since: at(1000),
            until,
        };
        let items = [suspension("a.example", Some(at(61_000))), suspension("b.example", None)];
        let items = items.into_iter().map(|suspension| Item::Suspension(suspension.into())).collect();
        let view = View::empty().apply(Delta { revision: 1, full: true, items, removed: Vec::new() });
        let page = suspensions(&view).into_string();
        for part in [
            "site a.example",
            "1970-01-01T00:01:01.000Z",
            "they &lt;block&gt; us",
            "operator/1 (eve@laptop)",
            "<td class=\"warn\">site b.example</td><td>it is resumed</td>",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert_eq!(suspensions(&View::empty()).into_string(), "");
    }

    #[test]
    fn numbers_have_thin_spaces_and_ages_a_readable_unit() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1_000, "1\u{2009}000"), (1_234_567, "1\u{2009}234\u{2009}567")]
        {
            assert_eq!(thousands(number), expected);
        }
        let now = Timestamp::from_millis(1_000_000_000);
        for (seconds, expected) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 days")]
        {
            assert_eq!(age(1_000_000_000 - seconds * 1_000, now), expected);
        }
    }
}
