//! Wire layout of both ring formats (virtio 1.3 §2.7 and §2.8): structures, flags, offsets. Little-endian throughout;
//! the suite offers VERSION_1 only.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The chain goes on (`VIRTQ_DESC_F_NEXT`).
pub const DESC_NEXT: u16 = 1;
/// The device writes this buffer (`VIRTQ_DESC_F_WRITE`).
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
pub const DESC_INDIRECT: u16 = 4;
/// Packed: the driver's half of the state of a slot (`VIRTQ_DESC_F_AVAIL`).
pub const DESC_AVAIL: u16 = 1 << 7;
/// Packed: the device's half of the state of a slot (`VIRTQ_DESC_F_USED`).
pub const DESC_USED: u16 = 1 << 15;

/// Split, `avail.flags`: the driver asks for no interrupts (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// Split, `used.flags`: the device asks for no kicks (`VIRTQ_USED_F_NO_NOTIFY`).
pub const USED_NO_NOTIFY: u16 = 1;

/// Packed, event areas: notify always (`RING_EVENT_FLAGS_ENABLE`).
pub const EVENT_ENABLE: u16 = 0;
/// Packed, event areas: never notify (`RING_EVENT_FLAGS_DISABLE`).
pub const EVENT_DISABLE: u16 = 1;
/// Packed, event areas: notify when the given slot is passed (`RING_EVENT_FLAGS_DESC`, EVENT_IDX only).
pub const EVENT_DESC: u16 = 2;
/// Packed: the wrap counter in an offset (`off_wrap`, SET_VRING_BASE).
pub const WRAP_BIT: u16 = 1 << 15;

/// Bytes of a descriptor in either format, and of an entry in an indirect table.
pub const DESC_BYTES: usize = 16;
/// Bytes of an element of the split used ring.
pub const USED_BYTES: usize = 8;
/// Bytes of a packed event suppression area.
pub const EVENT_BYTES: usize = 4;
/// Offset of `idx` in the split avail and used rings.
pub const INDEX_OFFSET: usize = 2;
/// Offset of the first entry in the split avail and used rings.
pub const ENTRIES_OFFSET: usize = 4;

/// A descriptor of a split ring or of an indirect table of one (virtio 1.3 §2.7.5).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SplitDescriptor {
    /// Guest address of the buffer.
    pub addr: U64,
    /// Bytes of the buffer.
    pub len: U32,
    /// `DESC_*` bits.
    pub flags: U16,
    /// Index of the next descriptor when `DESC_NEXT` is set.
    pub next: U16,
}

/// A slot of a packed ring or of an indirect table of one (virtio 1.3 §2.8.13).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PackedDescriptor {
    /// Guest address of the buffer.
    pub addr: U64,
    /// Bytes of the buffer; in a used slot the bytes the device wrote.
    pub len: U32,
    /// Buffer id, valid in the last descriptor of a chain and in a used slot.
    pub id: U16,
    /// `DESC_*` bits.
    pub flags: U16,
}

/// An element of the split used ring (virtio 1.3 §2.7.8).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UsedElement {
    /// Head of the chain.
    pub id: U32,
    /// Bytes the device wrote.
    pub len: U32,
}

/// Offset in a packed slot of the word with `len`, `id` and `flags`. Both sides access it whole: what a slot says is then
/// always of one moment, and one access gets all of it.
pub const SLOT_WORD: usize = 8;

/// That word from its fields.
pub const fn slot_word(len: u32, id: u16, flags: u16) -> u64 {
    len as u64 | (id as u64) << 32 | (flags as u64) << 48
}

/// `flags` of that word.
pub const fn slot_flags(word: u64) -> u16 {
    (word >> 48) as u16
}

/// `id` of that word.
pub const fn slot_id(word: u64) -> u16 {
    (word >> 32) as u16
}

/// `len` of that word.
pub const fn slot_len(word: u64) -> u32 {
    word as u32
}

/// Offset of the slot `index` of a packed ring.
pub const fn slot_offset(index: u16) -> usize {
    DESC_BYTES * index as usize
}

/// Offset of `used_event` in the avail ring: it follows the entries.
pub const fn used_event_offset(size: u16) -> usize {
    ENTRIES_OFFSET + 2 * size as usize
}

/// Offset of `avail_event` in the used ring: it follows the elements.
pub const fn avail_event_offset(size: u16) -> usize {
    ENTRIES_OFFSET + USED_BYTES * size as usize
}

/// Bytes of the three areas of a ring: descriptors, driver area, device area. The event index at the end of the split
/// rings is counted whether it is negotiated or not (virtio 1.3 §2.7 table of sizes).
pub const fn ring_sizes(format: crate::Format, size: u16) -> (usize, usize, usize) {
    let descriptors = DESC_BYTES * size as usize;
    match format {
        crate::Format::Split => (descriptors, used_event_offset(size) + 2, avail_event_offset(size) + 2),
        crate::Format::Packed => (descriptors, EVENT_BYTES, EVENT_BYTES),
    }
}
