//! Captures mail as an SMTP receiver instead of delivering it, and shows it.
//!
//! Outbound nodes deliver here by a route, as to any receiver, so a captured message has passed through every role.
//! The newest captures are kept in memory only, and parsed when they are shown.

mod api;
mod capture;
mod config;
mod disk;
mod error;
pub mod metrics;
mod pages;
mod policy;
mod service;
mod store;

pub use config::SandboxConfig;
pub use error::StartError;
pub use postroad_web::Nav;
pub use service::{Sandbox, SandboxDeps};
