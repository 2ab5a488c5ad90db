//! virtio-blk as it stands in memory: request header, request types, status codes, configuration space
//! (virtio 1.3 §5.2).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Requests count in units of 512 bytes whatever the block size is (virtio 1.3 §5.2.6).
pub const SECTOR: u64 = 512;

/// Feature bits, virtio 1.3 §5.2.3.
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests are understood.
    pub const FLUSH: u64 = 1 << 9;
    /// `num_queues` is valid.
    pub const MQ: u64 = 1 << 12;
    /// Discard requests are understood.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests are understood.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types, virtio 1.3 §5.2.6.
pub mod request {
    /// Read sectors.
    pub const IN: u32 = 0;
    /// Write sectors.
    pub const OUT: u32 = 1;
    /// Make completed writes durable.
    pub const FLUSH: u32 = 4;
    /// Contents no longer needed.
    pub const DISCARD: u32 = 11;
    /// Contents become zeros.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status bytes, virtio 1.3 §5.2.6, and our own mark for "not written".
pub mod status {
    /// Success.
    pub const OK: u8 = 0;
    /// Device or driver error.
    pub const IOERR: u8 = 1;
    /// Request type not supported.
    pub const UNSUPP: u8 = 2;
    /// What the driver writes before the request; a device that leaves it has lied about completion.
    pub const UNTOUCHED: u8 = 0xee;
}

/// `struct virtio_blk_req` up to the data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// One of [`request`].
    pub kind: U32,
    /// I/O priority once, reserved now.
    pub reserved: U32,
    /// First sector; 0 where the request has none.
    pub sector: U64,
}

impl Header {
    /// A header for request `kind` at byte `offset`.
    #[inline]
    pub fn new(kind: u32, offset: u64) -> Self {
        Self { kind: U32::new(kind), reserved: U32::ZERO, sector: U64::new(offset / SECTOR) }
    }
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Range {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub sectors: U32,
    /// Bit 0: the device may unmap (write-zeroes only).
    pub flags: U32,
}

impl Range {
    /// The range of `len` bytes at byte `offset`.
    #[inline]
    pub fn new(offset: u64, len: u64) -> Self {
        Self { sector: U64::new(offset / SECTOR), sectors: U32::new((len / SECTOR) as u32), flags: U32::ZERO }
    }
}

/// `struct virtio_blk_config` up to the write-zeroes fields (virtio 1.3 §5.2.4).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Config {
    /// Size of the disk in sectors.
    pub capacity: U64,
    /// Largest segment; 0 where the feature is off.
    pub size_max: U32,
    /// Most segments in a request.
    pub seg_max: U32,
    /// cylinders, heads, sectors
    pub geometry: [u8; 4],
    /// Block size in bytes.
    pub blk_size: U32,
    /// physical_block_exp, alignment_offset, min_io_size, opt_io_size
    pub topology: [u8; 8],
    /// Write-back cache on.
    pub writeback: u8,
    /// Padding.
    pub unused: u8,
    /// Number of request queues.
    pub num_queues: U16,
    /// Largest discard in sectors.
    pub max_discard_sectors: U32,
    /// Most ranges in a discard.
    pub max_discard_seg: U32,
    /// Discard alignment in sectors.
    pub discard_sector_alignment: U32,
    /// Largest write-zeroes in sectors.
    pub max_write_zeroes_sectors: U32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn structures_have_the_offsets_of_the_specification() {
        assert_eq!(size_of::<Header>(), 16);
        assert_eq!(size_of::<Range>(), 16);
        assert_eq!(offset_of!(Config, seg_max), 12);
        assert_eq!(offset_of!(Config, blk_size), 20);
        assert_eq!(offset_of!(Config, writeback), 32);
        assert_eq!(offset_of!(Config, num_queues), 34);
        assert_eq!(offset_of!(Config, max_discard_sectors), 36);
        assert_eq!(offset_of!(Config, max_write_zeroes_sectors), 48);
    }

    #[test]
    fn offsets_become_sectors_of_512_bytes() {
        assert_eq!(Header::new(request::OUT, 8192).sector.get(), 16);
        let range = Range::new(4096, 1 << 20);
        assert_eq!((range.sector.get(), range.sectors.get()), (8, 2048));
    }
}
