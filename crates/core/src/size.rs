//! Sizes in bytes, as configuration files write them.

use std::{fmt, str::FromStr};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// The text is not a size: a whole number, optionally followed by `KiB`, `MiB`, `GiB` or `TiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSizeError;

impl ByteSize {
    /// Makes a size of so many kibibytes.
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// Makes a size of so many mebibytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// Makes a size of so many gibibytes.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the number of bytes as a length in memory; more than fits counts as the most that does.
    #[must_use]
    pub fn to_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| text.strip_suffix(name).map(|digits| (digits, *unit)))
            .unwrap_or((text, 1));
        let count: u64 = digits.trim_end().parse().map_err(|_| ByteSizeError)?;
        count.checked_mul(unit).map(Self).ok_or(ByteSizeError)
    }
}

impl ByteSize {
    /// Returns the size in words, for errors and replies: `1 MiB`, `2000 bytes`.
    #[must_use]
    pub fn in_words(self) -> String {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{} {name}", self.0 / unit),
            None => format!("{} bytes", self.0),
        }
    }
}

/// Uses the largest unit that leaves a whole number.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for ByteSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a whole number of bytes, optionally with KiB, MiB, GiB or TiB")
    }
}

impl std::error::Error for ByteSizeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_trip_as_text() {
        for (text, bytes) in
            [("0", 0), ("1023", 1023), ("1KiB", 1024), ("25MiB", 26_214_400), ("3TiB", 3 << 40)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(
            [ByteSize::kib(3), ByteSize::mib(3), ByteSize::gib(3)].map(|size| size.to_string()),
            ["3KiB", "3MiB", "3GiB"]
        );
        assert_eq!("64 MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!(ByteSize(64 << 20).in_words(), "64 MiB");
        assert_eq!(ByteSize(2000).in_words(), "2000 bytes");
        for text in ["", "MiB", "-1", "1.5MiB", "1MB", "99999999999TiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ByteSizeError), "{text:?}");
        }
    }
}
