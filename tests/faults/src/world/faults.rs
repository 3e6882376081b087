//! What goes wrong in the cluster, and how it ends.

use std::time::Duration;

use postroad_core::NodeId;
use postroad_storage::{
    Disk, DiskId, Fs as _, Origin,
    sim::{PowerCut, SimFs},
};
use rand::RngExt;

use super::{DISK_REPLACED_AFTER, QUEUE_NODES, SUPERVISED_AFTER, World, damages, format_disk};
use crate::{
    network::Host,
    nodes::{self, queue::Settings},
    plan::{Fault, Moment, Step},
    process::Process,
};

/// The end of a fault.
pub(super) enum Ending {
    Unblock(Vec<(Host, Host)>),
    Latency,
    Bandwidth,
    Drift(u64),
    Capacity(u64),
    /// An operator replaces a disk by an empty one.
    NewDisk(u64),
    /// An operator puts the pool back.
    Pool,
    /// The node of a flapping link is blocked or not, every so long, until then.
    Flap {
        node: u64,
        blocked: bool,
        every: Duration,
        until: Duration,
    },
}

impl World {
    /// Makes a fault happen.
    pub(super) fn inject(&mut self, step: &Step) {
        self.trace.note(format_args!("{step}"), &[]);
        let (fault, name) = (&step.fault, step.fault.name());
        match *fault {
            Fault::Kill { node, moment, down } => self.kill_at(node, moment, None, down, name),
            Fault::PowerCut { node, moment, down, cut } => self.kill_at(node, moment, Some(cut), down, name),
            Fault::PowerCutEverywhere { down } => {
                self.happened(name, &[]);
                (1..=QUEUE_NODES).for_each(|node| self.kill(node, Some(PowerCut::default()), down));
            }
            Fault::Suspend { node, length } => self.suspend(node, length),
            Fault::Restart { node, down } => self.restart(node, down, name),
            Fault::ClockStep { node, by_millis } => self.step_clock(node, by_millis, name),
            Fault::Drift { node, ppm, length } => self.drift(node, ppm, length, name),
            Fault::Full { node, spare_bytes, length } => self.fill(node, spare_bytes, length, name),
            // What it does is counted once it has happened.
            Fault::Disk { node, ref fault } => {
                self.nodes.get(&node).into_iter().for_each(|node| node.disk.arm(fault.clone()));
            }
            Fault::RestartEverywhere { down } => {
                (1..=QUEUE_NODES).for_each(|node| self.restart(node, down, name));
            }
            Fault::OtherLimits { .. } | Fault::SmallLimits { .. } | Fault::RareCheckpoints => {
                self.configure(fault, name);
            }
            Fault::AbandonedChunks => {
                self.place.abandon_chunks();
                self.happened(name, &[]);
            }
            Fault::RemovedPool { length } => {
                self.place.set_pool_wanted(false);
                self.begin(Ending::Pool, length, name, &[]);
            }
            Fault::LostSegment { node, down } if self.replicas_agree() => self.lose_segment(node, down, name),
            Fault::LostDisk { node, down } if self.replicas_agree() => {
                self.lose_disk(node, down);
                self.happened(name, &[node]);
            }
            Fault::OldDisk { node, down } if self.replicas_agree() => self.restore_disk(node, down, name),
            Fault::LostSegment { .. } | Fault::LostDisk { .. } | Fault::OldDisk { .. } => {}
            Fault::Isolate { .. }
            | Fault::OneWay { .. }
            | Fault::Partition { .. }
            | Fault::Flap { .. }
            | Fault::Slow { .. }
            | Fault::Narrow { .. }
            | Fault::HalfOpen { .. }
            | Fault::Reset { .. } => self.inject_into_network(fault, name),
        }
    }

