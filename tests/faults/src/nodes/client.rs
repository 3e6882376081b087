//! Clients behind an ingress node: they submit, some of them twice, and some give up.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use postroad_cluster::{DirectoryWatch, LeaderWatch, SubmitConfig, SubmitError, Submitter};
use postroad_core::{GroupId, MessageId, NodeId, PoolId, TenantId};
use postroad_directory::View;
use postroad_net::Role;
use postroad_oracle::{
    Micros, What,
    history::{SourceAddress, SubmitAnswer, SubmitAnswered, Submitted},
};
use postroad_proto::{
    message_id,
    queue::{Recipient, Submission},
};
use rand::{RngExt, seq::IndexedRandom};
use tokio::{sync::watch, task::JoinSet, time};
use xxhash_rust::xxh3::xxh3_64;

use super::{Place, Starting, operator};
use crate::{network::Host, process::Process, world::LEDGER_GROUPS};

/// Clients that wait for answers beside each other.
const CLIENTS: usize = 4;
/// Larger contents are sent in chunks.
const CHUNKED_FROM: u64 = 50_000;
const CHUNK_BYTES: usize = 200_000;
/// Longer than any answer of the submitter takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn start(place: &Place, starting: Starting) -> Process {
    let Starting { number, seed, wall, .. } = starting;
    let place = place.clone();
    Process::start(Host(number), seed, wall, async move {
        let endpoints = place.endpoints(number, Role::Ingress);
        let (leaders, watch) = (LeaderWatch::start(&endpoints), DirectoryWatch::start(&endpoints));
        let mut views = watch.subscribe();
        if pool(&mut views).await.is_none() {
            return;
        }
        record_sources(&place, &views.borrow());
        let mut tasks = JoinSet::new();
        let (groups, config) = ((1..=LEDGER_GROUPS).map(GroupId), SubmitConfig::default());
        let submitter = Submitter::start(&mut tasks, &endpoints, &leaders.subscribe(), groups, config);
        let clients = (0..CLIENTS).map(|_| {
            let client = Client {
                place: place.clone(),
                node: NodeId(number),
                submitter: submitter.clone(),
                views: views.clone(),
            };
            client.run()
        });
        futures::future::join_all(clients).await;
        // Its end would be a fault.
        std::future::pending::<()>().await;
    })
}

/// Waits for the only pool.
async fn pool(views: &mut watch::Receiver<Arc<View>>) -> Option<PoolId> {
    loop {
        if let Some(pool) = views.borrow_and_update().pools().next() {
            return Some(pool.id);
        }
        views.changed().await.ok()?;
    }
}

fn record_sources(place: &Place, view: &View) {
    for source in view.sources() {
        let Some(address) = source.address else { continue };
        let (source, address) = (source.id, address.to_string());
        place.recorder.push(What::Source(SourceAddress { source, address }));
    }
}

struct Client {
    place: Place,
    node: NodeId,
    submitter: Submitter,
    views: watch::Receiver<Arc<View>>,
}

/// A message before it has an id.
struct Draft {
    tenant: TenantId,
    token: String,
    body: Vec<u8>,
    recipients: Vec<String>,
    not_before: Option<Duration>,
    deadline: Option<Duration>,
}

impl Client {
    async fn run(self) {
        while !self.place.clients.is_cancelled() {
            let draft = Draft::random(&self.place);
            let mut answer = self.submit(&draft).await;
            // A client that was not sure tries again, under a new id.
            while answer.is_err() && postroad_env::random::<u8>() < 128 && !self.place.clients.is_cancelled()
            {
                time::sleep(Duration::from_millis(postroad_env::Random.random_range(10..1_000))).await;
                answer = self.submit(&draft).await;
            }
            self.place.think(5..150).await;
        }
    }

