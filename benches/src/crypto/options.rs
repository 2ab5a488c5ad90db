//! Command line of `vhostd-bench crypto`.

use std::path::PathBuf;

use clap::Args;

use super::algorithm::{Algorithm, Direction};
use super::alone::Engine;
use super::client::{Door, Format, Setup};
use crate::guest::options::{self, BadRate, BadRing, Pace, RingOptions, Timing};
use crate::units::parse_size;

/// Drives a virtio-crypto backend over vhost-user from user space: no VM, no hugepages.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench crypto --socket /run/crypto.sock --algorithm aes-128-cbc --size 4k --depth 32 --cpus 0
  vhostd-bench crypto --socket /run/crypto.sock --algorithm rsa-2048 --direction sign --depth 8 --interrupt --json
  vhostd-bench crypto --socket /run/crypto.sock --door a --algorithm aes-256-xts --requests 100k --verify
  vhostd-bench crypto --engine-alone library --algorithm aes-128-cbc --size 4k --cpus 1

Exit codes: 0 requests ended, none of them failed and no byte was wrong; 1 otherwise; 2 bad usage.")]
pub struct Options {
    /// Socket of the backend
    #[arg(long, value_name = "PATH", required_unless_present = "engine_alone")]
    pub socket: Option<PathBuf>,
    /// Measures an engine without a device in front of it, one thread a queue
    #[arg(long, value_enum, value_name = "ENGINE", conflicts_with_all = ["socket", "control"])]
    pub engine_alone: Option<Engine>,
    /// Control socket of vhostd-crypto: why batches were submitted is read there
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
    /// What is computed: aes-128-cbc, aes-256-xts, aes-128-gcm, aes-128-cbc-hmac-sha1, sha256, hmac-sha256, rsa-2048, ecdsa-p256, ...
    #[arg(long, visible_alias = "algo", default_value = "aes-128-cbc", value_name = "NAME")]
    pub algorithm: Algorithm,
    /// What is done with it (default: encrypt, digest or sign)
    #[arg(long, value_enum)]
    pub direction: Option<Direction>,
    /// Bytes of a request
    #[arg(long, visible_alias = "bs", default_value = "4k", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Requests in flight per queue
    #[arg(long, visible_alias = "iodepth", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub depth: u16,
    /// Data queues, each driven by a thread of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,
    /// Submitters that share a queue, each with a session and keys of its own; its requests are dealt out to them in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub jobs: u16,
    /// How the driver comes to the device
    #[arg(long, value_enum, default_value_t = Door::B)]
    pub door: Door,
    /// No sessions: each request brings its key
    #[arg(long)]
    pub stateless: bool,
    /// Negotiates VIRTIO_CRYPTO_F_REVISION_1 (comes with --stateless)
    #[arg(long)]
    pub revision_1: bool,
    /// The destination is the source
    #[arg(long)]
    pub in_place: bool,
    /// Descriptors that source and destination are cut into
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub segments: u16,
    /// How long it takes
    #[command(flatten)]
    pub timing: Timing,
    /// How fast it goes
    #[command(flatten)]
    pub pace: Pace,
    /// Makes every request different and holds each result against the library's
    #[arg(long)]
    pub verify: bool,
    /// Seed of keys and data
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How the rings are laid out and signalled
    #[command(flatten)]
    pub rings: RingOptions,
}

