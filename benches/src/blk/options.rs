//! Command line of `vhostd-bench blk`, in fio's vocabulary.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::access::Order;
use super::verify;
use super::wire::SECTOR;
use crate::guest::options::{self, BadRate, BadRing, Pace, RingOptions, Timing};
use crate::units::parse_size;

/// Drives a vhost-user-blk backend from user space: no VM, no hugepages.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench blk --socket /run/disk.sock --rw randread --iodepth 32 --poll --cpus 0
  vhostd-bench blk --socket /run/disk.sock --rw randwrite --number-ios 100000 --verify
  vhostd-bench blk --socket /run/disk.sock --rw randread --rate 50k --interrupt --json")]
pub struct Options {
    /// Socket of the backend (ours, qemu-storage-daemon, SPDK, ...)
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// What the load does
    #[command(flatten)]
    pub load: Load,
    /// Prints the result as JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Shows no live progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// One load, independent of the backend it is put on.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// Mix and order of the requests
    #[arg(long, visible_alias = "readwrite", value_enum, default_value_t = Mix::Randread)]
    pub rw: Mix,
    /// Bytes per request
    #[arg(long, default_value = "4k", value_parser = parse_size, value_name = "SIZE")]
    pub bs: u64,
    /// Requests in flight per queue
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub iodepth: u16,
    /// Queues, each driven by a thread of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub numjobs: u16,
    /// How long it takes
    #[command(flatten)]
    pub timing: Timing,
    /// How fast it goes
    #[command(flatten)]
    pub pace: Pace,
    /// Share of reads in percent when both are mixed
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// Uses only the first SIZE bytes of the disk
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// Flushes after this many writes
    #[arg(long, default_value_t = 0, value_name = "WRITES")]
    pub fsync: u32,
    /// Writes blocks that prove themselves and checks every byte that comes back
    #[arg(long)]
    pub verify: bool,
    /// Seed of offsets and block contents
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Data segments per request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=126))]
    pub segments: u16,
    /// How the rings are laid out and signalled
    #[command(flatten)]
    pub rings: RingOptions,
    /// Waits for a backend that dies and goes on with the same rings when it is back
    #[arg(long)]
    pub reconnect: bool,
}

/// Kinds of load under fio's names, and two of our own.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Mix {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Sequential reads and writes
    #[value(alias = "readwrite")]
    Rw,
    /// Random reads and writes
    Randrw,
    /// Sequential discards
    Trim,
    /// Random discards
    Randtrim,
    /// Sequential write-zeroes
    Zero,
    /// Random write-zeroes
    Randzero,
    /// Flushes only
    Flush,
}

impl Mix {
    /// Sequential or random.
    pub fn order(self) -> Order {
        match self {
            Self::Randread | Self::Randwrite | Self::Randrw | Self::Randtrim | Self::Randzero => {
                Order::Random
            }
            _ => Order::Sequential,
        }
    }

    /// The load changes the disk.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread | Self::Flush)
    }

    /// Name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Why a combination of options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOptions {
    /// virtio-blk counts in sectors.
    #[error("--bs {0} is no multiple of 512")]
    BlockSize(u64),
    /// One segment needs at least a sector.
    #[error("--bs {bs} cannot be cut into {segments} segments of whole sectors")]
    Segments {
        /// Bytes per request.
        bs: u64,
        /// Segments asked for.
        segments: u16,
    },
    /// The rings are too small or of no size.
    #[error(transparent)]
    Ring(#[from] BadRing),
    /// Discards and zeroes have no contents to verify.
    #[error("--verify works with reads and writes, not with --rw {0}")]
    Verify(String),
    /// The rate makes no sense.
    #[error(transparent)]
    Rate(#[from] BadRate),
}

impl Default for Load {
    /// What the command line gives without options.
    fn default() -> Self {
        options::parse("").expect("every option has a default")
    }
}

impl Load {
    /// Reads options as on the command line, separated by blanks; the error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let load: Self = options::parse(text)?;
        load.check().map_err(|error| error.to_string())?;
        Ok(load)
    }

    /// Checks what clap cannot: options that depend on each other.
    pub fn check(&self) -> Result<(), BadOptions> {
        if self.bs == 0 || !self.bs.is_multiple_of(SECTOR) {
            return Err(BadOptions::BlockSize(self.bs));
        }
        if !self.bs.is_multiple_of(SECTOR * u64::from(self.segments)) {
            return Err(BadOptions::Segments { bs: self.bs, segments: self.segments });
        }
        self.rings.check_depth(self.iodepth, self.segments + 2)?;
        let verifiable =
            !matches!(self.rw, Mix::Trim | Mix::Randtrim | Mix::Zero | Mix::Randzero | Mix::Flush);
        if self.verify && (!verifiable || self.bs < verify::MIN_BLOCK as u64) {
            return Err(BadOptions::Verify(self.rw.name()));
        }
        self.pace.check()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn parse(text: &str) -> Result<Load, String> {
        Load::parse(text)
    }

    #[test]
    fn defaults_are_four_kib_random_reads_at_depth_32_for_ten_seconds() {
        let load = parse("").unwrap();
        assert_eq!((load.rw, load.bs, load.iodepth, load.numjobs), (Mix::Randread, 4096, 32, 1));
        assert_eq!((load.timing.runtime, load.timing.warmup), (Duration::from_secs(10), Duration::ZERO));
        assert!(!load.rings.interrupt && !load.verify);
    }

    #[test]
    fn fios_names_and_units_are_understood() {
        let load = parse(
            "--rw=randrw --bs 64k --iodepth 8 --numjobs 2 --runtime 250ms --rwmixread 70 --rate-iops 50k \
             --size 1g --cpus 0-1 --interrupt --packed --queue-size 100 --ramp-time 1",
        )
        .unwrap();
        assert_eq!((load.rw, load.bs, load.rwmixread), (Mix::Randrw, 65536, 70));
        assert_eq!((load.pace.rate, load.size), (Some(50_000), Some(1 << 30)));
        assert_eq!(load.timing.cpus.unwrap().0, [0, 1]);
        assert_eq!(load.timing.runtime, Duration::from_millis(250));
        assert!(load.rings.interrupt && load.rings.packed);
        assert_eq!(parse("--rw readwrite").unwrap().rw, Mix::Rw);
    }

    #[test]
    fn options_that_contradict_each_other_are_refused_in_one_sentence() {
        for (text, part) in [
            ("--bs 1000", "no multiple of 512"),
            ("--bs 0", "no multiple of 512"),
            ("--bs 4k --segments 3", "3 segments"),
            ("--queue-size 100", "no power of two"),
            ("--iodepth 128", "need 384 descriptors, the ring has 256"),
            ("--rw trim --verify", "not with --rw trim"),
            ("--poll --interrupt", "cannot be used with"),
            ("--iodepth 0", "0 is not in"),
            ("--rate 0", "at least 1"),
            ("--cpus x", "no CPU list"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn order_and_direction_follow_the_name() {
        assert_eq!(Mix::Randtrim.order(), Order::Random);
        assert_eq!(Mix::Zero.order(), Order::Sequential);
        assert!(Mix::Rw.writes() && !Mix::Randread.writes() && !Mix::Flush.writes());
        assert_eq!(Mix::Randwrite.name(), "randwrite");
    }
}
