//! What the main thread and the threads of the devices know of each other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// State of the process.
pub(crate) struct Shared {
    /// Workers that have died.
    deaths: AtomicU64,
    /// The worker is being ended: who loses it loses it for good.
    leaving: AtomicBool,
    /// The worker has answered something since it was started.
    served: AtomicBool,
    /// Threads of devices that still run.
    lines: AtomicU64,
    /// Numbers of requests that must not be executed twice.
    numbers: AtomicU64,
    /// Readable for ever once all threads shall end.
    stop: Arc<EventFd>,
    /// Wakes the main thread.
    bell: EventFd,
}

impl Shared {
    /// For so many devices.
    pub fn new(lines: usize) -> io::Result<Self> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        Ok(Self {
            deaths: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            served: AtomicBool::new(false),
            lines: AtomicU64::new(lines as u64),
            numbers: AtomicU64::new(1),
            stop: Arc::new(event()?),
            bell: event()?,
        })
    }

    pub fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Acquire)
    }

    /// A worker has died: the devices will be told by their own events.
    pub fn died(&self) {
        self.served.store(false, Ordering::Release);
        self.deaths.fetch_add(1, Ordering::AcqRel);
    }

    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// The worker has answered; the main thread hears of the first time.
    pub fn serves(&self) {
        if !self.served.swap(true, Ordering::AcqRel) {
            self.ring();
        }
    }

    pub fn served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// A number that was never given before, and is never 0.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The thread of a device ends.
    pub fn line_ended(&self) {
        self.lines.fetch_sub(1, Ordering::AcqRel);
        self.ring();
    }

    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Acquire)
    }

    /// Ends all threads.
    pub fn stop(&self) {
        // A counter at its limit is readable, too.
        let _ = self.stop.write(1);
    }

    pub fn stop_event(&self) -> &Arc<EventFd> {
        &self.stop
    }

    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    fn ring(&self) {
        let _ = self.bell.write(1);
    }
}
