//! Times as people read them: how long ago, or in how long.

use postroad_core::Timestamp;

/// Returns a time that programs read; `None` for 0, which is none.
pub(super) fn time(millis: u64) -> Option<String> {
    (millis > 0).then(|| Timestamp::from_millis(millis).to_string())
}

/// Returns a number of milliseconds in one or two units, rounded down: `0s`, `90s`, `15m`, `3h20m`, `2d4h`.
pub(super) fn age(millis: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3600, "h"), (60, "m")];
    let secs = millis / 1000;
    // Below two minutes a second counts.
    if secs < 120 {
        return format!("{secs}s");
    }
    let (position, (unit, name)) =
        UNITS.iter().enumerate().find(|(_, (unit, _))| secs >= *unit).expect("it is more than a minute");
    let rest = UNITS.get(position + 1).map(|(smaller, name)| (secs % unit / smaller, name));
    match rest {
        Some((count, smaller)) if count > 0 => format!("{}{name}{count}{smaller}", secs / unit),
        _ => format!("{}{name}", secs / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_or_two_units() {
        for (millis, expected) in [
            (0, "0s"),
            (999, "0s"),
            (119_999, "119s"),
            (120_000, "2m"),
            (3_599_000, "59m"),
            (3_600_000, "1h"),
            (12_000_000, "3h20m"),
            (86_400_000, "1d"),
            (187_200_000, "2d4h"),
        ] {
            assert_eq!(age(millis), expected);
        }
    }
}
