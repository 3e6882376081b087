//! The role: owns every task, and stops them in order.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_cluster::{DirectoryClient, DirectoryWatch, Endpoints, LeaderTable, LeaderWatch};
use postroad_core::{GroupId, NodeId};
use postroad_directory::{Source, View};
use postroad_dns::Resolver;
use postroad_net::{ClientTls, Guard};
use postroad_telemetry::Health;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::OutboundConfig,
    content::ContentSource,
    context::Workshop,
    error::StartError,
    feedback::FeedbackConfig,
    group_attempts::Desk,
    incarnation::Incarnation,
    journal::Journal,
    lane::LaneConfig,
    lanes::Lanes,
    metrics::OutboundMetrics,
    ownership::{Ownership, watch_lease},
    release::Leaving,
    session::Session,
};

/// What an outbound node is given.
#[derive(Debug)]
pub struct OutboundDeps {
    /// Who this node is; never used by another data directory.
    pub node: NodeId,
    /// The queue nodes.
    pub endpoints: Endpoints,
    /// Finds mail hosts.
    pub resolver: Resolver,
    /// Keeps connections away from where they must not go.
    pub guard: Guard,
    /// How TLS is done with receivers.
    pub tls: ClientTls,
    /// Where readiness is told.
    pub health: Health,
}

/// An outbound node that holds its data directory and has claimed nothing yet.
#[derive(Debug)]
pub struct Outbound {
    config: OutboundConfig,
    deps: OutboundDeps,
    incarnation: Incarnation,
}

pub(crate) type Desks = Arc<Mutex<BTreeMap<GroupId, Arc<Desk>>>>;

/// How long outcomes may take to be committed when the process stops.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

impl Outbound {
    /// Locks the data directory and writes down that a new run begins.
    ///
    /// # Errors
    /// The configuration contradicts itself, or the data directory cannot be used or is in use.
    pub fn start(config: OutboundConfig, deps: OutboundDeps) -> Result<Self, StartError> {
        if let Some((key, expected)) = config.problems().into_iter().next() {
            return Err(StartError::Config { key, expected });
        }
        let incarnation = Incarnation::begin(&config.data_directory, deps.node, rand::random())?;
        Ok(Self { config, deps, incarnation })
    }

    /// Claims this node's sources and delivers what is assigned to it, until `shutdown`.
    ///
    /// Then no transaction begins, those under way may end within the drain bound, outcomes are reported,
    /// and the sources are released.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { config, deps, incarnation } = self;
        let leader_watch = LeaderWatch::start(&deps.endpoints);
        let directory_watch = DirectoryWatch::start(&deps.endpoints);
        let running = Running::new(config, deps, &leader_watch, &directory_watch);
        let mut tasks = JoinSet::new();
        let release = CancellationToken::new();
        let (tenure, _) = watch::channel(None);
        let (asked, watch_asked) = watch::channel(Vec::new());
        let directory = DirectoryClient::new(&running.endpoints, &running.leaders);
        let leaving = Leaving {
            node: running.node,
            directory: directory.clone(),
            lanes: running.lanes.clone(),
            desks: running.desks.clone(),
            tenure: tenure.subscribe(),
            asked: watch_asked,
            drain: Duration::from_secs(running.workshop.config.drain_secs),
        };
        tasks.spawn(leaving.run());
        let ownership = Ownership {
            node: running.node,
            incarnation,
            directory,
            lease: running.workshop.lease.clone(),
            tenure: tenure.clone(),
            asked,
        };
        let mut owning = JoinSet::new();
        owning.spawn(ownership.run(release.clone()));
        running.spawn_tasks(&mut tasks, &tenure);
        tokio::select! {
            () = shutdown.cancelled() => {}
            // It ends by itself only when the data directory fails: then nothing may be sent any more.
            Some(ended) = owning.join_next() => tracing::error!(?ended, "the claim on sources was lost"),
            Some(ended) = tasks.join_next() => panic!("a task of the outbound role ended: {ended:?}"),
        }
        running.drain().await;
        release.cancel();
        while owning.join_next().await.is_some() {}
        tasks.shutdown().await;
    }
}

/// What the tasks of the role share.
struct Running {
    node: NodeId,
    endpoints: Endpoints,
    leaders: watch::Receiver<LeaderTable>,
    lanes: Arc<Lanes>,
    workshop: Arc<Workshop>,
    desks: Desks,
    health: Health,
}

impl Running {
    fn new(
        config: OutboundConfig,
        deps: OutboundDeps,
        leaders: &LeaderWatch,
        directory: &DirectoryWatch,
    ) -> Self {
        let metrics = Arc::new(OutboundMetrics::default());
        let journal = Journal::open(&config.data_directory);
        let leaders = leaders.subscribe();
        let seconds = Duration::from_secs;
        let lane_config = LaneConfig {
            feedback: FeedbackConfig {
                initial: config.connections_initial,
                pause_first: seconds(config.suspension_first_secs),
                pause_max: seconds(config.suspension_max_secs),
            },
            wait_max: seconds(config.wait_max_secs),
            idle: seconds(config.idle_secs),
        };
        let workshop = Workshop {
            timeouts: config.timeouts.timeouts(),
            resolver: deps.resolver,
            guard: deps.guard,
            tls: deps.tls,
            lease: Arc::default(),
            directory: directory.subscribe(),
            content: ContentSource::new(&deps.endpoints, &leaders, config.large_content_bytes_max),
            metrics: metrics.clone(),
            config,
        };
        Self {
            node: deps.node,
            endpoints: deps.endpoints,
            leaders,
            lanes: Arc::new(Lanes::new(lane_config, journal, metrics)),
            workshop: Arc::new(workshop),
            desks: Desks::default(),
            health: deps.health,
        }
    }

