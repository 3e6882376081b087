//! A ledger as a replicated machine: entries are batches of commands.

use std::sync::Arc;

use bytes::Bytes;
use postroad_ledger::{Ledger, Snapshot, command::Reply};
use postroad_proto::log::Batch;
use postroad_raft::{Entry, Machine, MachineError, MachineSnapshot};

use super::shared::SharedLedger;

/// Applies entries to the shared ledger.
pub(crate) struct LedgerMachine(pub(crate) Arc<SharedLedger>);

impl Machine for LedgerMachine {
    /// One reply for each command.
    type Reply = Vec<Reply>;

    fn apply(&mut self, entry: Entry<'_>) -> Result<Vec<Reply>, MachineError> {
        let batch = Batch::decode(entry.head.clone())?;
        Ok(self.0.apply(entry.index, batch))
    }

    fn snapshot(&self) -> Box<dyn MachineSnapshot> {
        Box::new(Frozen(self.0.with_ledger(Ledger::snapshot)))
    }

    fn restore(&mut self, state: Bytes) -> Result<(), MachineError> {
        self.0.replace(Ledger::restore(self.0.limits, &state)?);
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        self.0.with_ledger(Ledger::state_hash)
    }
}

struct Frozen(Snapshot);

impl MachineSnapshot for Frozen {
    fn encode(&self) -> Bytes {
        self.0.encode().into()
    }

    fn live_bodies(&self) -> Vec<(u64, u32)> {
        self.0.live_bodies().into_iter().map(|body| (body.index, body.slot)).collect()
    }
}
