//! What a receiver's reply means for a delivery and for the lane it was sent on.
//!
//! [`Rules`] are data: `rules.txt` is the built-in set, read from top to bottom, and the first rule that
//! matches decides. [`Rules::classify`] is a pure function from phase and reply to [`Verdict`].
//! This crate does not know what is done with a verdict: retries belong to the ledger, pauses to the lane.

mod rules;
mod text;
mod verdict;
mod written;

pub use rules::{Rule, RuleError, Rules};
pub use verdict::{Ending, LaneEffect, Party, Phase, Refusal, Retry, Verdict};
pub use written::{WrittenReplyError, read_reply};
