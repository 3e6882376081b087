//! The faults of a run, as data: a seed gives a plan, and a plan can be printed, shortened and repeated.

use std::{fmt, time::Duration};

use clap::ValueEnum;
use postroad_storage::sim::{Call, DiskFault, FaultKind, Names, PowerCut};
use rand::{Rng, RngExt, seq::IndexedRandom};

use crate::world::{CLIENTS, OPERATOR, OUTBOUND_NODES, QUEUE_NODES};

/// One fault, and when it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// Where a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// While it waits.
    Idle,
    /// After so many steps of its tasks.
    Await(u32),
    /// At its disk's operation with this number from now on.
    Operation(u64),
}

/// The longest time that a slow network keeps bytes on their way.
pub(crate) const LATENCY_MAX_MILLIS: u64 = 800;

/// How far the clock of a machine that is looked after is set at once, in ms.
const CLOCK_STEP_MAX: u64 = 400;

/// Something that goes wrong. Nodes are those of the queue where nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed and starts again after a while.
    Kill { node: u64, moment: Moment, down: Duration },
    /// The machine of a node loses power: what was not synced may be lost.
    PowerCut { node: u64, moment: Moment, down: Duration, cut: PowerCut },
    /// All queue nodes lose power at once.
    PowerCutEverywhere { down: Duration },
    /// A process is suspended, as by SIGSTOP.
    Suspend { node: u64, length: Duration },
    /// A node is stopped in order, and starts again after a while.
    Restart { node: u64, down: Duration },
    /// Nothing arrives at a node, nor from it.
    Isolate { node: u64, length: Duration },
    /// Nothing arrives from one node at another.
    OneWay { from: u64, to: u64, length: Duration },
    /// Two nodes do not reach each other.
    Partition { one: u64, other: u64, length: Duration },
    /// A node is isolated and reachable in turn.
    Flap { node: u64, every: Duration, length: Duration },
    /// Everything takes longer on its way.
    Slow { latency: Duration, length: Duration },
    /// Connections of a node go dead without a sign.
    HalfOpen { node: u64 },
    /// Connections of a node are reset.
    Reset { node: u64 },
    /// A wall clock is set.
    ClockStep { node: u64, by_millis: i64 },
    /// The clocks of a node run faster, or slower.
    Drift { node: u64, ppm: i64, length: Duration },
    /// A disk has no room left.
    Full { node: u64, spare_bytes: u64, length: Duration },
    /// A call of a disk goes wrong.
    Disk { node: u64, fault: DiskFault },
    /// A node runs with another limit for its events from now on.
    OtherLimits { node: u64, event_bytes_max: u64 },
    /// All queue nodes run with this limit for events from now on.
    SmallLimits { event_bytes_max: u64 },
    /// All queue nodes write checkpoints as seldom as in large clusters from now on, and clients do not pause.
    RareCheckpoints,
    /// Clients give up in the middle of large messages from now on.
    AbandonedChunks,
    /// All queue nodes are stopped in order at once.
    RestartEverywhere { down: Duration },
    /// Links between hosts carry so much and no more, and clients do not pause.
    Narrow { bytes_per_second: u64, length: Duration },
    /// Somebody removes the pool that mail waits for, and puts it back.
    RemovedPool { length: Duration },
    /// The newest segment of a log is gone.
    LostSegment { node: u64, down: Duration },
    /// A disk is replaced by an empty one while its node is down.
    LostDisk { node: u64, down: Duration },
    /// A disk is replaced by an earlier copy of itself while its node is down.
    OldDisk { node: u64, down: Duration },
}

