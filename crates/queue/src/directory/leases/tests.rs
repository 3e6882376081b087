//! Leases against a directory that applies what they decide, on a clock that the tests move.

use std::sync::Arc;

use postroad_core::{Domain, Epoch, NodeId, SourceId};
use postroad_directory::{Change, Directory, Put, PutSource};

use super::*;

const LEASE: u64 = 10;
const CERTAIN_END: u64 = 11;
const REVOKE_AFTER: u64 = 16;
const SETTLE: u64 = 30;
const LET_GO_WITHIN: u64 = 120;

/// The nodes that may own a source which any node may own.
const ANYBODY: &[u64] = &[];

/// A leader, its directory and its clock.
struct World {
    directory: Directory,
    leases: Leases,
    now: Instant,
}

fn run(node: u64, incarnation: u64) -> Owner {
    Owner { node: NodeId(node), incarnation }
}

impl World {
    /// `sources` are the nodes that may own each.
    fn new(sources: &[&[u64]]) -> Self {
        let mut directory = Directory::new();
        let changes = (1..).zip(sources).map(|(number, nodes)| {
            Change::Put(Put::Source(PutSource {
                name: Arc::from(format!("s{number}")),
                address: None,
                helo: Domain::parse("mail.example").unwrap(),
                nodes: nodes.iter().copied().map(NodeId).collect(),
            }))
        });
        directory.apply(&Command::Change(changes.collect())).unwrap();
        let now = Instant::now();
        Self { directory, leases: Leases::new(LeaseTimes::default(), 1, now), now }
    }

