//! What every driver takes on the command line.

use std::time::Duration;

use clap::{Args, Parser};

use super::ring::Shape;
use crate::cpu::CpuList;
use crate::units::{parse_count, parse_duration};

/// How long a run takes and where its threads run.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long to measure
    #[arg(long, default_value = "10", value_parser = parse_duration, value_name = "TIME")]
    pub runtime: Duration,
    /// How long to run before measuring
    #[arg(long, visible_alias = "ramp-time", default_value = "0", value_parser = parse_duration, value_name = "TIME")]
    pub warmup: Duration,
    /// CPUs for the driver's threads, one each in this order
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
}

/// Ring format, negotiated features and how the driver waits.
#[derive(Args, Clone, Debug)]
pub struct RingOptions {
    /// Packed instead of split rings
    #[arg(long)]
    pub packed: bool,
    /// Accepts VIRTIO_F_IN_ORDER where it is offered
    #[arg(long)]
    pub in_order: bool,
    /// One indirect descriptor per request instead of a chain in the ring
    #[arg(long)]
    pub indirect: bool,
    /// Leaves VIRTIO_F_EVENT_IDX out
    #[arg(long)]
    pub no_event_idx: bool,
    /// Descriptors per ring
    #[arg(long, visible_alias = "ring-size", default_value_t = 256, value_name = "N",
        value_parser = clap::value_parser!(u16).range(2..=32768))]
    pub queue_size: u16,
    /// The driver polls the used rings and asks for no interrupts (default)
    #[arg(long, conflicts_with = "interrupt")]
    pub poll: bool,
    /// The driver sleeps on the call eventfds whenever there is nothing to do
    #[arg(long)]
    pub interrupt: bool,
}

/// Why ring options make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadRing {
    /// Split rings are powers of two.
    #[error("--queue-size {0} is no power of two (only packed rings may have such a size)")]
    Size(u16),
    /// The ring has no room for the depth.
    #[error(
        "{depth} requests in flight need {needed} descriptors, the ring has {size}; raise --queue-size or use --indirect"
    )]
    Depth {
        /// Requests in flight.
        depth: u16,
        /// Descriptors they occupy.
        needed: u32,
        /// Ring size.
        size: u16,
    },
}

impl RingOptions {
    /// Holds the size against the format.
    pub fn check(&self) -> Result<(), BadRing> {
        let fits = self.packed || self.queue_size.is_power_of_two();
        if fits { Ok(()) } else { Err(BadRing::Size(self.queue_size)) }
    }

    /// Holds the size against `depth` requests of `descriptors` each.
    pub fn check_depth(&self, depth: u16, descriptors: u16) -> Result<(), BadRing> {
        self.check()?;
        let each = if self.indirect { 1 } else { descriptors };
        let (needed, size) = (u32::from(depth) * u32::from(each), self.queue_size);
        if needed > u32::from(size) { Err(BadRing::Depth { depth, needed, size }) } else { Ok(()) }
    }

    /// What the driver asks the backend for.
    pub fn shape(&self) -> Shape {
        Shape {
            size: self.queue_size,
            packed: self.packed,
            in_order: self.in_order,
            indirect: self.indirect,
            event_idx: !self.no_event_idx,
        }
    }
}

/// How fast requests are started, and what the driver does about those that fail.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Ends each queue after this many requests, if the time is not up before
    #[arg(long, visible_alias = "number-ios", value_parser = parse_count, value_name = "N")]
    pub requests: Option<u64>,
    /// Requests per second and queue, started on time whether or not earlier ones have ended; latency counts from the time
    /// a request was due (default: as fast as it goes at the given depth)
    #[arg(long, visible_alias = "rate-iops", value_parser = parse_count, value_name = "N")]
    pub rate: Option<u64>,
    /// Goes on after requests that the backend completed with an error
    #[arg(long)]
    pub continue_on_error: bool,
}

/// A rate of nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--rate must be at least 1")]
pub struct BadRate;

impl Pace {
    /// Checks what clap cannot.
    pub fn check(&self) -> Result<(), BadRate> {
        if self.rate == Some(0) { Err(BadRate) } else { Ok(()) }
    }

    /// Requests of all `queues`, if they are counted.
    pub fn goal(&self, queues: u16) -> Option<u64> {
        self.requests.map(|each| each * u64::from(queues))
    }
}

/// Options without a program around them.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line<L: Args> {
    #[command(flatten)]
    load: L,
}

/// Reads options as on the command line, separated by blanks; the error is a sentence.
pub fn parse<L: Args>(text: &str) -> Result<L, String> {
    let line = Line::<L>::try_parse_from(text.split_whitespace()).map_err(|error| error.to_string())?;
    Ok(line.load)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(text: &str) -> RingOptions {
        parse(text).unwrap()
    }

    #[test]
    fn only_packed_rings_may_have_any_size() {
        assert_eq!(rings("--queue-size 100").check(), Err(BadRing::Size(100)));
        assert_eq!(rings("--ring-size 100 --packed").check(), Ok(()));
    }

    #[test]
    fn a_ring_must_hold_the_depth() {
        let error = rings("").check_depth(128, 3).unwrap_err().to_string();
        assert!(error.contains("need 384 descriptors, the ring has 256"), "{error}");
        assert_eq!(rings("--indirect").check_depth(128, 3), Ok(()));
    }

    #[test]
    fn options_become_the_shape_of_the_rings() {
        let shape = rings("--packed --in-order --indirect --no-event-idx --queue-size 64").shape();
        let expected = Shape { size: 64, packed: true, in_order: true, indirect: true, event_idx: false };
        assert_eq!(shape, expected);
        assert_eq!(rings("").shape(), Shape::default());
        assert!(parse::<RingOptions>("--poll --interrupt").unwrap_err().contains("cannot be used with"));
    }
}
