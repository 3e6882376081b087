//! What an operator can say about a control node.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The `[control]` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// The file of the history's database; it is made where it is not there.
    pub database: PathBuf,
    /// How long the history of a message is kept.
    pub history_age_max_secs: u64,
    /// Messages whose history is kept; that of the oldest goes first.
    pub history_messages_max: u64,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            database: PathBuf::from("control.sqlite"),
            history_age_max_secs: 30 * 24 * 60 * 60,
            history_messages_max: 1_000_000,
        }
    }
}
