//! Reads what fio prints with `--output-format=json`.

use serde_json::Value;

use crate::blk::Report;
use crate::guest::Figures;
use crate::latency::LatencySummary;

/// Why fio's output could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BadFioOutput {
    /// Not JSON, even without the warnings fio may print in front of it.
    #[error("fio printed no JSON: {0}")]
    NoJson(String),
    /// A field is missing.
    #[error("fio's JSON has no {0}")]
    Missing(&'static str),
    /// fio itself reported an error.
    #[error("fio ended with error {0}")]
    Failed(i64),
}

/// Turns fio's first job (use `--group_reporting`) into a report of our own kind.
///
/// CPU time is fio's own user and system time: fio is driver and backend at once.
pub fn parse(output: &str) -> Result<Report, BadFioOutput> {
    let start = output.find('{').ok_or_else(|| BadFioOutput::NoJson(head(output)))?;
    let root: Value =
        serde_json::from_str(&output[start..]).map_err(|_| BadFioOutput::NoJson(head(output)))?;
    let job = root.pointer("/jobs/0").ok_or(BadFioOutput::Missing("jobs"))?;
    match job.pointer("/error").and_then(Value::as_i64) {
        Some(0) | None => {}
        Some(error) => return Err(BadFioOutput::Failed(error)),
    }
    let [read, write] = [direction(job, "read")?, direction(job, "write")?];
    let operations = read.operations + write.operations;
    let seconds = read.seconds.max(write.seconds);
    let busier = if read.operations >= write.operations { &read } else { &write };
    let figures = Figures {
        operations,
        seconds,
        mb_per_second: (read.bytes + write.bytes) as f64 / 1e6 / seconds.max(1e-9),
        latency: busier.latency,
        cpu_us_per_op: cpu_us_per_op(job, operations),
        ..Figures::default()
    };
    Ok(Report { iops: read.iops + write.iops, figures, ..Report::default() })
}

struct Direction {
    operations: u64,
    bytes: u64,
    seconds: f64,
    iops: f64,
    latency: LatencySummary,
}

fn direction(job: &Value, name: &'static str) -> Result<Direction, BadFioOutput> {
    let side = job.get(name).ok_or(BadFioOutput::Missing(name))?;
    let number = |pointer: &str| side.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let micros = |pointer: &str| number(pointer) / 1e3;
    Ok(Direction {
        operations: number("/total_ios") as u64,
        bytes: number("/io_bytes") as u64,
        seconds: number("/runtime") / 1e3,
        iops: number("/iops"),
        latency: LatencySummary {
            mean_us: micros("/clat_ns/mean"),
            min_us: micros("/clat_ns/min"),
            p50_us: micros("/clat_ns/percentile/50.000000"),
            p99_us: micros("/clat_ns/percentile/99.000000"),
            p999_us: micros("/clat_ns/percentile/99.900000"),
            max_us: micros("/clat_ns/max"),
        },
    })
}

/// fio gives user and system time in percent of `job_runtime` (milliseconds over all jobs).
fn cpu_us_per_op(job: &Value, operations: u64) -> Option<f64> {
    let percent = job.get("usr_cpu")?.as_f64()? + job.get("sys_cpu")?.as_f64()?;
    let runtime_ms = job.get("job_runtime")?.as_f64()?;
    (operations > 0).then(|| percent / 100.0 * runtime_ms * 1e3 / operations as f64)
}

fn head(output: &str) -> String {
    output.trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"fio: this is a warning
    {"jobs": [{"error": 0, "job_runtime": 3000, "usr_cpu": 10.0, "sys_cpu": 30.0,
      "read": {"io_bytes": 1228800000, "iops": 100000.0, "runtime": 3000, "total_ios": 300000,
               "clat_ns": {"min": 1000, "max": 9000000, "mean": 320000.0,
                           "percentile": {"50.000000": 300000, "99.000000": 400000, "99.900000": 500000}}},
      "write": {"io_bytes": 0, "iops": 0.0, "runtime": 0, "total_ios": 0, "clat_ns": {}}}]}"#;

    #[test]
    fn figures_of_a_read_job_are_taken_over_with_their_units() {
        let report = parse(OUTPUT).unwrap();
        assert_eq!((report.operations, report.iops), (300_000, 100_000.0));
        assert_eq!(
            (report.latency.mean_us, report.latency.p50_us, report.latency.p999_us),
            (320.0, 300.0, 500.0)
        );
        assert!((report.mb_per_second - 409.6).abs() < 0.001);
        // 40 % of 3 s over 300 000 requests.
        assert!((report.cpu_us_per_op.unwrap() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn an_error_in_the_job_is_an_error() {
        let failed = OUTPUT.replace("\"error\": 0", "\"error\": 5");
        assert!(matches!(parse(&failed), Err(BadFioOutput::Failed(5))));
    }

    #[test]
    fn output_without_json_is_quoted() {
        let error = parse("fio: file not found").unwrap_err().to_string();
        assert!(error.contains("file not found"));
        assert!(matches!(parse("{}"), Err(BadFioOutput::Missing("jobs"))));
    }
}
