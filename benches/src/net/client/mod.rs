//! A user-space virtio-net driver without a VM: [`Port`] is the attached device (control plane), [`Transmit`] and
//! [`Receive`] are the rings of one queue pair, owned by the thread that drives them.
//!
//! It is made to be lighter than any backend: buffers never move, their headers are written once, a burst is one look at
//! the ring, and a receive buffer goes back into the ring in the round that emptied it.

mod buffers;
mod port;
mod receive;
mod transmit;

pub use port::{AttachError, Pair, Port, Setup};
pub use receive::{Arrival, Receive};
pub use transmit::{Stamp, Transmit};

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use virtqueue::driver::DriverRing;
use vmm_sys_util::eventfd::EventFd;

use crate::wait;

/// The backend used a buffer that it did not have, or wrote a length that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// A used element names nothing in flight.
    #[error("The backend used a buffer of the {0} ring that it did not have")]
    NotInFlight(&'static str),
    /// A frame spans more buffers than the ring has, or none.
    #[error("The backend says that a frame takes {0} receive buffers")]
    Buffers(u16),
    /// More bytes than the buffer has.
    #[error("The backend says that it wrote {written} bytes into a receive buffer of {buffer}")]
    Length {
        /// What it says.
        written: u32,
        /// What there is.
        buffer: u32,
    },
}

/// How often each side notified the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Eventfd writes by the driver.
    pub kicks: u64,
    /// Eventfd writes by the device, as far as the driver has collected them.
    pub interrupts: u64,
}

impl std::ops::AddAssign for Signals {
    fn add_assign(&mut self, other: Self) {
        self.kicks += other.kicks;
        self.interrupts += other.interrupts;
    }
}

impl std::ops::Sub for Signals {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { kicks: self.kicks - other.kicks, interrupts: self.interrupts - other.interrupts }
    }
}

/// A ring with its events.
pub(super) struct Ring {
    ring: DriverRing,
    kick: EventFd,
    call: EventFd,
    signals: Signals,
}

impl Ring {
    fn new(ring: DriverRing, kick: EventFd, call: EventFd) -> Self {
        Self { ring, kick, call, signals: Signals::default() }
    }

    /// Makes everything added visible with one store and kicks the device if it wants to be kicked.
    #[inline]
    fn publish(&mut self) {
        if self.ring.publish() {
            self.kick();
        }
    }

    fn kick(&mut self) {
        self.signals.kicks += 1;
        // Cannot fail: a full counter already means "kicked".
        let _ = self.kick.write(1);
    }

    fn call_fd(&self) -> RawFd {
        self.call.as_raw_fd()
    }

    /// Collects interrupts, if there are any.
    fn drain_interrupts(&mut self) {
        if wait::readable(self.call.as_raw_fd(), Some(Duration::ZERO)) {
            self.signals.interrupts += self.call.read().unwrap_or(0);
        }
    }
}

macro_rules! ring_of {
    ($queue:ty) => {
        impl $queue {
            /// Notifications so far.
            pub fn signals(&self) -> Signals {
                self.ring.signals
            }

            /// Asks for no interrupts.
            pub fn suppress(&mut self) {
                self.ring.ring.suppress();
            }

            /// Asks for an interrupt; `true` when something is there already, for which none will come.
            pub fn arm(&mut self) -> bool {
                self.ring.ring.arm()
            }

            /// Readable when there was an interrupt.
            pub fn call_fd(&self) -> RawFd {
                self.ring.call_fd()
            }

            /// Counts the interrupts that have come.
            pub fn drain_interrupts(&mut self) {
                self.ring.drain_interrupts();
            }

            /// Where a new backend goes on: SET_VRING_BASE.
            pub fn base_for_restart(&self) -> u32 {
                self.ring.ring.base_for_restart()
            }
        }
    };
}

ring_of!(Transmit);
ring_of!(Receive);
