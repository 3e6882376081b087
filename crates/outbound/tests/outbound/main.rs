//! The whole outbound role, between a fake queue and receivers that behave by script.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod aborted;
mod delivery;
mod lease;
mod lost_claim;
mod node;
mod queue;
mod receiver;
mod recipients;
mod reused;
mod suspended;
mod work;
