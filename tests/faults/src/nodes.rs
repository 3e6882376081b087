//! What the simulated processes run.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use postroad_cluster::Endpoints;
use postroad_core::{DeliveryId, GroupId, MessageId, NodeId, Timestamp};
use postroad_net::{Expect, Role, Transport};
use postroad_storage::sim::SimFs;
use rand::RngExt;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::{
    network::{Host, Net},
    record::Recorder,
    world::QUEUE_NODES,
};

pub(crate) mod client;
pub(crate) mod operator;
pub(crate) mod outbound;
pub(crate) mod queue;
mod receiver;

/// The longest time that bytes are on their way while nothing is wrong.
pub(crate) const LATENCY: Duration = Duration::from_millis(5);

/// What a process is started with.
pub(crate) struct Starting {
    pub(crate) number: u64,
    pub(crate) seed: u64,
    pub(crate) wall: Timestamp,
    pub(crate) disk: SimFs,
    pub(crate) stop: CancellationToken,
}

/// What all processes share: the network, the record, and what clients know of their messages.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) net: Net,
    pub(crate) recorder: Recorder,
    mail: Arc<Mutex<Mail>>,
    clients: CancellationToken,
    /// How many times as long as in a busy cluster clients wait between two messages.
    pace: Arc<AtomicU32>,
}

#[derive(Default)]
struct Mail {
    /// Acknowledged messages, with their recipients.
    acknowledged: BTreeMap<MessageId, u32>,
    /// In the order of their acknowledgement.
    order: Vec<MessageId>,
    /// Deliveries of which the end was read.
    ended: BTreeSet<DeliveryId>,
    /// Acknowledged deliveries of which it was not.
    open: BTreeSet<DeliveryId>,
    /// Groups that have dropped events before they were read.
    unreadable: BTreeSet<GroupId>,
    /// Messages that somebody asked to hold.
    held: BTreeSet<MessageId>,
    /// Submissions and changes without an answer.
    pending: u64,
    /// Somebody has removed the pool, and will put it back.
    is_pool_unwanted: bool,
    /// Clients give up in the middle of large messages.
    abandons_chunks: bool,
}

impl Mail {
    /// Acknowledged deliveries of which the end is still to be read.
    fn awaited(&self) -> impl Iterator<Item = &DeliveryId> {
        self.open.iter().filter(|delivery| !self.unreadable.contains(&delivery.message.group()))
    }
}

impl Place {
    pub(crate) fn new(net: Net, recorder: Recorder, pace: u32) -> Self {
        let pace = Arc::new(AtomicU32::new(pace));
        Self { net, recorder, mail: Arc::default(), clients: CancellationToken::new(), pace }
    }

    /// Waits for as long as a client or an operator thinks.
    pub(crate) async fn think(&self, millis: Range<u64>) {
        let pace = self.pace.load(Ordering::Relaxed);
        let time = Duration::from_millis(postroad_env::Random.random_range(millis)) * pace;
        tokio::select! {
            () = time::sleep(time) => {}
            () = self.clients.cancelled() => {}
        }
    }

    /// Makes the cluster a busy one.
    pub(crate) fn make_busy(&self) {
        self.pace.store(1, Ordering::Relaxed);
    }

    /// Makes clients submit nothing more.
    pub(crate) fn end_clients(&self) {
        self.clients.cancel();
    }

    /// Returns true once every acknowledged delivery has ended, and nothing is asked for.
    pub(crate) fn all_have_ended(&self) -> bool {
        let mail = self.mail.lock();
        mail.awaited().next().is_none() && mail.pending == 0
    }

    /// Makes the operator remove the pool, or put it back.
    pub(crate) fn set_pool_wanted(&self, is_wanted: bool) {
        self.mail.lock().is_pool_unwanted = !is_wanted;
    }

    pub(crate) fn is_pool_wanted(&self) -> bool {
        !self.mail.lock().is_pool_unwanted
    }

    /// Makes clients give up in the middle of large messages.
    pub(crate) fn abandon_chunks(&self) {
        self.mail.lock().abandons_chunks = true;
    }

    pub(crate) fn abandons_chunks(&self) -> bool {
        self.mail.lock().abandons_chunks
    }

    /// Returns what is missing until all is quiet.
    pub(crate) fn missing(&self) -> String {
        let mail = self.mail.lock();
        let first =
            mail.awaited().next().map(|first| format!(", the first of them `{first}`")).unwrap_or_default();
        format!(
            "{} deliveries without an end{first}, {} requests without an answer",
            mail.awaited().count(),
            mail.pending
        )
    }

    /// A message was acknowledged.
    pub(crate) fn acknowledged(&self, message: MessageId, recipients: u32) {
        let mut mail = self.mail.lock();
        let mail = &mut *mail;
        if mail.acknowledged.insert(message, recipients).is_none() {
            mail.order.push(message);
            let deliveries = (0..recipients).map(|recipient| DeliveryId { message, recipient });
            mail.open.extend(deliveries.filter(|delivery| !mail.ended.contains(delivery)));
        }
    }

    /// The end of a delivery was read.
    pub(crate) fn has_ended(&self, delivery: DeliveryId) {
        let mut mail = self.mail.lock();
        mail.ended.insert(delivery);
        mail.open.remove(&delivery);
    }

    /// A group has dropped events before they were read: the ends of some deliveries, perhaps.
    pub(crate) fn events_were_dropped(&self, group: GroupId) {
        self.mail.lock().unreadable.insert(group);
    }

    /// Somebody asks to hold a message.
    pub(crate) fn hold(&self, message: MessageId) {
        self.mail.lock().held.insert(message);
    }

    /// Returns the messages that somebody asked to hold and that have not ended, with the number of their recipients.
    pub(crate) fn held(&self) -> Vec<(MessageId, u32)> {
        let mail = self.mail.lock();
        let open: BTreeSet<MessageId> = mail.open.iter().map(|delivery| delivery.message).collect();
        mail.held.intersection(&open).map(|message| (*message, mail.acknowledged[message])).collect()
    }

    /// Returns a recent message and the number of its recipients; `choice` is a random number.
    pub(crate) fn recent_message(&self, choice: u64) -> Option<(MessageId, u32)> {
        let mail = self.mail.lock();
        let recent = &mail.order[mail.order.len().saturating_sub(50)..];
        let place = usize::try_from(choice).unwrap_or_default().checked_rem(recent.len())?;
        let message = recent[place];
        Some((message, mail.acknowledged[&message]))
    }

    /// Counts a request as without an answer until the guard is dropped.
    pub(crate) fn request(&self) -> Pending {
        self.mail.lock().pending += 1;
        Pending(self.mail.clone())
    }

    /// Returns how a process of this host is seen by others.
    pub(crate) fn transport(&self, host: u64, role: Role) -> Transport {
        Transport::Simulated(self.net.of(Host(host), role, NodeId(host)))
    }

    /// Returns channels to all queue nodes.
    pub(crate) fn endpoints(&self, host: u64, role: Role) -> Endpoints {
        let transport = self.transport(host, role);
        let channel = |node| transport.channel(&address(node), Expect::node(Role::Queue, NodeId(node)));
        (1..=QUEUE_NODES).map(|node| (NodeId(node), channel(node))).collect()
    }
}

/// A request without an answer yet.
pub(crate) struct Pending(Arc<Mutex<Mail>>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.lock().pending -= 1;
    }
}

/// Where a queue node listens.
pub(crate) fn address(node: u64) -> String {
    format!("192.0.2.{node}:7000")
}
