//! A ring with its eventfds and counters: what a worker owns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, MemoryTable};
use vmm_sys_util::eventfd::EventFd;

use crate::broken::{Broken, SetupError};
use crate::device::{DeviceRing, Ring};
use crate::setup::{RingFeatures, RingSetup};

/// What happened on one queue. Plain numbers of the owning worker, which copies them where others may read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kicks taken; the worker counts them, it reads the eventfd.
    pub kicks: u64,
    /// Interrupts sent.
    pub signals_sent: u64,
    /// Batches published for which the driver wanted no interrupt.
    pub signals_suppressed: u64,
    /// Batches published.
    pub bursts: u64,
}

/// One virtqueue of a device, owned by one worker.
pub struct Queue {
    /// The ring. Match on it once per batch.
    pub ring: Ring,
    /// What happened so far.
    pub counters: Counters,
    call: Option<EventFd>,
    kick: Option<OwnedFd>,
    err: Option<EventFd>,
    size: u16,
    features: RingFeatures,
    reported: bool,
}

impl Queue {
    /// Maps and checks the ring, and recovers its inflight region.
    pub fn new(setup: RingSetup<'_>) -> Result<Self, SetupError> {
        let (size, features) = (setup.size, setup.features);
        Ok(Self {
            ring: Ring::new(setup)?,
            counters: Counters::default(),
            call: None,
            kick: None,
            err: None,
            size,
            features,
            reported: false,
        })
    }

    /// SET_VRING_CALL. A new eventfd is signalled at once: an interrupt may have been due while there was none, or have
    /// gone to a predecessor that died; a spurious one is always allowed.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
        if let Some(call) = &self.call {
            signal(call);
        }
    }

    /// SET_VRING_ERR.
    pub fn set_err(&mut self, err: Option<EventFd>) {
        self.err = err;
    }

    /// SET_VRING_KICK; `None` is a frontend that wants the ring polled.
    pub fn set_kick(&mut self, kick: Option<OwnedFd>) {
        self.kick = kick;
    }

    /// The eventfd of kicks, to wait on.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(AsFd::as_fd)
    }

    /// Takes the kick eventfd away, when the ring stops and its descriptors are to be used again.
    pub fn take_kick(&mut self) -> Option<OwnedFd> {
        self.kick.take()
    }

    /// Takes the call eventfd away.
    pub fn take_call(&mut self) -> Option<EventFd> {
        self.call.take()
    }

    /// Takes the err eventfd away.
    pub fn take_err(&mut self) -> Option<EventFd> {
        self.err.take()
    }

    /// The value for GET_VRING_BASE, as on the wire. Drain first.
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The features the ring was made with.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// Switches the dirty log on, off or over; `used_log_addr` as in [`RingSetup`].
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log_addr: Option<GuestAddr>) {
        self.ring.set_log(log, used_log_addr);
    }

    /// Maps the three areas again; on an error the ring still uses the old mapping and should be broken by the caller.
    pub fn rebuild_after_memory_change(&mut self, table: &MemoryTable) -> Result<(), SetupError> {
        self.ring.remap(table)
    }

    /// Publishes what was completed and interrupts the driver if it wants that. `true` when it was interrupted.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.ring.unpublished() == 0 {
            return false;
        }
        let wanted = self.ring.publish();
        self.notify(wanted)
    }

    /// The second half of [`publish`](Self::publish), for a loop that called the ring's own `publish` on a batch.
    #[inline]
    pub fn notify(&mut self, wanted: bool) -> bool {
        self.counters.bursts += 1;
        match &self.call {
            Some(call) if wanted => {
                signal(call);
                self.counters.signals_sent += 1;
                true
            }
            _ => {
                self.counters.signals_suppressed += 1;
                false
            }
        }
    }

    /// Latches the ring as broken and tells the frontend by the err eventfd, once.
    pub fn break_ring(&mut self, why: Broken) {
        self.ring.break_with(why);
        if !std::mem::replace(&mut self.reported, true)
            && let Some(err) = &self.err
        {
            signal(err);
        }
    }
}

/// An eventfd write fails only when the peer made the descriptor something else; there is nobody to tell.
fn signal(fd: &EventFd) {
    let _ = fd.write(1);
}
