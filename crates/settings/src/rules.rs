//! Rules between settings that are each right by themselves.

use crate::Reading;

/// The rules of a table that is being read.
#[derive(Debug)]
pub struct Rules<'r, 'a> {
    reading: &'r mut Reading<'a>,
}

impl<'r, 'a> Rules<'r, 'a> {
    #[doc(hidden)]
    pub fn new(reading: &'r mut Reading<'a>) -> Self {
        Self { reading }
    }

    #[doc(hidden)]
    pub fn require(&mut self, names: &[String], holds: bool, expected: impl FnOnce() -> String) {
        if !holds {
            self.reading.report_rule(names, expected);
        }
    }
}

/// States a rule between fields of a table.
///
/// The fields that it is about come first; the first of them is blamed.
/// A rule about a field that is wrong already is skipped.
///
/// ```
/// use postroad_settings::{Rules, require, settings};
///
/// settings! {
///     /// How long a lane is paused.
///     pub struct PauseConfig {
///         /// The first pause.
///         first: u32 = 30;
///         /// The longest pause.
///         longest: u32 = 600;
///     }
///     rules PauseConfig::rules;
/// }
///
/// impl PauseConfig {
///     fn rules(&self, rules: &mut Rules<'_, '_>) {
///         require!(rules, self.longest, self.first; self.longest >= self.first, "expected at least `first`");
///     }
/// }
/// ```
#[macro_export]
macro_rules! require {
    ($rules:expr, $($this:ident $(. $field:ident)+),+ ; $holds:expr, $($expected:tt)+) => {{
        // The fields exist: a rule cannot name one that does not.
        $( let _ = &$this $(. $field)+; )+
        let names = [$( [$( stringify!($field) ),+].join(".") ),+];
        $rules.require(&names, $holds, || format!($($expected)+));
    }};
}