    fn inject_into_network(&mut self, fault: &Fault, name: &'static str) {
        match *fault {
            Fault::Isolate { node, length } => self.block(self.pairs_of(node), length, name, &[node]),
            Fault::OneWay { from, to, length } => {
                self.block(vec![(Host(from), Host(to))], length, name, &[from, to]);
            }
            Fault::Partition { one, other, length } => {
                let pairs = vec![(Host(one), Host(other)), (Host(other), Host(one))];
                self.block(pairs, length, name, &[one, other]);
            }
            Fault::Flap { node, every, length } => {
                self.recorder.fault(name, &[NodeId(node)], true);
                let until = self.now + length;
                self.end(Ending::Flap { node, blocked: true, every, until }, name, &[NodeId(node)]);
            }
            Fault::Slow { latency, length } => {
                self.net.set_latency(latency);
                self.begin(Ending::Latency, length, name, &[]);
            }
            Fault::Narrow { bytes_per_second, length } => {
                self.place.make_busy();
                self.net.set_bandwidth(Some(bytes_per_second));
                self.begin(Ending::Bandwidth, length, name, &[]);
            }
            Fault::HalfOpen { node } => {
                self.net.silence(Host(node));
                self.happened(name, &[node]);
            }
            Fault::Reset { node } => {
                self.net.reset(Host(node));
                self.happened(name, &[node]);
            }
            _ => {}
        }
    }

    /// Configures nodes otherwise, and starts them again.
    fn configure(&mut self, fault: &Fault, name: &str) {
        let (nodes, change): (Vec<u64>, Settings) = match *fault {
            Fault::OtherLimits { node, event_bytes_max } => {
                (vec![node], Settings { event_bytes_max: Some(event_bytes_max), ..Settings::default() })
            }
            Fault::SmallLimits { event_bytes_max } => {
                self.place.make_busy();
                let settings = Settings { event_bytes_max: Some(event_bytes_max), ..Settings::default() };
                ((1..=QUEUE_NODES).collect(), settings)
            }
            Fault::RareCheckpoints => {
                self.place.make_busy();
                ((1..=QUEUE_NODES).collect(), Settings { has_rare_checkpoints: true, ..Settings::default() })
            }
            _ => return,
        };
        for number in nodes {
            if let Some(node) = self.nodes.get_mut(&number) {
                node.settings = change;
            }
            self.restart(number, SUPERVISED_AFTER, name);
        }
    }

    fn drift(&mut self, number: u64, ppm: i64, length: Duration, name: &'static str) {
        let Some(process) = self.process(number) else { return };
        process.drift_ppm = ppm;
        self.begin(Ending::Drift(number), length, name, &[number]);
    }

    fn fill(&mut self, number: u64, spare_bytes: u64, length: Duration, name: &'static str) {
        let Some(node) = self.nodes.get(&number) else { return };
        node.disk.set_capacity(Some(node.disk.used_bytes() + spare_bytes));
        self.begin(Ending::Capacity(number), length, name, &[number]);
    }

    fn lose_segment(&mut self, number: u64, down: Duration, name: &str) {
        self.kill(number, None, down);
        let Some(node) = self.nodes.get_mut(&number) else { return };
        remove_newest_segment(&node.disk);
        node.lacks_segment = true;
        self.happened(name, &[number]);
    }

    fn restore_disk(&mut self, number: u64, down: Duration, name: &'static str) {
        self.kill(number, Some(PowerCut::default()), down);
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.disk = node.disk.restored(&node.old_disk);
        node.is_condemned = true;
        self.begin(Ending::NewDisk(number), DISK_REPLACED_AFTER, name, &[number]);
    }

