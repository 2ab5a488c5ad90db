//! Waking a worker without ever losing a wake-up and without a system call while it is awake.
//!
//! A producer (control, an I/O helper thread, the deadline housekeeper) makes its work visible, then calls
//! [`Doorbell::ring`]. The worker looks at [`Doorbell::take`] once a round, and sleeps only inside
//! [`Doorbell::sleep`]. Either the producer's fence comes first, and the worker's re-check sees `pending`; or the
//! worker's fence comes first, and the producer sees `sleeping` and rings the bell. The same argument, with the same two
//! fences, holds between a driver and a ring whose kicks are armed in the re-check (virtio 1.3 §2.7.7.2, §2.8.10).
//!
//! The module is generic over the [`Bell`], so that `tests/loom.rs` explores every interleaving of this very code.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crossbeam_utils::CachePadded;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What ends a sleep: in daemons an [`EventBell`].
pub trait Bell {
    /// Ends the current sleep, or the next one if nobody sleeps yet. May be called by many threads.
    fn ring(&self);
}

/// The flags both sides meet at. See the module's text.
#[derive(Debug)]
pub struct Doorbell<B> {
    /// Work was announced and not yet taken.
    pending: CachePadded<AtomicBool>,
    /// The worker sleeps or is about to.
    sleeping: AtomicBool,
    bell: B,
}

impl<B: Bell> Doorbell<B> {
    /// A doorbell nobody has rung.
    pub fn new(bell: B) -> Self {
        Self { pending: CachePadded::new(AtomicBool::new(false)), sleeping: AtomicBool::new(false), bell }
    }

    /// The bell itself.
    pub const fn bell(&self) -> &B {
        &self.bell
    }

    /// Announces work that the caller has already made visible (pushed to a queue). Any thread.
    pub fn ring(&self) {
        // Release: whoever takes `pending` sees the work.
        self.pending.store(true, Ordering::Release);
        // Pairs with the fence in `sleep`: one of the two sides sees the other's store.
        fence(Ordering::SeqCst);
        // Several producers may ring for one sleep; that is harmless, and rarer than the sleeps.
        if self.sleeping.load(Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    /// Whether the worker sleeps, or is about to. Any thread.
    pub fn is_asleep(&self) -> bool {
        self.sleeping.load(Ordering::Relaxed)
    }

    /// True once after work was announced. Worker only; one relaxed load when there is none.
    #[inline]
    pub fn take(&self) -> bool {
        // Acquire: pairs with the Release in `ring`.
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::Acquire)
    }

    /// Sleeps in `wait` unless there is work: announced here, or found by `recheck` (which arms the rings' kicks and
    /// looks at them once more). True if it slept. Worker only. `wait` must return when the bell rings, and at once if
    /// it rang since the last `wait`.
    pub fn sleep(&self, recheck: impl FnOnce() -> bool, wait: impl FnOnce()) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `ring`.
        fence(Ordering::SeqCst);
        let work = self.pending.load(Ordering::Relaxed) || recheck();
        if !work {
            wait();
        }
        self.sleeping.store(false, Ordering::Relaxed);
        !work
    }
}

/// A bell made of an eventfd. Its counter is never read: the worker watches it edge-triggered.
#[derive(Debug)]
pub struct EventBell(EventFd);

impl EventBell {
    /// A new non-blocking eventfd.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }
}

impl AsRawFd for EventBell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Bell for EventBell {
    fn ring(&self) {
        // It fails only when the counter would overflow, and a full counter is an event that is still pending.
        let _ = self.0.write(1);
    }
}