    async fn submit(&self, draft: &Draft) -> Result<(), ()> {
        let Some(group) = self.submitter.pick_group(postroad_env::random()) else { return Err(()) };
        let id = MessageId::new(postroad_env::wall(), group, postroad_env::random());
        let Some(pool) = self.views.borrow().pools().next().map(|pool| pool.id) else { return Err(()) };
        let submission = draft.submission(id, pool);
        let (number, now) = (self.place.recorder.number(), self.place.recorder.now());
        let at = |delay: Duration| now.after(Micros(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)));
        self.place.recorder.push(What::Submitted(Submitted {
            submission: number,
            node: Some(self.node),
            tenant: draft.tenant,
            token: draft.token.clone(),
            recipients: draft.recipients.clone(),
            content_hash: Some(xxh3_64(&draft.body)),
            message: Some(id),
            not_before: draft.not_before.map(at),
            deadline: draft.deadline.map(at),
        }));
        let pending = self.place.request();
        let answer = self.answer(id, submission).await;
        drop(pending);
        if let SubmitAnswer::Accepted { .. } = answer {
            self.place.recorder.count("acknowledged", 1);
            self.place.acknowledged(id, u32::try_from(draft.recipients.len()).unwrap_or(u32::MAX));
        }
        let is_final = matches!(answer, SubmitAnswer::Accepted { .. } | SubmitAnswer::Refused { .. });
        self.place.recorder.push(What::SubmitAnswered(SubmitAnswered { submission: number, answer }));
        if is_final { Ok(()) } else { Err(()) }
    }

    async fn answer(&self, id: MessageId, submission: Submission) -> SubmitAnswer {
        let patience = match postroad_env::random::<u8>() {
            0..12 => Duration::from_millis(postroad_env::Random.random_range(1..500)),
            _ => PATIENCE,
        };
        let is_twice = postroad_env::random::<u8>() < 12;
        let again = submission.clone();
        let submitting = async {
            let first = self.send(id, submission);
            if !is_twice {
                return first.await;
            }
            // As two ingress nodes would that were given the same message.
            let second = async {
                time::sleep(Duration::from_millis(postroad_env::Random.random_range(0..300))).await;
                self.send(id, again).await
            };
            let (first, second) = futures::future::join(first, second).await;
            first.or(second)
        };
        match time::timeout(patience, submitting).await {
            Err(_) => SubmitAnswer::TimedOut,
            Ok(Ok(())) => SubmitAnswer::Accepted { message: id },
            Ok(Err(SubmitError::Invalid(reply))) => SubmitAnswer::Refused { reply },
            Ok(Err(error)) => SubmitAnswer::Failed { reply: error.to_string() },
        }
    }

    /// Sends a large content in chunks before its message, as an ingress node does.
    async fn send(&self, id: MessageId, mut submission: Submission) -> Result<(), SubmitError> {
        if submission.size_bytes > CHUNKED_FROM {
            let content = std::mem::take(&mut submission.content).concat();
            for chunk in content.chunks(CHUNK_BYTES) {
                let message_id = submission.message_id.clone();
                let (number, content) = (Some(submission.chunks), vec![Bytes::copy_from_slice(chunk)]);
                let chunk = Submission { message_id, content, chunk: number, ..Submission::default() };
                self.submitter.submit(id, chunk).await?;
                submission.chunks += 1;
                if self.place.abandons_chunks() && postroad_env::random::<u8>() < 64 {
                    return Err(SubmitError::Unavailable);
                }
            }
        }
        self.submitter.submit(id, submission).await
    }
}

impl Draft {
    fn random(place: &Place) -> Self {
        let mut rng = postroad_env::Random;
        let recipients = (0..*[1, 1, 1, 2, 5].choose(&mut rng).unwrap_or(&1)).map(|number| {
            let site = operator::SITES.choose(&mut rng).unwrap_or(&operator::SITES[0]);
            format!("user{number}@{site}")
        });
        let recipients = recipients.collect();
        let bytes = match rng.random_range(0..100) {
            0 => rng.random_range(800_000..1_200_000),
            1..10 => rng.random_range(10_000..60_000),
            _ => rng.random_range(10..2_000),
        };
        let seconds =
            |rng: &mut postroad_env::Random, most| Duration::from_millis(rng.random_range(1_000..most));
        let not_before = (rng.random_range(0..20) == 0).then(|| seconds(&mut rng, 8_000));
        let deadline = (rng.random_range(0..20) == 0).then(|| seconds(&mut rng, 40_000));
        Self {
            tenant: TenantId(rng.random_range(1..=operator::TENANTS)),
            token: format!("token-{}", place.recorder.number()),
            body: body(bytes),
            recipients,
            not_before,
            deadline,
        }
    }

    fn submission(&self, id: MessageId, pool: PoolId) -> Submission {
        let now = postroad_env::wall();
        let at = |delay: Duration| now.after(delay).as_millis();
        let recipient = |address: &String| Recipient {
            address: address.clone(),
            site: operator::site_of(address),
            pool: pool.0,
            not_before_millis: self.not_before.map_or(0, at),
        };
        let mut header = String::new();
        let _ = write!(
            header,
            "Received: from client.example by mx.example with ESMTP id {id};\r\n\tFri, 15 Jan 2027 08:00:00 +0000\r\n"
        );
        let _ = write!(header, "X-Token: {}\r\nSubject: test\r\n\r\n", self.token);
        let content = Bytes::from([header.as_bytes(), &self.body].concat());
        Submission {
            message_id: message_id(id),
            tenant: self.tenant.0,
            sender: Some("sender@client.example".to_owned()),
            recipients: self.recipients.iter().map(recipient).collect(),
            size_bytes: content.len() as u64,
            content: vec![content],
            expires_at_millis: self.deadline.map_or(0, at),
            ..Submission::default()
        }
    }
}

/// Lines of 76 letters.
fn body(bytes: usize) -> Vec<u8> {
    let letters: Vec<u8> = (b'a'..=b'z').cycle().take(26 + 76).collect();
    let start = usize::from(postroad_env::random::<u8>());
    let mut body = Vec::with_capacity(bytes);
    for line in 0..bytes / 78 {
        let first = (start + line) % 26;
        body.extend_from_slice(&letters[first..first + 76]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"end\r\n");
    body
}
