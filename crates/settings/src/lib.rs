//! Settings are declared once, with [`settings!`]: name, type, default, bounds and one doc comment.
//!
//! From that declaration come the struct that a role uses, the reading of a TOML file with all its errors,
//! `config print`, the JSON Schema and the reference page.
//! This crate knows no setting and no role.
//!
//! A configuration file is a table whose settings are tables: both are declared the same way.

mod changes;
mod choices;
mod document;
mod error;
mod field;
mod page;
mod path;
mod print;
mod reading;
mod rules;
mod schema;
mod setting;
mod source;
mod table;
mod value;

pub use changes::{Change, changes};
pub use document::{Given, Item, Origin};
pub use error::{ConfigError, Problem, Problems};
pub use field::{Bounds, Field};
pub use page::reference;
pub use path::{ReadableFile, WritableDirectory, WritableFile};
pub use print::print;
pub use reading::{Reading, TableReader, Wrong};
pub use rules::Rules;
pub use schema::json_schema;
pub use setting::{Choice, Kind, Setting};
pub use source::Source;
pub use value::{HostPort, SettingValue};

#[doc(hidden)]
pub use toml;
