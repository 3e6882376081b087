//! People and programs behind the cluster: the policy, changes of messages, and the consumer of events.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use postroad_cluster::{ApplyOptions, CallError, DirectoryClient, LeaderCalls, LeaderWatch, SuspendOptions};
use postroad_core::{Domain, GroupId, MessageId, NodeId};
use postroad_directory::{ItemName, Kind, Pattern, Put, PutPool, PutSource, Route, ScopeName};
use postroad_ledger::event::Event;
use postroad_net::Role;
use postroad_oracle::{
    What,
    facts::{delivery_of, end_of},
    history::{
        Change, ChangeAnswer, ChangeAnswered, ChangeRequested, ChangeResult, EventKind, PolicyChanged,
    },
};
use postroad_proto::{
    message_id,
    queue::{
        self as wire, ChangeMessageRequest, ConsumeRequest, EventsRequest,
        queue_service_client::QueueServiceClient,
    },
};
use postroad_testkit::history::{event_of, through};
use rand::{RngExt, seq::IndexedRandom};
use tokio::time;
use tonic::transport::Channel;

use super::{Place, Starting};
use crate::{network::Host, process::Process, world::LEDGER_GROUPS};

pub(crate) const SITES: [&str; 3] = ["big.example", "small.example", "moody.example"];
pub(crate) const TENANTS: u32 = 3;
pub(crate) const SOURCES: [&str; 3] = ["one", "two", "three"];
pub(crate) const CONSUMER: &str = "simulation";
const WITHIN: Duration = Duration::from_secs(10);

/// Where a receiver of mail for a site listens.
pub(crate) fn receiver(site: usize) -> (String, u16) {
    (format!("198.51.100.{}", site + 1), 25)
}

/// Returns the site that mail for an address is counted under.
pub(crate) fn site_of(address: &str) -> String {
    let domain = address.rsplit('@').next().unwrap_or_default();
    let site = SITES.iter().position(|site| *site == domain).unwrap_or_default();
    let (host, port) = receiver(site);
    Route { pattern: pattern(site), host: host.into(), port }.site()
}

/// Outbound nodes look whether the machine has the addresses of their sources: every machine has these.
fn source_address(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, number).into()
}

fn pattern(site: usize) -> Pattern {
    Pattern::Exact(Domain::parse(SITES[site]).expect("a domain"))
}

pub(crate) fn start(place: &Place, starting: Starting) -> Process {
    let Starting { number, seed, wall, .. } = starting;
    let place = place.clone();
    Process::start(Host(number), seed, wall, async move {
        let endpoints = place.endpoints(number, Role::Control);
        let operator = place.endpoints(number, Role::Operator);
        let leaders = LeaderWatch::start(&endpoints);
        let directory = DirectoryClient::new(&operator, &leaders.subscribe());
        let calls = LeaderCalls::new(&operator, &leaders.subscribe());
        let person = Person { place: place.clone(), directory, calls };
        person.set_up().await;
        let calls = LeaderCalls::new(&endpoints, &leaders.subscribe());
        let consumers = (1..=LEDGER_GROUPS).map(|group| {
            let consumer = Consumer { place: place.clone(), group: GroupId(group), calls: calls.clone() };
            consumer.run()
        });
        futures::future::join(futures::future::join_all(consumers), person.run()).await;
    })
}

/// Somebody who changes messages and policy.
struct Person {
    place: Place,
    directory: DirectoryClient,
    calls: LeaderCalls,
}

