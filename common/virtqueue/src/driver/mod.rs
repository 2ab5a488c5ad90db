//! Driver side of both ring formats: what a guest does, for load generators, tests, fuzzers and guest libraries.
//!
//! Nothing here allocates after construction, and nothing needs an operating system: a request is a few stores, a burst
//! one release store and one look at whether the device wants a kick. The caller owns the buffers and names each
//! request by a cookie.

pub mod packed;
pub mod split;

use memory::{Area, GuestAddr, MemoryTable};

use crate::broken::SetupError;
use crate::layout::{DESC_BYTES, ring_sizes};
use crate::setup::{Areas, Format, QueueSize, RingAddresses, RingFeatures, alignments};

/// A buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: GuestAddr,
    /// Bytes.
    pub len: u32,
}

/// A completed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What `add` was given.
    pub cookie: u32,
    /// Bytes the device wrote.
    pub len: u32,
}

/// The ring, or the indirect table, has too few free descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The ring is full")]
pub struct Full;

/// Memory of a ring: three areas of [`ring_sizes`] bytes.
#[derive(Clone)]
pub struct RingAreas {
    /// Descriptor table or ring.
    pub desc: Area,
    /// Driver area.
    pub driver: Area,
    /// Device area.
    pub device: Area,
}

impl RingAreas {
    /// Looks the areas up in guest memory.
    pub fn in_table(
        table: &MemoryTable,
        addresses: &RingAddresses,
        format: Format,
        size: u16,
    ) -> Result<Self, SetupError> {
        let Areas { desc, driver, device } =
            Areas::map(table, addresses, format, QueueSize::new(format, size)?)?;
        Ok(Self { desc, driver, device })
    }

    fn check(&self, format: Format, size: QueueSize) -> Result<(), SetupError> {
        let (desc, driver, device) = ring_sizes(format, size.get());
        let (desc_align, driver_align, device_align) = alignments(format);
        for (area, len, align) in [
            (&self.desc, desc, desc_align),
            (&self.driver, driver, driver_align),
            (&self.device, device, device_align),
        ] {
            if area.len() < len {
                return Err(SetupError::BadSize(size.get()));
            }
            if !area.is_aligned(align as usize) {
                return Err(SetupError::Misaligned { addr: area.guest_addr().0, align });
            }
        }
        Ok(())
    }
}

/// Memory for indirect tables: one table for each ring entry.
#[derive(Clone)]
pub struct IndirectTables {
    /// `16 * entries * ring size` bytes of guest memory.
    pub area: Area,
    /// Descriptors a table holds.
    pub entries: u16,
}

impl IndirectTables {
    fn check(&self, size: u16) -> Result<(), SetupError> {
        let bytes = DESC_BYTES * usize::from(self.entries) * usize::from(size);
        if self.entries == 0 || self.area.len() < bytes {
            return Err(SetupError::BadSize(self.entries));
        }
        Ok(())
    }

    /// Offset of the table of a ring entry.
    #[inline]
    fn offset(&self, head: u16) -> usize {
        DESC_BYTES * usize::from(self.entries) * usize::from(head)
    }

    /// Guest address of the table of a ring entry.
    #[inline]
    fn addr(&self, head: u16) -> u64 {
        self.area.guest_addr().0 + self.offset(head) as u64
    }
}

/// What the driver remembers of a request in flight.
#[derive(Clone, Copy, Default)]
struct Request {
    cookie: u32,
    /// Bytes the device may write.
    writable: u32,
    /// Descriptors of the ring; 0 when nothing is in flight here.
    count: u16,
    /// Last descriptor (split).
    tail: u16,
}

impl Request {
    #[inline]
    fn new(cookie: u32, writable: &[Segment], count: u16, tail: u16) -> Self {
        Self { cookie, writable: total(writable), count, tail }
    }
}

#[inline]
fn total(segments: &[Segment]) -> u32 {
    segments.iter().fold(0, |sum: u32, segment| sum.saturating_add(segment.len))
}

/// Driver side of a ring of either format.
pub enum DriverRing {
    /// A split ring.
    Split(split::Driver),
    /// A packed ring.
    Packed(packed::Driver),
}