    fn kill_at(&mut self, number: u64, moment: Moment, cut: Option<PowerCut>, down: Duration, name: &str) {
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.process.is_some()) else { return };
        if node.suspended.is_some() {
            return;
        }
        self.recorder.fault(name, &[NodeId(number)], true);
        self.recorder.fault(name, &[NodeId(number)], false);
        match moment {
            Moment::Idle => self.kill(number, cut, down),
            Moment::Await(steps) => {
                if let Some(process) = &mut node.process {
                    process.step(steps);
                }
                self.kill(number, cut, down);
            }
            Moment::Operation(operations) => {
                node.disk.fail_after(operations);
                node.dies_at = Some((node.disk.operations() + operations, cut, down));
            }
        }
    }

    fn suspend(&mut self, number: u64, length: Duration) {
        let until = self.now + length;
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.process.is_some()) else { return };
        if node.suspended.is_none() {
            node.suspended = Some((until, self.now));
            self.recorder.fault("suspended process", &[NodeId(number)], true);
        }
    }

    fn restart(&mut self, number: u64, down: Duration, name: &str) {
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.process.is_some()) else { return };
        node.stop.cancel();
        self.observer.stops(number);
        // It may take a while to end.
        node.starts_at = Some(self.now + down);
        self.happened(name, &[number]);
    }

    fn step_clock(&mut self, number: u64, by_millis: i64, name: &str) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.clock_ahead_millis += by_millis;
        node.process.iter().for_each(|process| process.step_wall(by_millis));
        self.happened(name, &[number]);
    }

    /// An operator puts an empty disk in the place of a lost one, and lets its node rejoin.
    pub(super) fn lose_disk(&mut self, number: u64, down: Duration) {
        self.kill(number, Some(PowerCut::default()), down);
        let id = DiskId(self.rng.random());
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.disk = node.disk.lost();
        node.is_condemned = false;
        node.lacks_segment = false;
        node.damages_before = damages(&node.disk);
        self.observer.has_new_disk(number, self.now);
        format_disk(&node.disk, number, Disk { id, origin: Origin::Rejoin });
    }

    /// A fault without a length.
    pub(super) fn happened(&self, name: &str, nodes: &[u64]) {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        self.recorder.fault(name, &nodes, true);
        self.recorder.fault(name, &nodes, false);
    }

    pub(super) fn begin(&mut self, ending: Ending, length: Duration, name: &'static str, nodes: &[u64]) {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        self.recorder.fault(name, &nodes, true);
        let key = (self.now + length, self.recorder.number());
        self.endings.insert(key, (ending, name, nodes));
    }

    fn block(&mut self, pairs: Vec<(Host, Host)>, length: Duration, name: &'static str, nodes: &[u64]) {
        pairs.iter().for_each(|(from, to)| self.net.set_blocked(*from, *to, true));
        self.begin(Ending::Unblock(pairs), length, name, nodes);
    }

    fn pairs_of(&self, node: u64) -> Vec<(Host, Host)> {
        let others = self.nodes.keys().filter(|other| **other != node);
        others.flat_map(|other| [(Host(node), Host(*other)), (Host(*other), Host(node))]).collect()
    }

    pub(super) fn end(&mut self, ending: Ending, name: &'static str, nodes: &[NodeId]) {
        match ending {
            Ending::Unblock(pairs) => {
                pairs.iter().for_each(|(from, to)| self.net.set_blocked(*from, *to, false));
            }
            Ending::Latency => self.net.set_latency(nodes::LATENCY),
            Ending::Bandwidth => self.net.set_bandwidth(None),
            Ending::Drift(node) => {
                if let Some(process) = self.process(node) {
                    process.drift_ppm = 0;
                }
            }
            Ending::Capacity(node) => {
                if let Some(node) = self.nodes.get(&node) {
                    node.disk.set_capacity(None);
                }
            }
            Ending::Pool => self.place.set_pool_wanted(true),
            Ending::NewDisk(node) => self.lose_disk(node, SUPERVISED_AFTER),
            Ending::Flap { node, blocked, every, until } => {
                let goes_on = self.now < until;
                let blocked = blocked && goes_on;
                self.pairs_of(node).iter().for_each(|(from, to)| self.net.set_blocked(*from, *to, blocked));
                if goes_on {
                    let next = Ending::Flap { node, blocked: !blocked, every, until };
                    let key = (self.now + every, self.recorder.number());
                    self.endings.insert(key, (next, name, nodes.to_vec()));
                    return;
                }
            }
        }
        self.recorder.fault(name, nodes, false);
    }

    fn process(&mut self, node: u64) -> Option<&mut Process> {
        self.nodes.get_mut(&node)?.process.as_mut()
    }
}

/// Removes the newest segment of a log, with what was synced to it.
fn remove_newest_segment(disk: &SimFs) {
    let names = disk.list().unwrap_or_default();
    let newest = names.iter().filter(|name| name.starts_with("log-")).max();
    // It is no fault of the disk's that this asks for.
    let _ = newest.map(|newest| disk.remove(newest).and_then(|()| disk.sync_dir()));
}