impl Fault {
    /// Returns its name, the same for all of its kind.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kill { moment: Moment::Idle, .. } => "kill",
            Self::Kill { moment: Moment::Await(_), .. } => "kill between two steps",
            Self::Kill { moment: Moment::Operation(_), .. } => "kill at a disk operation",
            Self::PowerCut { moment: Moment::Operation(_), .. } => "power cut at a disk operation",
            Self::PowerCut { .. } => "power cut",
            Self::PowerCutEverywhere { .. } => "power cut everywhere",
            Self::Suspend { .. } => "suspended process",
            Self::Restart { .. } => "restart",
            Self::Isolate { .. } => "isolated node",
            Self::OneWay { .. } => "one-way partition",
            Self::Partition { .. } => "partial partition",
            Self::Flap { .. } => "flapping link",
            Self::Slow { .. } => "slow network",
            Self::HalfOpen { .. } => "half-open connections",
            Self::Reset { .. } => "reset connections",
            Self::ClockStep { by_millis, .. } if by_millis.unsigned_abs() > CLOCK_STEP_MAX => "wrong clock",
            Self::ClockStep { .. } => "clock step",
            Self::Drift { .. } => "clock drift",
            Self::Full { .. } => "full disk",
            Self::Disk { fault, .. } => fault.kind.name(),
            Self::OtherLimits { .. } => "other limits",
            Self::SmallLimits { .. } => "small limits",
            Self::RareCheckpoints => "rare checkpoints",
            Self::AbandonedChunks => "abandoned chunks",
            Self::RestartEverywhere { .. } => "restart everywhere",
            Self::Narrow { .. } => "narrow links",
            Self::RemovedPool { .. } => "removed pool",
            Self::LostSegment { .. } => "lost segment",
            Self::LostDisk { .. } => "lost disk",
            Self::OldDisk { .. } => "restored old disk",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s: {} {:?}", self.at.as_secs_f64(), self.fault.name(), self.fault)
    }
}

/// Makes the faults of a run that has them for `length`, with a theme that is given or chosen.
pub(crate) fn generate(rng: &mut impl Rng, length: Duration, theme: Option<Theme>) -> Vec<Step> {
    // Some runs are calm and some are wild: what is found differs.
    let mean_gap = Duration::from_millis(*[400, 1_500, 4_000].choose(rng).unwrap_or(&1_500));
    let (mut at, mut steps) = (Duration::from_millis(rng.random_range(500..4_000)), Vec::new());
    while at < length {
        steps.push(Step { at, fault: fault(rng) });
        at += mean_gap.mul_f64(rng.random_range(0.1..2.0));
    }
    let mut chosen = || {
        let has_one = rng.random_range(0..THEMES_ONE_IN) == 0;
        Theme::value_variants().choose(rng).copied().filter(|_| has_one)
    };
    if let Some(theme) = theme.or_else(&mut chosen) {
        theme.shape(&mut steps, rng, length);
    }
    steps
}

/// One run in so many has a theme.
const THEMES_ONE_IN: u32 = 4;

/// What few runs have, because it hides what else goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Theme {
    WrongClock,
    Damage,
    LostSegments,
    OtherLimits,
    SmallLimits,
    RemovedPool,
    RareCheckpoints,
    AbandonedChunks,
    Restarts,
    NarrowLinks,
}

impl Theme {
    fn shape(self, steps: &mut Vec<Step>, rng: &mut impl Rng, length: Duration) {
        match self {
            // Two of three disks are enough, one is not: where one is damaged the others are whole.
            Self::Damage | Self::LostSegments => {
                steps.retain(|step| !matches!(step.fault, Fault::LostDisk { .. } | Fault::OldDisk { .. }));
            }
            // With anything else beside it nobody could say how long it may take.
            Self::NarrowLinks => steps.clear(),
            _ => {}
        }
        // What holds for the rest of the run comes first.
        let (at_first, later) = self.faults(rng, length);
        let at_first = at_first.into_iter().map(|fault| Step { at: Duration::from_millis(500), fault });
        let later =
            later.into_iter().map(|fault| Step { at: length.mul_f64(rng.random_range(0.1..0.9)), fault });
        steps.extend(at_first.chain(later));
        steps.sort_by_key(|step| step.at);
    }

