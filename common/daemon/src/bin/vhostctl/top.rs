//! Live rates: a full-screen view on a terminal, lines otherwise.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use daemon::Failure;
use daemon::stats::Snapshot;
use serde_json::{Value, json};

use crate::args::{Args, Top};
use crate::daemons::{self, Daemon};
use crate::rates::{self, DeviceRates, Rates};
use crate::{Stop, commands, format, show, tui};

/// Titles and least widths of the columns for devices that answer requests.
const REQUEST_COLUMNS: &[(&str, u16)] = &[
    ("DAEMON", 12),
    ("DEVICE", 16),
    ("IOPS", 8),
    ("READ", 8),
    ("WRITE", 8),
    ("BYTES/S", 11),
    ("P50", 9),
    ("P99", 9),
    ("P99.9", 9),
    ("KICKS/REQ", 10),
    ("IRQS/REQ", 9),
    ("ERR/S", 7),
];

/// The same for ports of a switch. The guest sends `TX` and receives `RX`.
const PORT_COLUMNS: &[(&str, u16)] = &[
    ("DAEMON", 12),
    ("PORT", 16),
    ("TX PKT/S", 9),
    ("TX BIT/S", 9),
    ("RX PKT/S", 9),
    ("RX BIT/S", 9),
    ("DROPS/S", 8),
    ("KICKS/PKT", 10),
    ("IRQS/PKT", 9),
];

/// The same for devices that encrypt. `DIGEST` are hashes and MACs, `ASYM` public-key operations.
const CRYPTO_COLUMNS: &[(&str, u16)] = &[
    ("DAEMON", 12),
    ("DEVICE", 16),
    ("OPS/S", 8),
    ("CIPHER", 8),
    ("AEAD", 8),
    ("DIGEST", 8),
    ("ASYM", 8),
    ("BYTES/S", 11),
    ("P50", 9),
    ("P99", 9),
    ("KICKS/REQ", 10),
    ("IRQS/REQ", 9),
    ("ERR/S", 7),
];

/// The same for devices that compress. `BYTES/S` are uncompressed ones, `RATIO` is that of what was compressed.
const COMPRESS_COLUMNS: &[(&str, u16)] = &[
    ("DAEMON", 12),
    ("DEVICE", 16),
    ("OPS/S", 8),
    ("COMPRESS", 9),
    ("DECOMPRESS", 11),
    ("BYTES/S", 11),
    ("RATIO", 7),
    ("P50", 9),
    ("P99", 9),
    ("KICKS/REQ", 10),
    ("IRQS/REQ", 9),
    ("ERR/S", 7),
];

/// A sort of devices, and how they are shown.
struct Sort {
    shows: fn(&str) -> bool,
    columns: &'static [(&'static str, u16)],
    cells: fn(&DeviceRates) -> Vec<String>,
}

/// All of them; the first shows what no other does.
const SORTS: [Sort; 4] = [
    Sort {
        shows: |kind| !matches!(kind, "net" | "crypto" | "compress"),
        columns: REQUEST_COLUMNS,
        cells: request_cells,
    },
    Sort { shows: |kind| kind == "net", columns: PORT_COLUMNS, cells: port_cells },
    Sort { shows: |kind| kind == "crypto", columns: CRYPTO_COLUMNS, cells: crypto_cells },
    Sort { shows: |kind| kind == "compress", columns: COMPRESS_COLUMNS, cells: compress_cells },
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

/// A table of devices of one sort, here and on the full screen.
pub struct Listing {
    pub columns: &'static [(&'static str, u16)],
    pub rows: Vec<Vec<String>>,
}

impl Listing {
    /// The titles of the columns.
    pub fn titles(&self) -> Vec<&'static str> {
        self.columns.iter().map(|(title, _)| *title).collect()
    }
}

/// One table for each sort of devices there is, with one row a device; at least one.
pub fn listings(samples: &[Sample]) -> Vec<Listing> {
    let devices =
        || samples.iter().flat_map(|sample| sample.rates.devices.iter().map(move |device| (sample, device)));
    let listing = |sort: &Sort| {
        let shown = devices().filter(|(_, device)| (sort.shows)(&device.kind));
        let row = |(sample, device): (&Sample, &DeviceRates)| {
            [vec![sample.name.clone(), device.name.clone()], (sort.cells)(device)].concat()
        };
        Listing { columns: sort.columns, rows: shown.map(row).collect() }
    };
    let mut listings: Vec<_> = SORTS.iter().map(listing).collect();
    if listings.iter().any(|listing| !listing.rows.is_empty()) {
        listings.retain(|listing| !listing.rows.is_empty());
    } else {
        listings.truncate(1);
    }
    listings
}

fn rate(rates: &[(String, f64)], name: &str) -> Option<f64> {
    rates.iter().find(|(have, _)| have == name).map(|(_, rate)| *rate)
}

