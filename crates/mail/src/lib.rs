//! Parses the content of messages for showing: the only crate that uses the MIME parser.
//!
//! Transport does not use this crate: what it needs of a header is in `smtp::headers`.
//! Content is untrusted, so everything that is read from it is bounded, and HTML is sanitised.

mod parsed;

mod bounds;
mod charset;
mod html;
mod parameters;
mod words;

pub use bounds::TooComplex;
pub use html::sanitise_html;
pub use parsed::{Attachment, Mailbox, ParsedMessage, decode_text, parse};
