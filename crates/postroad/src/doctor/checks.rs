//! The checks: from facts to findings.

mod cluster;
mod machine;
mod sending;

use super::{facts::Facts, finding::Findings};

/// Runs every check for which there are facts.
pub(crate) fn all(facts: &Facts) -> Findings {
    let mut findings = Vec::new();
    findings.extend(cluster::quorum(&facts.cluster));
    findings.extend(cluster::replicas(&facts.cluster));
    findings.extend(cluster::nodes(&facts.cluster));
    findings.extend(cluster::versions(&facts.cluster, facts.version));
    findings.extend(cluster::clocks(&facts.cluster));
    findings.extend(cluster::certificates(&facts.cluster, facts.now));
    findings.extend(sending::sources(&facts.cluster));
    if let Some(node) = &facts.node {
        findings.push(machine::readiness(node));
        findings.extend(machine::ports(node));
        findings.push(machine::files(node));
        findings.extend(machine::data(node));
        findings.extend(machine::certificates(node, facts.now));
        findings.extend(machine::keys(node));
        findings.extend(sending::dns(node));
        findings.extend(sending::port_25(node));
    }
    Findings { findings }
}

/// A level and texts that tests compare.
#[cfg(test)]
fn check(
    found: impl IntoIterator<Item = super::finding::Finding>,
    expected: &[(super::finding::Level, &str)],
) {
    let found: Vec<super::finding::Finding> = found.into_iter().collect();
    let matches = found.iter().zip(expected).all(|(finding, (level, part))| {
        let text = format!("{} {}", finding.found, finding.advice);
        finding.level == *level && text.contains(part)
    });
    assert!(matches && found.len() == expected.len(), "{found:#?}\nexpected {expected:#?}");
    for finding in &found {
        let needs_advice = finding.level != super::finding::Level::Ok;
        assert_eq!(needs_advice, !finding.advice.is_empty(), "{finding:?}");
    }
}
