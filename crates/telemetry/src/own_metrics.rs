//! What telemetry itself records.

use crate::{Counter, Label, mail_log::Event};

const EVENT: Label = Label::one_of("event", &[Event::Rejected.as_str(), Event::LoginFailed.as_str()]);

crate::catalogue! {
    /// Lines written to the mail log
    counter MAIL_LOG_LINES = "postroad_mail_log_lines_total" [];
    /// Lines of the mail log that were lost because the buffer was full or the file could not be written
    counter MAIL_LOG_LOST = "postroad_mail_log_lost_lines_total" [];
    /// Lines left out of the mail log because clients caused more than telemetry.rejected_lines_per_sec_max in a second
    counter MAIL_LOG_OMITTED = "postroad_mail_log_omitted_lines_total" [EVENT];
}

/// The handles of the mail log.
#[derive(Debug)]
pub(crate) struct MailLogMetrics {
    pub(crate) lines: Counter,
    pub(crate) lost: Counter,
    pub(crate) rejected: Counter,
    pub(crate) logins: Counter,
}

impl MailLogMetrics {
    pub(crate) fn new() -> Self {
        Self {
            lines: MAIL_LOG_LINES.with([]),
            lost: MAIL_LOG_LOST.with([]),
            rejected: MAIL_LOG_OMITTED.with([Event::Rejected.as_str()]),
            logins: MAIL_LOG_OMITTED.with([Event::LoginFailed.as_str()]),
        }
    }
}
