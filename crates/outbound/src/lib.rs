//! The outbound role: takes assignments, delivers them by SMTP, reports every outcome.

pub mod classify;
pub mod rate;