    fn spawn_tasks(&self, tasks: &mut JoinSet<()>, tenure: &watch::Sender<Option<u64>>) {
        let (lanes, workshop) = (&self.lanes, &self.workshop);
        tasks.spawn(watch_lease(workshop.lease.clone(), workshop.metrics.clone()));
        tasks.spawn(lanes.clone().keep_timers(workshop.clone()));
        tasks.spawn(lanes.clone().keep_journal());
        tasks.spawn(follow_sources(
            self.node,
            lanes.clone(),
            workshop.clone(),
            tenure.subscribe(),
            self.health.clone(),
        ));
        let sessions = Sessions {
            node: self.node,
            endpoints: self.endpoints.clone(),
            leaders: self.leaders.clone(),
            lanes: lanes.clone(),
            workshop: workshop.clone(),
            desks: self.desks.clone(),
            tenure: tenure.subscribe(),
            budget: Arc::new(Semaphore::new(workshop.config.content_bytes_max)),
        };
        tasks.spawn(sessions.run());
    }

    /// Ends what is under way, and reports it.
    async fn drain(&self) {
        self.lanes.drain();
        let bound = Duration::from_secs(self.workshop.config.drain_secs);
        if time::timeout(bound, self.lanes.finished()).await.is_err() {
            tracing::warn!("transactions were broken off at the drain bound");
            self.lanes.suspend();
            self.lanes.finished().await;
        }
        let lanes = self.lanes.clone();
        if tokio::task::spawn_blocking(move || lanes.close_journal()).await.is_err() {
            tracing::error!("the journal of lanes could not be written");
        }
        let flushed = time::timeout(FLUSH_WITHIN, async {
            while !self.is_flushed() {
                time::sleep(Duration::from_millis(5)).await;
            }
        });
        if flushed.await.is_err() {
            tracing::warn!("some outcomes were not committed: their attempts will end as unknown");
        }
    }

    fn is_flushed(&self) -> bool {
        self.desks.lock().values().all(|desk| desk.with(|held| held.counts().1 == 0 && !held.has_answers()))
    }
}

/// Takes over what this node owns whenever the directory, the claim or the lease changes; runs until dropped.
async fn follow_sources(
    node: NodeId,
    lanes: Arc<Lanes>,
    workshop: Arc<Workshop>,
    mut tenure: watch::Receiver<Option<u64>>,
    health: Health,
) {
    let component = health.component("outbound");
    let (mut directory, mut held) = (workshop.directory.clone(), workshop.lease.watch());
    loop {
        let view: Arc<View> = directory.borrow_and_update().clone();
        let incarnation = *tenure.borrow_and_update();
        held.borrow_and_update();
        match incarnation.filter(|_| workshop.lease.holds()) {
            Some(incarnation) => {
                let owned: Vec<Arc<Source>> = view.sources_of(node, incarnation).cloned().collect();
                lanes.set_sources(&view, &owned);
                component.set_ready(true);
            }
            None => {
                lanes.suspend();
                component.set_ready(false);
            }
        }
        let changed = tokio::select! {
            changed = directory.changed() => changed,
            changed = tenure.changed() => changed,
            changed = held.changed() => changed,
        };
        if changed.is_err() {
            // Whoever tells of changes is gone: the role is being stopped.
            return std::future::pending().await;
        }
    }
}

/// One session for each ledger group.
struct Sessions {
    node: NodeId,
    endpoints: Endpoints,
    leaders: watch::Receiver<LeaderTable>,
    lanes: Arc<Lanes>,
    workshop: Arc<Workshop>,
    desks: Desks,
    tenure: watch::Receiver<Option<u64>>,
    budget: Arc<Semaphore>,
}

impl Sessions {
    /// Starts a session for every group that gets a leader; runs until dropped.
    async fn run(mut self) {
        let mut sessions = JoinSet::new();
        let (groups, watch_groups) = watch::channel(0);
        loop {
            let known: Vec<GroupId> = self.leaders.borrow_and_update().keys().copied().collect();
            for group in known.into_iter().filter(|group| *group != GroupId::DIRECTORY) {
                let mut desks = self.desks.lock();
                if desks.contains_key(&group) {
                    continue;
                }
                let desk = Arc::new(Desk::new(group));
                desks.insert(group, desk.clone());
                groups.send_replace(u32::try_from(desks.len()).unwrap_or(u32::MAX));
                drop(desks);
                sessions.spawn(Box::pin(self.session(desk, watch_groups.clone()).run()));
            }
            tokio::select! {
                Ok(()) = self.leaders.changed() => {}
                Some(ended) = sessions.join_next() => panic!("a work session ended: {ended:?}"),
                else => std::future::pending().await,
            }
        }
    }

    fn session(&self, desk: Arc<Desk>, groups: watch::Receiver<u32>) -> Session {
        Session {
            node: self.node,
            desk,
            lanes: self.lanes.clone(),
            workshop: self.workshop.clone(),
            endpoints: self.endpoints.clone(),
            leaders: self.leaders.clone(),
            tenure: self.tenure.clone(),
            budget: self.budget.clone(),
            groups,
            term: 0,
        }
    }
}
