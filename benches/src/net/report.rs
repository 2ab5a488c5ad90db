//! The result of one run: numbers, JSON, table.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::job::Tally;
use super::options::{Load, Mode};
use crate::clock::Clock;
use crate::guest::{Lines, Shown};
use crate::latency::{Latencies, LatencySummary};
use crate::units::{show_rate, show_size};

/// Result of one run. Rates and counts are those of the measured time, losses and the like those of the whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Load, in words.
    pub load: String,
    /// Frames delivered: received, or taken by the backend where nobody receives. A round trip counts each way.
    pub packets: u64,
    /// Measured time.
    pub seconds: f64,
    /// Frames per second, all receivers.
    pub pps: f64,
    /// Bits of frames per second in 10^9, without preamble and gaps.
    pub gbit_per_second: f64,
    /// Round trips, in ping mode.
    pub latency: Option<LatencySummary>,
    /// CPU time of the backend process per frame; `None` if its process is not visible.
    pub cpu_ns_per_packet: Option<f64>,
    /// Share of one CPU that the backend used: 1.0 is a full core.
    pub cpu_load: Option<f64>,
    /// Cycles per frame of the backend while it had something to do: its own count where it has one, else its CPU time in
    /// ticks of the time stamp counter.
    pub cycles_per_packet: Option<f64>,
    /// The cycles are the backend's own count of busy ones, without its polling.
    pub cycles_are_busy: bool,
    /// Share of the time that the driver was busy, the busiest thread: near 1 the driver is the limit.
    pub driver_load: f64,
    /// Eventfd writes by the driver per frame.
    pub kicks_per_packet: f64,
    /// Eventfd writes by the backend per frame.
    pub interrupts_per_packet: f64,
    /// Frames harvested at once, on average.
    pub batch: f64,
    /// Frames sent.
    pub sent: u64,
    /// Frames sent that never arrived; `None` where nobody can know.
    pub lost: Option<u64>,
    /// Frames that arrived again.
    pub duplicates: u64,
    /// Frames that arrived after a later one.
    pub reordered: u64,
    /// Frames compared byte by byte.
    pub verified_frames: u64,
    /// Frames with a wrong byte.
    pub wrong_frames: u64,
    /// The first few of them.
    pub mismatches: Vec<String>,
    /// Round trips that never ended.
    pub timeouts: u64,
    /// Longest time without an arrival, in milliseconds.
    pub silence_ms: f64,
    /// Times the backend was gone, in milliseconds from its death until it was driven again.
    pub outages_ms: Vec<f64>,
}

/// What was measured besides the threads' own counts.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// CPU time of the backend.
    pub cpu: Option<std::time::Duration>,
    /// Busy cycles that the backend has counted.
    pub busy: Option<f64>,
    /// Frames counted on the wire.
    pub wire: Option<u64>,
    /// Times the backend was gone.
    pub outages_ms: Vec<f64>,
}

/// What another driver has counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Load, in words.
    pub load: String,
    /// Frames delivered.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Measured time.
    pub seconds: f64,
    /// CPU time of the backend.
    pub cpu: Option<std::time::Duration>,
    /// Busy cycles that the backend has counted.
    pub busy: Option<f64>,
    /// Share of the time that the driver was busy.
    pub driver_load: f64,
}

impl Report {
    /// The report of another driver.
    pub fn counted(counted: Counted, clock: &Clock) -> Self {
        let Counted { load, packets, bytes, seconds, cpu, busy, driver_load } = counted;
        let mut report = Self { load, packets, seconds, driver_load, ..Self::default() };
        report.pps = packets as f64 / seconds.max(1e-9);
        report.gbit_per_second = bytes as f64 * 8.0 / 1e9 / seconds.max(1e-9);
        report.cycles(cpu, busy, clock);
        report
    }

    /// Adds up what the threads have measured.
    pub fn new(load: &Load, tallies: Vec<Tally>, measured: Measured, clock: &Clock) -> Self {
        let mut report = Self { load: describe(load), outages_ms: measured.outages_ms, ..Self::default() };
        let mut sum = Sum::default();
        for tally in tallies {
            report.add(load, tally, &mut sum);
        }
        if let Some(wire) = measured.wire {
            report.packets = wire;
        }
        report.rates(load, &sum);
        let known = !load.blind && load.mode != Mode::Tx && (load.mode != Mode::Rx || load.wire.is_some());
        report.lost = known.then(|| report.sent.saturating_sub(sum.unique));
        report.cycles(measured.cpu, measured.busy, clock);
        report
    }

