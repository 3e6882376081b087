//! A fake queue node, reached over a memory pipe, and an ingress in front of it.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use aws_lc_rs::digest;
use ipnet::IpNet;
use postroad_cluster::Endpoints;
use postroad_core::{ByteSize, Domain, MessageId, NodeId};
use postroad_directory::{
    Change, Command, Pattern, Put, PutCredential, PutPool, PutTenant, Route, Secret, SenderDomains,
};
use postroad_dns::Resolver;
use postroad_ingress::{Ingress, IngressConfig, IngressDeps, ListenerService, SmtpListener};
use postroad_net::{Expect, MemoryNet, Role, ServerTls, Transport};
use postroad_proto::queue::Submission;
use postroad_telemetry::Health;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) mod queue;
pub(crate) mod smtp;

pub(crate) use queue::{FakeQueue, Mode};
pub(crate) use smtp::Smtp;

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The size limit of the listeners.
pub(crate) const MESSAGE_SIZE_MAX: u64 = 3 << 20;

/// A running ingress and its queue.
pub(crate) struct Rig {
    pub(crate) queue: Arc<FakeQueue>,
    pub(crate) submission: SocketAddr,
    pub(crate) relay: SocketAddr,
    pub(crate) implicit: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) health: Health,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<()>,
}

impl Rig {
    /// Starts an ingress and waits until it is ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// The same with a changed configuration.
    pub(crate) async fn start_with(change: impl FnOnce(&mut IngressConfig)) -> Self {
        let mut config = config();
        change(&mut config);
        let rig = Self::configured(FakeQueue::new(directory()), config).await;
        eventually("ready", || rig.health.is_ready()).await;
        rig
    }

    /// Starts an ingress with this queue, without waiting.
    pub(crate) async fn unready(queue: Arc<FakeQueue>) -> Self {
        Self::configured(queue, config()).await
    }

    async fn configured(queue: Arc<FakeQueue>, config: IngressConfig) -> Self {
        let net = MemoryNet::new();
        let transport = Transport::Memory(net);
        let listener = transport.bind("queue").await.unwrap();
        tokio::spawn(postroad_testkit::queue::serve_queue(listener, FakeQueue::clone(&queue)));
        let channel = transport.channel("queue", Expect { role: Role::Queue, node: None });
        let health = Health::new();
        let deps = IngressDeps {
            node: NodeId(7),
            endpoints: Endpoints::from([(NodeId(1), channel)]),
            ledger_groups: 1,
            // No server there, so every domain is its own site.
            resolver: Resolver::at(([127, 0, 0, 1], 9).into()),
            tls: Some(ServerTls::self_signed(&["mx.test".to_owned()]).unwrap()),
            health: health.clone(),
        };
        let ingress = Ingress::start(config, deps).await.unwrap();
        let addresses = ingress.smtp_addresses().to_vec();
        let grpc = ingress.grpc_address().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(ingress.run(shutdown.clone()));
        let [submission, relay, implicit] = addresses[..] else { panic!("three listeners") };
        Self { queue, submission, relay, implicit, grpc, health, shutdown, running }
    }

    /// Returns the last message that the queue accepted, with its content joined.
    pub(crate) fn last(&self) -> (Submission, String) {
        let submission = self.queue.accepted().last().cloned().expect("a message was accepted");
        let content = submission.content.concat();
        (submission, String::from_utf8(content).unwrap())
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it ends").unwrap();
    }
}

pub(crate) fn message_id(submission: &Submission) -> MessageId {
    postroad_proto::parse_message_id(&submission.message_id).unwrap()
}

fn config() -> IngressConfig {
    let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
    let listener = |service, implicit_tls| SmtpListener {
        listen: loopback,
        service,
        implicit_tls,
        strict_syntax: false,
    };
    IngressConfig {
        hostname: Domain::parse("mx.test").unwrap(),
        listeners: vec![
            listener(ListenerService::Submission, false),
            listener(ListenerService::Relay, false),
            listener(ListenerService::Submission, true),
        ],
        grpc_listen: Some(loopback),
        grpc_plaintext: true,
        message_size_max: ByteSize(MESSAGE_SIZE_MAX),
        in_flight_bytes_max: ByteSize::mib(8),
        submit_timeout: Duration::from_secs(1),
        site_timeout: Duration::from_millis(20),
        drain_timeout: Duration::from_secs(2),
        ..IngressConfig::default()
    }
}

/// Two tenants: `any` may send as anybody, `shop` only as shop.example and with small messages.
pub(crate) fn directory() -> Vec<Command> {
    let networks = |text: &str| vec![text.parse::<IpNet>().unwrap()];
    // Cheap parameters, to keep tests fast.
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    let login = |login: &str, password: &str| Secret::Login {
        login: login.into(),
        verifier: argon2.hash_password(password.as_bytes()).unwrap().to_string().into(),
    };
    let credential = |name: &str, tenant: &str, secret, networks| {
        Put::Credential(PutCredential { name: name.into(), tenant: tenant.into(), secret, networks })
    };
    let shop = SenderDomains::Only([Domain::parse("shop.example").unwrap()].into());
    let tenant = |name: &str, domains, message_size_max| {
        Put::Tenant(PutTenant { name: name.into(), domains, pool: "pool".into(), message_size_max })
    };
    let puts = [
        Put::Pool(PutPool { name: "pool".into(), members: Vec::new() }),
        tenant("any", SenderDomains::Any, None),
        tenant("shop", shop, Some(2000)),
        credential("anna", "any", login("anna", "secret"), Vec::new()),
        credential("sam", "shop", login("sam", "secret"), Vec::new()),
        credential("elsewhere", "any", login("far", "secret"), networks("192.0.2.0/24")),
        credential("any-key", "any", api_key("any-key"), Vec::new()),
        credential("shop-key", "shop", api_key("shop-key"), Vec::new()),
        credential("trusted", "any", Secret::Network { relay: false }, networks("127.0.0.9/32")),
        credential("gateway", "any", Secret::Network { relay: true }, networks("127.0.0.8/32")),
        Put::Route(Route {
            pattern: Pattern::Exact(Domain::parse("routed.example").unwrap()),
            host: "10.0.0.1".into(),
            port: 2525,
        }),
    ];
    vec![Command::Change(puts.into_iter().map(Change::Put).collect())]
}

fn api_key(key: &str) -> Secret {
    let sha256 = digest::digest(&digest::SHA256, key.as_bytes());
    Secret::ApiKey { sha256: sha256.as_ref().try_into().unwrap() }
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("not {what}"));
}
