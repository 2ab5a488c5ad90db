//! What an operator says about the devices and the engines behind them, checked once. Sizes are bytes.

use crate::engine::Choice;
use daemon::device::{BadValue, check_name, check_queue_size, check_range};
use offload::flush::{Policy, Thresholds};
use offload::parameters;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// Queue size of a device, unless told otherwise.
pub const DEFAULT_QUEUE_SIZE: u16 = 256;
/// Queues, unless told otherwise: what QEMU's file system has at the least.
pub const DEFAULT_QUEUES: u16 = 2;
/// Most queues of one device: what a vhost-user frontend can name.
pub const MAX_QUEUES: u16 = 256;
/// Longest source or destination, unless told otherwise.
pub const DEFAULT_MAX_SIZE: u32 = 1 << 20;
/// Longest that can be allowed. Others wait for one request at the most, and the highest level of Zstandard does 2 MiB a second:
/// more than this would take longer than a service manager waits for a sign of life.
pub const MOST_MAX_SIZE: u32 = 8 << 20;
/// Bytes a device may have in flight, unless told otherwise.
pub const DEFAULT_MAX_IN_FLIGHT: u64 = 64 << 20;
/// Most bytes that can be allowed.
pub const MOST_MAX_IN_FLIGHT: u64 = 16 << 30;
/// Streams of one device, unless told otherwise.
pub const DEFAULT_STREAMS: u32 = 64;
/// Most streams of one device.
pub const MAX_STREAMS: u32 = 1 << 16;
/// Requests of at most so many bytes are computed at once.
const DEFAULT_INLINE_BYTES: u32 = 1024;

/// Which compressed results are decompressed again and compared before the guest gets them. A request may always ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Only those whose request asks for it.
    #[default]
    Off,
    /// Every one.
    All,
    /// One in so many.
    OneIn(NonZeroU32),
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::All => f.write_str("all"),
            Self::OneIn(requests) => write!(f, "1/{requests}"),
        }
    }
}

/// A text that is no [`Verify`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Verification {0:?} is not off, all or 1/N")]
pub struct UnknownVerify(String);

impl FromStr for Verify {
    type Err = UnknownVerify;

    fn from_str(text: &str) -> Result<Self, UnknownVerify> {
        let part = |text: &str| text.strip_prefix("1/")?.parse().ok().map(Self::OneIn);
        match text {
            "off" => Ok(Self::Off),
            "all" | "1/1" => Ok(Self::All),
            _ => part(text).ok_or_else(|| UnknownVerify(text.to_owned())),
        }
    }
}

impl serde::Serialize for Verify {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One device, as the command line, the configuration file or `device.add` describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Name for logs, metrics and the control socket.
    pub id: String,
    /// Queues offered, all of them for data.
    pub queues: u16,
    /// Largest size of a queue.
    pub queue_size: u16,
    /// The guest is trusted not to change a source while it is read: no private copy is made.
    pub zero_copy: bool,
    /// What can be changed while it runs.
    pub limits: Limits,
}

/// What `device.set` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Longest source and longest destination of a request, in bytes; told to the guest as `max_src` and `max_dst`.
    pub max_size: u32,
    /// Most bytes of private memory that requests in flight may take; more are answered with BUSY.
    pub max_in_flight: u64,
    /// Streams that may be open at a time.
    pub streams: u32,
    /// Which results are decompressed again and compared before the guest gets them.
    pub verify: Verify,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_size: DEFAULT_MAX_SIZE,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            streams: DEFAULT_STREAMS,
            verify: Verify::default(),
        }
    }
}

impl Limits {
    /// Refuses values that could not be kept to.
    pub fn check(&self) -> Result<(), BadValue> {
        check_range("max-size", self.max_size, 4096, MOST_MAX_SIZE)?;
        let mib = |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        check_range(
            "max-in-flight",
            mib(self.max_in_flight),
            self.least_in_flight(),
            mib(MOST_MAX_IN_FLIGHT),
        )?;
        check_range("streams", self.streams, 0, MAX_STREAMS)
    }

    /// In MiB: one request of the largest size, source and destination.
    fn least_in_flight(&self) -> u32 {
        (2 * self.max_size).div_ceil(1 << 20).max(1)
    }
}

impl DeviceOptions {
    /// A device with every option at its default.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            queues: DEFAULT_QUEUES,
            queue_size: DEFAULT_QUEUE_SIZE,
            zero_copy: false,
            limits: Limits::default(),
        }
    }

    /// Refuses values that could not be served.
    pub fn check(&self) -> Result<(), BadValue> {
        check_name("device", &self.id)?;
        check_range("queues", self.queues.into(), 1, MAX_QUEUES.into())?;
        check_queue_size(self.queue_size)?;
        self.limits.check()
    }
}

/// How requests are collected and computed, for all devices of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// How workers wait, and when they submit.
    pub policy: Policy,
    /// Who is asked first for DEFLATE.
    pub engine: Choice,
}

impl Default for Scheduling {
    fn default() -> Self {
        let thresholds = Thresholds { inline_bytes: DEFAULT_INLINE_BYTES, ..Thresholds::default() };
        Self { policy: Policy { thresholds, ..Policy::default() }, engine: Choice::default() }
    }
}

impl Scheduling {
    /// Refuses numbers with which nothing sensible would happen.
    pub fn check(&self) -> Result<(), BadValue> {
        parameters::check(&self.policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_could_not_be_served_are_refused() {
        let with = |change: fn(&mut DeviceOptions)| {
            let mut options = DeviceOptions::new("c");
            change(&mut options);
            options.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert!(with(|o| o.queues = 0).is_err());
        assert!(with(|o| o.queues = 257).is_err());
        assert!(with(|o| o.queue_size = 1).is_err());
        assert!(with(|o| o.limits.streams = MAX_STREAMS + 1).is_err());
        assert!(with(|o| o.limits.max_size = 4095).is_err());
        assert!(with(|o| o.limits.max_size = MOST_MAX_SIZE + 1).is_err());
        assert!(with(|o| o.limits.max_in_flight = MOST_MAX_IN_FLIGHT + (1 << 20)).is_err());
        assert!(with(|o| o.id = "a/b".into()).is_err());
    }

    #[test]
    fn one_request_of_the_largest_size_must_fit_what_may_be_in_flight() {
        let limits =
            |size, in_flight| Limits { max_size: size, max_in_flight: in_flight, ..Limits::default() };
        assert_eq!(limits(1 << 20, 2 << 20).check(), Ok(()));
        assert!(limits(1 << 20, 1 << 20).check().is_err());
        assert!(limits(4096, 0).check().is_err());
    }

    #[test]
    fn verifications_parse_back_from_their_text() {
        for text in ["off", "all", "1/2", "1/1000"] {
            assert_eq!(text.parse::<Verify>().unwrap().to_string(), text);
        }
        assert_eq!("1/1".parse(), Ok(Verify::All));
        for wrong in ["", "on", "1/0", "2/3", "1/", "1/-1", "10%"] {
            assert!(wrong.parse::<Verify>().is_err(), "{wrong}");
        }
    }
}
