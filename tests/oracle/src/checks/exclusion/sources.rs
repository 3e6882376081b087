//! A source is used by one node at a time, in the order of its epochs.
//!
//! The directory gives a source to another node, under a new epoch, only once the node before has released it or its lease has
//! certainly ended; after the end of its lease a node sends neither `MAIL` nor a final dot. So
//!
//! - an epoch of a source has one node;
//! - once a transaction from a source has begun under an epoch, none begins under an older one;
//! - no final dot arrives from a source after another node has begun to use it.
//!
//! Receivers do not see epochs: that of a transaction is the epoch of an attempt at one of its deliveries, by the same node from
//! the same source. Where several attempts fit, only what is true of all of them is judged.
//! Memory: the transactions and attempts of each source.

use std::collections::BTreeMap;

use postroad_core::{DeliveryId, Epoch, NodeId, OutcomeKind, SourceId};

use super::Decided;
use crate::{
    facts::{Facts, Seen, Transaction},
    history::{Attempt, RecordNumber},
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, attempts: &[Decided<'_>], into: &mut Judgement) {
    one_node_for_each_epoch(attempts, into);
    let mut by_source = BTreeMap::<&str, Vec<Use<'_>>>::new();
    for transaction in facts.transactions.values() {
        if let Some(node) = transaction.mail.what.node {
            by_source.entry(&transaction.mail.what.source).or_default().push(Use { node, transaction });
        }
    }
    let attempts = attempts_by_owner(attempts);
    for (address, mut uses) in by_source {
        uses.sort_by_key(|of| of.transaction.mail.number);
        one_node_at_a_time(address, &uses, into);
        let Some(source) = facts.sources.get(address) else { continue };
        let mut order = Order { source: *source, newest: None };
        for of in &uses {
            match of.epochs(facts, *source, &attempts) {
                Some(epochs) => order.begins(of, epochs, into),
                None => into.undecided += 1,
            }
        }
    }
}

fn one_node_for_each_epoch(attempts: &[Decided<'_>], into: &mut Judgement) {
    let mut owners = BTreeMap::<(SourceId, Epoch), (NodeId, RecordNumber)>::new();
    for Decided { attempt, is_late, .. } in attempts {
        if *is_late {
            continue;
        }
        let Attempt { delivery, source, epoch, node, .. } = attempt.what;
        let (owner, first) = *owners.entry((*source, *epoch)).or_insert((*node, attempt.number));
        if owner != *node {
            let sentence = format!("nodes {owner} and {node} sent from source {source} under epoch {epoch}");
            into.violated(Subject::Delivery(*delivery), [first, attempt.number], sentence);
        }
    }
}

/// A transaction of a node that is known.
struct Use<'a> {
    node: NodeId,
    transaction: &'a Transaction<'a>,
}

fn one_node_at_a_time(address: &str, uses: &[Use<'_>], into: &mut Judgement) {
    // The final dot that arrived last of the transactions so far, for each node.
    let mut dots = BTreeMap::<NodeId, &Use<'_>>::new();
    for of in uses {
        into.judged += 1;
        let mail = of.transaction.mail;
        for (node, earlier) in &dots {
            let Some(dot) = earlier.transaction.message.filter(|dot| *node != of.node && dot.at > mail.at)
            else {
                continue;
            };
            let sentence = format!(
                "node {} began to send from `{address}` at {}, and a message from node {node} ended at {}",
                of.node, mail.at, dot.at
            );
            into.violated(of.subject(), [mail.number, dot.number], sentence);
        }
        let dot = of.transaction.message.map(|dot| dot.at);
        let last = dots.get(&of.node).and_then(|last| last.transaction.message).map(|dot| dot.at);
        if dot > last {
            dots.insert(of.node, of);
        }
    }
}

type ByOwner<'a> = BTreeMap<(DeliveryId, NodeId, SourceId), Vec<Seen<&'a Attempt>>>;

fn attempts_by_owner<'a>(attempts: &[Decided<'a>]) -> ByOwner<'a> {
    let mut by_owner = ByOwner::new();
    for Decided { attempt, is_late, .. } in attempts {
        let Attempt { delivery, node, source, .. } = *attempt.what;
        if !is_late {
            by_owner.entry((delivery, node, source)).or_default().push(*attempt);
        }
    }
    by_owner
}

/// The epochs that a transaction may have had: the lowest and the highest.
#[derive(Clone, Copy)]
struct Epochs {
    lowest: Epoch,
    highest: Epoch,
    /// The attempts of both.
    proof: [RecordNumber; 2],
}

impl Use<'_> {
    fn subject(&self) -> Subject {
        self.transaction.id().map_or(Subject::Run, Subject::Message)
    }

    /// Returns `None` when no attempt fits, or when the one that fits may not have been read.
    fn epochs(&self, facts: &Facts<'_>, source: SourceId, attempts: &ByOwner<'_>) -> Option<Epochs> {
        let message = self.transaction.id()?;
        if !facts.is_complete() || facts.groups_with_gaps.contains(&message.group()) {
            return None;
        }
        let begun = self.transaction.mail.at;
        let addresses = self.transaction.rcpts.iter().map(|rcpt| &*rcpt.what.recipient);
        let deliveries = addresses.filter_map(|address| facts.delivery_to(message, address));
        let of_node = deliveries.filter_map(|delivery| attempts.get(&(delivery, self.node, source)));
        // One that its node had reported before was over.
        let fitting = of_node
            .flatten()
            .filter(|attempt| attempt.what.outcome == OutcomeKind::Unknown || attempt.at >= begun);
        let mut fitting: Vec<(Epoch, RecordNumber)> =
            fitting.map(|attempt| (attempt.what.epoch, attempt.number)).collect();
        fitting.sort_unstable();
        let ((lowest, first), (highest, last)) = (*fitting.first()?, *fitting.last()?);
        Some(Epochs { lowest, highest, proof: [first, last] })
    }
}

/// The transactions from a source, in the order in which they began.
struct Order<'a> {
    source: SourceId,
    /// The one that certainly had the newest epoch so far.
    newest: Option<(Epochs, &'a Transaction<'a>, NodeId)>,
}

impl<'a> Order<'a> {
    fn begins(&mut self, of: &Use<'a>, epochs: Epochs, into: &mut Judgement) {
        into.judged += 1;
        if let Some((newest, earlier, node)) = self.newest
            && newest.lowest > epochs.highest
        {
            let sentence = format!(
                "node {node} began to send from source {} under epoch {} at {}, and node {} under epoch {} later, at {}",
                self.source, newest.lowest, earlier.mail.at, of.node, epochs.highest, of.transaction.mail.at
            );
            let proof = [earlier.mail.number, newest.proof[0], of.transaction.mail.number, epochs.proof[1]];
            into.violated(of.subject(), proof, sentence);
            return;
        }
        if self.newest.is_none_or(|(newest, ..)| epochs.lowest > newest.lowest) {
            self.newest = Some((epochs, of.transaction, of.node));
        }
    }
}
