//! The outbound role as a whole: between a queue that is played here and receivers that behave by script.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod broken_off;
mod delivery;
mod lease;
mod node;
mod queue;
mod work;