fn request_cells(device: &DeviceRates) -> Vec<String> {
    let operation = |name: &str| rate(&device.operations, name).map_or_else(|| "-".to_owned(), format::count);
    vec![
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
}

fn port_cells(device: &DeviceRates) -> Vec<String> {
    let packets = |name: &str| format::count(rate(&device.operations, name).unwrap_or(0.0));
    let bits = |name: &str| format::count(8.0 * rate(&device.operation_bytes, name).unwrap_or(0.0));
    vec![
        packets("tx"),
        bits("tx"),
        packets("rx"),
        bits("rx"),
        format::count(device.errors),
        format::ratio(device.kicks_per_request),
        format::ratio(device.interrupts_per_request),
    ]
}

fn crypto_cells(device: &DeviceRates) -> Vec<String> {
    let operations = |names: &[&str]| {
        let rates: f64 = names.iter().filter_map(|name| rate(&device.operations, name)).sum();
        if rates == 0.0 { "-".to_owned() } else { format::count(rates) }
    };
    vec![
        format::count(device.iops),
        operations(&["cipher"]),
        operations(&["aead"]),
        operations(&["hash", "mac"]),
        operations(&["akcipher"]),
        format::bytes(device.bytes),
        format::time(device.p50_ns),
        format::time(device.p99_ns),
        format::ratio(device.kicks_per_request),
        format::ratio(device.interrupts_per_request),
        format::count(device.errors),
    ]
}

fn compress_cells(device: &DeviceRates) -> Vec<String> {
    let operation = |name: &str| match rate(&device.operations, name) {
        Some(rate) if rate > 0.0 => format::count(rate),
        _ => "-".to_owned(),
    };
    vec![
        format::count(device.iops),
        operation("compress"),
        operation("decompress"),
        format::bytes(device.bytes),
        format::ratio(device.ratio),
        format::time(device.p50_ns),
        format::time(device.p99_ns),
        format::ratio(device.kicks_per_request),
        format::ratio(device.interrupts_per_request),
        format::count(device.errors),
    ]
}

/// One line a daemon.
pub fn summary(sample: &Sample) -> String {
    let rates = &sample.rates;
    let polls = format::percent(rates.poll_success);
    let (cpu, sleeps) = (format::percent(Some(rates.cpu)), format::count(rates.parks));
    let batches = rates.batch_fill.map(|fill| {
        let share = |(reason, share): &(String, f64)| format!("{reason} {}", format::percent(Some(*share)));
        let why: Vec<_> = rates.flushes.iter().map(share).collect();
        format!(", requests a batch {fill:.1} ({})", why.join(", "))
    });
    let batches = batches.unwrap_or_default();
    format!("{}: CPU {cpu}, polls that paid {polls}, sleeps {sleeps}/s{batches}", sample.name)
}

fn lines(out: &mut impl Write, samples: &[Sample]) -> io::Result<()> {
    for sample in samples {
        writeln!(out, "{}", summary(sample))?;
    }
    for listing in listings(samples) {
        show::table(out, &listing.titles(), &listing.rows)?;
    }
    writeln!(out)
}

fn json_lines(out: &mut impl Write, samples: &[Sample]) -> io::Result<()> {
    for sample in samples {
        writeln!(out, "{}", json!({"daemon": sample.name, "rates": sample.rates}))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use daemon::stats::{Device, Operation, Worker};

    use super::*;

    /// Rates of a device that has done these operations, each of 100 bytes, in one second, in batches.
    fn sample(kind: &str, operations: [(&str, u64); 2]) -> Sample {
        let operation = |requests| Operation { requests, bytes: requests * 100, ..Operation::default() };
        let operations = operations.map(|(name, requests)| (name.to_owned(), operation(requests)));
        let packed = [("uncompressed_bytes", 3000), ("compressed_bytes", 1000)];
        let device = Device {
            name: "vm1".into(),
            kind: kind.into(),
            operations: BTreeMap::from(operations),
            extra: packed.map(|(name, value)| (name.to_owned(), value)).into(),
            ..Device::default()
        };
        let counters =
            [("batches", 20), ("batched_requests", 320), ("flushes_full", 15), ("flushes_empty", 5)];
        let extra = counters.map(|(name, value)| (name.to_owned(), value)).into();
        let worker = Worker { extra, ..Worker::default() };
        let after =
            Snapshot { time_ns: 1_000_000_000, devices: vec![device], workers: vec![worker], cpu_ns: 0 };
        Sample { name: format!("vhostd-{kind}"), rates: rates::between(&Snapshot::default(), &after) }
    }

    /// The cells of the only device, by their titles.
    fn cells<const N: usize>(sample: Sample, titles: [&str; N]) -> [String; N] {
        let listings = listings(&[sample]);
        let [listing] = listings.as_slice() else { panic!("one sort of devices") };
        assert_eq!(listing.rows[0].len(), listing.columns.len());
        titles.map(|title| {
            let column = listing.columns.iter().position(|(have, _)| *have == title).unwrap();
            listing.rows[0][column].clone()
        })
    }

    #[test]
    fn devices_that_encrypt_have_a_column_for_each_kind_of_work() {
        let sample = sample("crypto", [("cipher", 300), ("mac", 20)]);
        assert_eq!(cells(sample, ["OPS/S", "CIPHER", "DIGEST", "AEAD"]), ["320", "300", "20", "-"]);
    }

    #[test]
    fn devices_that_compress_show_how_much_they_do() {
        let sample = sample("compress", [("compress", 30), ("other", 2)]);
        assert_eq!(cells(sample, ["OPS/S", "COMPRESS", "DECOMPRESS", "RATIO"]), ["32", "30", "-", "3.000"]);
    }

    #[test]
    fn the_summary_says_how_full_batches_are_and_why_they_went() {
        let text = summary(&sample("crypto", [("cipher", 300), ("mac", 20)]));
        assert!(text.contains("requests a batch 16.0 (empty 25"), "{text}");
        assert!(text.contains("full 75"), "{text}");
    }
}
