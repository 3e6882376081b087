//! Judges the history of a run: what clients learned, what receivers saw, what the events and replicas said.
//!
//! [`judge`] is a pure function: no I/O, no clock, no randomness. A real run and a simulated one write the same
//! [`History`], so both are judged by the same code. Read in this order: [`history`] (what is recorded),
//! `facts` (the records of each message side by side), `checks` (one small module for each invariant).
//!
//! Two rules hold for every check. A submission or change that failed or got no answer is *unknown*, never *absent*:
//! it may have been carried out. And what may still happen is no violation until the history [is complete](Phase).

mod checks;
pub mod facts;
pub mod history;
mod serial;
pub mod story;
pub mod text;
pub mod verdict;

pub use checks::judge;
pub use facts::{Facts, HistoryError};
pub use history::{History, Micros, Phase, Record, RecordNumber, What};
pub use verdict::{Bounds, Invariant, Judgement, NOT_JUDGED, Verdict, Violation};
