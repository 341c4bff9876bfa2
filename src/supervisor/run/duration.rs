//! Reads and writes durations as users of GitLab know them: `1h30m`, `90s`, `1.5h`. Pure.

use std::time::Duration;

/// Reads a duration; `None` when it is malformed, negative or too long.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (figure, after) = rest.split_at_checked(number)?;
        let unit = after.len() - after.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let (unit, after) = after.split_at_checked(unit)?;
        seconds += figure.parse::<f64>().ok()? * seconds_in(unit)?;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

fn seconds_in(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

/// Writes a duration in whole seconds: `1h0m0s`.
pub fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_forms_are_read() {
        for (text, seconds) in
            [("1h30m", 5400.0), ("90s", 90.0), ("1.5h", 5400.0), ("250ms", 0.25), ("0", 0.0)]
        {
            assert_eq!(parse(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "-1s", "10", "1x", "s", "1h m", "1e400h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(seconds in 0u64..10_000_000) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&show(duration)), Some(duration));
        }

        #[test]
        fn garbage_never_panics(text in "\\PC{0,12}") {
            let _read = parse(&text);
        }
    }
}
