//! Readiness: whether this process should get work.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::catalogue::{Kind, Label, Metric};

/// Written as text: components appear while the process starts.
const READY: Metric = Metric::new(
    Kind::Gauge,
    "postroad_ready",
    "1 while the component is ready; the process is ready, as /readyz says, while all of them are",
    &[Label::few("component", "the components that /readyz names, such as `queue` and `disk`")],
);

/// The metric of readiness.
pub static CATALOGUE: &[&Metric] = &[&READY];

/// The components of a process and whether each is ready; a cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<String, Arc<AtomicBool>>>>,
}

/// The readiness of one component; not ready at first.
#[derive(Clone, Debug)]
pub struct Component {
    ready: Arc<AtomicBool>,
}

impl Health {
    /// Starts without components, which counts as ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component, not ready yet; a second one of the same name shares the first one's readiness.
    #[must_use]
    pub fn component(&self, name: impl Into<String>) -> Component {
        let ready = Arc::clone(self.components.lock().entry(name.into()).or_default());
        Component { ready }
    }

    /// Returns true when every component is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.components.lock().values().all(|ready| ready.load(Ordering::Relaxed))
    }

    /// Returns the names of the components that are not ready, sorted.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let components = self.components.lock();
        let not_ready = components.iter().filter(|(_, ready)| !ready.load(Ordering::Relaxed));
        not_ready.map(|(name, _)| name.clone()).collect()
    }

    /// Appends the readiness of every component in Prometheus' text format.
    pub(crate) fn render_into(&self, text: &mut String) {
        let Metric { name, kind, help, .. } = READY;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        for (component, ready) in self.components.lock().iter() {
            let ready = u8::from(ready.load(Ordering::Relaxed));
            let _ = writeln!(text, "{name}{{component=\"{component}\"}} {ready}");
        }
        text.push('\n');
    }
}

impl Component {
    /// Sets whether the component is ready.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Returns whether the component is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_component_is() {
        let health = Health::new();
        assert!(health.is_ready());
        let raft = health.component("raft");
        let listeners = health.component("listeners");
        assert_eq!(health.not_ready(), ["listeners", "raft"]);
        raft.set_ready(true);
        assert!(!health.is_ready());
        listeners.set_ready(true);
        assert!(health.is_ready() && health.not_ready().is_empty());
        health.component("raft").set_ready(false);
        assert!(!raft.is_ready() && !health.is_ready());
    }
}
