//! The directory as a replicated machine; publishes a view of the applied state on this node.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_directory::{Directory, Refusal, Reply, View};
use postroad_proto::directory;
use postroad_raft::{Entry, Machine, MachineError, MachineSnapshot};
use tokio::sync::watch;

use super::metrics;

/// The replicated directory.
#[derive(Debug)]
pub struct DirectoryMachine {
    directory: Arc<Mutex<Directory>>,
    publish: watch::Sender<Arc<View>>,
}

/// The applied state, for the service.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) directory: Arc<Mutex<Directory>>,
    /// Never ahead of `directory`.
    pub(super) view: watch::Receiver<Arc<View>>,
}

impl DirectoryMachine {
    pub(super) fn new() -> (Self, Applied) {
        let directory = Arc::new(Mutex::new(Directory::new()));
        let (publish, view) = watch::channel(Arc::new(View::empty()));
        let applied = Applied { directory: directory.clone(), view };
        let machine = Self { directory, publish };
        machine.publish();
        (machine, applied)
    }

    /// Publishes the applied state.
    fn publish(&self) {
        let known = self.publish.borrow().clone();
        let directory = self.directory.lock();
        let delta = directory.changes_since(known.revision()).unwrap_or_else(|_| directory.everything());
        drop(directory);
        if !delta.is_empty() {
            self.publish_view(known.apply(delta));
        }
    }

    fn publish_view(&self, view: View) {
        metrics::revision(view.revision());
        metrics::suspensions(&view);
        self.publish.send_replace(Arc::new(view));
    }
}

impl Machine for DirectoryMachine {
    type Reply = Vec<Reply>;

    fn apply(&mut self, entry: Entry<'_>) -> Result<Vec<Reply>, MachineError> {
        let decoded = directory::Entry::decode(entry.head.clone())?;
        let commands = decoded.commands.iter();
        // A decision that depends on renewals, which only their leader knows, is void in a later term.
        if decoded.term.is_some_and(|term| term != entry.term) {
            return Ok(commands.map(|_| Err(Refusal::OtherTerm)).collect());
        }
        let mut directory = self.directory.lock();
        let replies = commands.map(|command| directory.apply(command)).collect();
        drop(directory);
        self.publish();
        Ok(replies)
    }

    fn snapshot(&self) -> Box<dyn MachineSnapshot> {
        Box::new(Frozen(self.directory.lock().clone()))
    }

    fn restore(&mut self, state: Bytes) -> Result<(), MachineError> {
        let directory = Directory::restore(&state)?;
        let delta = directory.everything();
        *self.directory.lock() = directory;
        self.publish_view(View::empty().apply(delta));
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        self.directory.lock().state_hash()
    }
}

struct Frozen(Directory);

impl MachineSnapshot for Frozen {
    fn encode(&self) -> Bytes {
        self.0.encode().into()
    }

    /// Everything is in the state: entries of the directory carry no bodies.
    fn live_bodies(&self) -> Vec<(u64, u32)> {
        Vec::new()
    }
}
