//! What an operator says about the devices and the engines behind them, checked once. Sizes are bytes, times have their unit
//! in the name.

/// Queue size of a device; what QEMU's own virtio-crypto has.
pub const DEFAULT_QUEUE_SIZE: u16 = 1024;
/// Data queues, unless told otherwise.
pub const DEFAULT_QUEUES: u16 = 1;
/// Most data queues of one device: with the control queue, what a vhost-user frontend can name.
pub const MAX_QUEUES: u16 = 255;
/// Sessions of one device, unless told otherwise.
pub const DEFAULT_SESSIONS: u32 = 4096;
/// Most sessions of one device.
pub const MAX_SESSIONS: u32 = 1 << 16;
/// Longest request, unless told otherwise.
pub const DEFAULT_MAX_SIZE: u32 = 1 << 20;
/// Longest request that can be allowed.
pub const MOST_MAX_SIZE: u32 = 16 << 20;
/// Share of a worker, unless told otherwise.
pub const DEFAULT_WEIGHT: u16 = 100;
/// Greatest share.
pub const MAX_WEIGHT: u16 = 10_000;

/// One device, as the command line, the configuration file or `device.add` describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Name for logs, metrics and the control socket.
    pub id: String,
    /// Data queues offered; the control queue follows them.
    pub queues: u16,
    /// Largest size of a queue.
    pub queue_size: u16,
    /// What can be changed while it runs.
    pub limits: Limits,
}

/// What `device.set` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Sessions that may be open at a time.
    pub sessions: u32,
    /// Longest source or destination of a request, in bytes; told to the guest as `max_size`.
    pub max_size: u32,
    /// Share of a worker, beside other devices that keep it busy; bytes are shared in proportion.
    pub weight: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: DEFAULT_SESSIONS, max_size: DEFAULT_MAX_SIZE, weight: DEFAULT_WEIGHT }
    }
}

impl Limits {
    /// Refuses values that could not be kept to.
    pub fn check(&self) -> Result<(), InvalidOption> {
        range("sessions", self.sessions, 1, MAX_SESSIONS)?;
        range("max-size", self.max_size, 4096, MOST_MAX_SIZE)?;
        range("weight", self.weight.into(), 1, MAX_WEIGHT.into())
    }
}

impl DeviceOptions {
    /// A device with every option at its default.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            queues: DEFAULT_QUEUES,
            queue_size: DEFAULT_QUEUE_SIZE,
            limits: Limits::default(),
        }
    }

    /// Refuses values that could not be served.
    pub fn check(&self) -> Result<(), InvalidOption> {
        if !daemon::device::is_name(&self.id) {
            return Err(InvalidOption::Id(self.id.clone()));
        }
        range("queues", self.queues.into(), 1, MAX_QUEUES.into())?;
        range("queue-size", self.queue_size.into(), 2, 32768)?;
        self.limits.check()
    }
}

/// Which engine computes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// For each request the fastest engine that takes it.
    #[default]
    Auto,
    /// The library for everything.
    Library,
    /// Lanes for whatever they can do, even where the library would be as fast; the library for the rest.
    Multibuffer,
}

fn range(name: &'static str, value: u32, least: u32, most: u32) -> Result<(), InvalidOption> {
    let inside = (least..=most).contains(&value);
    inside.then_some(()).ok_or(InvalidOption::Range { name, value, least, most })
}

/// Why a description is refused; one sentence each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// A name that could not be used in a metric or a path.
    #[error("The device id '{0}' is not 1 to 64 letters, digits or any of -_.:")]
    Id(String),
    /// A number out of range.
    #[error("The value {value} for {name} is not between {least} and {most}")]
    Range {
        /// Key.
        name: &'static str,
        /// What was given.
        value: u32,
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
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
        assert!(with(|o| o.queues = 256).is_err());
        assert!(with(|o| o.queue_size = 1).is_err());
        assert!(with(|o| o.limits.sessions = 0).is_err());
        assert!(with(|o| o.limits.sessions = MAX_SESSIONS + 1).is_err());
        assert!(with(|o| o.limits.max_size = 4095).is_err());
        assert!(with(|o| o.limits.max_size = MOST_MAX_SIZE + 1).is_err());
        assert!(with(|o| o.limits.weight = 0).is_err());
        assert_eq!(with(|o| o.id = "a/b".into()), Err(InvalidOption::Id("a/b".into())));
    }
}
