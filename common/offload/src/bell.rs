//! Wakes a worker for something that is not in its rings: results of other threads, work to steal, sessions to let go of.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A bell that any thread may ring and one worker hears, asleep or awake.
#[derive(Debug)]
pub struct Bell {
    rung: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// A bell nobody has rung.
    pub fn new() -> io::Result<Self> {
        Ok(Self { rung: AtomicBool::new(false), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Announces what the caller has made visible. Any thread; a system call only when nobody else has rung since the
    /// worker looked.
    pub fn ring(&self) {
        // Release: who takes the bell sees the work. It also orders this swap before the write that wakes.
        if !self.rung.swap(true, Ordering::AcqRel) {
            // It fails only when the counter would overflow, and a full counter is an event that is still pending.
            let _ = self.event.write(1);
        }
    }

    /// True once after the bell was rung. Worker only; one relaxed load when it was not.
    #[inline]
    pub fn take(&self) -> bool {
        // Acquire: pairs with the swap in `ring`.
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Whether it was rung.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rings_are_heard_once_and_cost_one_wake_up() {
        let bell = Bell::new().unwrap();
        assert!(!bell.take());
        (0..3).for_each(|_| bell.ring());
        assert!(bell.is_rung() && bell.take() && !bell.take() && !bell.is_rung());
        assert_eq!(bell.event.read().unwrap(), 1, "one write to the eventfd");
    }
}
