//! What a ring is made from.

use std::sync::Arc;

use memory::{Area, DirtyLog, GuestAddr, MemoryTable};

use crate::broken::SetupError;
use crate::inflight;
use crate::layout::ring_sizes;

/// Largest queue of either format (virtio 1.3 §2.7, §2.8.10.1).
const MAX_SIZE: u16 = 32768;

/// The two ring formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Descriptor table, avail ring and used ring (virtio 1.3 §2.7).
    Split,
    /// One ring of descriptors (virtio 1.3 §2.8, feature RING_PACKED).
    Packed,
}

/// A ring size that its format allows: split a power of two, packed any number, both 1 to 32768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSize(u16);

impl QueueSize {
    /// Checks `size` against the format.
    pub fn new(format: Format, size: u16) -> Result<Self, SetupError> {
        let fits = (1..=MAX_SIZE).contains(&size) && (format == Format::Packed || size.is_power_of_two());
        if fits { Ok(Self(size)) } else { Err(SetupError::BadSize(size)) }
    }

    /// Entries of the ring.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// The negotiated features that a ring depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// EVENT_IDX: notifications by index instead of by flag.
    pub event_idx: bool,
    /// INDIRECT_DESC: a descriptor may hold a table of descriptors.
    pub indirect: bool,
    /// IN_ORDER: buffers are used in the order they were made available.
    pub in_order: bool,
    /// RING_PACKED: the ring format.
    pub packed: bool,
}

impl RingFeatures {
    /// INDIRECT_DESC as a feature bit.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// EVENT_IDX as a feature bit.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// RING_PACKED as a feature bit.
    pub const RING_PACKED: u64 = 1 << 34;
    /// IN_ORDER as a feature bit.
    pub const IN_ORDER: u64 = 1 << 35;
    /// RING_RESET as a feature bit. Rings need no flag for it.
    pub const RING_RESET: u64 = 1 << 40;
    /// What every device may offer, because the rings here do it.
    pub const ALL: u64 =
        Self::INDIRECT_DESC | Self::EVENT_IDX | Self::RING_PACKED | Self::IN_ORDER | Self::RING_RESET;

    /// Picks the ring features out of a device's negotiated feature bits.
    pub fn from_bits(features: u64) -> Self {
        Self {
            event_idx: features & Self::EVENT_IDX != 0,
            indirect: features & Self::INDIRECT_DESC != 0,
            in_order: features & Self::IN_ORDER != 0,
            packed: features & Self::RING_PACKED != 0,
        }
    }

    /// The ring format.
    pub fn format(&self) -> Format {
        if self.packed { Format::Packed } else { Format::Split }
    }
}

/// Guest addresses of the three areas of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table or ring.
    pub desc: GuestAddr,
    /// Driver area: avail ring, or the driver's event suppression area.
    pub driver: GuestAddr,
    /// Device area: used ring, or the device's event suppression area.
    pub device: GuestAddr,
}

/// Everything that SET_VRING_* and the negotiation say about a ring that is to start.
pub struct RingSetup<'a> {
    /// SET_VRING_NUM.
    pub size: u16,
    /// From SET_FEATURES.
    pub features: RingFeatures,
    /// Guest memory.
    pub table: &'a MemoryTable,
    /// SET_VRING_ADDR, as guest addresses.
    pub addresses: RingAddresses,
    /// SET_VRING_BASE, as on the wire: split the next avail index; packed the next avail slot in bits 0 to 14, its wrap
    /// counter in bit 15, the next used slot and its wrap counter in bits 16 to 31.
    pub base: u32,
    /// This ring's part of the region of SET_INFLIGHT_FD. With a region that a predecessor left, `base` is not used.
    pub inflight: Option<inflight::QueueRegion>,
    /// SET_LOG_BASE, while VHOST_F_LOG_ALL is on.
    pub log: Option<Arc<DirtyLog>>,
    /// Where the device area is logged, when that is not its guest address (VHOST_VRING_F_LOG).
    pub used_log_addr: Option<GuestAddr>,
}

/// The three areas of a ring, mapped.
pub(crate) struct Areas {
    pub desc: Area,
    pub driver: Area,
    pub device: Area,
}

impl Areas {
    /// Checks alignment and range and freezes the lengths.
    pub fn map(
        table: &MemoryTable,
        addresses: &RingAddresses,
        format: Format,
        size: QueueSize,
    ) -> Result<Self, SetupError> {
        let (desc, driver, device) = ring_sizes(format, size.get());
        let (desc_align, driver_align, device_align) = alignments(format);
        Ok(Self {
            desc: area(table, addresses.desc, desc, desc_align)?,
            driver: area(table, addresses.driver, driver, driver_align)?,
            device: area(table, addresses.device, device, device_align)?,
        })
    }
}

/// Alignment of the descriptors, driver and device areas (virtio 1.3 §2.7, §2.8.10.1).
pub(crate) const fn alignments(format: Format) -> (u64, u64, u64) {
    match format {
        Format::Split => (16, 2, 4),
        Format::Packed => (16, 4, 4),
    }
}

fn area(table: &MemoryTable, addr: GuestAddr, len: usize, align: u64) -> Result<Area, SetupError> {
    if !addr.0.is_multiple_of(align) {
        return Err(SetupError::Misaligned { addr: addr.0, align });
    }
    let area = table.area(addr, len)?;
    // A region may itself start at an odd address.
    if area.is_aligned(align as usize) {
        Ok(area)
    } else {
        Err(SetupError::Misaligned { addr: addr.0, align })
    }
}
