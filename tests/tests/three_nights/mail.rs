//! The mail of an evening: who sends it, to whom, and how long it takes.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use postroad_core::MessageId;
use postroad_testkit::{
    checker::Acknowledged,
    client::{GrpcClient, Submitted},
    sink::Copies,
};
use tokio::task::JoinSet;

/// Messages under way at a time.
const CLIENTS: usize = 8;

/// The domain of the receiver in trouble.
pub(crate) const TROUBLED: &str = "big.example";
/// The domains that get the other messages in turn.
pub(crate) const OTHERS: [&str; 4] = ["small.example", "home.example", "school.example", "club.example"];

/// Tenant, sender, and messages for the receiver in trouble every evening; as many are for others.
pub(crate) const SENDERS: [(&str, &str, u64); 4] = [
    ("shop", "news@shop.example", 2500),
    ("shop", "orders@shop.example", 500),
    ("bank", "bills@bank.example", 1500),
    ("choir", "letter@choir.example", 500),
];
/// Messages for the receiver in trouble every evening, and as many for others.
pub(crate) const MESSAGES: u64 = {
    let (mut sum, mut place) = (0, 0);
    while place < SENDERS.len() {
        sum += SENDERS[place].2;
        place += 1;
    }
    sum
};

/// An acknowledged message.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) message: Acknowledged,
    pub(crate) tenant: &'static str,
    pub(crate) sender: &'static str,
    /// When its acknowledgement arrived, by the wall clock.
    at_millis: u64,
}

impl Sent {
    pub(crate) fn is_for_troubled(&self) -> bool {
        self.key().1.ends_with(TROUBLED)
    }

    /// Returns what the sink counts copies by.
    pub(crate) fn key(&self) -> (MessageId, Box<str>) {
        (self.message.id, self.message.recipients[0].clone())
    }
}

/// Counts the messages of an evening for the receiver in trouble by what `of` returns for tenant and sender.
pub(crate) fn expected(of: impl Fn(&str, &str) -> String) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for (tenant, sender, count) in SENDERS {
        *counts.entry(of(tenant, sender)).or_default() += count;
    }
    counts
}

pub(crate) fn api_key(tenant: &str) -> String {
    format!("{tenant}-loopback-only")
}

/// Who sends, and to whom.
type Mail = Vec<(&'static str, &'static str, String)>;

/// The mail of an evening, so that everybody has mail all the time.
fn evening() -> Mail {
    let mut mail = Vec::new();
    for (tenant, sender, count) in SENDERS {
        for number in 0..count {
            let other = OTHERS[number as usize % OTHERS.len()];
            let to = |domain: &str| (number, tenant, sender, format!("u{number}@{domain}"));
            mail.extend([to(TROUBLED), to(other)]);
        }
    }
    mail.sort_by_key(|(number, ..)| *number);
    mail.into_iter().map(|(_, tenant, sender, recipient)| (tenant, sender, recipient)).collect()
}

/// Submits the mail of an evening to all ingress nodes; returns when all of it was acknowledged.
pub(crate) async fn submit_all(servers: &[SocketAddr]) -> Vec<Sent> {
    let (mail, next) = (Arc::new(evening()), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(submit_next(servers[client % servers.len()], mail.clone(), next.clone()));
    }
    clients.join_all().await.into_iter().flatten().collect()
}

async fn submit_next(server: SocketAddr, mail: Arc<Mail>, next: Arc<AtomicUsize>) -> Vec<Sent> {
    let mut connections = BTreeMap::new();
    for (tenant, ..) in SENDERS {
        let connected = GrpcClient::connect(server, &api_key(tenant)).await;
        connections.insert(tenant, connected.expect("the ingress node answers"));
    }
    let mut sent = Vec::new();
    while let Some((tenant, sender, recipient)) = mail.get(next.fetch_add(1, Ordering::Relaxed)) {
        let connection = connections.get_mut(tenant).expect("every tenant has one");
        let content = format!("From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: hello\r\n\r\nhello\r\n");
        match connection.submit(sender, &[recipient], &content).await {
            Submitted::Acknowledged(message) => {
                sent.push(Sent { message, tenant, sender, at_millis: postroad_env::wall().as_millis() });
            }
            other => panic!("{sender} to {recipient}: {other:?}"),
        }
    }
    sent
}

/// How long messages took from their acknowledgement to the receiver, in ms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    half: u64,
    of_100_99: u64,
    all: u64,
}

impl Times {
    pub(crate) fn of<'a>(sent: impl Iterator<Item = &'a Sent>, copies: &Copies) -> Self {
        let took = |sent: &Sent| copies[&sent.key()][0].at.as_millis().saturating_sub(sent.at_millis);
        let mut times: Vec<u64> = sent.map(took).collect();
        times.sort_unstable();
        let within = |of_100: usize| times[(times.len() * of_100).div_ceil(100) - 1];
        Self { half: within(50), of_100_99: within(99), all: within(100) }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { half, of_100_99, all } = self;
        write!(f, "half within {half} ms, 99 % within {of_100_99} ms, all within {all} ms")
    }
}
