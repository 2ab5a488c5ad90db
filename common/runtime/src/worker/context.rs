//! What a service uses of its worker.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::WorkerConfig;
use crate::cpu::{self, Affinity};
use crate::deadlines::{DeadlineSlot, NEVER};
use crate::doorbell::{Doorbell, EventBell};
use crate::io::{Event, Io, Setup, WatchId};
use crate::stats::WorkerStats;

/// The worker's own things, handed to its service in every call.
pub struct Context {
    /// Asynchronous I/O. The worker flushes, harvests and waits; a service pushes.
    pub io: Io,
    /// The worker's counters.
    pub stats: Arc<WorkerStats>,
    /// The clock, if it was read in this round.
    now: Option<u64>,
    /// The earliest time somebody wants to be woken at, or [`NEVER`].
    wake_at: u64,
    pub(super) deadline: Option<DeadlineSlot>,
    pub(super) events: Vec<Event>,
    pub(super) doorbell: Arc<Doorbell<EventBell>>,
}

impl Context {
    pub(super) fn new(
        config: &WorkerConfig,
        doorbell: Arc<Doorbell<EventBell>>,
        stats: Arc<WorkerStats>,
        helpers: Option<Affinity>,
    ) -> io::Result<Self> {
        let io = Io::with_setup(Setup {
            config: config.io,
            doorbell: doorbell.clone(),
            helpers,
            name: config.name.clone(),
        })?;
        let deadline = match &config.deadlines {
            Some(table) => table.slot(doorbell.clone()),
            None => None,
        };
        let events = Vec::with_capacity(config.io.depth as usize);
        Ok(Self { io, stats, now: None, wake_at: NEVER, deadline, events, doorbell })
    }

    /// A context without a worker: for benches and fuzzers that call a service on their own thread. Its clock stands still
    /// from the first look on.
    pub fn detached() -> io::Result<Self> {
        let doorbell = Arc::new(Doorbell::new(EventBell::new()?));
        Self::new(&WorkerConfig::default(), doorbell, Arc::default(), None)
    }

    /// The monotonic clock in nanoseconds, read at most once a round: good for latencies of bursts, too old by a round
    /// at worst.
    #[inline]
    pub fn now_ns(&mut self) -> u64 {
        *self.now.get_or_insert_with(cpu::monotonic_ns)
    }

    /// Asks for a [`poll_once`](super::Service::poll_once) at `deadline_ns` of the monotonic clock or soon after, even
    /// if nothing else happens. The earliest wish of all counts; it is spent when it comes true.
    #[inline]
    pub fn wake_at(&mut self, deadline_ns: u64) {
        self.wake_at = self.wake_at.min(deadline_ns);
    }

    /// Wakes the worker whenever `fd` becomes readable; see [`Io::watch`].
    pub fn watch(&mut self, fd: RawFd) -> io::Result<WatchId> {
        self.io.watch(fd)
    }

    /// Ends a watch, before the descriptor is closed.
    pub fn unwatch(&mut self, watch: WatchId) {
        self.io.unwatch(watch);
    }

    /// A new round: what was read of the clock is old.
    #[inline]
    pub(super) fn begin_round(&mut self) {
        self.now = None;
    }

    /// The clock, read now.
    pub(super) fn read_clock(&mut self) -> u64 {
        self.now = None;
        self.now_ns()
    }

    /// The wish for a wake-up that is due; it is spent.
    pub(super) fn take_due(&mut self, now: u64) -> bool {
        let due = self.wake_at <= now;
        if due {
            self.wake_at = NEVER;
        }
        due
    }

    /// How long a wait may last, after `now`. A far deadline is stored in the shared table instead, whose housekeeper
    /// rings the doorbell; a near one needs the wait's own timeout.
    pub(super) fn timeout(&mut self, now: u64) -> Option<u64> {
        if self.wake_at == NEVER {
            return None;
        }
        let left = self.wake_at.saturating_sub(now);
        match &self.deadline {
            Some(slot) if left > slot.period_ns() => {
                slot.arm(self.wake_at);
                None
            }
            _ => Some(left),
        }
    }

    pub(super) fn disarm(&self) {
        if let Some(slot) = &self.deadline {
            slot.disarm();
        }
    }

    /// Copies what the engine counted to where others can read it.
    pub(super) fn show_io_counters(&self) {
        let counters = self.io.counters();
        self.stats.enters.set(counters.enters);
        self.stats.io_submitted.set(counters.submitted);
        self.stats.io_completed.set(counters.completed);
        self.stats.io_fixed.set(counters.fixed);
        self.stats.io_register_refused.set(counters.register_refused);
    }
}
