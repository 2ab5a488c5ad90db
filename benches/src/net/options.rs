//! Command line of `vhostd-bench net`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::frame::{MAX_FRAME, MIN_FRAME};
use super::wire::HEADER;
use crate::guest::options::{self, BadRing, RingOptions, Timing};
use crate::units::{parse_count, parse_size};

/// Plays one guest or two on a vhost-user-net backend from user space: no VM, no hugepages.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench net loopback --socket /run/a.sock --size 64 --cpus 0
  vhostd-bench net pair --socket /run/a.sock --socket /run/b.sock --size 1518 --packed --in-order --verify
  vhostd-bench net pair --socket /run/a.sock --socket /run/b.sock --size 64k --tso --json
  vhostd-bench net ping --socket /run/a.sock --socket /run/b.sock --interrupt
  vhostd-bench net tx --socket /run/a.sock --wire tap0

Exit codes: 0 frames arrived and none was wrong, 1 none arrived, or one was corrupt or a duplicate, 2 bad usage.")]
pub struct Options {
    /// Socket of a port of the backend (vhostd-net, testpmd net_vhost, ...); twice for two guests
    #[arg(long, value_name = "PATH", required = true)]
    pub socket: Vec<PathBuf>,
    /// Listens on the sockets for a backend that connects
    #[arg(long)]
    pub server: bool,
    /// Control socket of vhostd-net: its busy cycles are read there (default: CPU time x counter frequency)
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// What the guests do
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
    /// Who sends and who receives
    #[arg(value_enum)]
    pub mode: Mode,
    /// In a pair, both guests send
    #[arg(long)]
    pub bidirectional: bool,
    /// Bytes of a frame, from the destination address to the end of the payload
    #[arg(long, default_value = "64", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Frames are TCP segments that nobody has cut yet (HOST_TSO4, GUEST_TSO4)
    #[arg(long)]
    pub tso: bool,
    /// Pairs of queues of each guest, each driven by a thread of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queues: u16,
    /// Frames put into a transmit ring at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub burst: u16,
    /// Most frames under way per queue; 0: as many as the transmit ring takes
    #[arg(long, default_value_t = 0, value_name = "FRAMES")]
    pub window: u32,
    /// Frames per second and queue (default: as fast as it goes)
    #[arg(long, value_parser = parse_count, value_name = "PPS")]
    pub rate: Option<u64>,
    /// How long it takes
    #[command(flatten)]
    pub timing: Timing,
    /// Ends each queue after it has sent this many frames, if the time is not up before
    #[arg(long, value_parser = parse_count, value_name = "N")]
    pub packets: Option<u64>,
    /// Makes every byte of every frame different and checks all of them
    #[arg(long, conflicts_with = "blind")]
    pub verify: bool,
    /// Neither numbers the frames nor looks at them: the lightest driver, which sees no loss
    #[arg(long)]
    pub blind: bool,
    /// How the rings are laid out and signalled
    #[command(flatten)]
    pub rings: RingOptions,
    /// Leaves VIRTIO_NET_F_MRG_RXBUF out: every receive buffer takes a whole frame
    #[arg(long)]
    pub no_mergeable: bool,
    /// Bytes of a receive buffer (default: 2k where frames may be merged or are small, else a whole frame)
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub rx_buffer: Option<u64>,
    /// Host interface at the other end of the uplink: `tx` counts there, `rx` sends there
    #[arg(long, value_name = "INTERFACE")]
    pub wire: Option<String>,
    /// Frames are datagrams with a checksum for a UDP socket on --wire, and those that reach it are counted
    ///
    /// The interface needs the address 192.0.2.2/24 and the MAC address 52:54:00:00:00:02.
    #[arg(long, requires = "wire")]
    pub to_socket: bool,
    /// Waits for a backend that dies and goes on with the same rings when it is back
    #[arg(long)]
    pub reconnect: bool,
}

/// Who sends and who receives.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Mode {
    /// One guest; the backend sends its frames back
    Loopback,
    /// Two guests: the first sends, the second receives
    Pair,
    /// One guest that sends; counted when the backend has taken a frame, or on --wire
    Tx,
    /// One guest that receives what the backend has, or what is sent on --wire
    Rx,
    /// One frame goes to and fro between two guests, or to the backend and back: round trips
    Ping,
}

impl Mode {
    /// Name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Why a combination of options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadOptions {
    /// Too small for the headers or too large for IPv4.
    #[error("--size {0} is no frame size; it must be {MIN_FRAME} to {MAX_FRAME} bytes")]
    Size(u64),
    /// A frame of its own size cannot be a chain of segments.
    #[error("--tso needs frames of more than 1518 bytes (--size 64k)")]
    Tso,
    /// The rings are of no size.
    #[error(transparent)]
    Rings(#[from] BadRing),
    /// The receiver has no buffer for a frame.
    #[error(
        "--rx-buffer {buffer} takes no frame of {size} bytes and its header; leave --no-mergeable out or enlarge it"
    )]
    Buffer {
        /// Bytes of a buffer.
        buffer: u64,
        /// Bytes of a frame.
        size: u64,
    },
    /// All buffers together are too small for one frame.
    #[error("{0} receive buffers do not take one frame together; raise --queue-size or --rx-buffer")]
    Ring(u16),
    /// The mode does not fit the sockets.
    #[error("{mode} takes {want}, {have} given")]
    Sockets {
        /// The mode.
        mode: String,
        /// Sockets it takes.
        want: &'static str,
        /// Sockets there are.
        have: usize,
    },
    /// An option of another mode.
    #[error("{option} is for {mode} only")]
    NotHere {
        /// The option.
        option: &'static str,
        /// Its mode.
        mode: &'static str,
    },
    /// A rate of nothing.
    #[error("--rate must be at least 1")]
    Rate,
}

