//! What every driver of a device that answers requests reports, and how it is shown.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::tally::Totals;
use crate::latency::LatencySummary;

/// Figures of one run. Rates and counts are those of the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests completed.
    pub operations: u64,
    /// Measured time.
    pub seconds: f64,
    /// Megabytes (10^6) of data per second, all queues.
    pub mb_per_second: f64,
    /// Latency distribution over all queues.
    pub latency: LatencySummary,
    /// CPU time of the backend process per request; `None` if its process is not visible.
    pub cpu_us_per_op: Option<f64>,
    /// Share of one CPU that the backend used: 1.0 is a full core.
    pub cpu_load: Option<f64>,
    /// Eventfd writes by the driver per request.
    pub kicks_per_op: f64,
    /// Eventfd writes by the backend per request.
    pub interrupts_per_op: f64,
    /// Requests harvested at once, on average.
    pub batch: f64,
    /// Requests the backend completed with an error, over the whole run.
    pub errors: u64,
    /// Status of the first of them.
    pub first_error: Option<String>,
}

impl Figures {
    /// Those of all queues. `cpu` is the backend's CPU time in the measured time, `name` what a status byte is called.
    pub fn new(totals: &Totals, cpu: Option<Duration>, name: fn(u8) -> &'static str) -> Self {
        Self {
            operations: totals.operations,
            seconds: totals.seconds,
            mb_per_second: totals.bytes_per_second / 1e6,
            latency: totals.latencies.summary(),
            cpu_us_per_op: totals.cpu_us(cpu),
            cpu_load: totals.cpu_load(cpu),
            kicks_per_op: totals.per_operation(totals.signals.kicks as f64),
            interrupts_per_op: totals.per_operation(totals.signals.interrupts as f64),
            batch: totals.batch(),
            errors: totals.errors,
            first_error: totals.first_error.map(|code| format!("{code} ({})", name(code))),
        }
    }

    /// The table for people: `load` as its headline, the rate under its name.
    pub fn lines(&self, load: &str, rate: (&str, String)) -> Lines {
        let mut lines = Lines(format!("{load}\n"));
        lines.add(rate.0, rate.1);
        if self.mb_per_second > 0.0 {
            lines.add("throughput", format!("{:.0} MB/s", self.mb_per_second));
        }
        for (name, time) in [
            ("latency mean", self.latency.mean_us),
            ("latency p50", self.latency.p50_us),
            ("latency p99", self.latency.p99_us),
            ("latency p99.9", self.latency.p999_us),
            ("latency max", self.latency.max_us),
        ] {
            lines.add(name, format!("{time:.2} us"));
        }
        let cpu = match (self.cpu_us_per_op, self.cpu_load) {
            (Some(cpu), Some(load)) => format!("{cpu:.3} us per request, {:.0} % of a core", load * 100.0),
            _ => "unknown (its process is not visible from here)".to_owned(),
        };
        lines.add("backend CPU", cpu);
        lines.add("kicks", format!("{:.4} per request", self.kicks_per_op));
        lines.add("interrupts", format!("{:.4} per request", self.interrupts_per_op));
        lines.add("average batch", format!("{:.1}", self.batch));
        lines.add("requests", format!("{} in {:.2} s", self.operations, self.seconds));
        if let Some(first) = &self.first_error {
            lines.add("ERRORS", format!("{}, the first with status {first}", self.errors));
        }
        lines
    }
}

/// A table of names and values.
#[derive(Clone, Debug)]
pub struct Lines(pub String);

impl Lines {
    /// One more line.
    pub fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "  {name:<22}{value}");
    }
}

/// The result of a load, for people and for programs.
pub trait Shown: Serialize {
    /// The table for people.
    fn table(&self) -> String;

    /// Nothing failed and nothing was wrong.
    fn is_clean(&self) -> bool;

    /// An error with the table unless it is clean.
    fn unless_wrong(self) -> Result<Self>
    where
        Self: Sized,
    {
        ensure!(
            self.is_clean(),
            "Nothing was done, a request failed, or a byte was wrong:\n{}",
            self.table()
        );
        Ok(self)
    }

    /// Prints it; the exit code says whether it is clean.
    fn print(&self, json: bool) -> Result<ExitCode> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
        } else {
            print!("{}", self.table());
        }
        Ok(if self.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
