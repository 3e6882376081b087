//! What a check found, and what to do.

use std::fmt::Write;

use serde::Serialize;

use crate::output::{Screen, Shown, line};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works now; something is missing or will fail.
    Warn,
    /// Does not work, or mail is refused for it.
    Fail,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The check.
    pub(crate) check: &'static str,
    /// How bad it is.
    pub(crate) level: Level,
    /// What was found, and of what.
    pub(crate) found: String,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) advice: String,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: String::new() }
    }

    pub(crate) fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), advice: advice.into() }
    }

    pub(crate) fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), advice: advice.into() }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Findings {
    pub(crate) findings: Vec<Finding>,
}

/// A check failed; the findings say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} of {1} findings are failures")]
pub(crate) struct Failed(usize, usize);

impl Findings {
    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// Returns an error when a check failed.
    pub(crate) fn failed(&self) -> Option<Failed> {
        let failed = self.count(Level::Fail);
        (failed > 0).then_some(Failed(failed, self.findings.len()))
    }
}

impl Shown for Findings {
    fn text(&self, _: Screen) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { check, level, found, advice } in &self.findings {
            let level = level.as_str();
            let _ = writeln!(text, "{level:4}  {check:width$}  {}", line(found));
            if !advice.is_empty() {
                let _ = writeln!(text, "{:4}  {:width$}  -> {}", "", "", line(advice));
            }
        }
        let [ok, warn, fail] = [Level::Ok, Level::Warn, Level::Fail].map(|level| self.count(level));
        let _ = writeln!(text, "{ok} ok, {warn} to look at, {fail} failed");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_that_is_not_ok_says_what_to_do() {
        let findings = Findings {
            findings: vec![
                Finding::ok("dns", "3 mail hosts of a.example in 4 ms"),
                Finding::fail("port 25", "blocked", "ask the provider"),
            ],
        };
        assert_eq!(
            findings.text(Screen { width: None }),
            "ok    dns      3 mail hosts of a.example in 4 ms\n\
             fail  port 25  blocked\n               -> ask the provider\n\
             1 ok, 0 to look at, 1 failed\n"
        );
        assert_eq!(findings.failed().unwrap().to_string(), "1 of 2 findings are failures");
        assert_eq!(Findings { findings: findings.findings[..1].to_vec() }.failed(), None);
    }
}
