//! The content of messages, for showing: the one door to the MIME parser.
//!
//! Transport never looks in here: what it needs of a header is in `smtp::headers`.
//! Content comes from anybody, so everything that is taken from it is bounded, and HTML is made harmless.

mod bounds;
mod html;
mod shown;

pub use bounds::TooComplex;
pub use html::sanitise_html;
pub use shown::{Attachment, Mailbox, Shown, decode_text, show};
