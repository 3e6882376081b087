//! The outbound role: takes assignments, delivers them by SMTP, reports every outcome.
//!
//! What is decided stands in plain values: [`lane`], [`held`], [`lease`], [`rate`], [`feedback`], [`plan`], [`classify`].
//! The rest moves bytes and frames.

pub mod config;
pub mod error;
pub mod metrics;
pub mod service;

pub mod classify;
pub mod desk;
pub mod fate;
pub mod feedback;
pub mod held;
pub mod job;
pub mod lane;
pub mod lease;
pub mod plan;
pub mod rate;

mod attempt;
mod content;
mod incarnation;
mod intake;
mod journal;
mod lanes;
mod leaving;
mod ownership;
mod permit;
mod session;
mod worker;
mod workshop;

pub use config::OutboundConfig;
pub use error::StartError;
pub use service::{Outbound, OutboundDeps};