/// Why a combination of options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOptions {
    /// An operation that the algorithm has not.
    #[error("{algorithm} does not {direction}")]
    Direction {
        /// The algorithm.
        algorithm: String,
        /// The operation.
        direction: String,
    },
    /// A size that the algorithm does not take.
    #[error("--size {size} is no size for {algorithm}: {rule}")]
    Size {
        /// Bytes.
        size: u64,
        /// The algorithm.
        algorithm: String,
        /// What it takes.
        rule: &'static str,
    },
    /// More submitters than requests.
    #[error("--depth {depth} is less than one request in flight for each of {jobs} jobs")]
    Jobs {
        /// Requests in flight.
        depth: u16,
        /// Submitters.
        jobs: u16,
    },
    /// The rings are too small or of no size.
    #[error(transparent)]
    Ring(#[from] BadRing),
    /// An option of the other door.
    #[error("{0} is for --door b only")]
    DoorB(&'static str),
    /// The rate makes no sense.
    #[error(transparent)]
    Rate(#[from] BadRate),
}

/// Largest request.
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

    /// What is done with the algorithm.
    pub fn direction(&self) -> Direction {
        self.direction.unwrap_or(self.algorithm.usual())
    }

    /// Checks what clap cannot: options that depend on each other.
    pub fn check(&self) -> Result<(), BadOptions> {
        let algorithm = self.algorithm.to_string();
        if !self.algorithm.does(self.direction()) {
            return Err(BadOptions::Direction { algorithm, direction: self.direction().name() });
        }
        if let Some(rule) = self.size_rule() {
            return Err(BadOptions::Size { size: self.size, algorithm, rule });
        }
        if self.jobs > self.depth {
            return Err(BadOptions::Jobs { depth: self.depth, jobs: self.jobs });
        }
        if self.door != Door::B {
            let only_b = [
                (self.stateless, "--stateless"),
                (self.revision_1, "--revision-1"),
                (self.queues > 1, "--queues"),
                (self.rings.packed, "--packed"),
                (self.rings.in_order, "--in-order"),
            ];
            if let Some((_, option)) = only_b.into_iter().find(|(given, _)| *given) {
                return Err(BadOptions::DoorB(option));
            }
        }
        self.pace.check()?;
        self.rings.check_depth(self.depth, self.setup().descriptors())?;
        Ok(())
    }

    /// The rule that the size breaks.
    fn size_rule(&self) -> Option<&'static str> {
        use super::algorithm::Mode::{Cbc, Ecb, Xts};
        let whole_blocks = match self.algorithm {
            Algorithm::Cipher(mode, _) => matches!(mode, Cbc | Ecb),
            Algorithm::Chain(..) => true,
            _ => false,
        };
        match self.algorithm {
            _ if self.algorithm.is_asymmetric() => None,
            _ if self.size == 0 || self.size > MAX_SIZE => Some("it must be 1 byte to 64m"),
            _ if whole_blocks && !self.size.is_multiple_of(16) => Some("it takes whole blocks of 16 bytes"),
            Algorithm::Cipher(Xts, _) if self.size < 16 => Some("it takes at least 16 bytes"),
            _ => None,
        }
    }

    /// What the driver asks the backend for.
    pub fn setup(&self) -> Setup {
        let format = Format { revision_1: self.revision_1 || self.stateless, stateless: self.stateless };
        Setup {
            door: self.door,
            algorithm: self.algorithm,
            direction: self.direction(),
            size: self.size as usize,
            segments: self.segments,
            in_place: self.in_place,
            queues: self.queues,
            depth: self.depth,
            format,
            shape: self.rings.shape(),
        }
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
    fn defaults_are_four_kib_of_aes_cbc_at_depth_32_for_ten_seconds() {
        let load = parse("").unwrap();
        assert_eq!(load.algorithm.to_string(), "aes-128-cbc");
        assert_eq!((load.direction(), load.size, load.depth), (Direction::Encrypt, 4096, 32));
        assert_eq!((load.timing.runtime, load.door), (Duration::from_secs(10), Door::B));
        assert!(!load.rings.interrupt && !load.verify && !load.stateless);
    }

    #[test]
    fn stateless_requests_come_with_revision_1() {
        let setup = parse("--stateless --algorithm sha256 --depth 8").unwrap().setup();
        assert!(setup.format.stateless && setup.format.revision_1);
        assert_eq!(setup.direction, Direction::Digest);
    }

    #[test]
    fn options_that_contradict_each_other_are_refused_in_one_sentence() {
        for (text, part) in [
            ("--algorithm des", "no algorithm"),
            ("--algorithm sha1 --direction encrypt", "sha1 does not encrypt"),
            ("--algorithm ecdsa-p256 --direction decrypt", "does not decrypt"),
            ("--size 100", "whole blocks of 16"),
            ("--algorithm aes-128-ctr --size 0", "1 byte to 64m"),
            ("--algorithm aes-256-xts --size 8", "at least 16"),
            ("--depth 2 --jobs 3", "each of 3 jobs"),
            ("--depth 64", "need 320 descriptors, the ring has 256"),
            ("--door a --stateless", "--stateless is for --door b only"),
            ("--door a632 --queues 2", "--queues is for --door b only"),
            ("--door a --packed", "--packed is for --door b only"),
            ("--queue-size 100", "no power of two"),
            ("--rate 0", "at least 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(parse("--depth 64 --indirect").is_ok());
        assert!(parse("--algorithm rsa-2048 --size 0").is_ok());
    }
}
