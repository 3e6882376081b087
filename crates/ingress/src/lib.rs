//! The ingress role: accepts mail over SMTP and gRPC, and acknowledges it when it is durable.
//!
//! It has no state but caches: permissions come from the directory, and the queue has stored a message
//! before the client gets 250 or OK. Ingress does not route or schedule mail; it only looks up the site of each recipient.

pub mod config;
pub mod error;
pub mod metrics;
pub mod service;

mod auth;
mod author;
mod content;
mod grpc;
mod policy;
mod records;
mod submission;

pub use config::{IngressConfig, ListenerService, SmtpListener};
pub use error::StartError;
pub use service::{Ingress, IngressDeps};
