//! The screen of `postroad top`: made from one or two samples, and drawn.

use std::time::Duration;

use postroad_core::{ByteSize, GroupId, NodeId};
use postroad_proto::queue::{Flow, NodeStatusResponse};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Paragraph, Row, Table},
};

use super::sample::Sample;
use crate::{
    cli::queue::GroupedBy,
    operator::{queue::DepthRow, text::age},
    output::{Row as _, line},
};

/// What is on the screen.
#[derive(Debug, Default)]
pub(super) struct Screenful {
    title: String,
    /// Why the rest is old.
    pub(super) problem: Option<String>,
    flow: Option<FlowRates>,
    nodes: Vec<NodeLine>,
    depths: Vec<DepthRow>,
}

/// What flowed between two samples, each second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct FlowRates {
    accepted: f64,
    delivered: f64,
    deferred: f64,
    bounced: f64,
    ended_otherwise: f64,
    /// The time from acceptance to delivery of half of the deliveries, and of 95 % of them: at most so much.
    median: Option<Duration>,
    slow: Option<Duration>,
}

/// One queue node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NodeLine {
    node: String,
    leads: String,
    disk: String,
    writes: String,
    syncs: String,
    version: String,
}

impl Screenful {
    pub(super) fn starting(addresses: &str, by: GroupedBy) -> Self {
        Self { title: title(addresses, by), ..Self::default() }
    }

    pub(super) fn of(addresses: &str, by: GroupedBy, sample: &Sample, before: Option<&Sample>) -> Self {
        let depths = &sample.depths;
        let total = (depths.total.deliveries() > 0).then_some(&depths.total);
        let rows = depths.rows.iter().chain(&depths.other).chain(total);
        let missing = &depths.groups_without_answer;
        Self {
            title: title(addresses, by),
            problem: (!missing.is_empty()).then(|| format!("ledger groups {missing:?} did not answer")),
            flow: before.and_then(|before| flow_between(before, sample)),
            nodes: sample
                .nodes
                .iter()
                .map(|(node, status)| node_line(*node, status.as_ref(), sample, before))
                .collect(),
            depths: rows.cloned().collect(),
        }
    }
}

fn title(addresses: &str, by: GroupedBy) -> String {
    format!("postroad top   {addresses}   by {}   b: by something else   q: quit", by.as_str())
}

/// Adds up the groups that had the same leader at both times: counts begin with a leader.
fn flow_between(before: &Sample, after: &Sample) -> Option<FlowRates> {
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    let mut sum = Flow::default();
    for (group, later) in &after.groups {
        let earlier = before.groups.get(group).filter(|earlier| earlier.term == later.term);
        if let Some((earlier, later)) =
            earlier.and_then(|earlier| Some((earlier.flow.as_ref()?, later.flow.as_ref()?)))
        {
            add_difference(&mut sum, earlier, later);
        }
    }
    (seconds > 0.0).then(|| rates(&sum, seconds))
}

fn add_difference(sum: &mut Flow, earlier: &Flow, later: &Flow) {
    sum.accepted += later.accepted.saturating_sub(earlier.accepted);
    sum.delivered += later.delivered.saturating_sub(earlier.delivered);
    sum.deferred += later.deferred.saturating_sub(earlier.deferred);
    sum.bounced += later.bounced.saturating_sub(earlier.bounced);
    sum.ended_otherwise += later.ended_otherwise.saturating_sub(earlier.ended_otherwise);
    sum.delivered_within.resize(sum.delivered_within.len().max(later.delivered_within.len()), 0);
    for (place, count) in later.delivered_within.iter().enumerate() {
        let before = earlier.delivered_within.get(place).copied().unwrap_or(0);
        sum.delivered_within[place] += count.saturating_sub(before);
    }
}

fn rates(flow: &Flow, seconds: f64) -> FlowRates {
    let rate = |count: u64| count as f64 / seconds;
    FlowRates {
        accepted: rate(flow.accepted),
        delivered: rate(flow.delivered),
        deferred: rate(flow.deferred),
        bounced: rate(flow.bounced),
        ended_otherwise: rate(flow.ended_otherwise),
        median: quantile(&flow.delivered_within, 50),
        slow: quantile(&flow.delivered_within, 95),
    }
}

