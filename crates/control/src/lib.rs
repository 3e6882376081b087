//! The control role: keeps the history of every message, and shows it.
//!
//! It follows the events of every ledger group, writes them to SQLite together with its cursor, and acknowledges them, so
//! that the queue deletes them. It is never on the path of mail: while it is down, events wait in the queue and mail flows.

mod api;
mod config;
mod error;
mod follow;
mod history;
pub mod metrics;
mod pages;
mod projection;
mod queue;
mod service;
mod write;

pub use config::ControlConfig;
pub use error::StartError;
pub use postroad_web::Nav;
pub use service::{Control, ControlDeps};
