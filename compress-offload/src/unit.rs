//! A device as its session thread and its workers share it.

use crate::config;
use crate::options::{DeviceOptions, Limits};
use crate::stats::{QueueSnapshot, QueueStats};
use crate::stream::Stream;
use crate::streams::{Limit, Streams};
use compress_protocol::Config;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The streams of one queue, and what each of them may be used for.
pub type QueueStreams = Streams<Stream>;

/// What workers look at for every burst, as it is until somebody changes it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What the guest is told.
    pub config: Config,
    /// What can be changed while the device runs.
    pub limits: Limits,
}

/// A device.
pub struct Unit {
    options: DeviceOptions,
    rules: Mutex<Rules>,
    /// Counts the changes of `rules`, so that workers need no lock to see that there was none.
    edition: AtomicU64,
    features: AtomicU64,
    /// Bytes of requests that were taken and have not ended.
    in_flight: Arc<AtomicU64>,
    streams: Box<[Mutex<QueueStreams>]>,
    open: Limit,
    stats: Box<[QueueStats]>,
}

impl Unit {
    /// A device that nothing was negotiated with.
    pub fn new(options: &DeviceOptions) -> Self {
        let options = DeviceOptions { queues: options.queues.max(1), ..options.clone() };
        let limits = options.limits;
        let rules = Rules { config: config::describe(&options, &limits), limits };
        let queues = usize::from(options.queues);
        Self {
            rules: Mutex::new(rules),
            edition: AtomicU64::new(0),
            features: AtomicU64::new(0),
            in_flight: Arc::default(),
            streams: (0..queues).map(|_| Mutex::default()).collect(),
            open: Limit::new(limits.streams),
            stats: (0..queues).map(|_| QueueStats::default()).collect(),
            options,
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// Its queues.
    pub fn queues(&self) -> u16 {
        self.options.queues
    }

    /// Most entries of a ring.
    pub fn queue_size(&self) -> u16 {
        self.options.queue_size
    }

    /// Whether sources are read where they are.
    pub fn zero_copy(&self) -> bool {
        self.options.zero_copy
    }

    /// What it was made with.
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions { limits: self.limits(), ..self.options.clone() }
    }

    /// What can be changed, as it is now.
    pub fn limits(&self) -> Limits {
        lock(&self.rules).limits
    }

    /// The limits from now on. A driver that has read the configuration space may not know.
    pub fn set_limits(&self, limits: Limits) {
        let mut rules = lock(&self.rules);
        *rules = Rules { config: config::describe(&self.options, &limits), limits };
        self.open.set(limits.streams);
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// What the guest is told, as it is now.
    pub fn config(&self) -> Config {
        lock(&self.rules).config
    }

    /// The rules, and what [`edition`](Self::edition) they are.
    pub fn rules(&self) -> (Rules, u64) {
        let rules = lock(&self.rules);
        (*rules, self.edition())
    }

    /// Changes with the rules.
    #[inline]
    pub fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// The features of the device in force, of those of the wire format; 0 when nobody knows which. Rings that run take it up
    /// with their next burst.
    pub fn negotiate(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// The features in force.
    #[inline]
    pub fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// A request of so many bytes comes in; false: there is no room for it.
    #[inline]
    pub fn enter(&self, bytes: u64, most: u64) -> bool {
        let before = self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= most;
        if !fits {
            self.leave(bytes);
        }
        fits
    }

    /// It has ended.
    #[inline]
    pub fn leave(&self, bytes: u64) {
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of source and destination of the requests that were taken and have not ended.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The streams of a queue. Only the worker of that queue and control, at a reset, look at them.
    pub fn streams(&self, queue: u16) -> MutexGuard<'_, QueueStreams> {
        lock(&self.streams[usize::from(queue)])
    }

    /// How many streams may be open, over all queues.
    pub fn stream_limit(&self) -> &Limit {
        &self.open
    }

    /// How many are.
    pub fn open_streams(&self) -> u64 {
        self.open.open().into()
    }

    /// The driver was reset or is gone: its streams are nobody's any more.
    pub fn close_streams(&self) {
        self.streams.iter().for_each(|streams| lock(streams).close_all());
    }

    /// The counters of each queue.
    pub fn queue_stats(&self) -> &[QueueStats] {
        &self.stats
    }

    /// The counters of all queues together.
    pub fn totals(&self) -> QueueSnapshot {
        let mut sum = QueueSnapshot::default();
        self.stats.iter().for_each(|stats| sum.merge(&stats.snapshot()));
        sum
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit").field("options", &self.options).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