    fn add(&mut self, load: &Load, tally: Tally, sum: &mut Sum) {
        let counts = &tally.counts;
        self.packets += if load.mode == Mode::Tx { counts.taken } else { counts.received };
        self.seconds = self.seconds.max(tally.seconds);
        self.driver_load = self.driver_load.max(tally.busy);
        self.silence_ms = self.silence_ms.max(tally.silence * 1e3);
        sum.bytes += if load.mode == Mode::Tx { counts.taken * load.size } else { counts.bytes };
        sum.bursts += counts.bursts;
        sum.kicks += tally.signals.kicks;
        sum.interrupts += tally.signals.interrupts;
        sum.latencies.merge(&counts.latencies);
        sum.unique += tally.seen.unique;
        self.sent += tally.sent;
        self.duplicates += tally.seen.duplicates;
        self.reordered += tally.seen.reordered;
        self.verified_frames += tally.verified.frames;
        self.wrong_frames += tally.verified.wrong;
        self.mismatches.extend(tally.verified.mismatches);
        self.timeouts += tally.timeouts;
    }

    fn rates(&mut self, load: &Load, sum: &Sum) {
        let seconds = self.seconds.max(1e-9);
        self.pps = self.packets as f64 / seconds;
        self.gbit_per_second = sum.bytes as f64 * 8.0 / 1e9 / seconds;
        let per_packet =
            |count: u64| if self.packets == 0 { 0.0 } else { count as f64 / self.packets as f64 };
        (self.kicks_per_packet, self.interrupts_per_packet) =
            (per_packet(sum.kicks), per_packet(sum.interrupts));
        self.batch = if sum.bursts == 0 { 0.0 } else { self.packets as f64 / sum.bursts as f64 };
        self.latency = (load.mode == Mode::Ping).then(|| sum.latencies.summary());
    }

    fn cycles(&mut self, cpu: Option<std::time::Duration>, busy: Option<f64>, clock: &Clock) {
        let packets = self.packets as f64;
        if packets == 0.0 || self.seconds == 0.0 {
            return;
        }
        self.cpu_ns_per_packet = cpu.map(|cpu| cpu.as_nanos() as f64 / packets);
        self.cpu_load = cpu.map(|cpu| cpu.as_secs_f64() / self.seconds);
        self.cycles_are_busy = busy.is_some();
        let cycles = busy.or(cpu.map(|cpu| clock.ticks(cpu.as_nanos() as u64) as f64));
        self.cycles_per_packet = cycles.map(|cycles| cycles / packets);
    }
}

impl Shown for Report {
    /// Frames have arrived, none of them wrong, and none twice.
    fn is_clean(&self) -> bool {
        self.packets > 0 && self.wrong_frames == 0 && self.duplicates == 0
    }

    fn table(&self) -> String {
        let mut lines = Lines(format!("{}\n", self.load));
        let mut line = |name: &str, value: String| lines.add(name, value);
        line("packets", format!("{}pps", show_rate(self.pps)));
        line("throughput", format!("{:.2} Gbit/s", self.gbit_per_second));
        if let Some(latency) = &self.latency {
            line("round trip mean", format!("{:.2} us", latency.mean_us));
            line("round trip p50", format!("{:.2} us", latency.p50_us));
            line("round trip p99", format!("{:.2} us", latency.p99_us));
            line("round trip max", format!("{:.2} us", latency.max_us));
        }
        match (self.cpu_ns_per_packet, self.cpu_load) {
            (Some(cpu), Some(load)) => {
                line("backend CPU", format!("{cpu:.1} ns per packet, {:.0} % of a core", load * 100.0));
            }
            _ => line("backend CPU", "unknown (its process is not visible from here)".to_owned()),
        }
        if let Some(cycles) = self.cycles_per_packet {
            let kind = if self.cycles_are_busy { "busy" } else { "CPU time, polling included" };
            line("backend cycles", format!("{cycles:.0} per packet ({kind})"));
        }
        line("driver busy", format!("{:.0} % of the time", self.driver_load * 100.0));
        line("kicks", format!("{:.4} per packet", self.kicks_per_packet));
        line("interrupts", format!("{:.4} per packet", self.interrupts_per_packet));
        line("average batch", format!("{:.1}", self.batch));
        line("delivered", format!("{} in {:.2} s", self.packets, self.seconds));
        if let Some(lost) = self.lost {
            let (duplicates, reordered) = (self.duplicates, self.reordered);
            let sent = self.sent;
            line("of", format!("{sent} sent: {lost} lost, {duplicates} twice, {reordered} out of order"));
        }
        if self.verified_frames > 0 {
            line("verified", format!("{} frames, {} wrong", self.verified_frames, self.wrong_frames));
        }
        if self.timeouts > 0 {
            line("TIMEOUTS", format!("{} round trips never ended", self.timeouts));
        }
        if !self.outages_ms.is_empty() {
            let times: Vec<String> = self.outages_ms.iter().map(|ms| format!("{ms:.1} ms")).collect();
            line("outages survived", times.join(", "));
            line("longest silence", format!("{:.1} ms", self.silence_ms));
        }
        for mismatch in &self.mismatches {
            line("MISMATCH", mismatch.clone());
        }
        lines.0
    }
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    bursts: u64,
    kicks: u64,
    interrupts: u64,
    unique: u64,
    latencies: Latencies,
}

