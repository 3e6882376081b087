//! The control role: keeps the history of every message, and shows it.
//!
//! It follows the events of every ledger group, writes them to SQLite together with its cursor, and then lets the queue
//! forget them. It is never on the path of mail: while it is away events wait, and nothing else does.

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
mod state;
mod write;

pub use config::ControlConfig;
pub use error::StartError;
pub use postroad_web::Nav;
pub use service::{Control, ControlDeps};
