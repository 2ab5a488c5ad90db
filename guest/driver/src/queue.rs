//! One queue of a device, as the clients use it.

use std::sync::Arc;

use virtqueue::driver::{DriverRing, Full, RingAreas, Segment, Used};
use virtqueue::layout::{DESC_BYTES, DESC_NEXT, DESC_WRITE};
use virtqueue::{Format, RingAddresses, RingFeatures, SetupError, ring_sizes};

use crate::dma::{Arena, Buffer, DmaError, PAGE};
use crate::transport::{Doorbell, Transport, TransportError};

/// Entries of a ring, at most: each of its parts then fits into one page, wherever that lies.
pub const MAX_SIZE: u16 = 256;

/// Descriptors of a request, at most: an indirect table is a page.
pub const MAX_SEGMENTS: usize = PAGE / DESC_BYTES;

/// Chains of up to this many descriptors go into the ring itself; a table would cost more than it saves.
const DIRECT: usize = 2;

/// Why a queue cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The device.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Memory for it.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The ring.
    #[error("Cannot build a ring")]
    Ring(#[from] SetupError),
}

/// A request's descriptors.
#[derive(Default)]
pub struct Segments {
    /// What the device reads.
    pub readable: Vec<Segment>,
    /// What it writes.
    pub writable: Vec<Segment>,
}

impl Segments {
    /// Starts over, with the memory that is there.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// Descriptors.
    pub fn len(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A ring with what is rung for it.
pub struct Queue {
    ring: DriverRing,
    doorbell: Doorbell,
    features: RingFeatures,
    arena: Arc<Arena>,
    kicks: u64,
}

impl Queue {
    /// Sets a queue up and tells the device of it.
    pub fn start(
        transport: &mut dyn Transport,
        arena: &Arc<Arena>,
        index: u16,
        features: RingFeatures,
    ) -> Result<Self, QueueError> {
        let size = transport.max_queue_size(index)?.min(MAX_SIZE);
        // A device that takes any number of entries may have any number of them; a split ring has a power of two.
        let size = match features.format() {
            Format::Split => 1 << size.max(1).ilog2(),
            Format::Packed => size,
        };
        let (desc, driver, device) = ring_sizes(features.format(), size);
        let area = |len| arena.area(arena.alloc_contiguous(len)?);
        let areas = RingAreas { desc: area(desc)?, driver: area(driver)?, device: area(device)? };
        let addresses = RingAddresses {
            desc: areas.desc.guest_addr(),
            driver: areas.driver.guest_addr(),
            device: areas.device.guest_addr(),
        };
        let mut ring = DriverRing::new(areas, features.format(), size, features)?;
        ring.suppress();
        let doorbell = transport.start_queue(index, size, &addresses)?;
        Ok(Self { ring, doorbell, features, arena: Arc::clone(arena), kicks: 0 })
    }

    /// Bytes of an arena that a queue takes.
    pub const fn footprint() -> usize {
        3 * PAGE
    }

    /// Most descriptors that a request may have: a chain may not be longer than the ring, even in a table (virtio 1.3
    /// §2.7.5.3.1).
    pub fn max_segments(&self) -> usize {
        usize::from(self.ring.size()).min(MAX_SEGMENTS)
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Adds a request; `table` is a page of its own for it. The device does not see it before [`Queue::publish`].
    #[inline]
    pub fn add(&mut self, segments: &Segments, table: Buffer, cookie: u32) -> Result<(), Full> {
        if !self.features.indirect || segments.len() <= DIRECT {
            return self.ring.add(&segments.readable, &segments.writable, cookie);
        }
        let address = self.write_table(segments, table)?;
        let writable = segments.writable.iter().fold(0u32, |sum, piece| sum.saturating_add(piece.len));
        self.ring.add_prebuilt(address, segments.len() as u16, writable, cookie)
    }

    /// An indirect table (virtio 1.3 §2.7.5.3, §2.8.8): split ones are linked, packed ones are not.
    fn write_table(&self, segments: &Segments, table: Buffer) -> Result<memory::GuestAddr, Full> {
        let count = segments.len();
        let mut bytes = [0u8; PAGE];
        let entries = bytes.get_mut(..count * DESC_BYTES).ok_or(Full)?;
        let (readable, writable) = (segments.readable.iter(), segments.writable.iter());
        let all = readable.map(|piece| (piece, 0)).chain(writable.map(|piece| (piece, DESC_WRITE)));
        for (index, ((piece, mut flags), entry)) in all.zip(entries.chunks_exact_mut(DESC_BYTES)).enumerate()
        {
            entry[..8].copy_from_slice(&piece.addr.0.to_le_bytes());
            entry[8..12].copy_from_slice(&piece.len.to_le_bytes());
            let (third, fourth) = if self.features.packed {
                (0, flags)
            } else {
                if index + 1 < count {
                    flags |= DESC_NEXT;
                }
                (flags, index as u16 + 1)
            };
            entry[12..14].copy_from_slice(&third.to_le_bytes());
            entry[14..16].copy_from_slice(&fourth.to_le_bytes());
        }
        self.arena.write(table, entries);
        let mut pieces = Vec::with_capacity(1);
        self.arena.segments(table.part(0, count * DESC_BYTES), &mut pieces);
        match pieces[..] {
            [whole] => Ok(whole.addr),
            _ => Err(Full),
        }
    }

    /// Shows what was added to the device.
    #[inline]
    pub fn publish(&mut self) {
        if self.ring.publish() {
            self.kicks += 1;
            self.doorbell.ring();
        }
    }

    /// The next request that has ended.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        self.ring.pop()
    }

    /// Whether the device broke the rules of the ring, which yields nothing any more then.
    pub fn broken(&self) -> bool {
        self.ring.broken()
    }

    /// How often the device was notified.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }
}
