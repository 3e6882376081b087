//! Leases against a directory that applies what they decide, on a clock that the tests move.

use std::sync::Arc;

use postroad_core::{Domain, Epoch, NodeId, SourceId, Timestamp};
use postroad_directory::{Change, Directory, Put, PutSource, ScopeName};

use super::{
    super::suspensions::{self, Suspend},
    *,
};

const LEASE: u64 = 10;
const CERTAIN_END: u64 = 11;
const REVOKE_AFTER: u64 = 16;
const SETTLE: u64 = 30;
const RELEASE_WITHIN: u64 = 120;

/// The allowed nodes of a source that any node may own.
const ANY_NODE: &[u64] = &[];

/// A leader, its directory and its clock.
struct World {
    directory: Directory,
    leases: Leases,
    now: Instant,
}

fn owner(node: u64, incarnation: u64) -> Owner {
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
        let now = postroad_env::now();
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

    fn claim(&mut self, owner: Owner, replaces: Option<u64>) -> ClaimDecision {
        let decision = self.leases.claim(self.now, &self.view(), owner, replaces);
        if decision == ClaimDecision::Propose {
            let claim = Command::Claim { node: owner.node, incarnation: owner.incarnation };
            self.directory.apply(&claim).unwrap();
        }
        decision
    }

    fn renew(&mut self, owner: Owner) -> bool {
        self.leases.renew(self.now, &self.view(), owner)
    }

    fn decide(&mut self) -> Vec<Command> {
        self.leases.decide(self.now, &self.view())
    }

    /// Decides and applies until there is nothing to decide.
    fn decide_all(&mut self) {
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

    /// Lets time pass while these owners renew.
    fn live(&mut self, seconds: u64, owners: &[Owner]) {
        for _ in 0..seconds {
            self.pass(1);
            for owner in owners {
                assert!(self.renew(*owner));
            }
            self.decide_all();
        }
    }

    fn to_release(&self, owner: Owner) -> Vec<(SourceId, Epoch)> {
        self.leases.to_release(&self.view(), owner)
    }

    /// Suspends a node, or resumes it.
    fn set_suspended(&mut self, node: u64, suspended: bool) {
        let scopes = [ScopeName::Node(NodeId(node))];
        let at = Timestamp::from_millis(1);
        let changes = if suspended {
            let asked = Suspend { scopes: &scopes, reason: "maintenance", actor: "eve", length: None };
            suspensions::suspend(&self.directory, at, asked)
        } else {
            suspensions::resume(&scopes)
        };
        self.directory.apply(&Command::Change(changes)).unwrap();
        self.decide_all();
    }

    /// An owner releases the sources it is asked for; returns which.
    fn release_requested(&mut self, owner: Owner) -> Vec<SourceId> {
        let asked = self.to_release(owner);
        asked.iter().for_each(|asked| self.release(owner, *asked));
        self.decide_all();
        asked.into_iter().map(|(source, _)| source).collect()
    }

    /// A release arrives, for the first time or once more.
    fn release(&mut self, owner: Owner, (source, epoch): (SourceId, Epoch)) {
        let (node, incarnation) = (owner.node, owner.incarnation);
        self.directory.apply(&Command::ReleaseSource { source, node, incarnation, epoch }).unwrap();
    }

    /// How many sources each of the nodes owns.
    fn shares(&self, nodes: &[u64]) -> Vec<usize> {
        let ownership = self.ownership();
        nodes.iter().map(|node| ownership.iter().filter(|(owner, _)| owner == node).count()).collect()
    }

    /// Who owns each source, and its epoch.
    fn ownership(&self) -> Vec<(u64, u64)> {
        let view = self.view();
        view.sources().map(|s| (s.owner.map_or(0, |owner| owner.node.0), s.epoch.0)).collect()
    }
}

#[test]
fn a_source_goes_to_the_allowed_node_with_the_fewest() {
    let mut world = World::new(&[&[], &[], &[], &[2], &[3]]);
    world.decide_all();
    assert_eq!(world.ownership(), [(0, 0); 5], "no node has claimed");
    assert_eq!(world.claim(owner(1, 11), None), ClaimDecision::Propose);
    assert_eq!(world.claim(owner(2, 22), None), ClaimDecision::Propose);
    world.decide_all();
    assert_eq!(world.ownership(), [(1, 1), (2, 1), (1, 1), (2, 1), (0, 0)]);
    assert_eq!(world.claim(owner(2, 22), None), ClaimDecision::InForce, "a repeated claim");
    assert!(world.decide().is_empty());
}

#[test]
fn r_32_the_sources_of_a_dead_owner_are_free_within_lease_drift_and_five_seconds() {
    let mut world = World::new(&[&[]]);
    world.claim(owner(1, 11), None);
    world.decide_all();
    for _ in 0..20 {
        world.pass(3);
        assert!(world.renew(owner(1, 11)));
        world.decide_all();
    }
    assert_eq!(world.ownership(), [(1, 1)]);
    // Others poll all the while; that must not keep a dead owner alive.
    for second in 1..=REVOKE_AFTER {
        world.pass(1);
        if second == 1 {
            world.claim(owner(2, 22), None);
        }
        assert!(world.renew(owner(2, 22)));
        world.decide_all();
        assert_eq!(world.ownership(), [if second < REVOKE_AFTER { (1, 1) } else { (2, 3) }], "at {second}");
    }
}

#[test]
fn the_next_decision_is_when_a_lease_ends() {
    let mut world = World::new(&[&[]]);
    assert_eq!(world.leases.next_decision(&world.view()), None);
    world.claim(owner(1, 11), None);
    world.decide_all();
    let expected = world.now + Duration::from_secs(REVOKE_AFTER);
    assert_eq!(world.leases.next_decision(&world.view()), Some(expected));
    world.now = expected;
    assert_eq!(world.decide(), [Command::Revoke { node: NodeId(1), incarnation: 11 }]);
}

#[test]
fn r_31_a_new_leader_moves_no_source_before_lease_and_drift_have_passed() {
    let mut world = World::new(&[&[]]);
    world.claim(owner(1, 11), None);
    world.decide_all();
    // The owner has been silent for long, but the new leader does not know that.
    world.pass(REVOKE_AFTER - 1);
    world.new_leader();
    world.claim(owner(2, 22), None);
    for second in 1..=REVOKE_AFTER {
        world.pass(1);
        world.renew(owner(2, 22));
        world.decide_all();
        let expected = if second < REVOKE_AFTER { (1, 1) } else { (2, 3) };
        assert_eq!(world.ownership(), [expected], "{second} s after the election");
    }
}

#[test]
fn r_31_an_incarnation_whose_end_was_decided_is_never_renewed_again() {
    let mut world = World::new(&[&[]]);
    world.claim(owner(1, 11), None);
    world.decide_all();
    world.pass(REVOKE_AFTER);
    let decided = world.decide();
    // It wakes between the decision and its commit.
    assert!(!world.renew(owner(1, 11)));
    assert!(matches!(world.claim(owner(1, 11), None), ClaimDecision::Wait(_)));
    for command in decided {
        world.directory.apply(&command).unwrap();
    }
    assert!(!world.renew(owner(1, 11)));
    assert_eq!(world.ownership(), [(0, 2)]);
    assert_eq!(world.claim(owner(1, 12), Some(11)), ClaimDecision::Propose);
    world.decide_all();
    assert_eq!(world.ownership(), [(1, 3)]);
}

#[test]
fn a_clean_release_frees_sources_at_once() {
    let mut world = World::new(&[&[], &[]]);
    world.claim(owner(1, 11), None);
    world.decide_all();
    world.claim(owner(2, 22), None);
    world.directory.apply(&Command::Revoke { node: NodeId(1), incarnation: 11 }).unwrap();
    world.decide_all();
    assert_eq!(world.ownership(), [(2, 3), (2, 3)]);
    assert!(!world.renew(owner(1, 11)));
}

#[test]
fn a_new_incarnation_with_proof_claims_at_once_and_gets_new_epochs() {
    let mut world = World::new(&[&[], &[]]);
    world.claim(owner(1, 11), None);
    world.decide_all();
    assert_eq!(world.claim(owner(1, 12), Some(11)), ClaimDecision::Propose);
    assert_eq!(world.ownership(), [(1, 2), (1, 2)]);
    assert!(!world.renew(owner(1, 11)));
    assert!(world.renew(owner(1, 12)));
    world.pass(LEASE - 1);
    world.decide_all();
    assert_eq!(world.ownership(), [(1, 2), (1, 2)], "the new incarnation counts as renewed when it claims");
}

#[test]
fn a_new_incarnation_without_proof_waits_until_the_old_lease_has_certainly_ended() {
    let mut world = World::new(&[&[]]);
    world.claim(owner(1, 11), None);
    world.decide_all();
    world.pass(4);
    let left = ClaimDecision::Wait(Duration::from_secs(CERTAIN_END - 4));
    assert_eq!(world.claim(owner(1, 12), None), left);
    assert_eq!(
        world.claim(owner(1, 12), Some(10)),
        left,
        "proof that another incarnation ended does not help"
    );
    assert!(world.renew(owner(1, 11)), "the old one is alive, and goes on");
    world.pass(CERTAIN_END - 1);
    assert_eq!(world.claim(owner(1, 12), None), ClaimDecision::Wait(Duration::from_secs(1)));
    world.pass(1);
    assert_eq!(world.claim(owner(1, 12), None), ClaimDecision::Propose);
    assert_eq!(world.ownership(), [(1, 2)]);
    assert!(!world.renew(owner(1, 11)));
}

#[test]
fn a_claim_is_remembered_before_it_is_committed() {
    let mut world = World::new(&[&[]]);
    world.pass(100);
    let owner = owner(1, 11);
    assert_eq!(world.leases.claim(world.now, &world.view(), owner, None), ClaimDecision::Propose);
    assert!(world.decide().is_empty());
    world.directory.apply(&Command::Claim { node: owner.node, incarnation: owner.incarnation }).unwrap();
    let grant = Command::Grant { source: SourceId(1), node: owner.node, incarnation: owner.incarnation };
    assert_eq!(world.decide(), [grant], "and it does not count as silent");
}

#[test]
fn a_silent_node_gets_no_more_sources() {
    let mut world = World::new(&[]);
    world.claim(owner(1, 11), None);
    world.pass(LEASE);
    let source = World::new(&[&[]]).view().source(SourceId(1)).cloned().unwrap();
    let put =
        PutSource { name: source.name.clone(), address: None, helo: source.helo.clone(), nodes: Vec::new() };
    world.directory.apply(&Command::Change(vec![Change::Put(Put::Source(put))])).unwrap();
    world.decide_all();
    assert_eq!(world.ownership(), [(0, 0)]);
    assert!(world.renew(owner(1, 11)), "its lease has not certainly ended");
    world.decide_all();
    assert_eq!(world.ownership(), [(1, 1)]);
}

#[test]
fn a_node_that_joins_gets_its_share_one_source_at_a_time() {
    // The last source waits for a node that is down, and blocks nothing.
    let mut world = World::new(&[ANY_NODE, ANY_NODE, ANY_NODE, ANY_NODE, ANY_NODE, &[9]]);
    let (first, second) = (owner(1, 11), owner(2, 22));
    world.claim(first, None);
    world.live(100, &[first]);
    world.claim(second, None);
    world.live(SETTLE, &[first, second]);
    assert_eq!(world.release_requested(first), [], "a node came too recently");
    let mut moved = Vec::new();
    for _ in 0..10 {
        world.live(1, &[first, second]);
        assert_eq!(world.to_release(second), []);
        let asked = world.release_requested(first);
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
fn three_nodes_get_equal_shares_and_then_nothing_moves() {
    let mut world = World::new(&[ANY_NODE; 8]);
    let owners = [owner(1, 11), owner(2, 22), owner(3, 33)];
    for (place, owner) in owners.iter().enumerate() {
        world.claim(*owner, None);
        world.live(SETTLE + 1, &owners[..=place]);
        for _ in 0..10 {
            world.live(1, &owners[..=place]);
            owners.iter().for_each(|owner| drop(world.release_requested(*owner)));
        }
    }
    let mut shares = world.shares(&[1, 2, 3]);
    shares.sort_unstable();
    assert_eq!(shares, [2, 3, 3]);
    let ownership = world.ownership();
    world.live(300, &owners);
    assert!(owners.iter().all(|owner| world.to_release(*owner).is_empty()));
    assert_eq!(world.ownership(), ownership);
}

#[test]
fn a_node_that_restarts_in_time_keeps_its_sources_and_nothing_moves_meanwhile() {
    let mut world = World::new(&[ANY_NODE; 6]);
    let (first, second) = (owner(1, 11), owner(2, 22));
    world.claim(first, None);
    world.live(1, &[first]);
    world.claim(second, None);
    // It falls silent just before it would have been asked.
    world.live(SETTLE - 1, &[first, second]);
    world.live(REVOKE_AFTER - 1, &[second]);
    assert_eq!(world.to_release(first), []);
    let again = owner(1, 12);
    assert_eq!(world.claim(again, Some(11)), ClaimDecision::Propose);
    world.live(SETTLE, &[again, second]);
    assert_eq!((world.shares(&[1, 2]), world.to_release(again)), (vec![6, 0], vec![]));
    world.live(1, &[again, second]);
    assert_eq!(world.to_release(again).len(), 1);
    // A silent node is no longer asked.
    world.live(LEASE + 1, &[second]);
    assert_eq!(world.to_release(again), []);
}

#[test]
fn a_source_moves_when_its_owner_is_no_longer_allowed_to_own_it() {
    let mut world = World::new(&[&[], &[]]);
    let (first, second) = (owner(1, 11), owner(2, 22));
    world.claim(first, None);
    world.claim(second, None);
    world.live(SETTLE + 1, &[first, second]);
    assert_eq!(world.shares(&[1, 2]), [1, 1]);
    let source = world.view().sources().find(|source| source.owner == Some(first)).cloned().unwrap();
    let (name, helo) = (source.name.clone(), source.helo.clone());
    let put = PutSource { name, address: None, helo, nodes: vec![NodeId(2)] };
    world.directory.apply(&Command::Change(vec![Change::Put(Put::Source(put))])).unwrap();
    world.live(1, &[first, second]);
    assert_eq!(world.release_requested(first), [source.id]);
    // The other source may be owned by both, and moves the other way.
    world.live(1, &[first, second]);
    world.release_requested(second);
    assert_eq!(world.view().source(source.id).unwrap().owner, Some(second));
    assert_eq!(world.shares(&[1, 2]), [1, 1]);
}

#[test]
fn an_owner_that_does_not_release_is_not_asked_again_until_nodes_come_or_go() {
    let mut world = World::new(&[ANY_NODE; 2]);
    let owners = [owner(1, 11), owner(2, 22)];
    world.claim(owners[0], None);
    world.decide_all();
    world.claim(owners[1], None);
    world.live(SETTLE + 1, &owners);
    assert_eq!(world.to_release(owners[0]).len(), 1);
    world.live(RELEASE_WITHIN, &owners);
    assert_eq!(world.to_release(owners[0]), []);
    assert_eq!(world.shares(&[1, 2]), [2, 0]);
    world.live(SETTLE + RELEASE_WITHIN, &owners);
    assert_eq!(world.to_release(owners[0]), []);
    let again = owner(2, 23);
    world.claim(again, Some(22));
    let owners = [owners[0], again];
    world.live(SETTLE + 1, &owners);
    assert_eq!(world.to_release(owners[0]).len(), 1);
    // A new leader knows nothing of it, and waits as after any change.
    world.new_leader();
    world.live(SETTLE - 1, &owners);
    assert_eq!(world.to_release(owners[0]), []);
    world.live(2, &owners);
    assert_eq!(world.to_release(owners[0]).len(), 1);
}

#[test]
fn an_owner_that_never_releases_does_not_block_the_shares_of_others() {
    let mut world = World::new(&[&[1, 3], &[1, 3], &[1, 3], &[1, 3], &[2, 3], &[2, 3], &[2, 3]]);
    let owners = [owner(1, 11), owner(2, 22), owner(3, 33)];
    world.claim(owners[0], None);
    world.claim(owners[1], None);
    world.decide_all();
    world.claim(owners[2], None);
    world.live(SETTLE + 1, &owners);
    assert_eq!(world.shares(&[1, 2, 3]), [4, 3, 0]);
    // The node with the most sources is asked first, and does not answer.
    assert_eq!(world.to_release(owners[0]).len(), 1);
    world.live(RELEASE_WITHIN, &owners);
    assert_eq!((world.to_release(owners[0]), world.release_requested(owners[1]).len()), (vec![], 1));
    assert_eq!(world.shares(&[1, 2, 3]), [4, 2, 1]);
}

#[test]
fn a_repeated_release_does_not_take_a_source_that_was_granted_again() {
    let mut world = World::new(&[ANY_NODE; 2]);
    let (first, second) = (owner(1, 11), owner(2, 22));
    world.claim(first, None);
    world.decide_all();
    world.claim(second, None);
    world.live(SETTLE + 1, &[first, second]);
    let asked = world.to_release(first)[0];
    // The release is committed but not answered: the leader dies, and the next one grants the source to the same node.
    world.release(first, asked);
    world.new_leader();
    assert!(world.renew(first));
    world.decide_all();
    let owned = world.ownership();
    assert_eq!(world.shares(&[1, 2]), [2, 0]);
    world.release(first, asked);
    assert_eq!(world.ownership(), owned);
}

#[test]
fn a_suspended_node_releases_all_its_sources_at_once_and_gets_none() {
    let mut world = World::new(&[&[], &[], &[1], &[]]);
    let owners = [owner(1, 11), owner(2, 22)];
    for owner in owners {
        world.claim(owner, None);
    }
    world.decide_all();
    assert_eq!(world.shares(&[1, 2]), [2, 2]);
    assert_eq!(world.to_release(owners[0]), []);
    world.set_suspended(1, true);
    let asked = world.to_release(owners[0]);
    assert_eq!(asked.len(), 2, "all of its sources, not one at a time");
    // A source that it has not released yet stays its own: it may still be sending.
    world.live(SETTLE + 1, &owners);
    assert_eq!(world.shares(&[1, 2]), [2, 2]);
    world.release_requested(owners[0]);
    // No other node may own one of them.
    assert_eq!(world.shares(&[1, 2, 0]), [0, 3, 1]);
    world.live(SETTLE + 1, &owners);
    assert_eq!(world.shares(&[1, 2, 0]), [0, 3, 1]);
    world.set_suspended(1, false);
    assert_eq!(world.to_release(owners[0]), []);
    assert_eq!(world.shares(&[1, 2]), [1, 3]);
    world.live(SETTLE + 1, &owners);
    world.release_requested(owners[1]);
    assert_eq!(world.shares(&[1, 2]), [2, 2], "its share comes back as after any start");
}

#[test]
fn sources_are_still_balanced_among_the_other_nodes_while_one_is_suspended() {
    let mut world = World::new(&[ANY_NODE; 4]);
    let owners = [owner(1, 11), owner(2, 22), owner(3, 33)];
    world.claim(owners[0], None);
    world.claim(owners[2], None);
    world.set_suspended(3, true);
    world.release_requested(owners[2]);
    assert_eq!(world.shares(&[1, 3]), [4, 0]);
    world.claim(owners[1], None);
    world.live(SETTLE + 1, &owners);
    assert_eq!(world.release_requested(owners[0]).len(), 1);
    assert_eq!(world.shares(&[1, 2, 3]), [3, 1, 0]);
}