/// Returns the bound of the bucket that holds so many per cent of the deliveries: bucket n holds those below 2^n ms.
fn quantile(buckets: &[u64], per_cent: u64) -> Option<Duration> {
    let wanted = (buckets.iter().sum::<u64>() * per_cent).div_ceil(100);
    let mut seen = 0;
    let bucket = buckets.iter().position(|count| {
        seen += count;
        wanted > 0 && seen >= wanted
    })?;
    Some(Duration::from_millis(1 << bucket.min(62)))
}

fn node_line(
    node: NodeId,
    status: Option<&NodeStatusResponse>,
    sample: &Sample,
    before: Option<&Sample>,
) -> NodeLine {
    let leads = sample.leaders.iter().filter(|(_, leader)| **leader == node);
    let leads: Vec<String> = leads.map(|(group, _)| group_name(*group)).collect();
    let node_name = node.to_string();
    let Some(status) = status else {
        let disk = "does not answer".to_owned();
        return NodeLine { node: node_name, leads: leads.join(","), disk, ..NodeLine::default() };
    };
    let earlier = before.and_then(|before| {
        let earlier = before.nodes.iter().find(|(known, _)| *known == node)?.1.as_ref()?;
        Some((earlier, sample.at.duration_since(before.at).as_secs_f64()))
    });
    let rate = |count: fn(&NodeStatusResponse) -> u64| {
        let (earlier, seconds) = earlier?;
        (seconds > 0.0).then(|| count(status).saturating_sub(count(earlier)) as f64 / seconds)
    };
    let writes = rate(|status| status.log_written_bytes);
    let syncs = rate(|status| status.log_batches);
    NodeLine {
        node: node_name,
        leads: leads.join(","),
        disk: disk_words(status),
        writes: writes.map_or_else(String::new, |bytes| format!("{}/s", rounded(bytes as u64))),
        syncs: syncs.map_or_else(String::new, |syncs| format!("{syncs:.0}/s")),
        version: line(&status.version),
    }
}

fn group_name(group: GroupId) -> String {
    if group == GroupId::DIRECTORY { "directory".to_owned() } else { group.to_string() }
}

fn disk_words(status: &NodeStatusResponse) -> String {
    let space = match status.disk_total_bytes {
        0 => String::new(),
        total => format!("{} of {} free", rounded(status.disk_free_bytes), rounded(total)),
    };
    let problem = match (status.disk_refused, status.disk_full) {
        (true, _) => "refused by the other nodes",
        (false, true) => "FULL",
        (false, false) => "",
    };
    [space.as_str(), problem].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// A size with at most three digits and a unit.
fn rounded(bytes: u64) -> String {
    let units = [1_u64 << 40, 1 << 30, 1 << 20, 1 << 10];
    let unit = units.into_iter().find(|unit| bytes >= *unit).unwrap_or(1);
    ByteSize(bytes / unit * unit).to_string()
}

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, shown: &Screenful) {
    let nodes = u16::try_from(shown.nodes.len() + 2).unwrap_or(u16::MAX);
    let areas = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(nodes),
        Constraint::Min(2),
    ];
    let [title, flow, problem, nodes, queue] = Layout::vertical(areas).areas(frame.area());
    frame.render_widget(Paragraph::new(shown.title.as_str()).style(bold()), title);
    frame.render_widget(Paragraph::new(flow_line(shown.flow)), flow);
    if let Some(text) = &shown.problem {
        frame.render_widget(
            Paragraph::new(line(text)).style(Style::new().add_modifier(Modifier::REVERSED)),
            problem,
        );
    }
    draw_nodes(frame, nodes, &shown.nodes);
    draw_queue(frame, queue, &shown.depths);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn flow_line(flow: Option<FlowRates>) -> Line<'static> {
    let Some(flow) = flow else { return Line::from("counting …") };
    let within =
        |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("< {}", millis(time)));
    let FlowRates { accepted, delivered, deferred, bounced, ended_otherwise, median, slow } = flow;
    Line::from(format!(
        "in {accepted:.1}/s   out {delivered:.1}/s   deferred {deferred:.1}/s   bounced {bounced:.1}/s   \
         other ends {ended_otherwise:.1}/s   delivered in: half {}, 95 % {}",
        within(median),
        within(slow)
    ))
}

fn millis(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if millis < 2000 { format!("{millis} ms") } else { age(millis) }
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, nodes: &[NodeLine]) {
    let row = |node: &NodeLine| {
        let NodeLine { node, leads, disk, writes, syncs, version } = node.clone();
        Row::new([node, leads, disk, writes, syncs, version])
    };
    let widths = [
        Constraint::Length(6),
        Constraint::Length(20),
        Constraint::Length(36),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Min(8),
    ];
    let heading = Row::new(["NODE", "LEADS", "DISK", "WRITTEN", "SYNCS", "VERSION"]).style(bold());
    frame.render_widget(Table::new(nodes.iter().map(row), widths).header(heading), area);
}

