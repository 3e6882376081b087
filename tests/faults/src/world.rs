//! The cluster that is simulated, and what happens to it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use postroad_core::{ClusterId, NodeId, Timestamp};
use postroad_oracle::{Phase, What, history::Role};
use postroad_outbound::Home;
use postroad_storage::{
    Disk, DiskId, Identity, Origin, format,
    sim::{PowerCut, SimFs},
};
use rand::{
    RngExt, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use tokio_util::sync::CancellationToken;

mod bounds;
mod faults;

use self::faults::Ending;
use crate::{
    network::{Host, Net},
    nodes::{
        self, Place,
        queue::{Groups, Settings},
    },
    observer::Observer,
    plan::Step,
    process::Process,
    record::Recorder,
    trace::Trace,
};

pub(crate) const CLUSTER: ClusterId = ClusterId(1);
pub(crate) const QUEUE_NODES: u64 = 3;
pub(crate) const OUTBOUND_NODES: [u64; 2] = [11, 12];
pub(crate) const CLIENTS: [u64; 2] = [21, 22];
pub(crate) const OPERATOR: u64 = 31;
pub(crate) const LEDGER_GROUPS: u16 = 3;

/// When the run begins, by the true clock.
pub(crate) const START: Duration = Duration::from_secs(1_800_000_000);
/// How long a process runs before another one does, in ms; one of these in each run.
const TICKS: [u64; 3] = [1, 2, 4];
/// After the faults: how long clients go on.
const CLIENTS_GO_ON_FOR: Duration = Duration::from_secs(3);
/// After the faults: how long deliveries may take to end.
const QUIET_WITHIN: Duration = Duration::from_secs(180);
/// How long it takes until somebody replaces a disk that its node cannot use.
const DISK_REPLACED_AFTER: Duration = Duration::from_secs(4);
/// Faults after which a disk may have anything else than what was written to it, or says so.
const DAMAGE: [&str; 6] = [
    "misdirected write",
    "dropped write",
    "forgotten sync",
    "zeroed page",
    "flipped bit at rest",
    "flipped bit on read",
];
/// A process that ends by itself starts again after this time, as a supervisor does it.
const SUPERVISED_AFTER: Duration = Duration::from_secs(1);

/// A node: its process while it runs, and what outlives it.
struct Node {
    role: Role,
    process: Option<Process>,
    disk: SimFs,
    /// What was on it at the last start.
    old_disk: SimFs,
    /// How often its disk had failed by then.
    errors_at_start: u64,
    settings: Settings,
    /// Its newest segment was removed.
    lacks_segment: bool,
    /// How often disks before this one were damaged.
    damages_before: u64,
    /// Its disk is an earlier copy or damaged: it does not run until an operator replaces the disk by an empty one.
    is_condemned: bool,
    starts_at: Option<Duration>,
    started_at: Duration,
    disk_busy_since: Option<Duration>,
    /// It does not run until then, and has not since the other time.
    suspended: Option<(Duration, Duration)>,
    /// It dies at the disk operation with this number, and loses power then or not.
    dies_at: Option<(u64, Option<PowerCut>, Duration)>,
    stop: CancellationToken,
    groups: Groups,
    home: Home,
    clock_ahead_millis: i64,
}

impl Node {
    /// Its disk may have anything else than what was written to it.
    fn is_damaged(&self) -> bool {
        self.lacks_segment || damages(&self.disk) > self.damages_before
    }
}

/// The cluster.
pub(crate) struct World {
    rng: StdRng,
    now: Duration,
    tick: Duration,
    net: Net,
    trace: Trace,
    recorder: Recorder,
    nodes: BTreeMap<u64, Node>,
    /// By time and number.
    endings: BTreeMap<(Duration, u64), (Ending, &'static str, Vec<NodeId>)>,
    observer: Observer,
    problems: Vec<String>,
    place: Place,
}

impl World {
    /// Starts a cluster whose disks are empty.
    pub(crate) fn new(seed: u64, trace: Trace, recorder: Recorder) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let net = Net::new(rng.random(), CLUSTER, trace.clone());
        // Busy clusters fill segments and windows; in the time of one, the faults of several quiet ones are simulated.
        let pace = *[1, 10, 20, 40].choose(&mut rng).unwrap_or(&1);
        let tick = Duration::from_millis(*TICKS.choose(&mut rng).unwrap_or(&1));
        let place = Place::new(net.clone(), recorder.clone(), pace);
        let observer = Observer::new(recorder.clone());
        let mut world = Self {
            rng,
            now: Duration::ZERO,
            tick,
            net,
            trace,
            recorder,
            nodes: BTreeMap::new(),
            endings: BTreeMap::new(),
            observer,
            problems: Vec::new(),
            place,
        };
        let queue = (1..=QUEUE_NODES).map(|node| (node, Role::Queue));
        let outbound = OUTBOUND_NODES.map(|node| (node, Role::Outbound));
        let clients = CLIENTS.map(|node| (node, Role::Ingress));
        for (node, role) in queue.chain(outbound).chain(clients).chain([(OPERATOR, Role::Control)]) {
            world.add(node, role);
        }
        world
    }

    fn add(&mut self, node: u64, role: Role) {
        let disk = SimFs::default();
        if role == Role::Queue {
            format_disk(&disk, node, Disk { id: DiskId(node), origin: Origin::Form });
        }
        let starts_at = Some(Duration::ZERO);
        let (stop, groups) = (CancellationToken::new(), Groups::default());
        let added = Node {
            role,
            process: None,
            old_disk: disk.snapshot(),
            errors_at_start: 0,
            settings: Settings::default(),
            lacks_segment: false,
            damages_before: 0,
            is_condemned: false,
            disk,
            starts_at,
            started_at: Duration::ZERO,
            disk_busy_since: None,
            suspended: None,
            dies_at: None,
            stop,
            groups,
            home: Home::Memory(Arc::default()),
            clock_ahead_millis: 0,
        };
        self.nodes.insert(node, added);
    }

    /// Carries out a plan for `length`, then lets everything settle; returns what nodes did that nobody asked for.
    pub(crate) fn run(mut self, plan: &[Step], length: Duration) -> (Duration, Vec<String>) {
        let mut steps = plan.iter().cloned().peekable();
        self.recorder.push(What::Phase(Phase::Safety));
        while self.now < length {
            while let Some(step) = steps.next_if(|step| step.at <= self.now) {
                self.inject(&step);
            }
            self.tick();
        }
        self.check_rejoins();
        self.heal();
        let is_quiet = self.settle();
        let now = self.now;
        if is_quiet {
            self.check_staged();
        }
        for (number, node) in &self.nodes {
            if let Some(replicas) = node.groups.replicas() {
                self.observer.count_all(*number, &replicas);
            }
        }
        self.recorder.push(What::Phase(Phase::Quiet));
        self.count_disk_faults();
        self.problems.extend(self.observer.disagreements());
        let Self { nodes, problems, .. } = self;
        nodes.into_values().filter_map(|node| node.process).for_each(Process::kill);
        (now, problems)
    }

    /// Ends every fault.
    fn heal(&mut self) {
        // Others refuse these, which is a metric and an alert.
        let refused = self.nodes.iter().filter(|(_, node)| node.lacks_segment && !node.is_condemned);
        let refused: Vec<u64> = refused.map(|(number, _)| *number).collect();
        refused.into_iter().for_each(|node| self.lose_disk(node, SUPERVISED_AFTER));
        for (ending, name, nodes) in std::mem::take(&mut self.endings).into_values() {
            let ending = match ending {
                Ending::Flap { node, blocked, every, .. } => {
                    Ending::Flap { node, blocked, every, until: self.now }
                }
                other => other,
            };
            self.end(ending, name, &nodes);
        }
        for node in self.nodes.values_mut() {
            node.dies_at = None;
            node.disk.disarm();
            node.process.iter().for_each(Process::free_disk);
            node.starts_at = node.starts_at.map(|at| at.min(self.now + SUPERVISED_AFTER));
            if let Some((until, _)) = &mut node.suspended {
                *until = self.now;
            }
            let ahead = std::mem::take(&mut node.clock_ahead_millis);
            if let Some(process) = node.process.as_ref().filter(|_| ahead != 0) {
                process.step_wall(-ahead);
            }
        }
        let bound = u64::try_from(QUIET_WITHIN.as_micros()).unwrap_or(u64::MAX);
        self.recorder.push(What::Phase(Phase::Liveness { within: postroad_oracle::Micros(bound) }));
    }

    /// Lets clients end, and waits until every delivery has; returns false where that takes too long.
    fn settle(&mut self) -> bool {
        let end = self.now + QUIET_WITHIN;
        let clients_end = self.now + CLIENTS_GO_ON_FOR;
        while self.now < end {
            let have_clients_ended = self.now >= clients_end;
            if have_clients_ended {
                self.place.end_clients();
            }
            self.tick();
            if have_clients_ended && self.is_quiet() {
                return true;
            }
        }
        let missing = self.place.missing();
        let agree = if self.replicas_agree() { "agree" } else { "do not agree" };
        let idle = if self.is_idle() { "idle" } else { "not idle" };
        self.problems
            .push(format!("it is not quiet in time: {missing}, the replicas {agree} and are {idle}"));
        false
    }

    /// Returns true once nothing more will happen by itself.
    fn is_quiet(&self) -> bool {
        self.place.all_have_ended() && self.replicas_agree() && self.is_idle()
    }

    /// Returns true when every delivery has ended on every queue node, also those of which no client knows, and its events were
    /// read.
    fn is_idle(&self) -> bool {
        let mut replicas = self.nodes.values().filter_map(|node| node.groups.replicas());
        replicas.all(|replicas| replicas.is_idle(nodes::operator::CONSUMER))
    }

    fn tick(&mut self) {
        self.start_due();
        let mut order: Vec<u64> = self.nodes.keys().copied().collect();
        order.shuffle(&mut self.rng);
        order.into_iter().for_each(|node| self.tick_node(node));
        self.now += self.tick;
        postroad_machine::set_time(START + self.now);
        self.recorder.set_now(self.now);
        self.net.deliver(self.now);
        while let Some(entry) = self.endings.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (ending, name, nodes) = entry.remove();
            self.end(ending, name, &nodes);
        }
        self.observe();
    }

    fn tick_node(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if let Some((until, since)) = node.suspended {
            if self.now < until {
                return;
            }
            node.suspended = None;
            self.recorder.fault("suspended process", &[NodeId(number)], false);
            if let Some(process) = &mut node.process {
                process.resume(self.now - since);
            }
        }
        let Some(process) = &mut node.process else { return };
        process.tick(self.tick);
        let has_ended = process.has_ended();
        match node.dies_at {
            Some((operation, cut, down)) if node.disk.operations() > operation => {
                self.kill(number, cut, down);
            }
            // The real file system ends the process at once.
            _ if node.disk.has_failed() => self.kill(number, None, SUPERVISED_AFTER),
            _ if has_ended => self.ended(number),
            _ => {}
        }
    }

    /// A process has ended by itself.
    fn ended(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        // Nobody accepts an old copy of a disk, nor one without its newest segment, and its node says so and ends. An error of
        // the disk ends a process too. Damage must not: the other disks have what is damaged on one.
        let is_refused = node.is_condemned || node.lacks_segment;
        let is_asked = node.stop.is_cancelled() || is_refused || errors(&node.disk) > node.errors_at_start;
        if !is_asked {
            let why = if node.is_damaged() { " over a damaged disk" } else { "" };
            self.trace.note(format_args!("{} ended by itself{why}", name(number)), &[]);
            self.problems.push(format!(
                "{:.3} s: {} ended by itself{why}",
                self.now.as_secs_f64(),
                name(number)
            ));
        }
        if !node.is_condemned && !node.stop.is_cancelled() && node.is_damaged() {
            node.is_condemned = true;
            self.begin(Ending::NewDisk(number), DISK_REPLACED_AFTER, "damaged disk", &[number]);
        }
        let Some(node) = self.nodes.get(&number) else { return };
        let down = node.starts_at.map_or(SUPERVISED_AFTER, |at| at.saturating_sub(self.now));
        self.kill(number, None, down);
    }

    fn kill(&mut self, number: u64, cut: Option<PowerCut>, down: Duration) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.dies_at = None;
        node.starts_at = Some(self.now + down);
        let Some(process) = node.process.take() else { return };
        self.trace.note(format_args!("{} killed", name(number)), &[]);
        self.recorder.node(NodeId(number), node.role, false);
        // Its host first: what its tasks write while they are dropped must not arrive.
        if cut.is_some() {
            self.net.host_died(process.host);
        } else {
            self.net.process_died(process.host);
        }
        process.kill();
        node.groups.clear();
        if node.suspended.take().is_some() {
            self.recorder.fault("suspended process", &[NodeId(number)], false);
        }
        node.disk = match cut {
            Some(cut) => node.disk.power_cut_as(cut, || self.rng.random()),
            None => node.disk.reopened(),
        };
    }

    fn start_due(&mut self) {
        for (number, node) in &mut self.nodes {
            if node.process.is_some() || node.starts_at.is_none_or(|at| at > self.now) {
                continue;
            }
            node.starts_at = None;
            node.started_at = self.now;
            node.disk_busy_since = None;
            node.old_disk = node.disk.snapshot();
            node.errors_at_start = errors(&node.disk);
            self.observer.starts(*number);
            node.stop = CancellationToken::new();
            // Connections that went dead are reset once the host answers again.
            self.net.reset(Host(*number));
            let seed = self.rng.random();
            let true_time = Timestamp::ZERO.after(START + self.now);
            let ahead = Duration::from_millis(node.clock_ahead_millis.unsigned_abs());
            let wall =
                if node.clock_ahead_millis < 0 { true_time.before(ahead) } else { true_time.after(ahead) };
            let starting = nodes::Starting {
                number: *number,
                seed,
                wall,
                disk: node.disk.clone(),
                stop: node.stop.clone(),
            };
            self.trace.note(format_args!("{} starts", name(*number)), &[]);
            self.recorder.node(NodeId(*number), node.role, true);
            node.process = Some(match node.role {
                Role::Queue => nodes::queue::start(&self.place, starting, &node.groups, node.settings),
                Role::Outbound => nodes::outbound::start(&self.place, starting, &node.home),
                Role::Ingress => nodes::client::start(&self.place, starting),
                Role::Control => nodes::operator::start(&self.place, starting),
            });
        }
    }

    fn observe(&mut self) {
        for (number, node) in &self.nodes {
            if let Some(replicas) = node.groups.replicas() {
                self.observer.look(*number, &replicas);
            }
        }
        self.check_bounds();
    }

    /// Returns true when all queue nodes vote and have applied the same: then one of them may lose its disk.
    fn replicas_agree(&self) -> bool {
        let applied = |node: u64| {
            let node = self.nodes.get(&node).filter(|node| !node.is_condemned && !node.lacks_segment)?;
            let replicas = node.groups.replicas()?;
            replicas.votes().then(|| replicas.applied())
        };
        let first = applied(1);
        first.is_some() && (2..=QUEUE_NODES).map(applied).all(|other| other == first)
    }

    /// Counts what each disk did wrong.
    fn count_disk_faults(&self) {
        for node in self.nodes.values() {
            // Those are counted as they happen.
            let is_new = |(name, _): &(&str, u64)| !["lost disk", "restored old disk"].contains(name);
            for (name, times) in node.disk.fired().into_iter().filter(is_new) {
                self.recorder.count_fault(name, times);
            }
        }
    }
}

/// Returns how often a disk has failed a call with EIO.
fn errors(disk: &SimFs) -> u64 {
    disk.fired().iter().filter(|(name, _)| name.contains("EIO")).map(|(_, times)| times).sum()
}

/// Returns how often a disk, or one before it, has lost or changed what was written to it.
fn damages(disk: &SimFs) -> u64 {
    disk.fired().iter().filter(|(name, _)| DAMAGE.contains(name)).map(|(_, times)| times).sum()
}

fn format_disk(fs: &SimFs, node: u64, disk: Disk) {
    let identity = Identity { cluster: CLUSTER, node: NodeId(node) };
    format(fs, identity, disk).expect("an empty disk takes a header");
}

/// Returns what people call a node.
pub(crate) fn name(node: u64) -> String {
    match node {
        1..=QUEUE_NODES => format!("queue-{node}"),
        11..21 => format!("outbound-{node}"),
        21..31 => format!("client-{node}"),
        _ => "operator".to_owned(),
    }
}
