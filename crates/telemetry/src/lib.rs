//! Logs, traces, the metric catalogue and health of a process.
//!
//! The binary calls [`init`] once; other crates declare metrics ([`Metric`]), record them with the `metrics` macros, and
//! report their readiness through a [`Component`].

mod catalogue;
mod config;
mod health;
mod process;
mod quiet;
mod recorder;
mod server;
mod start;
pub mod trace;

pub use catalogue::{Kind, Metric, describe};
pub use config::{LogFilter, LogFormat, OtlpEndpoint, TelemetryConfig};
pub use health::{Component, Health};
pub use recorder::render;
pub use server::{router, serve};
pub use start::{InitError, Telemetry, init};