    /// Returns its faults: those of the first moment, and those of any.
    fn faults(self, rng: &mut impl Rng, length: Duration) -> (Vec<Fault>, Vec<Fault>) {
        let node = queue_node(rng);
        let event_bytes_max = rng.random_range(200..3_000);
        match self {
            Self::WrongClock => {
                let mut by = || rng.random_range(1_000..3_600_000) * if rng.random() { 1 } else { -1 };
                (Vec::new(), (0..6).map(|_| Fault::ClockStep { node, by_millis: by() }).collect())
            }
            Self::Damage => (Vec::new(), (0..16).map(|_| Fault::Disk { node, fault: damage(rng) }).collect()),
            Self::LostSegments => {
                let lost = |_| Fault::LostSegment { node: queue_node(rng), down: millis(rng, 50..3_000) };
                (Vec::new(), (0..10).map(lost).collect())
            }
            Self::OtherLimits => {
                let limits = (0..6).map(|_| Fault::OtherLimits { node, event_bytes_max });
                (Vec::new(), limits.chain(nobody_reads_events(rng)).collect())
            }
            Self::SmallLimits => {
                // Some pages of events are kept, so that a node that is restored may cut them otherwise.
                let limit = Fault::SmallLimits { event_bytes_max: rng.random_range(15_000..60_000) };
                let unread = nobody_reads_events(rng);
                (vec![limit], unread.into_iter().chain(kills(rng)).collect())
            }
            Self::RemovedPool => {
                let removed = |_| Fault::RemovedPool { length: millis(rng, 200..3_000) };
                (Vec::new(), (0..6).map(removed).collect())
            }
            Self::RareCheckpoints => (vec![Fault::RareCheckpoints], kills(rng).into()),
            Self::AbandonedChunks => (vec![Fault::AbandonedChunks], Vec::new()),
            Self::Restarts => {
                let restart = |_| Fault::RestartEverywhere { down: millis(rng, 50..2_000) };
                (Vec::new(), (0..6).map(restart).collect())
            }
            Self::NarrowLinks => {
                let bytes_per_second = rng.random_range(200_000..600_000);
                let lost = Fault::LostDisk { node, down: millis(rng, 50..1_000) };
                // It happens once, as soon as the replicas agree.
                (vec![Fault::Narrow { bytes_per_second, length }], vec![lost; 8])
            }
        }
    }
}

fn kills(rng: &mut impl Rng) -> [Fault; 6] {
    [(); 6].map(|()| Fault::Kill { node: queue_node(rng), moment: Moment::Idle, down: millis(rng, 50..500) })
}

/// Only then a limit for events matters.
fn nobody_reads_events(rng: &mut impl Rng) -> [Fault; 3] {
    [(); 3].map(|()| Fault::Suspend { node: OPERATOR, length: millis(rng, 4_000..10_000) })
}

