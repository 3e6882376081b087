//! Logs, traces, the metric catalogue and health: how a process tells how it is.
//!
//! [`init`] is called once, by the binary; everyone else declares metrics ([`Metric`]), records them with the `metrics`
//! macros, and says through a [`Component`] whether it is ready.
//! Nothing here knows what is measured.

mod catalogue;
mod health;
mod process;
mod recorder;
mod server;
mod start;
pub mod trace;

pub use catalogue::{Kind, Metric, describe};
pub use health::{Component, Health};
pub use recorder::render;
pub use server::{router, serve};
pub use start::{InitError, LogFormat, Telemetry, TelemetryConfig, init};
