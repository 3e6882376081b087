//! The content of messages: converted for the next hop, and parsed for showing.
//!
//! The only crate that uses the MIME parser, which reads for people only: what is sent never passes through it.
//! What transport needs of a header is in `smtp::headers`.
//! Content is untrusted, so everything that is read from it is bounded, and HTML is sanitised.

pub mod finish;

mod parsed;

mod bounds;
mod charset;
mod html;
mod parameters;
mod words;

pub use bounds::TooComplex;
pub use html::sanitise_html;
pub use parsed::{Attachment, Mailbox, ParsedMessage, decode_text, parse};
