//! Load over both protocols to all ingress nodes of a cluster.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::task::JoinSet;

use crate::{
    ClientArgs,
    grpc::{self, WhenEnded},
    message::MessageMaker,
    plan::Plan,
    report::Tally,
    smtp,
};

const SENDER: &str = "load@example.test";
/// The recipient of every message.
pub(crate) const RECIPIENT: &str = "load@sink.test";

/// What to send.
#[derive(Clone, Debug)]
pub(crate) struct LoadSpec {
    /// Number of messages; with a rate, more follow until [`Load::finish`].
    pub(crate) messages: u64,
    /// Messages per second; without it as fast as the connections allow.
    pub(crate) rate: Option<f64>,
    /// Bytes of each.
    pub(crate) size: usize,
    pub(crate) clients: ClientArgs,
    /// What gRPC clients do when their server ends a stream; those of SMTP always connect again.
    pub(crate) when_ended: WhenEnded,
}

/// Load, half over SMTP and half over gRPC, until [`Load::finish`].
pub(crate) struct Load {
    pub(crate) tally: Arc<Tally>,
    pub(crate) started: Instant,
    plans: [Arc<Plan>; 2],
    clients: JoinSet<anyhow::Result<()>>,
}

impl Load {
    pub(crate) fn start(spec: &LoadSpec, smtp: Vec<SocketAddr>, grpc: Vec<SocketAddr>) -> Self {
        let tally = Arc::new(Tally::new(spec.messages));
        let half = spec.messages / 2;
        let plans: [Arc<Plan>; 2] = [0, 1].map(|_| {
            Arc::new(match spec.rate {
                Some(rate) => Plan::at_least(half, rate / 2.0),
                None => Plan::new(half, None),
            })
        });
        let makers = [0, 1].map(|_| MessageMaker::new(SENDER, RECIPIENT, spec.size));
        let mut clients = JoinSet::new();
        let per_target = |targets: &[SocketAddr]| ClientArgs {
            connections: spec.clients.connections.div_ceil(targets.len().max(1)),
            ..spec.clients.clone()
        };
        let clients_of = per_target(&smtp);
        for target in smtp {
            let (plan, tally, maker) = (plans[0].clone(), tally.clone(), makers[0].clone());
            let clients_of = clients_of.clone();
            clients.spawn(
                async move { smtp::run(&target.to_string(), &clients_of, &plan, &tally, &maker).await },
            );
        }
        let clients_of = per_target(&grpc);
        for target in grpc {
            let (plan, tally, maker) = (plans[1].clone(), tally.clone(), makers[1].clone());
            let (clients_of, when_ended) = (clients_of.clone(), spec.when_ended);
            clients.spawn(async move {
                grpc::run(&target.to_string(), &clients_of, &plan, &tally, &maker, when_ended).await
            });
        }
        Self { tally, started: postroad_env::now(), plans, clients }
    }

    /// Sends the planned messages if some are left, and waits for the last answer.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        self.plans.iter().for_each(|plan| plan.finish());
        let mut result = Ok(());
        while let Some(ended) = self.clients.join_next().await {
            result = result.and(ended?);
        }
        result
    }
}
