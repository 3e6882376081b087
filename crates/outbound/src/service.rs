//! The role: owns all tasks, and stops them in order.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use postroad_cluster::{DirectoryClient, DirectoryWatch, Endpoints, LeaderTable, LeaderWatch};
use postroad_core::{GroupId, NodeId};
use postroad_directory::{Source, View};
use postroad_dns::Resolver;
use postroad_net::{ClientTls, Connector, Guard};
use postroad_telemetry::Health;
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinError, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::OutboundConfig,
    content::ContentSource,
    context::DeliveryContext,
    conversion::Conversions,
    error::StartError,
    feedback::FeedbackConfig,
    group_attempts::GroupAttempts,
    incarnation::{Home, Incarnation},
    journal::Journal,
    lane::LaneConfig,
    lanes::Lanes,
    metrics::OutboundMetrics,
    ownership::{Ownership, watch_lease},
    release::SourceReleases,
    session::Session,
};

/// What an outbound node needs from its host process.
#[derive(Debug)]
pub struct OutboundDeps {
    /// The id of this node; it belongs to one home.
    pub node: NodeId,
    /// Where it keeps what outlives its process.
    pub home: Home,
    /// The queue nodes.
    pub endpoints: Endpoints,
    /// Finds mail hosts.
    pub resolver: Resolver,
    /// Opens connections to mail hosts.
    pub connector: Connector,
    /// Refuses connections to forbidden networks.
    pub guard: Guard,
    /// TLS with receivers.
    pub tls: ClientTls,
    /// Where readiness is reported.
    pub health: Health,
}

/// An outbound node that has locked its data directory and not claimed any source yet.
#[derive(Debug)]
pub struct Outbound {
    config: OutboundConfig,
    deps: OutboundDeps,
    incarnation: Incarnation,
}

/// The pending attempts of each group.
pub(crate) type AttemptsByGroup = Arc<Mutex<BTreeMap<GroupId, Arc<GroupAttempts>>>>;

/// How long outcomes may take to be committed when the process stops.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

impl Outbound {
    /// Locks the data directory and writes a new incarnation.
    ///
    /// # Errors
    /// The data directory cannot be used or is in use.
    pub fn start(config: OutboundConfig, deps: OutboundDeps) -> Result<Self, StartError> {
        let incarnation = Incarnation::begin(&deps.home, deps.node, postroad_env::random())?;
        Ok(Self { config, deps, incarnation })
    }

    /// Claims this node's sources and delivers what is assigned to it, until `shutdown`.
    ///
    /// Then no new transaction starts, running ones may finish within the drain time, outcomes are reported,
    /// and the sources are released.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.deliver(shutdown))
    }

    async fn deliver(self, shutdown: CancellationToken) {
        let Self { config, deps, incarnation } = self;
        let leader_watch = LeaderWatch::start(&deps.endpoints);
        let directory_watch = DirectoryWatch::start(&deps.endpoints);
        let running = Running::new(config, deps, &leader_watch, &directory_watch);
        let mut tasks = JoinSet::new();
        let release = CancellationToken::new();
        let (claimed_incarnation, _) = watch::channel(None);
        let (to_release, watch_to_release) = watch::channel(Vec::new());
        let directory = DirectoryClient::new(&running.endpoints, &running.leaders);
        let releases = SourceReleases {
            node: running.node,
            directory: directory.clone(),
            lanes: running.lanes.clone(),
            by_group: running.by_group.clone(),
            claimed_incarnation: claimed_incarnation.subscribe(),
            to_release: watch_to_release,
            drain: running.context.config.drain_timeout,
        };
        tasks.spawn(releases.run());
        let ownership = Ownership {
            node: running.node,
            incarnation,
            directory,
            lease: running.context.lease.clone(),
            claimed_incarnation: claimed_incarnation.clone(),
            to_release,
        };
        let mut owning = JoinSet::new();
        owning.spawn(ownership.run(release.clone()));
        running.spawn_tasks(&mut tasks, &claimed_incarnation);
        tokio::select! {
            () = shutdown.cancelled() => {}
            Some(ended) = owning.join_next() => log_lost_claim(ended),
            Some(ended) = tasks.join_next() => panic!("a task of the outbound role ended: {ended:?}"),
        }
        running.drain().await;
        release.cancel();
        while owning.join_next().await.is_some() {}
        tasks.shutdown().await;
    }
}

/// The claim's task ends by itself only when the data directory fails: then no mail may be sent, and the process, whose
/// role ends before it was asked to, exits with an error.
fn log_lost_claim(ended: Result<Result<(), StartError>, JoinError>) {
    match ended {
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "outbound stops: it cannot claim its sources again");
        }
        ended => panic!("the claim's task ended: {ended:?}"),
    }
}

