//! What an alert and a recorded series are.
//!
//! Expressions are PromQL. `<1d>` in one is the number of seconds of a duration, which is shortened as the windows are.

use crate::PAGES;

/// A condition that somebody should look at.
#[derive(Clone, Copy, Debug)]
pub struct Alert {
    /// Its name: also the heading in `docs/operating/alerts.md`.
    pub name: &'static str,
    /// How soon.
    pub severity: Severity,
    /// How long the condition must last.
    pub lasts: &'static str,
    /// The condition.
    pub expr: &'static str,
    /// One line for a phone, in which `{{ $labels.x }}` and `{{ $value }}` are replaced.
    pub summary: &'static str,
    /// Series in which it fires and ends, for `promtool test rules`.
    pub story: Story,
}

/// How soon somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Now, at night too: mail is refused or stuck, or the next failure stops it.
    Critical,
    /// On the next working day.
    Warning,
}

impl Severity {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// An example of an alert: series of one sample a minute, and when it fires.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// The series and their values, as `promtool test rules` writes them.
    pub series: &'static [(&'static str, &'static str)],
    /// When it does not fire, when it does, and when it has ended.
    pub quiet_fires_ended: [&'static str; 3],
}

/// Alerts that are evaluated together.
#[derive(Clone, Copy, Debug)]
pub struct AlertGroup {
    /// The name of the group.
    pub name: &'static str,
    /// Its alerts.
    pub alerts: &'static [Alert],
}

/// A series that is computed once for many readers.
#[derive(Clone, Copy, Debug)]
pub struct RecordingRule {
    /// `postroad:what:how`.
    pub name: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it is.
    pub expr: &'static str,
}

impl Alert {
    /// Returns the heading of its part of `docs/operating/alerts.md`, as links spell it.
    #[must_use]
    pub fn anchor(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Returns the address of its part of the page.
    #[must_use]
    pub fn runbook_url(&self) -> String {
        format!("{PAGES}alerts.md#{}", self.anchor())
    }
}
