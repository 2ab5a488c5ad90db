//! The text format: families in the order of their names, each with HELP, TYPE and all its samples together.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;

use crate::stats::Histogram;

/// Type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; the name ends in `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Label names and values of one sample.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Collects samples in any order and writes them family by family.
#[derive(Debug, Default)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
}

#[derive(Debug)]
struct Family {
    kind: Kind,
    help: String,
    samples: String,
}

impl Exposition {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One sample of a counter.
    pub fn counter(&mut self, name: &str, help: &str, labels: Labels<'_>, value: u64) {
        let family = self.family(name, help, Kind::Counter);
        sample(&mut family.samples, &metric_name(name), labels, None, &value.to_string());
    }

    /// One sample of a counter of seconds.
    pub fn counter_seconds(&mut self, name: &str, help: &str, labels: Labels<'_>, nanoseconds: u64) {
        let family = self.family(name, help, Kind::Counter);
        sample(&mut family.samples, &metric_name(name), labels, None, &number(nanoseconds as f64 / 1e9));
    }

    /// One sample of a gauge.
    pub fn gauge(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        let family = self.family(name, help, Kind::Gauge);
        sample(&mut family.samples, &metric_name(name), labels, None, &number(value));
    }

    /// One histogram; its values are divided by `divisor` (1e9 makes nanoseconds seconds).
    ///
    /// `shown` are the log2 buckets that get a bound of their own: always the same, whatever has been counted, so that
    /// histograms of several devices and times can be added.
    pub fn histogram(
        &mut self,
        (name, help): (&str, &str),
        labels: Labels<'_>,
        histogram: &Histogram,
        shown: RangeInclusive<usize>,
        divisor: f64,
    ) {
        let out = &mut self.family(name, help, Kind::Histogram).samples;
        let name = metric_name(name);
        let bucket = format!("{name}_bucket");
        let mut below = 0_u64;
        for index in 0..=*shown.end() {
            below = below.saturating_add(histogram.buckets.get(index).copied().unwrap_or(0));
            if shown.contains(&index) {
                let bound = number(Histogram::upper_bound(index) as f64 / divisor);
                sample(out, &bucket, labels, Some(&bound), &below.to_string());
            }
        }
        let count = histogram.count().to_string();
        sample(out, &bucket, labels, Some("+Inf"), &count);
        sample(out, &format!("{name}_sum"), labels, None, &number(histogram.sum as f64 / divisor));
        sample(out, &format!("{name}_count"), labels, None, &count);
    }

    /// The text.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for (name, family) in self.families {
            let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", family.kind.as_str());
            text.push_str(&family.samples);
        }
        text
    }

    fn family(&mut self, name: &str, help: &str, kind: Kind) -> &mut Family {
        let new = || Family { kind, help: help.to_owned(), samples: String::new() };
        self.families.entry(metric_name(name)).or_insert_with(new)
    }
}

fn sample(out: &mut String, name: &str, labels: Labels<'_>, le: Option<&str>, value: &str) {
    out.push_str(name);
    let labels = labels.iter().copied().chain(le.map(|bound| ("le", bound)));
    let mut separator = '{';
    for (label, value) in labels {
        let _ = write!(out, "{separator}{}=\"{}\"", metric_name(label), escaped(value));
        separator = ',';
    }
    let end = if separator == ',' { "}" } else { "" };
    let _ = writeln!(out, "{end} {value}");
}

/// A label value may hold anything; three characters need an escape.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A name made only of `[a-zA-Z0-9_]` and not beginning with a digit.
fn metric_name(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.chars().map(legal).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_family_stay_together_in_whatever_order_they_come() {
        let mut out = Exposition::new();
        out.counter("b_total", "B.", &[("device", "x")], 1);
        out.gauge("a", "A.", &[], 2.5);
        out.counter("b_total", "B.", &[("device", "y")], 3);
        let text = "# HELP a A.\n# TYPE a gauge\na 2.5\n# HELP b_total B.\n# TYPE b_total counter\n\
                    b_total{device=\"x\"} 1\nb_total{device=\"y\"} 3\n";
        assert_eq!(out.finish(), text);
    }

    #[test]
    fn labels_are_escaped_and_names_made_legal() {
        let mut out = Exposition::new();
        out.counter("9-lives", "Back\\slash\nnewline", &[("de vice", "a\"b\\c\nd")], 1);
        let text = "# HELP _9_lives Back\\\\slash\\nnewline\n# TYPE _9_lives counter\n\
                    _9_lives{de_vice=\"a\\\"b\\\\c\\nd\"} 1\n";
        assert_eq!(out.finish(), text);
    }

    #[test]
    fn histograms_are_cumulative_and_complete_outside_the_shown_range() {
        let mut histogram = Histogram::default();
        [0, 1, 3, 100, 1 << 40].into_iter().for_each(|value| histogram.record(value));
        let mut out = Exposition::new();
        out.histogram(("h", "H."), &[("d", "x")], &histogram, 2..=7, 1.0);
        let text = out.finish();
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        assert!(!text.contains("le=\"1\""), "{text}");
        assert_eq!(line("h_bucket{d=\"x\",le=\"3\"}"), "h_bucket{d=\"x\",le=\"3\"} 3");
        assert_eq!(line("h_bucket{d=\"x\",le=\"127\"}"), "h_bucket{d=\"x\",le=\"127\"} 4");
        assert_eq!(line("h_bucket{d=\"x\",le=\"+Inf\"}"), "h_bucket{d=\"x\",le=\"+Inf\"} 5");
        assert_eq!(line("h_count"), "h_count{d=\"x\"} 5");
        assert_eq!(line("h_sum"), format!("h_sum{{d=\"x\"}} {}", (1_u64 << 40) + 104));
    }

    #[test]
    fn numbers_are_written_without_exponents_or_loss() {
        assert_eq!(number(1e-9), "0.000000001");
        assert_eq!(number(f64::INFINITY), "+Inf");
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(3.0), "3");
    }
}
