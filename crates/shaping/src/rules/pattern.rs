//! A pattern of a rule, compiled when its file is read or when it is first compared.

use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

/// What one pattern may take in memory, compiled.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// A regular expression over the form of a text that rules are written for.
///
/// The built-in rules are compiled on first use: a process that meets no refusal compiles none of them.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    source: Box<str>,
    compiled: OnceLock<Regex>,
}

impl Pattern {
    /// Compiles `source`, which is somebody's input.
    pub(super) fn checked(source: &str) -> Result<Self, regex::Error> {
        compile(source).map(|regex| Self { source: source.into(), compiled: OnceLock::from(regex) })
    }

    /// Keeps `source`, of which a test says that it compiles.
    pub(super) fn built_in(source: &str) -> Self {
        Self { source: source.into(), compiled: OnceLock::new() }
    }

    pub(super) fn is_match(&self, text: &[u8]) -> bool {
        let regex = self
            .compiled
            .get_or_init(|| compile(&self.source).expect("a test compiles the patterns that are built in"));
        regex.is_match(text)
    }
}

fn compile(source: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(source).unicode(false).size_limit(PATTERN_BYTES_MAX).build()
}