impl Person {
    /// Sends the first policy until it is acknowledged.
    async fn set_up(&self) {
        let source = |(number, name): (u8, &&str)| {
            let helo = Domain::parse("out.example").expect("a domain");
            let address = Some(source_address(number));
            Put::Source(PutSource { name: (*name).into(), address, helo, nodes: Vec::new() })
        };
        let route = |site| {
            let (host, port) = receiver(site);
            Put::Route(Route { pattern: pattern(site), host: host.into(), port })
        };
        let mut puts: Vec<Put> = (1..).zip(&SOURCES).map(source).collect();
        puts.push(pool(|| 1));
        puts.extend((0..SITES.len()).map(route));
        while self.apply(&puts, "the first policy").await.is_err() {
            time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn apply(&self, puts: &[Put], what: &str) -> Result<(), CallError> {
        let applied = self.directory.apply(puts, &[], ApplyOptions::default(), WITHIN).await?;
        let (revision, what) = (applied.revision, what.to_owned());
        self.place.recorder.push(What::PolicyChanged(PolicyChanged { revision, what }));
        Ok(())
    }

    async fn run(&self) {
        let mut rng = postroad_env::Random;
        while !self.place.clients.is_cancelled() {
            self.place.think(20..600).await;
            match rng.random_range(0..20) {
                _ if !self.place.is_pool_wanted() => self.take_pool_away().await,
                0 => self.weigh().await,
                1 => self.suspend_for_a_while().await,
                _ => self.change_a_message().await,
            }
        }
        // Held mail never ends by itself. An earlier request may still hold it once more.
        loop {
            for (message, recipients) in self.place.held() {
                self.change(message, recipients, Change::Release).await;
            }
            time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Gives the sources of the pool other weights.
    async fn weigh(&self) {
        let mut rng = postroad_env::Random;
        // It may have been applied, and is no matter of any invariant.
        drop(self.apply(&[pool(|| rng.random_range(1..5))], "other weights").await);
    }

    /// Removes the only pool, and puts it back once it is wanted.
    async fn take_pool_away(&self) {
        let remove = [ItemName::new(Kind::Pool, "pool")];
        while self.directory.apply(&[], &remove, ApplyOptions::default(), WITHIN).await.is_err()
            && !self.place.is_pool_wanted()
        {
            time::sleep(Duration::from_millis(100)).await;
        }
        while !self.place.is_pool_wanted() {
            time::sleep(Duration::from_millis(100)).await;
        }
        while self.apply(&[pool(|| 1)], "the pool again").await.is_err() {
            time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn suspend_for_a_while(&self) {
        let mut rng = postroad_env::Random;
        let source = SOURCES.choose(&mut rng).unwrap_or(&SOURCES[0]);
        let options = SuspendOptions {
            reason: "a test".to_owned(),
            actor: "simulation".to_owned(),
            length: Some(Duration::from_millis(rng.random_range(500..4_000))),
        };
        let scopes = [ScopeName::Source((*source).into())];
        drop(self.directory.suspend(&scopes, &options, WITHIN).await);
    }

    async fn change_a_message(&self) {
        let mut rng = postroad_env::Random;
        let Some((message, recipients)) = self.place.recent_message(rng.random()) else { return };
        let change = match rng.random_range(0..4) {
            0 => Change::Cancel,
            1 => Change::Hold,
            2 => Change::Release,
            _ => Change::Retry,
        };
        self.change(message, recipients, change).await;
    }

    async fn change(&self, message: MessageId, recipients: u32, change: Change) {
        if change == Change::Hold {
            self.place.hold(message);
        }
        let request = self.place.recorder.number();
        let recipients = (0..recipients).collect();
        self.place.recorder.push(What::ChangeRequested(ChangeRequested {
            request,
            message,
            recipients,
            change,
        }));
        let pending = self.place.request();
        let call = ChangeMessageRequest {
            message_id: message_id(message),
            change: match change {
                Change::Cancel => wire::Change::Cancel,
                Change::Hold => wire::Change::Hold,
                Change::Release => wire::Change::Release,
                Change::Retry => wire::Change::Retry,
            }
            .into(),
            tenant: 0,
            actor: "simulation".to_owned(),
        };
        let called = self.calls.call(message.group(), WITHIN, |channel| {
            let call = call.clone();
            async move { QueueServiceClient::new(channel).change_message(call).await }
        });
        let answer = match called.await {
            Ok(response) => results(response.get_ref()).map_or(ChangeAnswer::Failed, ChangeAnswer::Results),
            Err(CallError::Refused { .. }) => ChangeAnswer::Failed,
            Err(_) => ChangeAnswer::TimedOut,
        };
        self.place.recorder.count("change", 1);
        self.place.recorder.push(What::ChangeAnswered(ChangeAnswered { request, answer }));
        drop(pending);
    }
}

/// The only pool, with every source.
fn pool(mut weight: impl FnMut() -> u32) -> Put {
    let members = SOURCES.iter().map(|name| ((*name).into(), weight())).collect();
    Put::Pool(PutPool { name: "pool".into(), members })
}

fn results(response: &wire::ChangeMessageResponse) -> Option<Vec<ChangeResult>> {
    let result = |result: wire::ChangeResult| match result {
        wire::ChangeResult::Done => Some(ChangeResult::Done),
        wire::ChangeResult::AlreadyEnded => Some(ChangeResult::AlreadyEnded),
        wire::ChangeResult::InFlight => Some(ChangeResult::InFlight),
        wire::ChangeResult::Unchanged => Some(ChangeResult::Unchanged),
        wire::ChangeResult::Unspecified => None,
    };
    response.results().map(result).collect()
}

/// Reads the events of a group, and says how far it has.
struct Consumer {
    place: Place,
    group: GroupId,
    calls: LeaderCalls,
}

impl Consumer {
    async fn run(self) {
        let mut next = 1;
        loop {
            // A leader that dies, or a connection that breaks, is another try.
            let _ = self.read_from(&mut next).await;
            time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn read_from(&self, next: &mut u64) -> Option<()> {
        self.consumed(*next - 1).await?;
        let request = EventsRequest { group: self.group.0.into(), from: *next, batch_max: 0 };
        let opened = self.calls.call(self.group, WITHIN, |channel: Channel| async move {
            QueueServiceClient::new(channel).events(request).await
        });
        let mut events = opened.await.ok()?.into_inner();
        // A leader that says nothing for long may be one no longer.
        while let Some(batch) = time::timeout(WITHIN, events.message()).await.ok()?.ok()? {
            for event in batch.events {
                let Ok(event) = Event::try_from(event) else { return None };
                *next = (*next).max(through(&event) + 1);
                self.record(&event);
            }
            self.consumed(*next - 1).await?;
        }
        None
    }

    async fn consumed(&self, through: u64) -> Option<()> {
        let consumer = CONSUMER.to_owned();
        let request = ConsumeRequest { group: self.group.0.into(), consumer, through };
        let called = self.calls.call(self.group, WITHIN, |channel: Channel| {
            let request = request.clone();
            async move { QueueServiceClient::new(channel).consume(request).await }
        });
        called.await.ok().map(drop)
    }

    fn record(&self, event: &Event) {
        // Which node it came from is not known to a client that asks for the leader.
        let event = event_of(event, NodeId(0), self.group);
        if let (Some(_), Some(delivery)) = (end_of(&event.kind), delivery_of(&event.kind)) {
            self.place.has_ended(delivery);
        }
        if matches!(event.kind, EventKind::Gap { .. }) {
            self.place.events_were_dropped(self.group);
        }
        let kind = match &event.kind {
            EventKind::Accepted { .. } => "event accepted",
            EventKind::Attempt(attempt) => attempt.outcome.as_str(),
            EventKind::Ended { .. } => "event ended",
            EventKind::Held { .. } => "event held",
            EventKind::Released { .. } => "event released",
            EventKind::Retried { .. } => "event retried",
            EventKind::Requested { .. } => "event requested",
            EventKind::Gap { .. } => "event gap",
        };
        self.place.recorder.count(kind, 1);
        self.place.recorder.push(What::Event(event));
    }
}
