//! Numbers for people: three digits and a unit.

const DECIMAL: [&str; 6] = ["", "k", "M", "G", "T", "P"];
const BINARY: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// A count or a rate: `12.3k`.
pub fn count(value: f64) -> String {
    scaled(value, 1000.0, &DECIMAL, "")
}

/// Bytes: `4.00 KiB`.
pub fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &BINARY, " ")
}

/// A time in nanoseconds: `12.3 us`.
pub fn time(nanoseconds: Option<f64>) -> String {
    let Some(value) = nanoseconds else { return "-".to_owned() };
    let (value, unit) = match value {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// A quotient: `0.031`.
pub fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// A fraction as a percentage.
pub fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}%", value * 100.0))
}

/// A duration in milliseconds: `3d 4h`, `5m 6s`.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

fn scaled(value: f64, step: f64, units: &[&str], space: &str) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let number = if unit == 0 && value.fract() == 0.0 { format!("{value:.0}") } else { digits(value) };
    format!("{number}{space}{}", units[unit])
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(
            [0.0, 7.0, 999.0, 999.7, 1234.0, 5.6e6].map(count),
            ["0", "7", "999", "1.00k", "1.23k", "5.60M"]
        );
        assert_eq!([0.0, 512.0, 4096.0, 1.5e9].map(bytes), ["0 B", "512 B", "4.00 KiB", "1.40 GiB"]);
        let times = [Some(812.0), Some(12_300.0), Some(4.5e6), Some(2e9), None].map(time);
        assert_eq!(times, ["812 ns", "12.3 us", "4.50 ms", "2.00 s", "-"]);
    }

    #[test]
    fn quotients_of_nothing_are_dashes() {
        assert_eq!([ratio(None), percent(None)], ["-", "-"]);
        assert_eq!([ratio(Some(0.5)), percent(Some(0.5))], ["0.500", "50.0%"]);
    }

    #[test]
    fn ages_show_their_two_largest_units() {
        let shown = [900, 61_000, 7_260_000, 90_000_000].map(age);
        assert_eq!(shown, ["0s", "1m 1s", "2h 1m", "1d 1h"]);
    }
}
