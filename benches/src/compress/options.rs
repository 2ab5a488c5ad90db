//! Command line of `vhostd-bench compress`.

use std::path::PathBuf;

use clap::Args;
use compress_protocol::{Checksum, Format, feature, flag};

use super::algorithm::{Operation, parse_checksum, parse_format};
use super::alone::Engine;
use super::client::Setup;
use super::corpus::Corpus;
use crate::guest::options::{self, BadRate, BadRing, Pace, RingOptions, Timing};
use crate::units::parse_size;

/// Drives a compression device over vhost-user from user space: no VM, no hugepages.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench compress --socket /run/compress.sock --format zlib --level 1 --bs 64k --iodepth 16 --cpus 0
  vhostd-bench compress --socket /run/compress.sock --op decompress --format zstd --interrupt --json
  vhostd-bench compress --socket /run/compress.sock --format lz4 --checksum xxh64 --number-ios 10k --verify
  vhostd-bench compress --engine-alone zlib --format gzip --level 1 --cpus 0

Exit codes: 0 requests ended, none of them failed and no byte was wrong; 1 otherwise; 2 bad usage.")]
pub struct Options {
    /// Socket of the backend
    #[arg(long, value_name = "PATH", required_unless_present = "engine_alone")]
    pub socket: Option<PathBuf>,
    /// Measures an engine without a device in front of it, one thread a queue
    #[arg(long, value_enum, value_name = "ENGINE", conflicts_with_all = ["socket", "control"])]
    pub engine_alone: Option<Engine>,
    /// Control socket of vhostd-compress: why batches were submitted is read there
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
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
    /// What is done
    #[arg(long, value_enum, default_value_t)]
    pub op: Operation,
    /// Format of compressed data: deflate, zlib, gzip, zstd, lz4, lz4-block
    #[arg(long, default_value = "zlib", value_parser = parse_format, value_name = "NAME")]
    pub format: Format,
    /// Compression level; 0 is the default of the format
    #[arg(long, default_value_t = 1, allow_hyphen_values = true)]
    pub level: i32,
    /// Checksum of the uncompressed data that is asked for: crc32, adler32, xxh32, xxh64
    #[arg(long, default_value = "none", value_parser = parse_checksum, value_name = "NAME")]
    pub checksum: Checksum,
    /// Bytes of a block before it is compressed
    #[arg(long, visible_alias = "bs", default_value = "64k", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Bytes of a destination (default: those of a block; what does not fit comes back as incompressible)
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub room: Option<u64>,
    /// Requests in flight per queue
    #[arg(long, visible_alias = "iodepth", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub depth: u16,
    /// Queues, each driven by a thread of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,
    /// Descriptors that source and destination are cut into
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub segments: u16,
    /// Asks the device to decompress each result and to compare it before it answers
    #[arg(long)]
    pub verified: bool,
    /// What the blocks are taken from: mixed, text or programs of this machine, random, zeros, or a file
    #[arg(long, default_value = "mixed", value_name = "NAME|FILE")]
    pub corpus: Corpus,
    /// Bytes of it that are used
    #[arg(long, default_value = "8m", value_parser = parse_size, value_name = "SIZE")]
    pub corpus_size: u64,
    /// How long it takes
    #[command(flatten)]
    pub timing: Timing,
    /// How fast it goes
    #[command(flatten)]
    pub pace: Pace,
    /// Holds every result against another implementation of the format and of the checksum
    #[arg(long)]
    pub verify: bool,
    /// Seed of the corpus
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How the rings are laid out and signalled
    #[command(flatten)]
    pub rings: RingOptions,
}

/// Why a combination of options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOptions {
    /// Blocks of a size that cannot be.
    #[error("--size {0} is no size: it must be 1 byte to 64m, and no more than --corpus-size")]
    Size(u64),
    /// Nothing is asked for.
    #[error("--op checksum needs --checksum crc32, adler32, xxh32 or xxh64")]
    NoChecksum,
    /// There is no result to be verified.
    #[error("--verified is for --op compress only")]
    Verified,
    /// The rings are too small or of no size.
    #[error(transparent)]
    Ring(#[from] BadRing),
    /// The rate makes no sense.
    #[error(transparent)]
    Rate(#[from] BadRate),
}

/// Largest block.
const MAX_SIZE: u64 = 64 << 20;

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
        if self.size == 0 || self.size > MAX_SIZE.min(self.corpus_size) {
            return Err(BadOptions::Size(self.size));
        }
        if self.op == Operation::Checksum && self.checksum == Checksum::None {
            return Err(BadOptions::NoChecksum);
        }
        if self.verified && self.op != Operation::Compress {
            return Err(BadOptions::Verified);
        }
        self.pace.check()?;
        self.rings.check_depth(self.depth, self.descriptors())?;
        Ok(())
    }

    /// Bytes of a destination.
    pub fn room(&self) -> usize {
        match self.op {
            Operation::Checksum => 0,
            _ => self.room.unwrap_or(self.size) as usize,
        }
    }

    /// Flags of a request.
    pub fn flags(&self) -> u32 {
        if self.verified { flag::VERIFY } else { 0 }
    }

    /// Descriptors of a request at most.
    fn descriptors(&self) -> u16 {
        let sides = if self.op == Operation::Checksum { 1 } else { 2 };
        2 + sides * self.segments
    }

    /// What the driver asks the backend for.
    pub fn setup(&self) -> Setup {
        let needed = [(self.checksum != Checksum::None, feature::CHECKSUM), (self.verified, feature::VERIFY)];
        Setup {
            queues: self.queues,
            depth: self.depth,
            descriptors: self.descriptors(),
            features: needed.into_iter().filter_map(|(needed, bit)| needed.then_some(bit)).sum(),
            shape: self.rings.shape(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn defaults_are_zlib_at_level_1_in_blocks_of_64_kib_at_depth_16() {
        let load = Load::parse("").unwrap();
        assert_eq!((load.op, load.format, load.level), (Operation::Compress, Format::Zlib, 1));
        assert_eq!((load.size, load.room(), load.depth), (65536, 65536, 16));
        assert_eq!((load.timing.runtime, &load.corpus), (Duration::from_secs(10), &Corpus::Mixed));
        assert!(!load.rings.interrupt && !load.verify && load.setup().features == 0);
    }

    #[test]
    fn what_is_asked_for_becomes_features_and_descriptors() {
        let load = Load::parse("--level -5 --format zstd --checksum xxh64 --verified --segments 3").unwrap();
        assert_eq!((load.level, load.setup().features), (-5, feature::CHECKSUM | feature::VERIFY));
        assert_eq!((load.setup().descriptors, load.flags()), (8, flag::VERIFY));
        let load = Load::parse("--op checksum --checksum crc32").unwrap();
        assert_eq!((load.setup().descriptors, load.room()), (3, 0));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused_in_one_sentence() {
        for (text, part) in [
            ("--format bzip2", "no format"),
            ("--checksum md5", "no checksum"),
            ("--op checksum", "needs --checksum"),
            ("--size 0", "1 byte to 64m"),
            ("--size 1m --corpus-size 512k", "no more than --corpus-size"),
            ("--op decompress --verified", "--op compress only"),
            ("--depth 128", "need 512 descriptors, the ring has 256"),
            ("--queue-size 100", "no power of two"),
            ("--rate 0", "at least 1"),
        ] {
            let error = Load::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Load::parse("--depth 128 --indirect").is_ok());
    }
}