/// What the tasks of the role share.
struct Running {
    node: NodeId,
    endpoints: Endpoints,
    leaders: watch::Receiver<LeaderTable>,
    lanes: Arc<Lanes>,
    context: Arc<DeliveryContext>,
    by_group: AttemptsByGroup,
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
        let journal = Journal::open(&deps.home);
        let leaders = leaders.subscribe();
        let lane_config = LaneConfig {
            feedback: FeedbackConfig {
                initial: config.connections_initial,
                pause_first: config.pause_first,
                pause_max: config.pause_max,
            },
            wait_max: config.lane_wait_timeout,
            idle: config.idle_timeout,
        };
        let context = DeliveryContext {
            timeouts: (&config.timeouts).into(),
            resolver: deps.resolver,
            connector: deps.connector,
            guard: deps.guard,
            tls: deps.tls,
            lease: Arc::default(),
            directory: directory.subscribe(),
            content: ContentSource::new(&deps.endpoints, &leaders, config.large_content_bytes_max.to_usize()),
            conversions: Conversions::new(
                config.conversion_bytes_max.to_usize(),
                metrics.conversion_waits.clone(),
            ),
            metrics: metrics.clone(),
            config,
        };
        Self {
            node: deps.node,
            endpoints: deps.endpoints,
            leaders,
            lanes: Arc::new(Lanes::new(lane_config, journal, metrics)),
            context: Arc::new(context),
            by_group: AttemptsByGroup::default(),
            health: deps.health,
        }
    }

    fn spawn_tasks(&self, tasks: &mut JoinSet<()>, claimed_incarnation: &watch::Sender<Option<u64>>) {
        let (lanes, context) = (&self.lanes, &self.context);
        tasks.spawn(watch_lease(context.lease.clone(), context.metrics.clone()));
        tasks.spawn(lanes.clone().run_timers(context.clone()));
        tasks.spawn(lanes.clone().run_journal());
        tasks.spawn(lanes.clone().run_observer());
        tasks.spawn(follow_sources(
            self.node,
            lanes.clone(),
            context.clone(),
            claimed_incarnation.subscribe(),
            self.health.clone(),
        ));
        let sessions = Sessions {
            node: self.node,
            endpoints: self.endpoints.clone(),
            leaders: self.leaders.clone(),
            lanes: lanes.clone(),
            context: context.clone(),
            by_group: self.by_group.clone(),
            claimed_incarnation: claimed_incarnation.subscribe(),
            budget: Arc::new(Semaphore::new(context.config.content_bytes_max.to_usize())),
        };
        tasks.spawn(sessions.run());
    }

    /// Lets transactions finish, and reports their outcomes.
    async fn drain(&self) {
        self.lanes.drain();
        let bound = self.context.config.drain_timeout;
        if time::timeout(bound, self.lanes.finished()).await.is_err() {
            tracing::warn!("aborting transactions that did not finish within the drain time");
            self.lanes.abort_all();
            self.lanes.finished().await;
        }
        let lanes = self.lanes.clone();
        if postroad_env::blocking(move || lanes.close_journal()).await.is_err() {
            tracing::error!("cannot write the lane journal");
        }
        let flushed = time::timeout(FLUSH_WITHIN, async {
            while !self.is_flushed() {
                time::sleep(Duration::from_millis(5)).await;
            }
        });
        if flushed.await.is_err() {
            tracing::warn!("stopping with unconfirmed outcomes: their attempts will end as unknown");
        }
    }

    fn is_flushed(&self) -> bool {
        self.by_group
            .lock()
            .values()
            .all(|attempts| attempts.with(|pending| pending.counts().1 == 0 && !pending.has_answers()))
    }
}

/// Updates the lanes' sources whenever the directory, the claim or the lease changes; runs until dropped.
async fn follow_sources(
    node: NodeId,
    lanes: Arc<Lanes>,
    context: Arc<DeliveryContext>,
    mut claimed_incarnation: watch::Receiver<Option<u64>>,
    health: Health,
) {
    let component = health.component("outbound");
    let (mut directory, mut lease_valid) = (context.directory.clone(), context.lease.watch());
    loop {
        let view: Arc<View> = directory.borrow_and_update().clone();
        let incarnation = *claimed_incarnation.borrow_and_update();
        lease_valid.borrow_and_update();
        match incarnation.filter(|_| context.lease.is_valid()) {
            Some(incarnation) => {
                let owned: Vec<Arc<Source>> = view.sources_of(node, incarnation).cloned().collect();
                lanes.set_sources(&view, &owned);
                component.set_ready(true);
            }
            None => {
                lanes.abort_all();
                component.set_ready(false);
            }
        }
        let changed = tokio::select! {
            changed = directory.changed() => changed,
            changed = claimed_incarnation.changed() => changed,
            changed = lease_valid.changed() => changed,
        };
        if changed.is_err() {
            // A sender was dropped: the role is stopping.
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
    context: Arc<DeliveryContext>,
    by_group: AttemptsByGroup,
    claimed_incarnation: watch::Receiver<Option<u64>>,
    budget: Arc<Semaphore>,
}

impl Sessions {
    /// Starts a session for every group with a leader; runs until dropped.
    async fn run(mut self) {
        let mut sessions = JoinSet::new();
        let (groups, watch_groups) = watch::channel(0);
        loop {
            let known: Vec<GroupId> = self.leaders.borrow_and_update().keys().copied().collect();
            for group in known.into_iter().filter(|group| *group != GroupId::DIRECTORY) {
                let mut by_group = self.by_group.lock();
                if by_group.contains_key(&group) {
                    continue;
                }
                let attempts = Arc::new(GroupAttempts::new(group));
                by_group.insert(group, attempts.clone());
                groups.send_replace(u32::try_from(by_group.len()).unwrap_or(u32::MAX));
                drop(by_group);
                sessions.spawn(Box::pin(self.session(attempts, watch_groups.clone()).run()));
            }
            tokio::select! {
                Ok(()) = self.leaders.changed() => {}
                Some(ended) = sessions.join_next() => panic!("a work session ended: {ended:?}"),
                else => std::future::pending().await,
            }
        }
    }

    fn session(&self, attempts: Arc<GroupAttempts>, groups: watch::Receiver<u32>) -> Session {
        Session {
            node: self.node,
            attempts,
            lanes: self.lanes.clone(),
            context: self.context.clone(),
            endpoints: self.endpoints.clone(),
            leaders: self.leaders.clone(),
            claimed_incarnation: self.claimed_incarnation.clone(),
            budget: self.budget.clone(),
            groups,
            term: 0,
        }
    }
}
