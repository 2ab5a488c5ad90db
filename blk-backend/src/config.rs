//! The device configuration space as the driver sees it (virtio 1.3 §5.2.4).

use crate::options::Geometry;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a sector: the unit of every sector number and count of virtio-blk, whatever the block size is.
pub const SECTOR: u64 = 512;
/// Length of the serial number that GET_ID returns, without a terminator when it is full.
pub const SERIAL_LEN: usize = 20;
/// Offset of the one field that the driver may write: `writeback`.
pub const WRITEBACK_OFFSET: usize = std::mem::offset_of!(BlkConfig, writeback);

/// `struct virtio_blk_config` up to the zoned characteristics, which vhostd-blk does not offer.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkConfig {
    /// Size of the disk in 512-byte sectors.
    pub capacity: U64,
    /// Longest segment in bytes (SIZE_MAX).
    pub size_max: U32,
    /// Most data segments a request may have (SEG_MAX).
    pub seg_max: U32,
    /// Cylinders, heads, sectors: of no use today, never offered.
    pub geometry: U32,
    /// Logical block size in bytes (BLK_SIZE).
    pub blk_size: U32,
    /// Logical blocks per physical block, as a power of two (TOPOLOGY).
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Smallest I/O in logical blocks that costs no more than its size.
    pub min_io_size: U16,
    /// Best I/O size in logical blocks.
    pub opt_io_size: U32,
    /// 0: write-through, 1: write-back (CONFIG_WCE).
    pub writeback: u8,
    /// Reserved.
    pub unused0: u8,
    /// Number of request queues (MQ).
    pub num_queues: U16,
    /// Most sectors in one discard segment (DISCARD).
    pub max_discard_sectors: U32,
    /// Most segments in one discard request.
    pub max_discard_seg: U32,
    /// Sectors to which a driver may align the pieces of a split discard.
    pub discard_sector_alignment: U32,
    /// Most sectors in one write-zeroes segment (WRITE_ZEROES).
    pub max_write_zeroes_sectors: U32,
    /// Most segments in one write-zeroes request.
    pub max_write_zeroes_seg: U32,
    /// 1 when a write-zeroes request with UNMAP may deallocate.
    pub write_zeroes_may_unmap: u8,
    /// Reserved.
    pub unused1: [u8; 3],
    /// Most sectors in one secure-erase segment (SECURE_ERASE).
    pub max_secure_erase_sectors: U32,
    /// Most segments in one secure-erase request.
    pub max_secure_erase_seg: U32,
    /// Sectors to which secure-erase segments are aligned.
    pub secure_erase_sector_alignment: U32,
}

const _: () = assert!(size_of::<BlkConfig>() == 72, "virtio 1.3 §5.2.4: zoned starts at offset 72");
const _: () = assert!(WRITEBACK_OFFSET == 32);

/// What varies while a disk runs; everything else in the configuration is fixed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volatile {
    /// Capacity in sectors.
    pub capacity: u64,
    /// Whether completed writes may still sit in a volatile cache.
    pub writeback: bool,
}

impl BlkConfig {
    /// The configuration of a disk with these limits.
    pub fn new(geometry: &Geometry, now: Volatile) -> Self {
        let blocks = |bytes: u32| bytes / geometry.block_size.max(1);
        let physical = blocks(geometry.physical_block_size).max(1);
        let per_block = geometry.block_size / SECTOR as u32;
        Self {
            capacity: now.capacity.into(),
            size_max: geometry.size_max.into(),
            seg_max: geometry.seg_max.into(),
            blk_size: geometry.block_size.into(),
            physical_block_exp: physical.ilog2() as u8,
            min_io_size: u16::try_from(physical).unwrap_or(u16::MAX).into(),
            opt_io_size: blocks(geometry.optimal_io_size).into(),
            writeback: now.writeback.into(),
            num_queues: geometry.num_queues.into(),
            max_discard_sectors: geometry.max_discard_sectors.into(),
            max_discard_seg: geometry.max_discard_seg.into(),
            discard_sector_alignment: geometry.discard_alignment_sectors.max(per_block).into(),
            max_write_zeroes_sectors: geometry.max_write_zeroes_sectors.into(),
            max_write_zeroes_seg: geometry.max_discard_seg.into(),
            write_zeroes_may_unmap: 1,
            max_secure_erase_sectors: geometry.max_discard_sectors.into(),
            max_secure_erase_seg: geometry.max_discard_seg.into(),
            secure_erase_sector_alignment: per_block.into(),
            ..Self::default()
        }
    }

    /// Copies configuration bytes from `offset`; what lies beyond the end reads as zero (frontends ask for
    /// as much as their own idea of the structure holds).
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        buf.fill(0);
        if let Some(bytes) = self.as_bytes().get(offset..) {
            let n = bytes.len().min(buf.len());
            buf[..n].copy_from_slice(&bytes[..n]);
        }
    }
}

/// A serial number padded with NUL to the length GET_ID has on the wire.
pub fn serial_bytes(serial: &str) -> [u8; SERIAL_LEN] {
    let mut id = [0; SERIAL_LEN];
    let n = serial.len().min(SERIAL_LEN);
    id[..n].copy_from_slice(&serial.as_bytes()[..n]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BlkConfig {
        let geometry = Geometry {
            block_size: 512,
            physical_block_size: 4096,
            optimal_io_size: 65536,
            num_queues: 3,
            ..Geometry::default()
        };
        BlkConfig::new(&geometry, Volatile { capacity: 0x1122_3344_5566, writeback: true })
    }

    fn field<const N: usize>(offset: usize) -> [u8; N] {
        let mut buf = [0; N];
        sample().read(offset, &mut buf);
        buf
    }

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        assert_eq!(u64::from_le_bytes(field(0)), 0x1122_3344_5566, "capacity");
        assert_eq!(u32::from_le_bytes(field(12)), 126, "seg_max");
        assert_eq!(u32::from_le_bytes(field(20)), 512, "blk_size");
        assert_eq!(field::<1>(24), [3], "physical_block_exp: 8 logical blocks");
        assert_eq!(u16::from_le_bytes(field(26)), 8, "min_io_size");
        assert_eq!(u32::from_le_bytes(field(28)), 128, "opt_io_size");
        assert_eq!(field::<1>(32), [1], "writeback");
        assert_eq!(u16::from_le_bytes(field(34)), 3, "num_queues");
        assert_eq!(u32::from_le_bytes(field(40)), 32, "max_discard_seg");
        assert_eq!(u32::from_le_bytes(field(52)), 32, "max_write_zeroes_seg");
        assert_eq!(field::<1>(56), [1], "write_zeroes_may_unmap");
        assert_eq!(u32::from_le_bytes(field(64)), 32, "max_secure_erase_seg");
    }

    #[test]
    fn a_read_past_the_end_gives_zeroes() {
        let mut buf = [0xff; 256];
        sample().read(0, &mut buf);
        assert_eq!(buf[..72], *sample().as_bytes());
        assert_eq!(buf[72..], [0; 184]);
        let mut far = [0xff; 8];
        sample().read(usize::MAX, &mut far);
        assert_eq!(far, [0; 8]);
    }

    #[test]
    fn a_long_serial_is_cut_and_a_short_one_padded() {
        assert_eq!(&serial_bytes("abc")[..5], b"abc\0\0");
        assert_eq!(&serial_bytes("0123456789012345678901234"), b"01234567890123456789");
    }
}
