//! What the nodes of today are known to do wrong, until it is mended: a run accepts these problems and prints their names.

/// A finding that is not mended yet.
pub(crate) struct Known {
    /// Its name in docs/track-record.md.
    pub(crate) name: &'static str,
    /// What a problem that it causes contains.
    problem: &'static str,
    /// A fault without which it does not happen.
    fault: Option<&'static str>,
}

const KNOWN: [Known; 20] = [
    // The log is read in one piece from the last checkpoint on.
    Known {
        name: "F-201",
        problem: "more while it started than afterwards",
        fault: Some("rare checkpoints"),
    },
    // One damaged body ends its node.
    Known { name: "F-202", problem: "ended by itself over a damaged disk", fault: None },
    // The ledger's time is a maximum over the clocks of all leaders that it ever had.
    Known { name: "F-203", problem: "is to be sent", fault: Some("wrong clock") },
    Known { name: "F-203", problem: "it has not ended although all is quiet", fault: Some("wrong clock") },
    Known { name: "F-203", problem: "it is not quiet in time", fault: Some("wrong clock") },
    Known { name: "F-203", problem: "was refused", fault: Some("wrong clock") },
    // What is dropped from the state depends on a node's own configuration.
    Known { name: "F-204", problem: "the states of nodes", fault: Some("other limits") },
    Known { name: "F-204", problem: "I3:", fault: Some("other limits") },
    Known { name: "F-204", problem: "I4:", fault: Some("other limits") },
    Known { name: "F-204", problem: "I7:", fault: Some("other limits") },
    Known { name: "F-204", problem: "it has not ended although all is quiet", fault: Some("other limits") },
    Known { name: "F-204", problem: "it is not quiet in time", fault: Some("other limits") },
    Known { name: "F-204", problem: "has dropped events up to", fault: Some("other limits") },
    // A snapshot starts over when it breaks, and the log that follows it is gone when it has arrived.
    Known { name: "F-206", problem: "does not vote", fault: Some("narrow links") },
    // Nothing notices that the writer of the log waits.
    Known { name: "F-207", problem: "without a disk", fault: None },
    // Chunks are dropped when another one comes.
    Known { name: "F-211", problem: "chunks of messages that never came", fault: None },
    // Pages of events are cut otherwise after a restore, and dropped by the page.
    Known { name: "F-212", problem: "has dropped events up to", fault: Some("small limits") },
    // Mail waits for a pool that was removed, even when one of its name is back.
    Known { name: "F-213", problem: "it has not ended although all is quiet", fault: Some("removed pool") },
    Known { name: "F-213", problem: "it is not quiet in time", fault: Some("removed pool") },
    // What was assigned before a message's deadline is sent after it.
    Known { name: "F-214", problem: "is to be sent until", fault: None },
];

/// Returns the name of the finding that explains a problem of a run with these faults.
pub(crate) fn name_of(problem: &str, faults: &[&str]) -> Option<&'static str> {
    let explains = |known: &&Known| {
        problem.contains(known.problem) && known.fault.is_none_or(|fault| faults.contains(&fault))
    };
    KNOWN.iter().find(explains).map(|known| known.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_known_only_with_its_fault() {
        let late = "I8: `x/0` is to be sent until 9.9 s, and was sent at 12.6 s (1 violations)";
        let early = "I8: `x/0` is to be sent from 9.9 s on, and was sent at 2.6 s (1 violations)";
        assert_eq!(name_of(late, &["kill"]), Some("F-214"));
        assert_eq!(name_of(early, &["kill"]), None);
        assert_eq!(name_of(early, &["kill", "wrong clock"]), Some("F-203"));
    }
}
