//! Logs, traces, metrics and health of a process.
//!
//! The binary calls [`init`] once. Other crates declare metrics with [`catalogue!`] and record them through the handles of
//! the declarations, write what happens to mail with [`mail_log::write`], and report their readiness through a
//! [`Component`].

mod catalogue;
mod config;
mod data_disk;
mod health;
pub mod mail_log;
mod own_metrics;
mod process;
mod quiet;
mod ranking;
mod recorder;
mod server;
mod start;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;

pub use catalogue::{Family, Kind, Label, Metric, Values};
pub use config::{LogAddresses, LogFilter, LogFilterError, LogFormat, OtlpEndpoint, TelemetryConfig};
pub use data_disk::{CATALOGUE as DATA_DISK_CATALOGUE, DataDisk, data_disk, show_data_disk};
pub use health::{CATALOGUE as HEALTH_CATALOGUE, Component, Health};
pub use metrics::{Counter, Gauge, Histogram};
pub use own_metrics::CATALOGUE;
pub use process::CATALOGUE as PROCESS_CATALOGUE;
pub use ranking::{Depths, OTHER, Ranked, RankedCounter, RankedHistogram, Ranking, Tallied, Tally};
pub use recorder::render;
pub use server::{router, serve};
pub use start::{InitError, Telemetry, init};
