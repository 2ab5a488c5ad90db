//! Sizes, counts and durations as fio writes them: `4k`, `1g`, `250ms`.

use std::time::Duration;

/// Why a size or a duration was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadUnit {
    /// Not a number with an optional binary suffix, or too large.
    #[error("'{0}' is no size; write bytes or a number with k, m, g or t (powers of 1024)")]
    Size(String),
    /// Not a number with an optional decimal suffix, or too large.
    #[error("'{0}' is no count; write a number or one with k or m (powers of 1000)")]
    Count(String),
    /// Not a number with an optional time suffix.
    #[error("'{0}' is no duration; write seconds or a number with us, ms, s or m")]
    Duration(String),
}

/// Parses `4096`, `4k`, `4KiB`, `1g`; suffixes are powers of 1024 in either case.
pub fn parse_size(text: &str) -> Result<u64, BadUnit> {
    let refuse = || BadUnit::Size(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(refuse()),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(1 << shift).ok_or_else(refuse)
}

/// Parses `50000`, `50k`, `1m`; suffixes are powers of 1000, as rates and request counts have them.
pub fn parse_count(text: &str) -> Result<u64, BadUnit> {
    let refuse = || BadUnit::Count(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(['k', 'm']);
    let factor = match &lower[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        _ => return Err(refuse()),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(factor).ok_or_else(refuse)
}

/// Parses `10`, `0.5`, `10s`, `250ms`, `50us`, `2m`; a bare number counts seconds.
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let refuse = || BadUnit::Duration(text.to_owned());
    let text_trimmed = text.trim();
    let digits = text_trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text_trimmed[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(refuse()),
    };
    let number: f64 = digits.parse().map_err(|_| refuse())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| refuse())
}

/// Renders a byte count with the largest binary unit that divides it: `4k`, `1g`, `513`.
pub fn show_size(bytes: u64) -> String {
    for (shift, suffix) in [(40, "t"), (30, "g"), (20, "m"), (10, "k")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Renders an operation rate: `850`, `24.1 k`, `4.08 M`.
pub fn show_rate(per_second: f64) -> String {
    match per_second {
        r if r < 1e3 => significant(r),
        r if r < 1e6 => format!("{} k", significant(r / 1e3)),
        r => format!("{} M", significant(r / 1e6)),
    }
}

fn significant(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_use_powers_of_1024_in_either_case() {
        let cases =
            [("512", 512), ("4k", 4096), ("4K", 4096), ("1MiB", 1 << 20), ("2gb", 2 << 30), ("1t", 1 << 40)];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn malformed_or_overflowing_sizes_are_refused() {
        for text in ["", "k", "4x", "-1", "1.5k", "99999999t", "4 k k"] {
            assert_eq!(parse_size(text), Err(BadUnit::Size(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn counts_use_powers_of_1000() {
        assert_eq!(
            (parse_count("7"), parse_count("50k"), parse_count("2M")),
            (Ok(7), Ok(50_000), Ok(2_000_000))
        );
        for text in ["", "k", "1kk", "1g", "-1"] {
            assert_eq!(parse_count(text), Err(BadUnit::Count(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_bare_duration_counts_seconds() {
        let cases = [
            ("10", 10_000_000),
            ("0.5", 500_000),
            ("250ms", 250_000),
            ("50us", 50),
            ("3s", 3_000_000),
            ("2m", 120_000_000),
        ];
        for (text, micros) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "s", "-1", "1h", "nan", "1e400"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_shown_with_three_significant_figures() {
        assert_eq!(show_rate(4_080_000.0), "4.08 M");
        assert_eq!(show_rate(24_100.0), "24.1 k");
        assert_eq!(show_size(4096), "4k");
        assert_eq!(show_size(513), "513");
        assert_eq!(show_size(0), "0");
    }
}
