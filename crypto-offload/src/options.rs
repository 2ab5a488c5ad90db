//! What an operator says about the devices and the engines behind them, checked once. Sizes are bytes, times have their unit
//! in the name.

use crate::engine::Choice;
use crate::flush::Policy;
use daemon::device::{BadValue, check_name, check_range};
use offload::parameters;

/// Threads for asymmetric requests, unless told otherwise: one a CPU, but no more than this.
const MOST_DEFAULT_ASYM_THREADS: usize = 8;
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
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: DEFAULT_SESSIONS, max_size: DEFAULT_MAX_SIZE }
    }
}

impl Limits {
    /// Refuses values that could not be kept to.
    pub fn check(&self) -> Result<(), BadValue> {
        check_range("sessions", self.sessions, 1, MAX_SESSIONS)?;
        check_range("max-size", self.max_size, 4096, MOST_MAX_SIZE)
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
    pub fn check(&self) -> Result<(), BadValue> {
        check_name("device", &self.id)?;
        check_range("queues", self.queues.into(), 1, MAX_QUEUES.into())?;
        check_range("queue-size", self.queue_size.into(), 2, 32768)?;
        self.limits.check()
    }
}

/// How requests are collected and computed, for all devices of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// How workers wait, and when they submit.
    pub policy: Policy,
    /// Who computes.
    pub engine: Choice,
    /// Threads for asymmetric requests.
    pub asym_threads: u16,
}

impl Default for Scheduling {
    fn default() -> Self {
        let cpus = runtime::cpu::available().map_or(1, |cpus| cpus.len());
        let asym_threads = cpus.clamp(1, MOST_DEFAULT_ASYM_THREADS) as u16;
        Self { policy: Policy::default(), engine: Choice::default(), asym_threads }
    }
}

impl Scheduling {
    /// Refuses numbers with which nothing sensible would happen.
    pub fn check(&self) -> Result<(), BadValue> {
        check_policy(&self.policy)?;
        check_range("asym-threads", self.asym_threads.into(), 1, 256)
    }
}

/// The same for what can be changed while workers run.
pub fn check_policy(policy: &Policy) -> Result<(), BadValue> {
    parameters::check(policy)?;
    check_range("asym-batch", policy.thresholds.answers.into(), 1, 1024)
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
        assert!(with(|o| o.id = "a/b".into()).is_err());
    }

    #[test]
    fn thresholds_that_make_no_sense_are_refused() {
        let with = |change: fn(&mut Scheduling)| {
            let mut scheduling = Scheduling::default();
            change(&mut scheduling);
            scheduling.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert!(with(|s| s.policy.thresholds.batch = 0).is_err());
        assert!(with(|s| s.policy.thresholds.batch = 1025).is_err());
        assert!(with(|s| s.policy.thresholds.answers = 0).is_err());
        assert!(with(|s| s.policy.thresholds.deadline_us = 0).is_err());
        assert!(with(|s| s.policy.thresholds.inline_bytes = 65537).is_err());
        assert!(with(|s| s.asym_threads = 0).is_err());
    }
}
