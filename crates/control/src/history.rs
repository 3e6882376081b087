//! The history: one SQLite database, one writer, and readers that the writer never blocks.

mod open;
mod prune;
mod read;
mod write;

pub(crate) use open::{Reader, Writer, open};
pub(crate) use prune::Retention;
pub(crate) use read::{Delivery, Filter, Gap, Message, MessageSummary, MinuteCount, Step};
