//! What can be compared, and where a report has it.

use serde::{Deserialize, Serialize};

use super::driver::Driver;
use super::statistics::Better;
use crate::{blk, compress, crypto, net};

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Operations per second.
    Iops,
    /// Mean latency.
    Mean,
    /// Median latency; of a network, the round trip.
    P50,
    /// 99th percentile of latency; of a network, the round trip.
    P99,
    /// CPU time of the backend per operation.
    Cpu,
    /// Operations of an offload device per second.
    Ops,
    /// Bytes they work on per second; of compression, those that are not compressed.
    Bytes,
    /// Kicks per such operation.
    OpKicks,
    /// Interrupts per such operation.
    OpInterrupts,
    /// Plain bytes for one compressed byte.
    Ratio,
    /// Frames per second.
    Pps,
    /// Bits of frames per second.
    Gbits,
    /// CPU time of the backend per frame.
    PacketCpu,
    /// Cycles of the backend per frame, without those it spent on looking for work.
    Cycles,
    /// Frames per kick.
    Kicks,
    /// Frames per interrupt.
    Interrupts,
}

impl Figure {
    /// Unit and meaning for the tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::Mean => "mean latency, us",
            Self::P50 => "p50 latency, us",
            Self::P99 => "p99 latency, us",
            Self::Cpu => "CPU us per request",
            Self::Ops => "operations per second",
            Self::Bytes => "MB per second",
            Self::OpKicks => "kicks per operation",
            Self::OpInterrupts => "interrupts per operation",
            Self::Ratio => "compression ratio",
            Self::Pps => "packets per second",
            Self::Gbits => "Gbit/s",
            Self::PacketCpu => "CPU ns per packet",
            Self::Cycles => "busy cycles per packet",
            Self::Kicks => "packets per kick",
            Self::Interrupts => "packets per interrupt",
        }
    }

    /// Which way it is better.
    pub fn better(self) -> Better {
        match self {
            Self::Iops | Self::Pps | Self::Gbits | Self::Kicks | Self::Interrupts => Better::Higher,
            Self::Ops | Self::Bytes | Self::Ratio => Better::Higher,
            Self::Mean | Self::P50 | Self::P99 | Self::Cpu | Self::PacketCpu | Self::Cycles => Better::Lower,
            Self::OpKicks | Self::OpInterrupts => Better::Lower,
        }
    }

    /// Whether reports of this driver can have it.
    pub fn is_of(self, driver: Driver) -> bool {
        let latency = matches!(self, Self::Mean | Self::P50 | Self::P99);
        let block = matches!(self, Self::Iops | Self::Cpu);
        let offload = matches!(self, Self::Ops | Self::Bytes | Self::OpKicks | Self::OpInterrupts);
        match driver {
            Driver::Blk => block || latency,
            Driver::Net => !block && !offload && self != Self::Ratio,
            Driver::Crypto => offload || latency || self == Self::Cpu,
            Driver::Compress => offload || latency || matches!(self, Self::Cpu | Self::Ratio),
            Driver::VirtioUser => matches!(self, Self::Pps | Self::Gbits | Self::PacketCpu | Self::Cycles),
        }
    }
}

/// A report that figures are taken from.
pub trait Measured {
    /// The value; `None` where it could not be measured.
    fn figure(&self, of: Figure) -> Option<f64>;
}

impl Measured for blk::Report {
    fn figure(&self, of: Figure) -> Option<f64> {
        match of {
            Figure::Iops => Some(self.iops),
            Figure::Mean => Some(self.latency.mean_us),
            Figure::P50 => Some(self.latency.p50_us),
            Figure::P99 => Some(self.latency.p99_us),
            Figure::Cpu => self.cpu_us_per_op,
            _ => None,
        }
    }
}

impl Measured for net::Report {
    fn figure(&self, of: Figure) -> Option<f64> {
        let inverse = |per_packet: f64| (per_packet > 0.0).then(|| 1.0 / per_packet);
        match of {
            Figure::Pps => Some(self.pps),
            Figure::Gbits => Some(self.gbit_per_second),
            Figure::Mean => self.latency.map(|latency| latency.mean_us),
            Figure::P50 => self.latency.map(|latency| latency.p50_us),
            Figure::P99 => self.latency.map(|latency| latency.p99_us),
            Figure::PacketCpu => self.cpu_ns_per_packet,
            Figure::Cycles => self.cycles_per_packet,
            Figure::Kicks => inverse(self.kicks_per_packet),
            Figure::Interrupts => inverse(self.interrupts_per_packet),
            _ => None,
        }
    }
}

impl Measured for crypto::Report {
    fn figure(&self, of: Figure) -> Option<f64> {
        match of {
            Figure::Ops => Some(self.ops_per_second),
            Figure::Bytes => Some(self.mb_per_second),
            Figure::Mean => Some(self.latency.mean_us),
            Figure::P50 => Some(self.latency.p50_us),
            Figure::P99 => Some(self.latency.p99_us),
            Figure::Cpu => self.cpu_us_per_op,
            Figure::OpKicks => Some(self.kicks_per_op),
            Figure::OpInterrupts => Some(self.interrupts_per_op),
            _ => None,
        }
    }
}

impl Measured for compress::Report {
    fn figure(&self, of: Figure) -> Option<f64> {
        match of {
            Figure::Ops => Some(self.ops_per_second),
            Figure::Bytes => Some(self.mb_per_second),
            Figure::Mean => Some(self.latency.mean_us),
            Figure::P50 => Some(self.latency.p50_us),
            Figure::P99 => Some(self.latency.p99_us),
            Figure::Cpu => self.cpu_us_per_op,
            Figure::OpKicks => Some(self.kicks_per_op),
            Figure::OpInterrupts => Some(self.interrupts_per_op),
            Figure::Ratio => self.ratio.filter(|_| self.whole),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_and_interrupts_are_turned_into_packets_for_each() {
        let report = net::Report { kicks_per_packet: 0.125, pps: 3.0, ..net::Report::default() };
        assert_eq!((report.figure(Figure::Kicks), report.figure(Figure::Interrupts)), (Some(8.0), None));
        assert_eq!((report.figure(Figure::Pps), report.figure(Figure::P50)), (Some(3.0), None));
    }

    #[test]
    fn a_driver_has_only_its_own_figures() {
        assert!(Figure::Iops.is_of(Driver::Blk) && !Figure::Iops.is_of(Driver::Net));
        assert!(Figure::Ops.is_of(Driver::Crypto) && Figure::Cpu.is_of(Driver::Crypto));
        assert!(!Figure::Ops.is_of(Driver::Net) && !Figure::Iops.is_of(Driver::Crypto));
        assert!(Figure::Ratio.is_of(Driver::Compress) && !Figure::Ratio.is_of(Driver::Crypto));
        assert!(Figure::Bytes.is_of(Driver::Compress) && !Figure::Ratio.is_of(Driver::Net));
        assert!(Figure::P99.is_of(Driver::Net) && !Figure::P99.is_of(Driver::VirtioUser));
        assert_eq!((Figure::Cycles.better(), Figure::Pps.better()), (Better::Lower, Better::Higher));
    }
}
