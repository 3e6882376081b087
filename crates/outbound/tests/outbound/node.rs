//! An outbound node under test, with a fake queue, a fake DNS and receivers.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use postroad_core::{Domain, NodeId, SourceId};
use postroad_directory::change::{PutLimits, PutSource};
use postroad_directory::{Caps, Command, Pattern, Put, Route};
use postroad_dns::Resolver;
use postroad_net::{ClientTls, Connector, Expect, Guard, MemoryNet, Role, Transport};
use postroad_outbound::{Home, Outbound, OutboundConfig, OutboundDeps};
use postroad_telemetry::Health;
use postroad_testkit::{
    Script, Sink, SinkConfig,
    dns::{FakeDns, Zones},
    sink::{Action, Phase, Rule},
};
use tempfile::TempDir;
use tokio::{runtime::Handle, task::JoinHandle, time};
use tokio_util::sync::CancellationToken;

use crate::queue::FakeQueue;

/// The only source; the directory numbers sources from 1.
pub(crate) const SOURCE: SourceId = SourceId(1);

/// What a test starts with.
pub(crate) struct Setup {
    pub(crate) config: OutboundConfig,
    pub(crate) caps: Caps,
    pub(crate) zones: Zones,
    /// The address of the source.
    pub(crate) source_address: Option<IpAddr>,
    pub(crate) home: Arc<TempDir>,
    pub(crate) lease: Duration,
    pub(crate) guard: Guard,
    /// The epoch that the source has reached before the node starts.
    pub(crate) first_epoch: u64,
    /// The runtime of the node's tasks; everything else runs in the test's own.
    pub(crate) runtime: Handle,
}

impl Default for Setup {
    fn default() -> Self {
        let two_seconds = Duration::from_secs(2);
        let mut config = OutboundConfig {
            connect_timeout: two_seconds,
            drain_timeout: two_seconds,
            ..OutboundConfig::default()
        };
        config.timeouts.quit = Duration::from_secs(1);
        Self {
            config,
            caps: Caps::default(),
            zones: Zones::default(),
            source_address: None,
            home: Arc::new(TempDir::new().unwrap()),
            lease: Duration::from_secs(60),
            guard: Guard { allow: vec!["127.0.0.0/8".parse().unwrap()] },
            first_epoch: 0,
            runtime: Handle::current(),
        }
    }
}

/// A running node.
pub(crate) struct Node {
    pub(crate) queue: FakeQueue,
    pub(crate) epoch: u64,
    pub(crate) health: Health,
    home: Arc<TempDir>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    _dns: FakeDns,
}

impl Setup {
    /// Starts a node with all mail routed to `sink`, and waits until it opens its windows.
    pub(crate) async fn start_routed(self, sink: &Sink) -> Node {
        let route = Route {
            pattern: Pattern::Any,
            host: sink.address().ip().to_string().into(),
            port: sink.address().port(),
        };
        self.start(Some(route)).await
    }

    pub(crate) async fn start(self, route: Option<Route>) -> Node {
        let net = MemoryNet::new();
        let (queue, _) = FakeQueue::start(&net).await;
        queue.set_lease(self.lease);
        queue.put(Put::Source(PutSource {
            name: "one".into(),
            address: self.source_address,
            helo: Domain::parse("out.postroad.example").unwrap(),
            nodes: Vec::new(),
        }));
        for incarnation in 0..self.first_epoch {
            // Each claim of the owner raises the epoch.
            queue.apply(&Command::Claim { node: NodeId(7), incarnation });
            if incarnation == 0 {
                queue.apply(&Command::Grant { source: SOURCE, node: NodeId(7), incarnation });
            }
        }
        route.into_iter().for_each(|route| queue.put(Put::Route(route)));
        if self.caps != Caps::default() {
            let limits = PutLimits {
                name: "one".into(),
                source: Some("one".into()),
                site: None,
                caps: self.caps.clone(),
            };
            queue.put(Put::Limits(limits));
        }
        self.start_with(net, queue).await
    }

    async fn start_with(self, net: MemoryNet, queue: FakeQueue) -> Node {
        let dns = FakeDns::start(self.zones).await.unwrap();
        let (health, shutdown) = (Health::new(), CancellationToken::new());
        let (config, data_directory) = (self.config, data_directory(&self.home));
        let (resolver_at, guard, node_health, stop) =
            (dns.address(), self.guard, health.clone(), shutdown.clone());
        let task = self.runtime.spawn(async move {
            let channel = Transport::Memory(net).channel("queue", Expect::any(Role::Queue));
            let deps = OutboundDeps {
                node: NodeId(7),
                home: Home::Directory(data_directory),
                endpoints: [(NodeId(1), channel)].into(),
                resolver: Resolver::at(resolver_at),
                connector: Connector::Tcp,
                guard,
                tls: ClientTls::opportunistic(),
                health: node_health,
            };
            Outbound::start(config, deps).unwrap().run(stop).await;
        });
        let (epoch, _) = queue.window(SOURCE.0, "any.example", |window| window > 0).await;
        Node { queue, epoch, health, home: self.home, shutdown, task, _dns: dns }
    }
}

fn data_directory(home: &TempDir) -> PathBuf {
    home.path().join("outbound")
}

impl Node {
    /// Assigns a message for some recipients of one site.
    pub(crate) async fn assign(&self, message: u128, site: &str, recipients: &[&str]) {
        let assignment = crate::queue::assignment(message, SOURCE, self.epoch, site, recipients);
        self.queue.assign(vec![assignment]).await;
    }

    /// Waits until the node has ended by itself.
    pub(crate) async fn ended(self) {
        time::timeout(Duration::from_secs(30), self.task).await.expect("the node ends").unwrap();
    }

    /// The directory of the node's files.
    pub(crate) fn data_directory(&self) -> PathBuf {
        data_directory(&self.home)
    }

    /// Stops the node and waits until it has ended.
    pub(crate) async fn stop(self) -> (FakeQueue, Arc<TempDir>) {
        self.shutdown.cancel();
        time::timeout(Duration::from_secs(30), self.task).await.expect("the node stops in time").unwrap();
        (self.queue, self.home)
    }
}

/// Starts a receiver on a loopback address.
pub(crate) async fn sink(script: Script) -> Sink {
    Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.unwrap()
}

pub(crate) async fn sink_at(address: SocketAddr, script: Script) -> Sink {
    Sink::start(SinkConfig { address, script, ..SinkConfig::default() }).await.unwrap()
}

/// A rule that does something to the connection.
pub(crate) fn acts(phase: Phase, then: Action) -> Rule {
    Rule { phase, probability: 1.0, delay_ms: 0, reply: None, byte_delay_ms: 0, then }
}

pub(crate) fn replies(phase: Phase, reply: &str) -> Script {
    Script::default().with_rule(Rule::reply(phase, reply))
}

pub(crate) fn misbehaves(phase: Phase, then: Action) -> Script {
    Script::default().with_rule(acts(phase, then))
}