impl Load {
    /// Reads mode and options as on the command line, separated by blanks; the error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let load: Self = options::parse(text)?;
        load.check().map_err(|error| error.to_string())?;
        Ok(load)
    }

    /// Checks what clap cannot: options that depend on each other.
    pub fn check(&self) -> Result<(), BadOptions> {
        if self.size < MIN_FRAME as u64 || self.size > MAX_FRAME as u64 {
            return Err(BadOptions::Size(self.size));
        }
        if self.tso && self.size <= 1518 {
            return Err(BadOptions::Tso);
        }
        self.rings.check()?;
        let (buffer, whole) = (self.rx_buffer(), self.size + HEADER as u64);
        if buffer < HEADER as u64 + 1 || (self.no_mergeable && buffer < whole) {
            return Err(BadOptions::Buffer { buffer, size: self.size });
        }
        if buffer * u64::from(self.rings.queue_size) < whole {
            return Err(BadOptions::Ring(self.rings.queue_size));
        }
        if self.rate == Some(0) {
            return Err(BadOptions::Rate);
        }
        let only = |wrong: bool, option, mode| {
            if wrong { Err(BadOptions::NotHere { option, mode }) } else { Ok(()) }
        };
        only(self.bidirectional && self.mode != Mode::Pair, "--bidirectional", "pair")?;
        only(self.to_socket && self.mode != Mode::Tx, "--to-socket", "tx")?;
        only(self.wire.is_some() && !matches!(self.mode, Mode::Tx | Mode::Rx), "--wire", "tx and rx")
    }

    /// Holds the sockets against the mode.
    pub fn check_sockets(&self, have: usize) -> Result<(), BadOptions> {
        let (fits, want) = match self.mode {
            Mode::Pair => (have == 2, "two sockets"),
            Mode::Ping => (have == 1 || have == 2, "one socket or two"),
            _ => (have == 1, "one socket"),
        };
        if fits { Ok(()) } else { Err(BadOptions::Sockets { mode: self.mode.name(), want, have }) }
    }

    /// Sockets that the mode takes when there is a choice of ports.
    pub fn sockets(&self) -> usize {
        if matches!(self.mode, Mode::Pair | Mode::Ping) { 2 } else { 1 }
    }

    /// Bytes of a receive buffer.
    pub fn rx_buffer(&self) -> u64 {
        let whole = self.size + HEADER as u64;
        let usual = if self.no_mergeable { whole.max(2048) } else { 2048 };
        self.rx_buffer.unwrap_or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn defaults_are_small_frames_on_one_split_queue_for_ten_seconds() {
        let load = Load::parse("loopback").unwrap();
        assert_eq!((load.mode, load.size, load.queues), (Mode::Loopback, 64, 1));
        assert_eq!((load.rings.queue_size, load.rx_buffer()), (256, 2048));
        assert_eq!((load.timing.runtime, load.timing.warmup), (Duration::from_secs(10), Duration::ZERO));
        assert!(!load.rings.interrupt && !load.verify && !load.blind);
    }

    #[test]
    fn a_whole_frame_fits_into_each_buffer_when_frames_are_not_merged() {
        let load = Load::parse("pair --size 64k --tso --no-mergeable").unwrap();
        assert_eq!(load.rx_buffer(), 65548);
        assert_eq!(Load::parse("pair --size 64k --tso").unwrap().rx_buffer(), 2048);
    }

    #[test]
    fn options_that_contradict_each_other_are_refused_in_one_sentence() {
        for (text, part) in [
            ("", "MODE"),
            ("loopback --size 40", "no frame size"),
            ("loopback --size 128k", "no frame size"),
            ("pair --size 1518 --tso", "more than 1518"),
            ("pair --ring-size 100", "no power of two"),
            ("pair --size 9000 --no-mergeable --rx-buffer 2k", "takes no frame of 9000"),
            ("pair --size 64k --ring-size 16", "16 receive buffers"),
            ("tx --bidirectional", "for pair only"),
            ("pair --wire tap0", "for tx and rx only"),
            ("rx --wire tap0 --to-socket", "for tx only"),
            ("tx --to-socket", "--wire"),
            ("pair --verify --blind", "cannot be used with"),
            ("pair --rate 0", "at least 1"),
            ("pair --queues 17", "17 is not in"),
        ] {
            let error = Load::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Load::parse("pair --packed --ring-size 255").is_ok());
    }

    #[test]
    fn the_number_of_sockets_must_fit_the_mode() {
        for (mode, fits) in [("loopback", [true, false]), ("pair", [false, true]), ("ping", [true, true])] {
            let load = Load::parse(mode).unwrap();
            assert_eq!([1, 2].map(|have| load.check_sockets(have).is_ok()), fits, "{mode}");
        }
        let error = Load::parse("pair").unwrap().check_sockets(1).unwrap_err().to_string();
        assert!(error.contains("two sockets"), "{error}");
    }
}
