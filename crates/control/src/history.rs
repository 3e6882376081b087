//! The history: one SQLite database, one writer, and readers that never wait for it.

mod open;
mod prune;
mod read;
mod write;

pub(crate) use open::{Reader, Writer, open};
pub(crate) use prune::Keep;
pub(crate) use read::{Delivery, Filter, Gap, Line, Message, MinuteCount, Step};
