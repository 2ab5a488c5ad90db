//! Answers as text.

use std::io::{self, Write};

use daemon::stats::{Histogram, Snapshot};
use serde_json::Value;

use crate::format;

/// Columns aligned to their widest cell; the first two to the left, numbers to the right.
pub fn table(out: &mut impl Write, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let header: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
    let width = |column: usize| {
        std::iter::once(&header)
            .chain(rows)
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<_> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let aligned = if column < 2 { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            line.push_str(&aligned);
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The answer to `status`.
pub fn status(out: &mut impl Write, status: &Value) -> io::Result<()> {
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let uptime = format::age(status["uptime_ms"].as_u64().unwrap_or(0));
    writeln!(
        out,
        "{} {}, pid {}, {} for {uptime}, sandbox {}, log level {}",
        text("name"),
        text("version"),
        status["pid"],
        text("state"),
        text("sandbox"),
        text("log_level"),
    )?;
    for (name, session) in status["sessions"].as_object().into_iter().flatten() {
        let reason = session["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        writeln!(out, "  session {name}: {}{reason}", session["state"].as_str().unwrap_or("?"))?;
    }
    outline(out, &status["details"], 2)
}

/// Any JSON as indented lines.
pub fn outline(out: &mut impl Write, value: &Value, indent: usize) -> io::Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::Object(members) => {
            members.iter().try_for_each(|(key, value)| labelled(out, &format!("{key}:"), value, indent))
        }
        Value::Array(items) => items.iter().try_for_each(|item| labelled(out, "-", item, indent)),
        value => writeln!(out, "{:indent$}{}", "", plain(value)),
    }
}

/// A value behind its label, or below it when it has parts.
fn labelled(out: &mut impl Write, label: &str, value: &Value, indent: usize) -> io::Result<()> {
    let empty =
        value.as_object().is_some_and(|it| it.is_empty()) || value.as_array().is_some_and(Vec::is_empty);
    if empty {
        writeln!(out, "{:indent$}{label} none", "")
    } else if value.is_object() || value.is_array() {
        writeln!(out, "{:indent$}{label}", "")?;
        outline(out, value, indent + 2)
    } else {
        writeln!(out, "{:indent$}{label} {}", "", plain(value))
    }
}

/// Text without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The answer to `stats`: one line an operation, then one a worker.
pub fn stats(out: &mut impl Write, stats: &Snapshot) -> io::Result<()> {
    let header = ["DEVICE", "OPERATION", "REQUESTS", "BYTES", "ERRORS", "P50", "P99", "P99.9"];
    let mut rows = Vec::new();
    for device in &stats.devices {
        for (name, operation) in &device.operations {
            let mut row = vec![device.name.clone(), name.clone(), operation.requests.to_string()];
            row.extend([format::bytes(operation.bytes as f64), operation.errors.to_string()]);
            row.extend(percentiles(&operation.latency_ns));
            rows.push(row);
        }
    }
    table(out, &header, &rows)?;
    writeln!(out)?;
    let header = ["DEVICE", "FRONTEND", "QUEUES", "IN FLIGHT", "KICKS", "INTERRUPTS", "SUPPRESSED", "BROKEN"];
    let rows: Vec<_> = stats
        .devices
        .iter()
        .map(|device| {
            let frontend = if device.connected { "connected" } else { "none" };
            let mut row = vec![device.name.clone(), frontend.to_owned(), device.queues.to_string()];
            let counters = [device.in_flight, device.kicks, device.interrupts, device.interrupts_suppressed];
            row.extend(counters.iter().chain([&device.broken_rings]).map(u64::to_string));
            row
        })
        .collect();
    table(out, &header, &rows)?;
    writeln!(out)?;
    let header = ["WORKER", "CPU", "POLLS THAT PAID", "POLLS IN VAIN", "SLEEPS", "CHAINS A BURST"];
    let rows: Vec<_> = stats
        .workers
        .iter()
        .map(|worker| {
            let cpu = worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
            let burst = worker.batch.sum.checked_div(worker.batch.count()).unwrap_or(0);
            let counters = [worker.poll_success, worker.poll_failure, worker.parks, burst];
            [vec![worker.name.clone(), cpu], counters.map(|n| n.to_string()).to_vec()].concat()
        })
        .collect();
    table(out, &header, &rows)
}

fn percentiles(histogram: &Histogram) -> [String; 3] {
    [0.5, 0.99, 0.999].map(|fraction| format::time(histogram.percentile(fraction)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(show: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        show(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [vec!["long name".into(), "x".into(), "7".into()], vec!["a".into(), "yy".into(), "1234".into()]];
        let shown = text(|out| table(out, &["NAME", "B", "N"], &rows));
        assert_eq!(shown, "NAME       B      N\nlong name  x      7\na          yy  1234\n");
    }

    #[test]
    fn nested_details_are_indented() {
        let details = json!({"a": 1, "b": {"c": "text", "d": [1, {"e": true}]}, "f": null, "g": {}});
        let shown = text(|out| outline(out, &details, 0));
        assert_eq!(shown, "a: 1\nb:\n  c: text\n  d:\n    - 1\n    -\n      e: true\nf: null\ng: none\n");
    }

    #[test]
    fn a_failed_session_says_why() {
        let answer = json!({"name": "x", "sessions": {"d": {"state": "failed", "reason": "no socket"}}});
        assert!(text(|out| status(out, &answer)).contains("session d: failed: no socket"));
    }
}