fn fault(rng: &mut impl Rng) -> Fault {
    let node = queue_node(rng);
    let other = 1 + (node - 1 + rng.random_range(1..QUEUE_NODES)) % QUEUE_NODES;
    let length = millis(rng, 200..8_000);
    match rng.random_range(0..100) {
        0..14 => Fault::Kill { node: any_node(rng), moment: moment(rng), down: millis(rng, 50..4_000) },
        14..26 => {
            let cut = PowerCut { names: Names::Journalled, tears: rng.random() };
            Fault::PowerCut { node, moment: moment(rng), down: millis(rng, 50..4_000), cut }
        }
        26..30 => Fault::PowerCutEverywhere { down: millis(rng, 50..2_000) },
        30..38 => Fault::Suspend { node: any_node(rng), length: millis(rng, 100..15_000) },
        38..43 => Fault::Restart { node: any_node(rng), down: millis(rng, 50..3_000) },
        43..51 => Fault::Isolate { node: any_node(rng), length },
        51..57 => Fault::OneWay { from: node, to: other, length },
        57..62 => Fault::Partition { one: node, other: any_other(rng, node), length },
        62..67 => Fault::Flap { node, every: millis(rng, 100..1_000), length },
        67..73 => Fault::Slow { latency: millis(rng, 20..LATENCY_MAX_MILLIS), length },
        73..77 => Fault::HalfOpen { node: any_node(rng) },
        77..80 => Fault::Reset { node: any_node(rng) },
        80..84 => {
            let most = CLOCK_STEP_MAX.cast_signed();
            Fault::ClockStep { node: any_node(rng), by_millis: rng.random_range(-most..=most) }
        }
        84..87 => Fault::Drift { node: any_node(rng), ppm: rng.random_range(-2_000..2_000), length },
        87..89 => Fault::Full { node, spare_bytes: rng.random_range(0..200_000), length },
        89..94 => {
            let down = millis(rng, 50..3_000);
            if rng.random() { Fault::LostDisk { node, down } } else { Fault::OldDisk { node, down } }
        }
        _ => Fault::Disk { node, fault: disk_fault(rng) },
    }
}

/// What a healthy disk does not do, and the log is made for.
fn disk_fault(rng: &mut impl Rng) -> DiskFault {
    let call = *Call::ALL.choose(rng).unwrap_or(&Call::Write);
    let kind = match rng.random_range(0..8) {
        0 => FaultKind::Error(call),
        1 => FaultKind::Short { bytes: rng.random_range(0..20_000) },
        2 => FaultKind::ShortThenError { bytes: rng.random_range(0..20_000) },
        3 => FaultKind::Interrupted,
        4 => FaultKind::Torn { sectors: rng.random_range(0..40) },
        5 => FaultKind::NoSpace { bytes: rng.random_range(0..20_000) },
        6 => FaultKind::Hung(call),
        _ => FaultKind::Slow(call, millis(rng, 50..5_000)),
    };
    DiskFault { skip: rng.random_range(0..20), ..kind.into() }
}

/// What is on the disk, or is read from it, is not what was written.
fn damage(rng: &mut impl Rng) -> DiskFault {
    let any = rng.random_range(0..1_000_000);
    let kind = match rng.random_range(0..6) {
        0 => FaultKind::Misdirected { blocks: 1 + any % 16 },
        1 => FaultKind::Dropped,
        2 => FaultKind::SyncForgotten,
        3 => FaultKind::Zeroed { page: any },
        4 => FaultKind::FlippedAtRest { bit: any },
        _ => FaultKind::FlippedOnRead { bit: any },
    };
    DiskFault { skip: rng.random_range(0..20), ..kind.into() }
}

fn moment(rng: &mut impl Rng) -> Moment {
    match rng.random_range(0..3) {
        0 => Moment::Idle,
        1 => Moment::Await(rng.random_range(1..200)),
        _ => Moment::Operation(rng.random_range(0..30)),
    }
}

fn queue_node(rng: &mut impl Rng) -> u64 {
    rng.random_range(1..=QUEUE_NODES)
}

/// A queue node, an outbound node, or the host of clients.
fn any_node(rng: &mut impl Rng) -> u64 {
    match rng.random_range(0..12) {
        0 => *CLIENTS.choose(rng).unwrap_or(&CLIENTS[0]),
        1..4 => *OUTBOUND_NODES.choose(rng).unwrap_or(&OUTBOUND_NODES[0]),
        _ => queue_node(rng),
    }
}

fn any_other(rng: &mut impl Rng, node: u64) -> u64 {
    let others = (1..=QUEUE_NODES).chain(OUTBOUND_NODES).filter(|other| *other != node);
    others.collect::<Vec<_>>().choose(rng).copied().unwrap_or(OUTBOUND_NODES[0])
}

fn millis(rng: &mut impl Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}
