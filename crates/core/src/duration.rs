//! Durations, written and read the way configuration files do.

use std::{fmt, str::FromStr, time::Duration};

/// A duration as text: a whole number and a unit, such as `300ms`, `30s`, `5m`, `4h` or `5d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(pub Duration);

/// The text is not a duration: a whole number followed by `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationTextError;

/// In milliseconds. `ms` comes before `m` and `s`, which are parts of it.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

impl FromStr for DurationText {
    type Err = DurationTextError;

    fn from_str(text: &str) -> Result<Self, DurationTextError> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| text.strip_suffix(name).map(|digits| (digits, *unit)))
            .ok_or(DurationTextError)?;
        let count: u64 = digits.trim_end().parse().map_err(|_| DurationTextError)?;
        let millis = count.checked_mul(unit).ok_or(DurationTextError)?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

/// The largest unit that leaves a whole number; less than a millisecond is left out.
impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let whole = |unit: u64| millis != 0 && millis.is_multiple_of(u128::from(unit));
        match UNITS[1..].iter().find(|(_, unit)| whole(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", millis / u128::from(*unit)),
            None if millis == 0 => f.write_str("0s"),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl fmt::Display for DurationTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a whole number with ms, s, m, h or d")
    }
}

impl std::error::Error for DurationTextError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_back_as_they_are_written() {
        for (text, millis) in [
            ("0s", 0),
            ("300ms", 300),
            ("1500ms", 1500),
            ("30s", 30_000),
            ("90s", 90_000),
            ("5m", 300_000),
            ("4h", 14_400_000),
            ("36h", 129_600_000),
            ("5d", 432_000_000),
        ] {
            let duration = DurationText(Duration::from_millis(millis));
            assert_eq!(text.parse(), Ok(duration));
            assert_eq!(duration.to_string(), text);
        }
        assert_eq!("5 m".parse(), Ok(DurationText(Duration::from_mins(5))));
        for text in ["", "s", "30", "-1s", "1.5s", "30 seconds", "1w", "1h30m", "99999999999999999d"] {
            assert_eq!(text.parse::<DurationText>(), Err(DurationTextError), "{text:?}");
        }
    }
}
