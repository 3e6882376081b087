//! Control as a service: followers, one writer, and the console.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use axum::Router;
use futures::future::BoxFuture;
use postroad_cluster::{DirectoryWatch, Endpoints, LeaderCalls, LeaderTable, LeaderWatch};
use postroad_core::GroupId;
use postroad_telemetry::{Component, Health};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ControlConfig, Nav, StartError, api,
    follow::Follower,
    history::{self, Reader, Retention},
    metrics::WriterMetrics,
    pages::{self, Console},
    queue::Queue,
    write::{HistoryWriter, Incoming},
};

/// Batches that may wait for the writer; followers stop reading at this bound.
const WAITING_MAX: usize = 8;

/// What control needs of the process it runs in.
#[derive(Clone, Debug)]
pub struct ControlDeps {
    /// Where the database is, unless the configuration says otherwise.
    pub data_directory: PathBuf,
    /// The queue nodes.
    pub endpoints: Endpoints,
    /// How many ledger groups the cluster has.
    pub ledger_groups: u16,
    /// Where control reports its readiness.
    pub health: Health,
    /// The links at the top of every page.
    pub nav: Nav,
}

/// A control node with its history open; [`Control::run`] follows the queue.
#[derive(Debug)]
pub struct Control {
    writer: HistoryWriter,
    reader: Reader,
    queue: Queue,
    leaders: LeaderWatch,
    directory: DirectoryWatch,
    deps: ControlDeps,
    ready: Component,
}

impl Control {
    /// Opens the history and starts to watch the leaders of the groups.
    ///
    /// # Errors
    /// The history cannot be opened.
    pub fn start(config: ControlConfig, deps: ControlDeps) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(Self::open(config, deps))
    }

    async fn open(config: ControlConfig, deps: ControlDeps) -> Result<Self, StartError> {
        let ready = deps.health.component("control");
        let database =
            config.database.map_or_else(|| deps.data_directory.join("control.sqlite"), |database| database.0);
        let (mut writer, reader) = history::open(&database).await?;
        let failed = |source| StartError::Database { path: database.clone(), source };
        let cursors = writer.cursors().await.map_err(failed)?;
        let messages = writer.count().await.map_err(failed)?;
        let retention =
            Retention { age_max: config.history_age_max, messages_max: config.history_messages_max };
        let leaders = LeaderWatch::start(&deps.endpoints);
        let queue = Queue { calls: LeaderCalls::new(&deps.endpoints, &leaders.subscribe()) };
        let writer = HistoryWriter {
            history: writer,
            cursors,
            messages,
            retention,
            metrics: WriterMetrics::new(),
            unacknowledged: HashMap::new(),
        };
        let directory = DirectoryWatch::start(&deps.endpoints);
        Ok(Self { writer, reader, queue, leaders, directory, deps, ready })
    }

    /// Returns the console and the API under `/api/v1`.
    pub fn router(&self) -> Router {
        let console = Console {
            reader: self.reader.clone(),
            queue: self.queue.clone(),
            ledger_groups: self.deps.ledger_groups,
            leaders: self.leaders.subscribe(),
            directory: self.directory.subscribe(),
            nav: self.deps.nav,
        };
        api::router(self.reader.clone()).merge(pages::router(console))
    }

    /// Follows every ledger group until `shutdown`, and writes what it has read by then.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.follow(shutdown))
    }

    async fn follow(self, shutdown: CancellationToken) {
        let Self { writer, queue, leaders, directory: _directory, deps, ready, .. } = self;
        let (batches, incoming) = mpsc::channel(WAITING_MAX);
        let followers = Followers {
            cursors: writer.cursors.clone(),
            endpoints: deps.endpoints,
            queue,
            writer: batches,
            known: HashSet::new(),
            followers: JoinSet::new(),
        };
        ready.set_ready(true);
        tokio::join!(
            followers.run(leaders.subscribe(), shutdown.clone()),
            writer.run(incoming, shutdown.clone())
        );
        ready.set_ready(false);
    }
}

/// Starts a follower for every ledger group that has a leader.
struct Followers {
    cursors: HashMap<GroupId, u64>,
    endpoints: Endpoints,
    queue: Queue,
    writer: mpsc::Sender<Incoming>,
    known: HashSet<GroupId>,
    followers: JoinSet<()>,
}

impl Followers {
    async fn run(mut self, mut leaders: watch::Receiver<LeaderTable>, shutdown: CancellationToken) {
        loop {
            let groups: Vec<GroupId> = leaders.borrow_and_update().keys().copied().collect();
            for group in groups {
                if group != GroupId::DIRECTORY && self.known.insert(group) {
                    self.followers.spawn(self.follower(group, leaders.clone()).run());
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = leaders.changed() => if changed.is_err() { break },
            }
        }
        self.followers.shutdown().await;
    }

    fn follower(&self, group: GroupId, leaders: watch::Receiver<LeaderTable>) -> Follower {
        Follower {
            group,
            cursor: self.cursors.get(&group).copied().unwrap_or(0),
            endpoints: self.endpoints.clone(),
            leaders,
            queue: self.queue.clone(),
            writer: self.writer.clone(),
        }
    }
}
