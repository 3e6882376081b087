//! The outbound role: takes assignments, delivers them by SMTP, reports every outcome.
//!
//! Decisions are plain values: [`lane`], [`pending_attempts`], [`lease`], [`rate`], [`feedback`], [`plan`], [`result`].
//! The other modules do the I/O.

pub mod config;
pub mod error;
pub mod metrics;
pub mod service;

pub mod feedback;
pub mod group_attempts;
pub mod job;
pub mod lane;
pub mod lease;
pub mod pending_attempts;
pub mod plan;
pub mod rate;
pub mod result;

mod assignments;
mod attempt;
mod content;
mod context;
mod conversion;
mod destination;
mod incarnation;
mod journal;
mod lanes;
mod observed;
mod ownership;
mod permit;
mod probe;
mod release;
mod session;
mod source_addresses;
mod suspension;
mod worker;

pub use config::OutboundConfig;
pub use error::StartError;
pub use incarnation::Home;
pub use service::{Outbound, OutboundDeps};
