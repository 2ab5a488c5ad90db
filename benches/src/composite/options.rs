//! Command line of `vhostd-bench composite`.

use std::path::PathBuf;

use clap::Args;
use compress_protocol::Format;

use super::submitter::BLOCK;
use crate::compress::algorithm::parse_format;
use crate::compress::corpus::Corpus;
use crate::cpu::CpuList;
use crate::units::parse_size;

/// Writes a compressible data set to a slow disk and reads it back: as it is, compressed in software, and offloaded
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench composite
  vhostd-bench composite --rounds 3 --size 64m --markdown composite.md --plot composite.svg
  vhostd-bench composite --bandwidth 250 --no-sweep --format zstd
  vhostd-bench composite --compress-options '--engine isal'

The default of --bandwidth is what one gigabit per second carries, and what general-purpose volumes of public clouds are sold
with: 125 MB/s. A hard disk writes 150 to 250 MB/s in a row, a SATA SSD 500, an NVMe disk 2000 and more.

Exit codes: 0 every record came back as it was, 1 otherwise, 2 bad usage.")]
pub struct Options {
    /// Megabytes (10^6) a second that the disk reads or writes; the aims are held against this one
    #[arg(long, default_value_t = 125, value_name = "MB/s", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub bandwidth: u32,
    /// More bandwidths, to see from where on the offload does not pay
    #[arg(long, value_delimiter = ',', default_value = "30,60,250,500,1000,2000", value_name = "MB/s,...",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub sweep: Vec<u32>,
    /// Measures --bandwidth only
    #[arg(long)]
    pub no_sweep: bool,
    /// Bytes of the data set
    #[arg(long, default_value = "128m", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Bytes of a record
    #[arg(long, default_value = "128k", value_parser = parse_size, value_name = "SIZE")]
    pub record: u64,
    /// Records under way at a time, on each of the three ways
    #[arg(long, visible_alias = "iodepth", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub depth: u16,
    /// Format of the offload; in software it is always gzip, made by zlib at level 1
    #[arg(long, default_value = "gzip", value_parser = parse_format, value_name = "NAME")]
    pub format: Format,
    /// Compression level of the offload
    #[arg(long, default_value_t = 1, allow_hyphen_values = true)]
    pub level: i32,
    /// What the records are taken from: mixed, text or programs of this machine, random, zeros, or a file
    #[arg(long, default_value = "mixed", value_name = "NAME|FILE")]
    pub corpus: Corpus,
    /// Bytes of it that are used; records begin anew with it where the data set is larger
    #[arg(long, default_value = "16m", value_parser = parse_size, value_name = "SIZE")]
    pub corpus_size: u64,
    /// Seed of the corpus
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// CPU of the submitter
    #[arg(long, default_value = "0", value_name = "LIST")]
    pub driver_cpus: CpuList,
    /// CPU of both daemons
    #[arg(long, default_value = "1", value_name = "LIST")]
    pub backend_cpus: CpuList,
    /// vhostd-blk (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    pub blk_daemon: Option<PathBuf>,
    /// vhostd-compress (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    pub compress_daemon: Option<PathBuf>,
    /// More options for vhostd-compress, separated by blanks
    #[arg(long, default_value = "", allow_hyphen_values = true, value_name = "OPTIONS")]
    pub compress_options: String,
    /// Writes the table as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the table as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Draws throughput and CPU time of the submitter by bandwidth
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Shows no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Why a combination of options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOptions {
    /// Records do not fill blocks, or nothing is left of one.
    #[error("--record {0} must be a multiple of {BLOCK}, from 8k to 64m")]
    Record(u64),
    /// There is nothing to write.
    #[error("--size {0} and --corpus-size must be at least one record each")]
    Size(u64),
}

impl Options {
    /// Checks what clap cannot: options that depend on each other.
    pub fn check(&self) -> Result<(), BadOptions> {
        if !(8 << 10..=64 << 20).contains(&self.record) || !self.record.is_multiple_of(BLOCK.into()) {
            return Err(BadOptions::Record(self.record));
        }
        if self.size.min(self.corpus_size) < self.record {
            return Err(BadOptions::Size(self.size));
        }
        Ok(())
    }

    /// Records of the data set.
    pub fn records(&self) -> usize {
        (self.size / self.record) as usize
    }

    /// All bandwidths in ascending order, each once.
    pub fn bandwidths(&self) -> Vec<u32> {
        let mut all = vec![self.bandwidth];
        if !self.no_sweep {
            all.extend(&self.sweep);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The experiment in words: `128m in records of 128k, depth 16, gzip level 1`.
    pub fn text(&self) -> String {
        use crate::units::show_size;
        let size = show_size(self.records() as u64 * self.record);
        let (record, format) = (show_size(self.record), self.format.name());
        format!("{size} in records of {record}, depth {}, offload {format} level {}", self.depth, self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::options::parse;

    #[test]
    fn the_disk_of_the_aims_is_among_those_of_the_sweep_once() {
        let options: Options = parse("").unwrap();
        assert_eq!(options.bandwidths(), [30, 60, 125, 250, 500, 1000, 2000]);
        let options: Options = parse("--bandwidth 60 --sweep 500,60").unwrap();
        assert_eq!(options.bandwidths(), [60, 500]);
        let options: Options = parse("--no-sweep").unwrap();
        assert_eq!(options.bandwidths(), [125]);
    }

    #[test]
    fn records_fill_blocks_and_there_is_at_least_one() {
        for (text, part) in [
            ("--record 6000", "multiple of 4096"),
            ("--record 4k", "from 8k"),
            ("--size 64k", "at least one record"),
            ("--corpus-size 64k", "at least one record"),
        ] {
            let options: Options = parse(text).unwrap();
            let error = options.check().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let options: Options = parse("--size 1m --record 256k").unwrap();
        assert_eq!((options.check(), options.records()), (Ok(()), 4));
        assert_eq!(options.text(), "1m in records of 256k, depth 16, offload gzip level 1");
    }
}
