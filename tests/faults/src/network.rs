//! The network: connections whose bytes arrive late, stand still, or never.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    io::ErrorKind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use postroad_core::{ClusterId, NodeId};
use postroad_net::{Network, NodeStream, PeerIdentity, Role};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time,
};

use crate::trace::Trace;

/// Bytes on their way in one direction of a connection, at most.
const WINDOW_BYTES: usize = 256 << 10;
/// How long the system waits for the answer to a connection.
const UNREACHABLE_FOR: Duration = Duration::from_secs(127);
/// Connections not yet accepted.
const BACKLOG: usize = 64;

/// Where a process is in the network; every process has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host(pub(crate) u64);

/// The network of the whole simulation; clones share it.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<State>>);

struct State {
    /// Virtual time.
    now: Duration,
    rng: StdRng,
    cluster: ClusterId,
    listeners: BTreeMap<String, (Host, mpsc::Sender<NodeStream>)>,
    /// Connections by number, oldest first.
    wires: BTreeMap<u64, Wire>,
    next_wire: u64,
    /// Directions in which nothing arrives.
    blocked: BTreeSet<(Host, Host)>,
    latency_max: Duration,
    /// Of each direction between two hosts; `None` for no bound.
    bytes_per_second: Option<u64>,
    /// When a direction will have carried what was sent in it.
    carried: BTreeMap<(Host, Host), Duration>,
    trace: Trace,
}

/// How a connection ends that nobody closes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// Both sides see that it was reset.
    Reset,
    /// Neither side sees anything; what is sent is lost.
    Silent,
}

/// A connection.
struct Wire {
    /// By side: the one that connected, the one that accepted.
    hosts: [Host; 2],
    /// By the side that writes.
    directions: [Direction; 2],
    broken: Option<Broken>,
    /// Sides that are still open.
    open: [bool; 2],
}

#[derive(Default)]
struct Direction {
    /// On the way, with the time of arrival; an empty one is the end.
    sent: VecDeque<(Duration, Vec<u8>)>,
    sent_bytes: usize,
    arrived: VecDeque<u8>,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Net {
    /// Makes a network.
    #[must_use]
    pub(crate) fn new(seed: u64, cluster: ClusterId, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            cluster,
            listeners: BTreeMap::new(),
            wires: BTreeMap::new(),
            next_wire: 0,
            blocked: BTreeSet::new(),
            latency_max: Duration::from_millis(5),
            bytes_per_second: None,
            carried: BTreeMap::new(),
            trace,
        })))
    }

    /// Returns the network as one process sees it.
    #[must_use]
    pub(crate) fn of(&self, host: Host, role: Role, node: NodeId) -> Arc<dyn Network> {
        let cluster = self.0.lock().cluster;
        Arc::new(Place { net: self.clone(), host, identity: PeerIdentity { cluster, role, node } })
    }

    /// Lets bytes arrive that are due.
    pub(crate) fn deliver(&self, now: Duration) {
        let mut wakers = Vec::new();
        let mut state = self.0.lock();
        let state = &mut *state;
        state.now = now;
        for (number, wire) in &mut state.wires {
            for side in 0..2 {
                let (from, to) = (wire.hosts[side], wire.hosts[1 - side]);
                if wire.broken.is_some() || state.blocked.contains(&(from, to)) {
                    continue;
                }
                let direction = &mut wire.directions[side];
                while let Some((_, bytes)) = direction.sent.pop_front_if(|(due, _)| *due <= now) {
                    state.trace.note(format_args!("{from:?}>{to:?} {number} {} bytes", bytes.len()), &bytes);
                    direction.sent_bytes -= bytes.len();
                    direction.ended |= bytes.is_empty();
                    direction.arrived.extend(bytes);
                    wakers.extend(direction.reader.take());
                    wakers.extend(direction.writer.take());
                }
            }
        }
        state.wires.retain(|_, wire| wire.open != [false, false]);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Blocks or unblocks one direction between two hosts.
    pub(crate) fn set_blocked(&self, from: Host, to: Host, blocked: bool) {
        let mut state = self.0.lock();
        if blocked {
            state.blocked.insert((from, to));
        } else {
            state.blocked.remove(&(from, to));
        }
    }

    /// Sets the longest time that bytes are on their way.
    pub(crate) fn set_latency(&self, most: Duration) {
        self.0.lock().latency_max = most;
    }

    /// Bounds what each direction between two hosts carries.
    pub(crate) fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        let mut state = self.0.lock();
        state.bytes_per_second = bytes_per_second;
        state.carried.clear();
    }

    /// Returns whether links are bounded.
    pub(crate) fn is_narrow(&self) -> bool {
        self.0.lock().bytes_per_second.is_some()
    }

    /// The process of a host died: its listeners are gone, and its connections are reset.
    pub(crate) fn process_died(&self, host: Host) {
        self.0.lock().listeners.retain(|_, (listening, _)| *listening != host);
        self.break_connections(host, Broken::Reset);
    }

    /// A host lost power: its listeners are gone, and the other ends of its connections do not see it.
    pub(crate) fn host_died(&self, host: Host) {
        self.0.lock().listeners.retain(|_, (listening, _)| *listening != host);
        self.break_connections(host, Broken::Silent);
    }

    /// Resets the connections of a host.
    pub(crate) fn reset(&self, host: Host) {
        self.break_connections(host, Broken::Reset);
    }

    /// Makes the connections of a host go dead.
    pub(crate) fn silence(&self, host: Host) {
        self.break_connections(host, Broken::Silent);
    }

    fn break_connections(&self, host: Host, how: Broken) {
        let mut wakers = Vec::new();
        let mut state = self.0.lock();
        for wire in state.wires.values_mut().filter(|wire| wire.hosts.contains(&host)) {
            if wire.broken == Some(Broken::Reset) {
                continue;
            }
            wire.broken = Some(how);
            if how == Broken::Reset {
                let directions = wire.directions.iter_mut();
                wakers.extend(
                    directions.flat_map(|direction| [direction.reader.take(), direction.writer.take()]),
                );
            }
        }
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The network as one process sees it.
struct Place {
    net: Net,
    host: Host,
    identity: PeerIdentity,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.host).finish()
    }
}

