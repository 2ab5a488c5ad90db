//! The four rings between an AF_XDP socket and this process: single producer, single consumer, indices that run free.
//!
//! The kernel is on the other side, and trusted more than a guest; its indices are checked all the same, since the check
//! is one comparison a batch. Descriptors are checked by who follows them.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::{io, mem};

use memory::Area;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// The rings are in the machine's byte order, and `Area` reads little-endian integers.
const _: () = assert!(cfg!(target_endian = "little"));

/// A descriptor of the receive and transmit rings (`struct xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct Desc {
    /// Offset of the first byte in the UMEM.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `XDP_PKT_CONTD`, `XDP_TX_METADATA`.
    pub options: u32,
}

/// Which ring of the socket to map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    /// Offset to mmap at, by which the kernel knows the ring.
    pub page_offset: u64,
    /// Where its indices and descriptors are in the mapping (`XDP_MMAP_OFFSETS`).
    pub offsets: libc::xdp_ring_offset,
    /// Entries, a power of two.
    pub size: u32,
}

/// What both directions have.
struct Ring<T> {
    area: Area,
    producer: usize,
    consumer: usize,
    flags: usize,
    entries: usize,
    size: u32,
    entry: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes> Ring<T> {
    fn map(socket: BorrowedFd<'_>, placement: Placement) -> io::Result<Self> {
        let Placement { page_offset, offsets, size } = placement;
        debug_assert!(size.is_power_of_two());
        let len = offsets.desc as usize + size as usize * mem::size_of::<T>();
        let ring = Self {
            area: Area::map(socket, len, page_offset)?,
            producer: offsets.producer as usize,
            consumer: offsets.consumer as usize,
            flags: offsets.flags as usize,
            entries: offsets.desc as usize,
            size,
            entry: PhantomData,
        };
        Ok(ring)
    }

    #[inline(always)]
    fn place(&self, index: u32) -> usize {
        self.entries + (index & (self.size - 1)) as usize * mem::size_of::<T>()
    }

    /// The flag is only a hint to call the kernel, and follows the kernel's own ordering of the indices.
    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.area.load_u32(self.flags, Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring that this process fills: the fill ring and the transmit ring.
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Next entry to write; what is before `published` the kernel knows of.
    next: u32,
    published: u32,
    /// The kernel's index when it was last looked at.
    taken: u32,
}

impl<T: FromBytes + IntoBytes> Producer<T> {
    pub(super) fn map(socket: BorrowedFd<'_>, placement: Placement) -> io::Result<Self> {
        Ok(Self { ring: Ring::map(socket, placement)?, next: 0, published: 0, taken: 0 })
    }

    /// Whether `wanted` entries are free; looks at the kernel's index only when it has to.
    #[inline]
    pub(super) fn has_room(&mut self, wanted: u32) -> bool {
        self.ring.size - self.next.wrapping_sub(self.taken) >= wanted || {
            self.look();
            self.ring.size - self.next.wrapping_sub(self.taken) >= wanted
        }
    }

    /// Entries the kernel has not taken yet, written ones that are not published included.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.look();
        self.next.wrapping_sub(self.taken)
    }

    /// Writes one entry; the caller has made sure of the room.
    #[inline(always)]
    pub(super) fn push(&mut self, entry: T) {
        let place = self.ring.place(self.next);
        self.ring.area.write(place, entry);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel everything pushed. Pairs with the kernel's acquire of the producer index.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.next != self.published {
            self.published = self.next;
            self.ring.area.store_u32(self.ring.producer, self.next, Ordering::Release);
        }
    }

    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }

    /// Pairs with the kernel's release of the consumer index: an entry that is taken is read. An index that cannot be is
    /// ignored, so that the subtraction in `has_room` never wraps.
    #[inline]
    fn look(&mut self) {
        let taken = self.ring.area.load_u32(self.ring.consumer, Ordering::Acquire);
        if self.published.wrapping_sub(taken) <= self.published.wrapping_sub(self.taken) {
            self.taken = taken;
        }
    }
}

/// A ring that the kernel fills: the receive ring and the completion ring.
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    next: u32,
    released: u32,
    /// The kernel's index when it was last looked at.
    filled: u32,
}

impl<T: FromBytes + IntoBytes> Consumer<T> {
    pub(super) fn map(socket: BorrowedFd<'_>, placement: Placement) -> io::Result<Self> {
        Ok(Self { ring: Ring::map(socket, placement)?, next: 0, released: 0, filled: 0 })
    }

    /// Entries to be taken. One acquire load, which pairs with the kernel's release of the producer index, and only when
    /// none are left of the last one.
    #[inline]
    pub(super) fn available(&mut self) -> u32 {
        if self.filled == self.next {
            self.look();
        }
        self.filled.wrapping_sub(self.next)
    }

    /// As `available`, after looking at the kernel's index in any case.
    #[cold]
    pub(super) fn available_now(&mut self) -> u32 {
        self.look();
        self.filled.wrapping_sub(self.next)
    }

    /// Whether there is anything to take. Always looks at the kernel's index.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.ring.area.load_u32(self.ring.producer, Ordering::Acquire) != self.next
    }

    /// The entry `ahead` of the next one, which `available` has counted.
    #[inline(always)]
    pub(super) fn peek(&self, ahead: u32) -> T {
        self.ring.area.read(self.ring.place(self.next.wrapping_add(ahead)))
    }

    /// `count` entries are taken. They stay untouched until `release`.
    #[inline(always)]
    pub(super) fn advance(&mut self, count: u32) {
        self.next = self.next.wrapping_add(count);
    }

    /// Gives the places of the entries taken back to the kernel.
    #[inline]
    pub(super) fn release(&mut self) {
        if self.released != self.next {
            self.released = self.next;
            self.ring.area.store_u32(self.ring.consumer, self.next, Ordering::Release);
        }
    }

    /// An index that cannot be is taken for an empty ring.
    #[inline]
    fn look(&mut self) {
        let filled = self.ring.area.load_u32(self.ring.producer, Ordering::Acquire);
        if filled.wrapping_sub(self.released) <= self.ring.size {
            self.filled = filled;
        }
    }
}
