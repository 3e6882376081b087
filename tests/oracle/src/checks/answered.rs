//! I14: every request is answered in time, and 99 of 100 submissions quickly while no fault is near.
//!
//! A client whose own ingress node does not run or has a fault cannot be answered; a lost connection is an answer.
//! Memory: one time for each submission and fault.

use postroad_core::NodeId;

use crate::{
    facts::{Facts, Seen},
    history::{Micros, RecordNumber, Role, SubmitAnswer},
    verdict::{Bounds, Judgement, Subject},
};

/// With fewer submissions a percentile says nothing.
const SUBMISSIONS_MIN: usize = 100;

pub(super) fn check(facts: &Facts<'_>, bounds: &Bounds, into: &mut Judgement) {
    let faults = Faults::of(facts);
    for (number, submission) in &facts.submissions {
        let Seen { number: begun, at, what } = submission.begun;
        let answer = submission.answer.map(|answer| {
            let gave_up = matches!(answer.what, SubmitAnswer::TimedOut);
            (answer.number, answer.at, gave_up)
        });
        let request = Request { subject: Subject::Submission(*number), begun, at, answer };
        request.check(facts.end, bounds, |span| faults.concern(what.node, span), into);
    }
    for (number, change) in &facts.changes {
        let Seen { number: begun, at, .. } = change.begun;
        let answer = change.answer.map(|answer| {
            let gave_up = matches!(answer.what, crate::history::ChangeAnswer::TimedOut);
            (answer.number, answer.at, gave_up)
        });
        let request = Request { subject: Subject::Request(*number), begun, at, answer };
        request.check(facts.end, bounds, |span| faults.concern(None, span), into);
    }
    percentile(facts, bounds, into);
}

/// From and until.
type Span = (Micros, Micros);

fn overlap(one: Span, other: Span) -> bool {
    one.0 <= other.1 && other.0 <= one.1
}

/// A request and its answer, with whether the answer is that the client gave up.
struct Request {
    subject: Subject,
    begun: RecordNumber,
    at: Micros,
    answer: Option<(RecordNumber, Micros, bool)>,
}

impl Request {
    fn check(self, end: Micros, bounds: &Bounds, excused: impl Fn(Span) -> bool, into: &mut Judgement) {
        let Self { subject, begun, at, answer } = self;
        let (until, gave_up) = answer.map_or((end, true), |(_, until, gave_up)| (until, gave_up));
        let took = until.since(at);
        // A client that gave up early has not seen that the answer was late.
        if (gave_up && took < bounds.answer_within) || excused((at, until)) {
            into.undecided += 1;
            return;
        }
        into.judged += 1;
        if took > bounds.answer_within || gave_up {
            let what = match subject {
                Subject::Submission(number) => format!("submission {number}"),
                Subject::Request(number) => format!("change {number}"),
                _ => "a request".to_owned(),
            };
            let how = if gave_up { "has no answer after" } else { "was answered after" };
            let proof = std::iter::once(begun).chain(answer.map(|(number, ..)| number));
            let sentence = format!("{what} {how} {took}; the bound is {}", bounds.answer_within);
            into.violated(subject, proof, sentence);
        }
    }
}

/// When which nodes cannot answer.
struct Faults {
    /// Nodes that clients ask, while they do not run.
    down: Vec<(NodeId, Span)>,
    /// Faults and the nodes that they concern; none for all.
    active: Vec<(Vec<NodeId>, Span)>,
}

impl Faults {
    fn of(facts: &Facts<'_>) -> Self {
        let never = Micros(u64::MAX);
        let ended = |node: &Seen<&crate::history::NodeChange>| {
            let again = facts.nodes.iter().find(|later| {
                later.number > node.number && later.what.node == node.what.node && later.what.runs
            });
            (node.what.node, (node.at, again.map_or(never, |again| again.at)))
        };
        let is_down =
            |node: &&Seen<&crate::history::NodeChange>| !node.what.runs && node.what.role == Role::Ingress;
        let down = facts.nodes.iter().filter(is_down).map(ended).collect();
        let begun = facts.faults.iter().filter(|fault| fault.what.on);
        let active =
            begun.map(|fault| (fault.what.nodes.clone(), (fault.at, end_of_fault(facts, fault)))).collect();
        Self { down, active }
    }

    /// Returns true when the node that was asked may have been unable to answer; without a node, when any may.
    fn concern(&self, node: Option<NodeId>, span: Span) -> bool {
        let down = self.down.iter().filter(|(_, during)| overlap(*during, span));
        let active = self.active.iter().filter(|(_, during)| overlap(*during, span));
        match node {
            Some(node) => {
                down.map(|(down, _)| *down).any(|down| down == node)
                    || active.map(|(nodes, _)| nodes).any(|nodes| nodes.is_empty() || nodes.contains(&node))
            }
            None => down.count() + active.count() > 0,
        }
    }
}

fn end_of_fault(facts: &Facts<'_>, fault: &Seen<&crate::history::Fault>) -> Micros {
    let off = facts.faults.iter().find(|later| {
        later.number > fault.number
            && !later.what.on
            && later.what.name == fault.what.name
            && later.what.nodes == fault.what.nodes
    });
    off.map_or(Micros(u64::MAX), |off| off.at)
}

fn percentile(facts: &Facts<'_>, bounds: &Bounds, into: &mut Judgement) {
    let disturbed = disturbed(facts, bounds.settles_within);
    let mut latencies: Vec<(Micros, RecordNumber)> = Vec::new();
    for submission in facts.submissions.values() {
        let Some(answer) = submission.answer else { continue };
        let span = (submission.begun.at, answer.at);
        let is_answer = !matches!(answer.what, SubmitAnswer::ConnectionLost | SubmitAnswer::TimedOut);
        if is_answer && !disturbed.iter().any(|other| overlap(*other, span)) {
            latencies.push((answer.at.since(submission.begun.at), answer.number));
        }
    }
    if latencies.len() < SUBMISSIONS_MIN {
        return;
    }
    into.judged += 1;
    latencies.sort_unstable();
    // The nearest rank: of 100 submissions one may be slow.
    let (p99, number) = latencies[(latencies.len() * 99).div_ceil(100) - 1];
    if p99 > bounds.p99_within {
        let sentence = format!(
            "the 99th percentile of {} submissions away from faults is {p99}; the bound is {}",
            latencies.len(),
            bounds.p99_within
        );
        into.violated(Subject::Run, [number], sentence);
    }
}

/// Returns the times around faults, and those without a majority of queue nodes.
fn disturbed(facts: &Facts<'_>, settles: Micros) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for fault in facts.faults.iter().filter(|fault| fault.what.on) {
        spans.push((fault.at, end_of_fault(facts, fault).after(settles)));
    }
    let mut running = std::collections::BTreeMap::<NodeId, bool>::new();
    let mut lost_at = None;
    for node in &facts.nodes {
        spans.push((node.at, node.at.after(settles)));
        if node.what.role != Role::Queue {
            continue;
        }
        running.insert(node.what.node, node.what.runs);
        let has_majority = running.values().filter(|runs| **runs).count() * 2 > running.len();
        match (lost_at, has_majority) {
            (None, false) => lost_at = Some(node.at),
            (Some(since), true) => {
                spans.push((since, node.at.after(settles)));
                lost_at = None;
            }
            _ => {}
        }
    }
    spans.extend(lost_at.map(|since| (since, Micros(u64::MAX))));
    spans
}
