//! The components of a process, in the order in which they were started; they stop in reverse order.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A component that does not stop in this time is abandoned.
const STOP_WITHIN: Duration = Duration::from_secs(40);

/// The running components.
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
    /// Starts a component; `run` gets the token that asks it to stop.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        run: impl FnOnce(CancellationToken) -> F,
    ) {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(shutdown.clone()));
        self.running.push(Component { name, shutdown, task });
    }

    /// Waits until a component ends by itself, which none should, and returns its name.
    pub(crate) async fn first_to_end(&mut self) -> &'static str {
        loop {
            if let Some(component) = self.running.iter().find(|component| component.task.is_finished()) {
                return component.name;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops one component after the other, the last one started first.
    pub(crate) async fn stop(mut self) {
        while let Some(Component { name, shutdown, task }) = self.running.pop() {
            shutdown.cancel();
            match tokio::time::timeout(STOP_WITHIN, task).await {
                Ok(Ok(())) => tracing::debug!(component = name, "component stopped"),
                Ok(Err(error)) => tracing::error!(component = name, %error, "component failed"),
                Err(_) => tracing::warn!(component = name, "component did not stop in time"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn components_stop_in_reverse_order() {
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
    async fn the_first_component_to_end_is_named() {
        let mut components = Components::default();
        components.spawn("control", |shutdown| async move { shutdown.cancelled().await });
        components.spawn("metrics", |_| async {});
        assert_eq!(components.first_to_end().await, "metrics");
    }
}