fn draw_queue(frame: &mut Frame<'_>, area: Rect, rows: &[DepthRow]) {
    if rows.is_empty() {
        return frame.render_widget(Paragraph::new("nothing waits"), area);
    }
    let room = usize::from(area.height.saturating_sub(1));
    let cells = rows
        .iter()
        .take(room)
        .map(|row| Row::new(row.cells().iter().map(|cell| line(cell)).collect::<Vec<_>>()));
    let headings = DepthRow::COLUMNS.iter().map(|column| column.heading());
    let number = Constraint::Length(8);
    let widths = [
        Constraint::Min(16),
        number,
        number,
        number,
        number,
        number,
        number,
        Constraint::Min(16),
        Constraint::Min(12),
    ];
    let table = Table::new(cells, widths).header(Row::new(headings).style(bold()));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use postroad_proto::queue::SummaryResponse;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::operator::queue::Depths;

    fn sample(at: Instant, flow: Flow, term: u64, written: u64) -> Sample {
        let summary = SummaryResponse { flow: Some(flow), term, leading: true, ..SummaryResponse::default() };
        let status = NodeStatusResponse {
            node: 1,
            version: "0.1.0".to_owned(),
            disk_free_bytes: 41 << 30,
            disk_total_bytes: 100 << 30,
            log_written_bytes: written,
            log_batches: written / 1000,
            ..NodeStatusResponse::default()
        };
        Sample {
            at,
            depths: Depths::example(),
            groups: BTreeMap::from([(GroupId(1), summary)]),
            nodes: vec![(NodeId(1), Some(status)), (NodeId(2), None)],
            leaders: BTreeMap::from([(GroupId(0), NodeId(1)), (GroupId(1), NodeId(1))]),
        }
    }

    fn screen(shown: &Screenful, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, shown)).unwrap();
        terminal
            .backend()
            .to_string()
            .lines()
            .map(|line| line.trim_matches('"').trim_end().to_owned() + "\n")
            .collect()
    }

    #[test]
    fn rates_are_differences_of_counts_that_began_with_the_same_leader() {
        let start = postroad_env::now();
        let flow = |accepted, delivered, within: &[u64]| Flow {
            accepted,
            delivered,
            delivered_within: within.to_vec(),
            ..Flow::default()
        };
        let before = sample(start, flow(100, 90, &[0, 0, 0, 10]), 7, 0);
        let after = sample(
            start + Duration::from_secs(2),
            flow(300, 250, &[0, 0, 0, 10, 0, 95, 0, 0, 5]),
            7,
            4 << 20,
        );
        let rates = flow_between(&before, &after).unwrap();
        assert_eq!((rates.accepted, rates.delivered), (100.0, 80.0));
        assert_eq!(rates.median, Some(Duration::from_millis(32)));
        assert_eq!(rates.slow, Some(Duration::from_millis(32)));
        let replaced = sample(start + Duration::from_secs(4), flow(5, 5, &[]), 8, 0);
        assert_eq!(flow_between(&after, &replaced), Some(FlowRates::default()));
        let shown = Screenful::of("`q1:7400` (context `prod`)", GroupedBy::Site, &after, Some(&before));
        let text = screen(&shown, 140, 12);
        for part in [
            "postroad top   `q1:7400` (context `prod`)   by site",
            "in 100.0/s   out 80.0/s",
            "half < 32 ms, 95 % < 32 ms",
            "directory,1",
            "41GiB of 100GiB free",
            "2MiB/s",
            "does not answer",
            "big.example",
            "lane paused",
        ] {
            assert!(text.contains(part), "`{part}` is missing in\n{text}");
        }
    }

    #[test]
    fn a_small_terminal_shows_what_fits() {
        let sample = sample(postroad_env::now(), Flow::default(), 1, 0);
        let shown = Screenful::of("x", GroupedBy::Tenant, &sample, None);
        for (width, height) in [(1, 1), (20, 3), (40, 8), (80, 24), (300, 100)] {
            screen(&shown, width, height);
        }
        let waiting = Screenful::starting("x", GroupedBy::Site);
        assert!(screen(&waiting, 80, 10).contains("counting …"));
    }
}
