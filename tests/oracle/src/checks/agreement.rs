//! I11: replicas that have applied the same entries have the same hash, also the same replica after a restart.
//!
//! Memory: one hash for each group and index.

use std::collections::BTreeMap;

use postroad_core::GroupId;

use crate::{
    facts::{Facts, Seen},
    history::StateHash,
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    let mut first = BTreeMap::<(GroupId, u64), Seen<&StateHash>>::new();
    for hash in &facts.hashes {
        into.judged += 1;
        let StateHash { group, index, node, .. } = hash.what;
        let other = first.entry((*group, *index)).or_insert(*hash);
        if other.what.hash != hash.what.hash {
            let sentence = format!(
                "group {group}: the states of nodes {} and {node} differ after entry {index}",
                other.what.node
            );
            into.violated(Subject::Group(*group), [other.number, hash.number], sentence);
        }
    }
}
