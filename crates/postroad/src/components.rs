//! The parts of a process, in the order in which they were started; they stop in the opposite one.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A part that does not stop in this time is left behind.
const STOP_WITHIN: Duration = Duration::from_secs(40);

/// What runs.
#[derive(Debug, Default)]
pub(crate) struct Components {
    running: Vec<Component>,
}

#[derive(Debug)]
struct Component {
    name: &'static str,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Components {
    /// Starts a part; `run` is given the token that asks it to stop.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        run: impl FnOnce(CancellationToken) -> F,
    ) {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(shutdown.clone()));
        self.running.push(Component { name, shutdown, task });
    }

    /// Waits until a part ends by itself, which none should, and returns its name.
    pub(crate) async fn first_to_end(&mut self) -> &'static str {
        loop {
            if let Some(component) = self.running.iter().find(|component| component.task.is_finished()) {
                return component.name;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops one part after the other, the last one started first.
    pub(crate) async fn stop(mut self) {
        while let Some(Component { name, shutdown, task }) = self.running.pop() {
            shutdown.cancel();
            match tokio::time::timeout(STOP_WITHIN, task).await {
                Ok(Ok(())) => tracing::debug!(part = name, "stopped"),
                Ok(Err(error)) => tracing::error!(part = name, %error, "a part of the process has failed"),
                Err(_) => tracing::warn!(part = name, "did not stop in time"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn the_last_one_started_stops_first() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut components = Components::default();
        for name in ["queue", "outbound", "ingress"] {
            let order = order.clone();
            components.spawn(name, |shutdown| async move {
                shutdown.cancelled().await;
                order.lock().unwrap().push(name);
            });
        }
        components.stop().await;
        assert_eq!(*order.lock().unwrap(), ["ingress", "outbound", "queue"]);
    }

    #[tokio::test]
    async fn a_part_that_ends_by_itself_is_named() {
        let mut components = Components::default();
        components.spawn("control", |shutdown| async move { shutdown.cancelled().await });
        components.spawn("metrics", |_| async {});
        assert_eq!(components.first_to_end().await, "metrics");
    }
}