macro_rules! either {
    ($ring:expr, $it:ident => $call:expr) => {
        match $ring {
            DriverRing::Split($it) => $call,
            DriverRing::Packed($it) => $call,
        }
    };
}

impl DriverRing {
    /// A ring at its start, in areas that this clears.
    pub fn new(
        areas: RingAreas,
        format: Format,
        size: u16,
        features: RingFeatures,
    ) -> Result<Self, SetupError> {
        let size = QueueSize::new(format, size)?;
        areas.check(format, size)?;
        for area in [&areas.desc, &areas.driver, &areas.device] {
            (0..area.len()).step_by(2).for_each(|offset| area.write(offset, [0u8; 2]));
        }
        Ok(match format {
            Format::Split => Self::Split(split::Driver::new(areas, size.get(), features)),
            Format::Packed => Self::Packed(packed::Driver::new(areas, size.get(), features)),
        })
    }

    /// The same with the areas looked up in guest memory.
    pub fn in_table(
        table: &MemoryTable,
        addresses: &RingAddresses,
        format: Format,
        size: u16,
        features: RingFeatures,
    ) -> Result<Self, SetupError> {
        Self::new(RingAreas::in_table(table, addresses, format, size)?, format, size, features)
    }

    /// Gives the ring memory for `add_indirect`.
    pub fn set_indirect(&mut self, tables: IndirectTables) -> Result<(), SetupError> {
        tables.check(self.size())?;
        either!(self, ring => ring.set_indirect(tables));
        Ok(())
    }

    /// Adds a request as a chain of ring descriptors. The device does not see it before [`publish`](Self::publish).
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment], cookie: u32) -> Result<(), Full> {
        either!(self, ring => ring.add(readable, writable, cookie))
    }

    /// Adds a request as one ring descriptor with an indirect table; needs [`set_indirect`](Self::set_indirect).
    #[inline]
    pub fn add_indirect(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        cookie: u32,
    ) -> Result<(), Full> {
        either!(self, ring => ring.add_indirect(readable, writable, cookie))
    }

    /// Adds a request whose indirect table of `descriptors` entries the caller has built at `table`, with `writable`
    /// writable bytes: one descriptor is written.
    #[inline]
    pub fn add_prebuilt(
        &mut self,
        table: GuestAddr,
        descriptors: u16,
        writable: u32,
        cookie: u32,
    ) -> Result<(), Full> {
        either!(self, ring => ring.add_prebuilt(table, descriptors, writable, cookie))
    }

    /// Shows everything added to the device, with one release store; `true` when the device wants a kick.
    #[inline]
    #[must_use = "true means that the device is waiting for a kick"]
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// The next completed request.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        either!(self, ring => ring.pop())
    }

    /// Asks for interrupts; `true` when a completion is there already, for which none will come.
    #[must_use = "true means that there is a completion, for which no interrupt will come"]
    pub fn arm(&mut self) -> bool {
        either!(self, ring => ring.arm())
    }

    /// Asks for no interrupts.
    #[inline]
    pub fn suppress(&mut self) {
        either!(self, ring => ring.suppress())
    }

    /// Free ring descriptors.
    #[inline]
    pub fn free(&self) -> u16 {
        either!(self, ring => ring.free())
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// Whether the device used a buffer that it did not have. The ring then yields nothing more.
    pub fn broken(&self) -> bool {
        either!(self, ring => ring.broken())
    }

    /// Starts an unused ring elsewhere than at index 0, which a reset never does but which brings a test to a wrap-around
    /// at once. `base` as in SET_VRING_BASE; `None` when the ring has no such index.
    pub fn start_at(&mut self, base: u32) -> Option<()> {
        either!(self, ring => ring.start_at(base))
    }

    /// What a frontend that lost its back-end sends as SET_VRING_BASE: everything after the last completion that the
    /// device published. This object then goes on with the successor as it is.
    pub fn base_for_restart(&self) -> u32 {
        either!(self, ring => ring.base_for_restart())
    }
}