impl Network for Place {
    fn bind(&self, address: &str) -> io::Result<mpsc::Receiver<NodeStream>> {
        let mut state = self.net.0.lock();
        if state.listeners.get(address).is_some_and(|(_, listener)| !listener.is_closed()) {
            return Err(ErrorKind::AddrInUse.into());
        }
        let (sender, incoming) = mpsc::channel(BACKLOG);
        state.listeners.insert(address.to_owned(), (self.host, sender));
        Ok(incoming)
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (net, host, identity, address) = (self.net.clone(), self.host, self.identity, address.to_owned());
        Box::pin(async move {
            let latency = net.0.lock().latency();
            time::sleep(2 * latency).await;
            let connected = net.connected(host, identity, &address)?;
            if connected.is_none() {
                // No answer: the caller has a shorter patience.
                time::sleep(UNREACHABLE_FOR).await;
            }
            connected.ok_or_else(|| ErrorKind::TimedOut.into())
        })
    }
}

impl Net {
    /// Connects; `None` where the other host cannot be reached.
    fn connected(&self, host: Host, identity: PeerIdentity, address: &str) -> io::Result<Option<NodeStream>> {
        let mut state = self.0.lock();
        let refused = || io::Error::from(ErrorKind::ConnectionRefused);
        let (other, listener) = state.listeners.get(address).cloned().ok_or_else(refused)?;
        if state.blocked.contains(&(host, other)) || state.blocked.contains(&(other, host)) {
            return Ok(None);
        }
        let number = state.next_wire;
        state.next_wire += 1;
        let wire =
            Wire { hosts: [host, other], directions: Default::default(), broken: None, open: [true, true] };
        state.wires.insert(number, wire);
        drop(state);
        let half = |side| Box::new(Half { net: self.clone(), number, side });
        let name = format!("{host:?}");
        listener.try_send(NodeStream::simulated(half(1), identity, name)).map_err(|_| refused())?;
        Ok(Some(NodeStream::simulated(half(0), identity, address.to_owned())))
    }
}

impl State {
    fn latency(&mut self) -> Duration {
        let most = u64::try_from(self.latency_max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.random_range(50..=most))
    }
}

/// One end of a connection.
struct Half {
    net: Net,
    number: u64,
    side: usize,
}

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Half").field("number", &self.number).field("side", &self.side).finish_non_exhaustive()
    }
}

impl Half {
    fn write(&self, context: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.0.lock();
        let state = &mut *state;
        let due = state.now + state.latency();
        let Some(wire) = state.wires.get_mut(&self.number).filter(|wire| wire.broken != Some(Broken::Reset))
        else {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        };
        let direction = &mut wire.directions[self.side];
        if direction.sent_bytes >= WINDOW_BYTES {
            direction.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let due = direction.sent.back().map_or(due, |(before, _)| due.max(*before));
        let due = match state.bytes_per_second {
            Some(bandwidth) => {
                let link = (wire.hosts[self.side], wire.hosts[1 - self.side]);
                let carried = state.carried.entry(link).or_default();
                let takes = Duration::from_secs_f64(bytes.len() as f64 / bandwidth as f64);
                *carried = due.max(*carried) + takes;
                *carried
            }
            None => due,
        };
        direction.sent.push_back((due, bytes.to_vec()));
        direction.sent_bytes += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }
}

impl AsyncRead for Half {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.net.0.lock();
        let Some(wire) = state.wires.get_mut(&self.number) else {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        };
        let is_reset = wire.broken == Some(Broken::Reset);
        let direction = &mut wire.directions[1 - self.side];
        let count = direction.arrived.len().min(buffer.remaining());
        if count == 0 && !direction.ended {
            if is_reset {
                return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
            }
            direction.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes: Vec<u8> = direction.arrived.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() { Poll::Ready(Ok(0)) } else { self.write(context, bytes) }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, &[]).map_ok(drop)
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let mut state = self.net.0.lock();
        let due = state.now + state.latency();
        let Some(wire) = state.wires.get_mut(&self.number) else { return };
        wire.open[self.side] = false;
        let direction = &mut wire.directions[self.side];
        if !direction.sent.back().is_some_and(|(_, bytes)| bytes.is_empty()) {
            let due = direction.sent.back().map_or(due, |(before, _)| due.max(*before));
            direction.sent.push_back((due, Vec::new()));
        }
    }
}
