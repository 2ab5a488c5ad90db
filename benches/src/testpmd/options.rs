//! Command line of `vhostd-bench virtio-user`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cpu::CpuList;
use crate::guest::options;
use crate::units::parse_duration;

/// Drives a vhost-user-net backend with DPDK's virtio-user, started as testpmd on one CPU.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench virtio-user loopback --socket /run/a.sock --path split-mergeable --size 64 --cpus 0
  vhostd-bench virtio-user pair --socket /run/a.sock --socket /run/b.sock --path packed-vector --size 1518

In a loop and in a pair, frames go round: testpmd sends 1024 of them and passes on each one that comes back.
Exit codes: 0 frames arrived, 1 none arrived or testpmd is missing (Debian package dpdk), 2 bad usage.")]
pub struct Options {
    /// Socket of a port of the backend; twice for two guests
    #[arg(long, value_name = "PATH", required = true)]
    pub socket: Vec<PathBuf>,
    /// Control socket of vhostd-net: its busy cycles are read there (default: CPU time x counter frequency)
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// What testpmd does
    #[command(flatten)]
    pub load: Load,
    /// Prints the result as JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// One load, independent of the backend it is put on.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// How many ports, and where the frames go
    #[arg(value_enum)]
    pub mode: Mode,
    /// Code path of virtio-user
    #[arg(long, value_enum, default_value_t = Path::SplitMergeable)]
    pub path: Path,
    /// Bytes of a frame
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(60..=2000))]
    pub size: u16,
    /// Descriptors per ring
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(64..=1024))]
    pub ring_size: u16,
    /// How long to measure
    #[arg(long, default_value = "10", value_parser = parse_duration, value_name = "TIME")]
    pub runtime: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "1", value_parser = parse_duration, value_name = "TIME")]
    pub warmup: Duration,
    /// CPU for testpmd
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
}

/// How many ports testpmd has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Mode {
    /// One port; the backend sends the frames back
    Loopback,
    /// Two ports; the backend carries the frames from one to the other, both ways
    Pair,
}

/// The combinations of ring format and features that virtio-user has receive and transmit code of its own for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "kebab-case")]
pub enum Path {
    /// Split ring, mergeable buffers
    SplitMergeable,
    /// Split ring, mergeable buffers, in order
    SplitInOrderMergeable,
    /// Split ring
    Split,
    /// Split ring, in order
    SplitInOrder,
    /// Split ring, receive path in vector instructions
    SplitVector,
    /// Packed ring, mergeable buffers
    PackedMergeable,
    /// Packed ring, mergeable buffers, in order
    PackedInOrderMergeable,
    /// Packed ring
    Packed,
    /// Packed ring, in order
    PackedInOrder,
    /// Packed ring, both paths in vector instructions
    PackedVector,
    /// The same with a ring whose size is no power of two
    PackedVectorOdd,
}

impl Path {
    /// What the driver is told: ring format, mergeable buffers, in order, vector instructions.
    const fn switches(self) -> [bool; 4] {
        const N: bool = false;
        const Y: bool = true;
        match self {
            Self::SplitMergeable => [N, Y, N, N],
            Self::SplitInOrderMergeable => [N, Y, Y, N],
            Self::Split => [N, N, N, N],
            Self::SplitInOrder => [N, N, Y, N],
            Self::SplitVector => [N, N, N, Y],
            Self::PackedMergeable => [Y, Y, N, N],
            Self::PackedInOrderMergeable => [Y, Y, Y, N],
            Self::Packed => [Y, N, N, N],
            Self::PackedInOrder => [Y, N, Y, N],
            Self::PackedVector | Self::PackedVectorOdd => [Y, N, Y, Y],
        }
    }

    /// The driver's arguments.
    pub fn arguments(self, ring_size: u16) -> String {
        let [packed, mergeable, in_order, vector] = self.switches().map(u8::from);
        let size = if self == Self::PackedVectorOdd { ring_size - 1 } else { ring_size };
        format!(
            "queues=1,queue_size={size},packed_vq={packed},mrg_rxbuf={mergeable},in_order={in_order},vectorized={vector}"
        )
    }

    /// The path needs AVX-512, which DPDK does not use unasked.
    pub fn wants_wide_vectors(self) -> bool {
        matches!(self, Self::PackedVector | Self::PackedVectorOdd)
    }

    /// A word in the driver's log about the receive path when it has really chosen this one.
    pub fn evidence(self) -> &'static str {
        match self {
            Self::SplitMergeable | Self::PackedMergeable => "mergeable",
            Self::SplitInOrderMergeable | Self::SplitInOrder => "inorder",
            Self::Split | Self::Packed | Self::PackedInOrder => "standard",
            Self::PackedInOrderMergeable => "mergeable",
            Self::SplitVector | Self::PackedVector | Self::PackedVectorOdd => "vectorized",
        }
    }

    /// Name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Why a combination of options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOptions {
    /// The mode does not fit the sockets.
    #[error("{mode} takes {want} of --socket, {have} given")]
    Sockets {
        /// The mode.
        mode: &'static str,
        /// Sockets it takes.
        want: usize,
        /// Sockets there are.
        have: usize,
    },
}

impl Load {
    /// Reads mode and options as on the command line, separated by blanks; the error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        options::parse(text)
    }

    /// Holds the number of sockets against the mode.
    pub fn check(&self, have: usize) -> Result<(), BadOptions> {
        let want = self.ports();
        let mode = if self.mode == Mode::Pair { "pair" } else { "loopback" };
        if have == want { Ok(()) } else { Err(BadOptions::Sockets { mode, want, have }) }
    }

    /// Ports that testpmd has.
    pub fn ports(&self) -> usize {
        if self.mode == Mode::Pair { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_asks_for_features_of_its_own() {
        let arguments: std::collections::BTreeSet<String> =
            Path::value_variants().iter().map(|path| path.arguments(256)).collect();
        assert_eq!(arguments.len(), 11);
        assert!(Path::PackedVectorOdd.arguments(256).contains("queue_size=255"));
        assert_eq!(
            Path::SplitInOrder.arguments(256),
            "queues=1,queue_size=256,packed_vq=0,mrg_rxbuf=0,in_order=1,vectorized=0"
        );
    }

    #[test]
    fn the_number_of_sockets_must_fit_the_mode() {
        let pair = Load::parse("pair --path packed-vector --size 1518").unwrap();
        assert_eq!((pair.path, pair.check(2)), (Path::PackedVector, Ok(())));
        assert!(pair.check(1).unwrap_err().to_string().contains("takes 2 of --socket, 1 given"));
        assert!(Load::parse("pair --path fast").unwrap_err().contains("fast"));
    }
}
