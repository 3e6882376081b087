//! The settings of a control node.

use std::time::Duration;

use postroad_settings::{WritableFile, settings};

settings! {
    /// How a control node keeps the history of messages.
    pub struct ControlConfig {
        /// The SQLite database.
        /// Left out, it is `control.sqlite` in the node's data directory.
        database: Option<WritableFile>;
        /// How long the history of a message is kept.
        history_age_max: Duration = Duration::from_hours(30 * 24),
            within Duration::from_hours(1)..=Duration::from_hours(3650 * 24);
        /// Messages whose history is kept; at the limit the oldest are deleted.
        history_messages_max: u64 = 1_000_000, within 1000..=1_000_000_000;
    }
}
