//! What we accept although the standards do not allow it, from whom, and how it is counted.
//!
//! Our own users are served: what can be repaired without guessing is repaired, and what only has to be carried is
//! carried. Strangers get the standards, and nothing here moves the end of a message or of a header.

/// How far a client may deviate from the syntax; each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Syntax {
    /// As the RFCs say.
    Strict,
    /// A client without identity.
    Stranger,
    /// A client of a submission listener.
    Submission,
    /// A client that has authenticated with AUTH.
    LoggedIn,
}

/// To whom a listener is tolerant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tolerant {
    /// To nobody: every deviation is refused.
    Nobody,
    /// To clients by what is known of them.
    #[default]
    Known,
    /// To everybody, as a sink for tests is.
    Everybody,
}

/// A deviation that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// The name in EHLO is neither a domain nor an address literal; it decides nothing.
    ClientName,
    /// A space between `FROM:` or `TO:` and the path (RFC 5321 3.3 forbids it).
    SpaceBeforePath,
    /// More than one space after MAIL or RCPT.
    ExtraSpaces,
    /// A path without angle brackets.
    NoBrackets,
    /// A local part with a dot at its edge, or two in a row; the receiver decides.
    Dots,
    /// A local part over 64 bytes; the receiver decides.
    LongLocalPart,
    /// The line of an mbox file before the header, `From a@b.example Mon Nov 30 …`; it is removed.
    MboxLine,
    /// A field name with a space in it, `X Priority: 1`; it is carried as it is.
    FieldName,
    /// A message whose lines all end with LF; they become CRLF.
    LfLines,
}

impl Tolerance {
    /// Every tolerance.
    pub const ALL: [Self; 9] = [
        Self::ClientName,
        Self::SpaceBeforePath,
        Self::ExtraSpaces,
        Self::NoBrackets,
        Self::Dots,
        Self::LongLocalPart,
        Self::MboxLine,
        Self::FieldName,
        Self::LfLines,
    ];

    /// Returns who gets it.
    #[must_use]
    pub const fn least(self) -> Syntax {
        match self {
            Self::SpaceBeforePath => Syntax::Stranger,
            Self::ClientName => Syntax::Submission,
            Self::ExtraSpaces
            | Self::NoBrackets
            | Self::Dots
            | Self::LongLocalPart
            | Self::MboxLine
            | Self::FieldName
            | Self::LfLines => Syntax::LoggedIn,
        }
    }

    /// Returns its label in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ClientName => "client_name",
            Self::SpaceBeforePath => "space_before_path",
            Self::ExtraSpaces => "extra_spaces",
            Self::NoBrackets => "no_brackets",
            Self::Dots => "dots",
            Self::LongLocalPart => "long_local_part",
            Self::MboxLine => "mbox_line",
            Self::FieldName => "field_name",
            Self::LfLines => "lf_lines",
        }
    }
}

/// The deviations that a parser meets, each asked for before it is accepted.
#[derive(Debug)]
pub struct Tolerances {
    syntax: Syntax,
    accepted: Vec<Tolerance>,
}

impl Tolerances {
    /// Starts with none.
    #[must_use]
    pub fn new(syntax: Syntax) -> Self {
        Self { syntax, accepted: Vec::new() }
    }

    /// Accepts and notes a deviation, or returns false.
    pub fn accept(&mut self, tolerance: Tolerance) -> bool {
        let accepted = self.syntax >= tolerance.least();
        if accepted {
            self.accepted.push(tolerance);
        }
        accepted
    }

    /// Returns the deviations that were accepted.
    #[must_use]
    pub fn into_accepted(self) -> Vec<Tolerance> {
        self.accepted
    }
}
