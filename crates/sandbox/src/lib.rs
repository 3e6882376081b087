//! Captures mail as an SMTP receiver instead of delivering it, and shows it.
//!
//! Outbound nodes are routed here like to any receiver, so that what is captured went the whole way.
//! Captures live in memory, the newest of them, and nowhere else; they are parsed only when somebody looks.

mod api;
mod capture;
mod config;
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