    fn view(&self) -> View {
        View::empty().apply(self.directory.everything())
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn new_leader(&mut self) {
        self.leases = Leases::new(LeaseTimes::default(), self.leases.term() + 1, self.now);
    }

    fn claim(&mut self, run: Owner, replaces: Option<u64>) -> ClaimDecision {
        let decision = self.leases.claim(self.now, &self.view(), run, replaces);
        if decision == ClaimDecision::Propose {
            let claim = Command::Claim { node: run.node, incarnation: run.incarnation };
            self.directory.apply(&claim).unwrap();
        }
        decision
    }

    fn renew(&mut self, run: Owner) -> bool {
        self.leases.renew(self.now, &self.view(), run)
    }

    fn decide(&mut self) -> Vec<Command> {
        self.leases.decide(self.now, &self.view())
    }

    /// Decides and applies until there is nothing to decide.
    fn settle(&mut self) {
        loop {
            let commands = self.decide();
            if commands.is_empty() {
                return;
            }
            for command in commands {
                self.directory.apply(&command).unwrap();
            }
        }
    }

    /// Lets time pass while these runs renew.
    fn live(&mut self, seconds: u64, runs: &[Owner]) {
        for _ in 0..seconds {
            self.pass(1);
            for run in runs {
                assert!(self.renew(*run));
            }
            self.settle();
        }
    }

    /// A run lets go of what it is asked for; returns which sources.
    fn obey(&mut self, run: Owner) -> Vec<SourceId> {
        let asked = self.leases.let_go(run);
        asked.iter().for_each(|asked| self.release(run, *asked));
        self.settle();
        asked.into_iter().map(|(source, _)| source).collect()
    }

    /// A release arrives, for the first time or once more.
    fn release(&mut self, run: Owner, (source, epoch): (SourceId, Epoch)) {
        let (node, incarnation) = (run.node, run.incarnation);
        self.directory.apply(&Command::ReleaseSource { source, node, incarnation, epoch }).unwrap();
    }

    /// How many sources each of the nodes owns.
    fn shares(&self, nodes: &[u64]) -> Vec<usize> {
        let owners = self.owners();
        nodes.iter().map(|node| owners.iter().filter(|(owner, _)| owner == node).count()).collect()
    }

    /// Who owns each source, and its epoch.
    fn owners(&self) -> Vec<(u64, u64)> {
        let view = self.view();
        view.sources().map(|s| (s.owner.map_or(0, |owner| owner.node.0), s.epoch.0)).collect()
    }
}

#[test]
fn sources_go_to_those_who_may_own_them_and_own_the_fewest() {
    let mut world = World::new(&[&[], &[], &[], &[2], &[3]]);
    world.settle();
    assert_eq!(world.owners(), [(0, 0); 5], "nobody is there");
    assert_eq!(world.claim(run(1, 11), None), ClaimDecision::Propose);
    assert_eq!(world.claim(run(2, 22), None), ClaimDecision::Propose);
    world.settle();
    assert_eq!(world.owners(), [(1, 1), (2, 1), (1, 1), (2, 1), (0, 0)]);
    assert_eq!(world.claim(run(2, 22), None), ClaimDecision::Stands, "a repeated claim");
    assert!(world.decide().is_empty());
}

#[test]
fn r_32_the_sources_of_a_dead_owner_are_free_within_lease_drift_and_five_seconds() {
    let mut world = World::new(&[&[]]);
    world.claim(run(1, 11), None);
    world.settle();
    for _ in 0..20 {
        world.pass(3);
        assert!(world.renew(run(1, 11)));
        world.settle();
    }
    assert_eq!(world.owners(), [(1, 1)]);
    // Others poll all the while; that must not keep a dead owner alive.
    for second in 1..=REVOKE_AFTER {
        world.pass(1);
        if second == 1 {
            world.claim(run(2, 22), None);
        }
        assert!(world.renew(run(2, 22)));
        world.settle();
        assert_eq!(world.owners(), [if second < REVOKE_AFTER { (1, 1) } else { (2, 3) }], "at {second}");
    }
}

#[test]
fn the_next_decision_is_told_in_time() {
    let mut world = World::new(&[&[]]);
    assert_eq!(world.leases.next_decision(&world.view()), None);
    world.claim(run(1, 11), None);
    world.settle();
    let expected = world.now + Duration::from_secs(REVOKE_AFTER);
    assert_eq!(world.leases.next_decision(&world.view()), Some(expected));
    world.now = expected;
    assert_eq!(world.decide(), [Command::Revoke { node: NodeId(1), incarnation: 11 }]);
}

#[test]
fn r_31_a_new_leader_grants_nothing_anew_before_lease_and_drift_have_passed() {
    let mut world = World::new(&[&[]]);
    world.claim(run(1, 11), None);
    world.settle();
    // The old leader heard nothing for long; what the new one's predecessor heard is not known.
    world.pass(REVOKE_AFTER - 1);
    world.new_leader();
    world.claim(run(2, 22), None);
    for second in 1..=REVOKE_AFTER {
        world.pass(1);
        world.renew(run(2, 22));
        world.settle();
        let expected = if second < REVOKE_AFTER { (1, 1) } else { (2, 3) };
        assert_eq!(world.owners(), [expected], "{second} s after the election");
    }
}

#[test]
fn r_31_a_run_whose_end_was_decided_is_never_renewed_again() {
    let mut world = World::new(&[&[]]);
    world.claim(run(1, 11), None);
    world.settle();
    world.pass(REVOKE_AFTER);
    let decided = world.decide();
    // It wakes between the decision and its commit.
    assert!(!world.renew(run(1, 11)));
    assert!(matches!(world.claim(run(1, 11), None), ClaimDecision::Wait(_)));
    for command in decided {
        world.directory.apply(&command).unwrap();
    }
    assert!(!world.renew(run(1, 11)));
    assert_eq!(world.owners(), [(0, 2)]);
    assert_eq!(world.claim(run(1, 12), Some(11)), ClaimDecision::Propose);
    world.settle();
    assert_eq!(world.owners(), [(1, 3)]);
}

#[test]
fn a_clean_release_frees_at_once() {
    let mut world = World::new(&[&[], &[]]);
    world.claim(run(1, 11), None);
    world.settle();
    world.claim(run(2, 22), None);
    world.directory.apply(&Command::Revoke { node: NodeId(1), incarnation: 11 }).unwrap();
    world.settle();
    assert_eq!(world.owners(), [(2, 3), (2, 3)]);
    assert!(!world.renew(run(1, 11)));
}

#[test]
fn a_new_run_with_proof_claims_at_once_and_takes_new_epochs() {
    let mut world = World::new(&[&[], &[]]);
    world.claim(run(1, 11), None);
    world.settle();
    assert_eq!(world.claim(run(1, 12), Some(11)), ClaimDecision::Propose);
    assert_eq!(world.owners(), [(1, 2), (1, 2)]);
    assert!(!world.renew(run(1, 11)));
    assert!(world.renew(run(1, 12)));
    world.pass(LEASE - 1);
    world.settle();
    assert_eq!(world.owners(), [(1, 2), (1, 2)], "the new run counts as renewed when it claims");
}

#[test]
fn a_new_run_without_proof_waits_until_the_old_lease_has_certainly_ended() {
    let mut world = World::new(&[&[]]);
    world.claim(run(1, 11), None);
    world.settle();
    world.pass(4);
    let left = ClaimDecision::Wait(Duration::from_secs(CERTAIN_END - 4));
    assert_eq!(world.claim(run(1, 12), None), left);
    assert_eq!(world.claim(run(1, 12), Some(10)), left, "proof of another run's end is none");
    assert!(world.renew(run(1, 11)), "the old one is alive, and goes on");
    world.pass(CERTAIN_END - 1);
    assert_eq!(world.claim(run(1, 12), None), ClaimDecision::Wait(Duration::from_secs(1)));
    world.pass(1);
    assert_eq!(world.claim(run(1, 12), None), ClaimDecision::Propose);
    assert_eq!(world.owners(), [(1, 2)]);
    assert!(!world.renew(run(1, 11)));
}

#[test]
fn a_claim_is_remembered_before_it_is_committed() {
    let mut world = World::new(&[&[]]);
    world.pass(100);
    let run = run(1, 11);
    assert_eq!(world.leases.claim(world.now, &world.view(), run, None), ClaimDecision::Propose);
    assert!(world.decide().is_empty());
    world.directory.apply(&Command::Claim { node: run.node, incarnation: run.incarnation }).unwrap();
    let grant = Command::Grant { source: SourceId(1), node: run.node, incarnation: run.incarnation };
    assert_eq!(world.decide(), [grant], "and it is not held for one that has been silent");
}

#[test]
fn a_node_that_is_silent_gets_nothing_more() {
    let mut world = World::new(&[]);
    world.claim(run(1, 11), None);
    world.pass(LEASE);
    let source = World::new(&[&[]]).view().source(SourceId(1)).cloned().unwrap();
    let put =
        PutSource { name: source.name.clone(), address: None, helo: source.helo.clone(), nodes: Vec::new() };
    world.directory.apply(&Command::Change(vec![Change::Put(Put::Source(put))])).unwrap();
    world.settle();
    assert_eq!(world.owners(), [(0, 0)]);
    assert!(world.renew(run(1, 11)), "its lease has not certainly ended");
    world.settle();
    assert_eq!(world.owners(), [(1, 1)]);
}

#[test]
fn a_node_that_joins_gets_its_share_one_source_at_a_time() {
    // The last one waits for a node that is not there, and stands in nobody's way.
    let mut world = World::new(&[ANYBODY, ANYBODY, ANYBODY, ANYBODY, ANYBODY, &[9]]);
    let (first, second) = (run(1, 11), run(2, 22));
    world.claim(first, None);
    world.live(100, &[first]);
    world.claim(second, None);
    world.live(SETTLE, &[first, second]);
    assert_eq!(world.obey(first), [], "it has not been calm for long enough");
    let mut moved = Vec::new();
    for _ in 0..10 {
        world.live(1, &[first, second]);
        assert_eq!(world.leases.let_go(second), []);
        let asked = world.obey(first);
        assert!(asked.len() <= 1);
        moved.extend(asked);
    }
    assert_eq!((moved.len(), world.shares(&[1, 2])), (2, vec![3, 2]));
    assert_eq!(
        world.leases.next_decision(&world.view()),
        Some(world.now + Duration::from_secs(REVOKE_AFTER))
    );
}

#[test]
fn three_nodes_share_alike_and_then_nothing_moves() {
    let mut world = World::new(&[ANYBODY; 8]);
    let runs = [run(1, 11), run(2, 22), run(3, 33)];
    for (place, run) in runs.iter().enumerate() {
        world.claim(*run, None);
        world.live(SETTLE + 1, &runs[..=place]);
        for _ in 0..10 {
            world.live(1, &runs[..=place]);
            runs.iter().for_each(|run| drop(world.obey(*run)));
        }
    }
    let mut shares = world.shares(&[1, 2, 3]);
    shares.sort_unstable();
    assert_eq!(shares, [2, 3, 3]);
    let owners = world.owners();
    world.live(300, &runs);
    assert!(runs.iter().all(|run| world.leases.let_go(*run).is_empty()));
    assert_eq!(world.owners(), owners);
}

#[test]
fn a_node_that_starts_again_in_time_keeps_its_own_and_nothing_is_moved_meanwhile() {
    let mut world = World::new(&[ANYBODY; 6]);
    let (first, second) = (run(1, 11), run(2, 22));
    world.claim(first, None);
    world.live(1, &[first]);
    world.claim(second, None);
    // Silent since a moment before it would have been asked.
    world.live(SETTLE - 1, &[first, second]);
    world.live(REVOKE_AFTER - 1, &[second]);
    assert_eq!(world.leases.let_go(first), []);
    let again = run(1, 12);
    assert_eq!(world.claim(again, Some(11)), ClaimDecision::Propose);
    world.live(SETTLE, &[again, second]);
    assert_eq!((world.shares(&[1, 2]), world.leases.let_go(again)), (vec![6, 0], vec![]));
    world.live(1, &[again, second]);
    assert_eq!(world.leases.let_go(again).len(), 1);
    // Whoever is asked and falls silent is asked no longer.
    world.live(LEASE + 1, &[second]);
    assert_eq!(world.leases.let_go(again), []);
}

#[test]
fn a_source_goes_to_a_node_that_may_own_it_when_its_owner_may_not_any_more() {
    let mut world = World::new(&[&[], &[]]);
    let (first, second) = (run(1, 11), run(2, 22));
    world.claim(first, None);
    world.claim(second, None);
    world.live(SETTLE + 1, &[first, second]);
    assert_eq!(world.shares(&[1, 2]), [1, 1]);
    let source = world.view().sources().find(|source| source.owner == Some(first)).cloned().unwrap();
    let (name, helo) = (source.name.clone(), source.helo.clone());
    let put = PutSource { name, address: None, helo, nodes: vec![NodeId(2)] };
    world.directory.apply(&Command::Change(vec![Change::Put(Put::Source(put))])).unwrap();
    world.live(1, &[first, second]);
    assert_eq!(world.obey(first), [source.id]);
    // The other one may be owned by both, and follows the other way.
    world.live(1, &[first, second]);
    world.obey(second);
    assert_eq!(world.view().source(source.id).unwrap().owner, Some(second));
    assert_eq!(world.shares(&[1, 2]), [1, 1]);
}

#[test]
fn an_owner_that_does_not_let_go_is_left_alone_until_nodes_come_or_go() {
    let mut world = World::new(&[ANYBODY; 2]);
    let runs = [run(1, 11), run(2, 22)];
    world.claim(runs[0], None);
    world.settle();
    world.claim(runs[1], None);
    world.live(SETTLE + 1, &runs);
    assert_eq!(world.leases.let_go(runs[0]).len(), 1);
    world.live(LET_GO_WITHIN, &runs);
    assert_eq!(world.leases.let_go(runs[0]), []);
    assert_eq!(world.shares(&[1, 2]), [2, 0]);
    world.live(SETTLE + LET_GO_WITHIN, &runs);
    assert_eq!(world.leases.let_go(runs[0]), []);
    let again = run(2, 23);
    world.claim(again, Some(22));
    let runs = [runs[0], again];
    world.live(SETTLE + 1, &runs);
    assert_eq!(world.leases.let_go(runs[0]).len(), 1);
    // A new leader knows nothing of it, and waits until all is calm.
    world.new_leader();
    world.live(SETTLE - 1, &runs);
    assert_eq!(world.leases.let_go(runs[0]), []);
    world.live(2, &runs);
    assert_eq!(world.leases.let_go(runs[0]).len(), 1);
}

#[test]
fn the_shares_of_others_do_not_wait_for_an_owner_that_never_lets_go() {
    let mut world = World::new(&[&[1, 3], &[1, 3], &[1, 3], &[1, 3], &[2, 3], &[2, 3], &[2, 3]]);
    let runs = [run(1, 11), run(2, 22), run(3, 33)];
    world.claim(runs[0], None);
    world.claim(runs[1], None);
    world.settle();
    world.claim(runs[2], None);
    world.live(SETTLE + 1, &runs);
    assert_eq!(world.shares(&[1, 2, 3]), [4, 3, 0]);
    // The one that has most is asked first, and does not hear.
    assert_eq!(world.leases.let_go(runs[0]).len(), 1);
    world.live(LET_GO_WITHIN, &runs);
    assert_eq!((world.leases.let_go(runs[0]), world.obey(runs[1]).len()), (vec![], 1));
    assert_eq!(world.shares(&[1, 2, 3]), [4, 2, 1]);
}

#[test]
fn a_release_that_is_repeated_takes_nothing_from_a_run_that_was_given_the_source_anew() {
    let mut world = World::new(&[ANYBODY; 2]);
    let (first, second) = (run(1, 11), run(2, 22));
    world.claim(first, None);
    world.settle();
    world.claim(second, None);
    world.live(SETTLE + 1, &[first, second]);
    let asked = world.leases.let_go(first)[0];
    // It is committed, but not answered: the leader has died, and the next one hears of the same run first.
    world.release(first, asked);
    world.new_leader();
    assert!(world.renew(first));
    world.settle();
    let owned = world.owners();
    assert_eq!(world.shares(&[1, 2]), [2, 0]);
    world.release(first, asked);
    assert_eq!(world.owners(), owned);
}