/// The load in words: `pair size=64 split polled`.
fn describe(load: &Load) -> String {
    let rings = &load.rings;
    let mut text = format!(
        "{} size={}{} queues={} ring={} {} {}",
        load.mode.name(),
        show_size(load.size),
        if load.tso { " tso" } else { "" },
        load.queues,
        rings.queue_size,
        if rings.packed { "packed" } else { "split" },
        if rings.interrupt { "interrupts" } else { "polled" },
    );
    for (on, word) in [
        (load.bidirectional, "bidirectional"),
        (rings.in_order, "in-order"),
        (rings.indirect, "indirect"),
        (load.no_mergeable, "no-mergeable"),
        (load.blind, "blind"),
        (load.verify, "verify"),
    ] {
        if on {
            let _ = write!(text, " {word}");
        }
    }
    if let Some(rate) = load.rate {
        let _ = write!(text, " rate={rate}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::job::Counts;
    use crate::net::ledger::Seen;
    use std::time::Duration;

    fn report(options: &str, measured: Measured) -> Report {
        let counts = Counts {
            sent: 1000,
            taken: 1000,
            received: 990,
            bytes: 990 * 64,
            bursts: 99,
            ..Counts::default()
        };
        let seen = Seen { unique: 1180, duplicates: 1, reordered: 2 };
        let tally = Tally { counts, seconds: 0.5, busy: 0.25, sent: 1200, seen, ..Tally::default() };
        Report::new(&Load::parse(options).unwrap(), vec![tally], measured, &Clock::new())
    }

    #[test]
    fn rates_are_of_the_measured_time_and_losses_of_the_whole_run() {
        let cpu = Some(Duration::from_micros(99));
        let report = report("pair", Measured { cpu, busy: Some(198_000.0), ..Measured::default() });
        assert_eq!((report.packets, report.pps, report.batch), (990, 1980.0, 10.0));
        assert_eq!((report.lost, report.duplicates, report.reordered), (Some(20), 1, 2));
        assert_eq!((report.cpu_ns_per_packet, report.cycles_per_packet), (Some(100.0), Some(200.0)));
        assert!(report.cycles_are_busy && !report.is_clean());
        let text = report.table();
        assert!(text.contains("1200 sent: 20 lost, 1 twice, 2 out of order"), "{text}");
        assert!(text.contains("200 per packet (busy)"), "{text}");
    }

    #[test]
    fn without_a_count_of_the_backend_its_cpu_time_is_taken() {
        let cpu = Some(Duration::from_micros(99));
        let report = report("pair", Measured { cpu, ..Measured::default() });
        assert!(!report.cycles_are_busy);
        // 100 ns are 100 to 600 ticks of any counter there is.
        assert!((90.0..700.0).contains(&report.cycles_per_packet.unwrap()), "{report:?}");
    }

    #[test]
    fn a_sender_counts_what_the_backend_took_or_what_the_wire_saw() {
        assert_eq!(report("tx", Measured::default()).packets, 1000);
        let measured = Measured { wire: Some(500), ..Measured::default() };
        let report = report("tx --wire tap0", measured);
        assert_eq!((report.packets, report.lost), (500, None));
    }

    #[test]
    fn a_report_survives_json() {
        let report = report("pair --blind", Measured::default());
        assert_eq!(report.lost, None);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
