//! What the threads of a run have counted, and its sum.

use std::time::Duration;

use super::ring::Signals;
use crate::latency::Latencies;

/// Requests completed in a span of time.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests.
    pub operations: u64,
    /// Bytes moved by them.
    pub bytes: u64,
    /// Their latencies.
    pub latencies: Latencies,
    /// Bursts they were harvested in.
    pub bursts: u64,
}

/// What one queue has measured.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests of the measured time.
    pub counts: Counts,
    /// Notifications in the measured time.
    pub signals: Signals,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Requests the device refused, over the whole run.
    pub errors: u64,
    /// Status byte of the first of them.
    pub first_error: Option<u8>,
    /// Requests over the whole run.
    pub completed: u64,
}

/// All queues of a run together.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Requests of the measured time.
    pub operations: u64,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Requests per second.
    pub rate: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Latencies of all requests.
    pub latencies: Latencies,
    /// Notifications.
    pub signals: Signals,
    /// Bursts that requests were harvested in.
    pub bursts: u64,
    /// Requests the device refused.
    pub errors: u64,
    /// Status byte of the first of them.
    pub first_error: Option<u8>,
}

impl Totals {
    /// Adds up what the queues have measured.
    pub fn of<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Self {
        let mut totals = Self::default();
        for tally in tallies {
            totals.add(tally);
        }
        totals
    }

    fn add(&mut self, tally: &Tally) {
        let counts = &tally.counts;
        self.operations += counts.operations;
        self.seconds = self.seconds.max(tally.seconds);
        if tally.seconds > 0.0 {
            self.rate += counts.operations as f64 / tally.seconds;
            self.bytes_per_second += counts.bytes as f64 / tally.seconds;
        }
        self.latencies.merge(&counts.latencies);
        self.signals += tally.signals;
        self.bursts += counts.bursts;
        self.errors += tally.errors;
        self.first_error = self.first_error.or(tally.first_error);
    }

    /// A count per request; 0 without requests.
    pub fn per_operation(&self, count: f64) -> f64 {
        if self.operations == 0 { 0.0 } else { count / self.operations as f64 }
    }

    /// Requests harvested at once, on average.
    pub fn batch(&self) -> f64 {
        if self.bursts == 0 { 0.0 } else { self.operations as f64 / self.bursts as f64 }
    }

    /// CPU time per request in microseconds.
    pub fn cpu_us(&self, cpu: Option<Duration>) -> Option<f64> {
        cpu.filter(|_| self.operations > 0).map(|cpu| self.per_operation(cpu.as_secs_f64() * 1e6))
    }

    /// CPU time as a share of one CPU: 1.0 is a full core.
    pub fn cpu_load(&self, cpu: Option<Duration>) -> Option<f64> {
        cpu.filter(|_| self.seconds > 0.0).map(|cpu| cpu.as_secs_f64() / self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(operations: u64, seconds: f64) -> Tally {
        let counts =
            Counts { operations, bytes: operations * 4096, bursts: operations / 10, ..Counts::default() };
        let signals = Signals { kicks: operations / 2, interrupts: operations / 4 };
        Tally { counts, signals, seconds, ..Tally::default() }
    }

    #[test]
    fn rates_of_queues_add_up_and_ratios_are_per_request() {
        let totals = Totals::of(&[tally(1000, 2.0), tally(3000, 2.0)]);
        assert_eq!((totals.operations, totals.rate, totals.batch()), (4000, 2000.0, 10.0));
        assert_eq!(totals.bytes_per_second, 8_192_000.0);
        assert_eq!(totals.signals, Signals { kicks: 2000, interrupts: 1000 });
        let second = Some(Duration::from_secs(1));
        assert_eq!((totals.cpu_us(second), totals.cpu_load(second)), (Some(250.0), Some(0.5)));
    }

    #[test]
    fn nothing_completed_gives_zeros_and_no_cpu_figure() {
        let totals = Totals::of(&[Tally::default()]);
        assert_eq!((totals.rate, totals.batch(), totals.per_operation(5.0)), (0.0, 0.0, 0.0));
        assert_eq!(totals.cpu_us(Some(Duration::from_secs(1))), None);
    }
}
