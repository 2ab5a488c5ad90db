//! Live rates: a full-screen view on a terminal, lines otherwise.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use daemon::Failure;
use daemon::stats::Snapshot;
use serde_json::{Value, json};

use crate::args::{Args, Top};
use crate::daemons::{self, Daemon};
use crate::rates::{self, Rates};
use crate::{Stop, commands, format, show, tui};

/// Columns of the device table, here and on the full screen.
pub const COLUMNS: [&str; 12] = [
    "DAEMON",
    "DEVICE",
    "IOPS",
    "READ",
    "WRITE",
    "BYTES/S",
    "P50",
    "P99",
    "P99.9",
    "KICKS/REQ",
    "IRQS/REQ",
    "ERR/S",
];

/// One daemon and its last snapshot.
struct Watched {
    daemon: Daemon,
    name: String,
    last: Snapshot,
}

/// Rates of one daemon under the name it is shown by.
pub struct Sample {
    pub name: String,
    pub rates: Rates,
}

/// Watches daemons until they are gone, the user leaves, or `count` samples are taken.
pub struct Watch {
    daemons: Vec<Watched>,
    pub interval: Duration,
    left: Option<u64>,
}

pub fn run(args: &Args, top: &Top) -> Result<(), Stop> {
    let mut watch = Watch::new(args, top)?;
    if !args.json && !top.lines && io::stdout().is_terminal() {
        return tui::run(&mut watch);
    }
    let mut out = io::stdout().lock();
    while watch.more() {
        std::thread::sleep(watch.interval);
        let samples = watch.sample()?;
        if args.json {
            json_lines(&mut out, &samples)?;
        } else {
            lines(&mut out, &samples)?;
        }
        out.flush()?;
    }
    Ok(())
}

impl Watch {
    fn new(args: &Args, top: &Top) -> Result<Self, Failure> {
        let mut watched = Vec::new();
        for mut daemon in daemons::all(args)? {
            let name = daemon.call("version", Value::Null)?["name"].as_str().unwrap_or("?").to_owned();
            let last = stats(&mut daemon)?;
            watched.push(Watched { daemon, name, last });
        }
        Ok(Self { daemons: watched, interval: Duration::from_millis(top.interval_ms), left: top.count })
    }

    /// Whether another sample is wanted.
    pub fn more(&self) -> bool {
        self.left != Some(0)
    }

    /// Rates since the last sample. A daemon that has gone is left out; the last one's end is an error.
    pub fn sample(&mut self) -> Result<Vec<Sample>, Failure> {
        self.left = self.left.map(|left| left.saturating_sub(1));
        let mut samples = Vec::new();
        let mut gone = None;
        self.daemons.retain_mut(|watched| match stats(&mut watched.daemon) {
            Ok(now) => {
                let rates = rates::between(&watched.last, &now);
                watched.last = now;
                samples.push(Sample { name: watched.name.clone(), rates });
                true
            }
            Err(failure) => {
                gone = Some(failure);
                false
            }
        });
        match gone {
            Some(failure) if self.daemons.is_empty() => Err(failure),
            _ => Ok(samples),
        }
    }
}

fn stats(daemon: &mut Daemon) -> Result<Snapshot, Failure> {
    commands::snapshot(daemon.call("stats", Value::Null)?)
}

/// One row a device.
pub fn rows(samples: &[Sample]) -> Vec<Vec<String>> {
    let devices =
        samples.iter().flat_map(|sample| sample.rates.devices.iter().map(move |device| (sample, device)));
    devices
        .map(|(sample, device)| {
            let operation = |name: &str| {
                let rate = device.operations.iter().find(|(have, _)| have == name);
                rate.map_or_else(|| "-".to_owned(), |(_, rate)| format::count(*rate))
            };
            vec![
                sample.name.clone(),
                device.name.clone(),
                format::count(device.iops),
                operation("read"),
                operation("write"),
                format::bytes(device.bytes),
                format::time(device.p50_ns),
                format::time(device.p99_ns),
                format::time(device.p999_ns),
                format::ratio(device.kicks_per_request),
                format::ratio(device.interrupts_per_request),
                format::count(device.errors),
            ]
        })
        .collect()
}

/// One line a daemon.
pub fn summary(sample: &Sample) -> String {
    let rates = &sample.rates;
    let polls = format::percent(rates.poll_success);
    let (cpu, sleeps) = (format::percent(Some(rates.cpu)), format::count(rates.parks));
    format!("{}: CPU {cpu}, polls that paid {polls}, sleeps {sleeps}/s", sample.name)
}

fn lines(out: &mut impl Write, samples: &[Sample]) -> io::Result<()> {
    for sample in samples {
        writeln!(out, "{}", summary(sample))?;
    }
    show::table(out, &COLUMNS, &rows(samples))?;
    writeln!(out)
}

fn json_lines(out: &mut impl Write, samples: &[Sample]) -> io::Result<()> {
    for sample in samples {
        writeln!(out, "{}", json!({"daemon": sample.name, "rates": sample.rates}))?;
    }
    Ok(())
}
