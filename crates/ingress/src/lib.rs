//! The ingress role: takes mail in over SMTP and gRPC, and says yes when it is safe.
//!
//! It keeps nothing but caches: who may send comes from the directory, and a message is the queue's before its client
//! hears of it. Where mail goes and when is decided elsewhere; ingress only names the receiver's site.

pub mod config;
pub mod error;
pub mod metrics;
pub mod service;

mod auth;
mod content;
mod author;
mod grpc;
mod submission;
mod policy;

pub use config::{IngressConfig, ListenerService, SmtpListener};
pub use error::StartError;
pub use service::{Ingress, IngressDeps};
