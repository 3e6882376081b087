//! The sandbox as a service: its listener, its store and its pages.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::Router;
use futures::future::BoxFuture;
use postroad_net::smtp::server::{ListenerConfig, serve};
use postroad_smtp::{
    server::{ServerConfig, Service},
    tolerance::Tolerant,
};
use postroad_telemetry::{Component, Health};
use postroad_web::Nav;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{SandboxConfig, StartError, api, pages, policy::CaptureAll, store::Store};

/// What the sandbox needs of the process it runs in.
#[derive(Clone, Debug)]
pub struct SandboxDeps {
    /// Where the sandbox reports its readiness.
    pub health: Health,
    /// The links at the top of every page.
    pub nav: Nav,
    /// Where captures are kept between runs; in memory only when `None`.
    pub directory: Option<PathBuf>,
}

/// A sandbox with its listener open; [`Sandbox::run`] serves it.
#[derive(Debug)]
pub struct Sandbox {
    listener: TcpListener,
    address: SocketAddr,
    config: ListenerConfig,
    store: Arc<Store>,
    nav: Nav,
    ready: Component,
}

impl Sandbox {
    /// Opens the listener.
    ///
    /// # Errors
    /// The address cannot be listened on, or the directory cannot be used.
    pub fn start(config: SandboxConfig, deps: SandboxDeps) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(Self::open(config, deps))
    }

    async fn open(config: SandboxConfig, deps: SandboxDeps) -> Result<Self, StartError> {
        let failed = |source: io::Error| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let ready = deps.health.component("sandbox");
        let store = Store::new(config.messages_max, config.bytes_max.bytes());
        let store = match deps.directory {
            None => store,
            Some(directory) => store
                .kept_in(&directory)
                .map_err(|source| StartError::Directory { path: directory.clone(), source })?,
        };
        Ok(Self {
            listener,
            address,
            store: Arc::new(store),
            config: listener_config(config),
            nav: deps.nav,
            ready,
        })
    }

    /// Returns the address where mail is captured.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the pages under `/sandbox` and the API under `/sandbox/v1`.
    pub fn router(&self) -> Router {
        api::router(Arc::clone(&self.store)).merge(pages::router(Arc::clone(&self.store), self.nav))
    }

    /// Captures mail until `shutdown`.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.capture(shutdown))
    }

    async fn capture(self, shutdown: CancellationToken) {
        self.ready.set_ready(true);
        tracing::info!(address = %self.address, "sandbox listening");
        let policy = Arc::new(CaptureAll { store: self.store });
        serve(self.listener, self.config, policy, shutdown).await;
        self.ready.set_ready(false);
    }
}

fn listener_config(config: SandboxConfig) -> ListenerConfig {
    let default = ListenerConfig::default();
    ListenerConfig {
        name: "sandbox".into(),
        server: ServerConfig {
            hostname: config.hostname.into(),
            service: Service::Relay,
            message_size_max: config.message_size_max.bytes(),
            // It captures what any receiver might accept.
            tolerant: Tolerant::Everybody,
            ..ServerConfig::default()
        },
        // All outbound nodes deliver from one address here.
        connections_per_network_max: default.connections_max,
        ..default
    }
}
