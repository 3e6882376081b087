//! The only clock of the role: what the leader writes into commands.

use std::time::SystemTime;

use postroad_core::Timestamp;

/// Returns the time of day.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.after(since_epoch)
}
