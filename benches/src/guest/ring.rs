//! One ring with its events.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vhost_user::message::features;
use virtqueue::driver::{DriverRing, Segment, Used};
use virtqueue::layout::DESC_BYTES;
use virtqueue::{Format, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::EventFd;

use super::memory;
use crate::wait;

/// Format, size and features of a device's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Descriptors per ring.
    pub size: u16,
    /// Packed rings; refused if the backend has none.
    pub packed: bool,
    /// Buffers are used in order; taken if offered.
    pub in_order: bool,
    /// Indirect descriptors; refused if the backend has none.
    pub indirect: bool,
    /// Notifications by index; taken if offered.
    pub event_idx: bool,
}

impl Default for Shape {
    /// Split rings of 256 descriptors with notifications by index.
    fn default() -> Self {
        Self { size: 256, packed: false, in_order: false, indirect: false, event_idx: true }
    }
}

impl Shape {
    /// The ring format.
    pub fn format(&self) -> Format {
        if self.packed { Format::Packed } else { Format::Split }
    }

    /// Features to ask for.
    pub fn wanted(&self) -> u64 {
        let optional = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
        features::VERSION_1
            | optional(self.packed, RingFeatures::RING_PACKED)
            | optional(self.in_order, RingFeatures::IN_ORDER)
            | optional(self.indirect, RingFeatures::INDIRECT_DESC)
            | optional(self.event_idx, RingFeatures::EVENT_IDX)
    }

    /// Those of them that the backend must offer, with the words for the refusal.
    pub fn demanded(&self) -> impl Iterator<Item = (u64, &'static str)> {
        [
            (true, features::VERSION_1, "VIRTIO_F_VERSION_1"),
            (self.packed, RingFeatures::RING_PACKED, "packed rings (VIRTIO_F_RING_PACKED)"),
            (self.indirect, RingFeatures::INDIRECT_DESC, "indirect descriptors (VIRTIO_F_INDIRECT_DESC)"),
        ]
        .into_iter()
        .filter_map(|(wanted, bit, name)| wanted.then_some((bit, name)))
    }

    /// Bytes of guest memory that a ring takes; `table` is the number of descriptors of its indirect tables.
    pub fn footprint(&self, table: u16) -> usize {
        let (desc, driver, device) = ring_sizes(self.format(), self.size);
        memory::footprint([desc, driver, device, self.tables_len(table)])
    }

    /// Bytes of the indirect tables of a ring, one of `table` descriptors for each of its own.
    pub fn tables_len(&self, table: u16) -> usize {
        if self.indirect { DESC_BYTES * usize::from(table) * usize::from(self.size) } else { 0 }
    }
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

/// A ring with its events, owned by one thread.
pub struct Ring {
    ring: DriverRing,
    indirect: bool,
    kick: EventFd,
    call: EventFd,
    signals: Signals,
}

impl Ring {
    pub(super) fn new(ring: DriverRing, indirect: bool, kick: EventFd, call: EventFd) -> Self {
        Self { ring, indirect, kick, call, signals: Signals::default() }
    }

    /// Entries of the ring.
    #[inline]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The device used a buffer that it did not have.
    pub fn broken(&self) -> bool {
        self.ring.broken()
    }

    /// Puts a chain into the ring, through an indirect table if that was asked for; not yet visible to the device.
    ///
    /// # Panics
    /// When the ring is full: callers know how many of their requests fit.
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment], cookie: u32) {
        let added = if self.indirect {
            self.ring.add_indirect(readable, writable, cookie)
        } else {
            self.ring.add(readable, writable, cookie)
        };
        assert!(added.is_ok(), "the ring has room for every request");
    }

    /// The same without an indirect table, whatever was asked for.
    #[inline]
    pub fn add_direct(&mut self, readable: &[Segment], writable: &[Segment], cookie: u32) {
        let added = self.ring.add(readable, writable, cookie);
        assert!(added.is_ok(), "the ring has room for every request");
    }

    /// The next completed request.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        self.ring.pop()
    }

    /// Makes everything added visible with one store and kicks the device if it wants to be kicked.
    #[inline]
    pub fn publish(&mut self) {
        if self.ring.publish() {
            self.kick();
        }
    }

    /// Kicks the device whether it wants it or not (after a restart).
    pub fn kick(&mut self) {
        self.signals.kicks += 1;
        // Cannot fail: a full counter already means "kicked".
        let _ = self.kick.write(1);
    }

    /// Notifications so far.
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// Asks for no interrupts.
    pub fn suppress(&mut self) {
        self.ring.suppress();
    }

    /// Asks for an interrupt; `true` when something is there already, for which none will come.
    #[must_use = "true means that there is a completion, for which no interrupt will come"]
    pub fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    /// Readable when there was an interrupt.
    pub fn call_fd(&self) -> RawFd {
        self.call.as_raw_fd()
    }

    /// Asks for an interrupt and sleeps until it comes; returns at once if something has finished meanwhile.
    pub fn sleep(&mut self) {
        if !self.ring.arm() {
            self.collect_interrupts();
        }
        self.ring.suppress();
    }

    /// Like [`Ring::sleep`], but wakes up after `limit` too.
    pub fn sleep_at_most(&mut self, limit: Duration) {
        if !self.ring.arm() && wait::readable(self.call_fd(), Some(limit)) {
            self.collect_interrupts();
        }
        self.ring.suppress();
    }

    /// Like [`Ring::sleep_at_most`] for several rings of one thread: wakes up when one of them has something.
    pub fn sleep_on_any(rings: &mut [&mut Self], limit: Duration) {
        if !rings.iter_mut().any(|ring| ring.ring.arm()) {
            let calls: Vec<RawFd> = rings.iter().map(|ring| ring.call_fd()).collect();
            wait::any_readable(&calls, limit);
        }
        for ring in rings {
            ring.drain_interrupts();
            ring.ring.suppress();
        }
    }

    /// Counts the interrupts that have come without having been waited for.
    pub fn drain_interrupts(&mut self) {
        if wait::readable(self.call_fd(), Some(Duration::ZERO)) {
            self.collect_interrupts();
        }
    }

    /// The call eventfd blocks, so one read both sleeps and resets it. Some backends make it non-blocking for both sides.
    fn collect_interrupts(&mut self) {
        let count = self.call.read().or_else(|_| {
            wait::readable(self.call_fd(), None);
            self.call.read()
        });
        self.signals.interrupts += count.unwrap_or(0);
    }

    /// Where a new backend goes on: SET_VRING_BASE.
    pub fn base_for_restart(&self) -> u32 {
        self.ring.base_for_restart()
    }
}
