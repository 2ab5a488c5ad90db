//! What a driver asks for (virtio 1.3 §5.2.6): a pure parser over a private copy of the request header.
//!
//! Any descriptor layout is accepted: the header is the first 16 driver-readable bytes, the status is the
//! last device-writable byte, and everything between them is data. A request whose header is short gets
//! IOERR; one without a status byte has nowhere to put an answer and is completed with length 0 (the
//! specification leaves both to the device). Neither harms the ring.

use crate::config::SECTOR;
use crate::options::Geometry;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Read sectors.
pub const VIRTIO_BLK_T_IN: u32 = 0;
/// Write sectors.
pub const VIRTIO_BLK_T_OUT: u32 = 1;
/// Make completed writes stable.
pub const VIRTIO_BLK_T_FLUSH: u32 = 4;
/// Return the serial number.
pub const VIRTIO_BLK_T_GET_ID: u32 = 8;
/// The contents of these sectors are not needed any more.
pub const VIRTIO_BLK_T_DISCARD: u32 = 11;
/// These sectors shall read as zeroes.
pub const VIRTIO_BLK_T_WRITE_ZEROES: u32 = 13;
/// The contents of these sectors shall be beyond recovery.
pub const VIRTIO_BLK_T_SECURE_ERASE: u32 = 14;

/// Flag of a write-zeroes segment: the device may deallocate.
pub const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: u32 = 1;

/// Largest `max_discard_seg` that may be configured; sizes the private copy of the segments.
pub const MAX_RANGES: usize = 256;

/// `struct virtio_blk_req` without data and status.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of `VIRTIO_BLK_T_*`.
    pub kind: U32,
    /// A priority in old drivers; ignored.
    pub ioprio: U32,
    /// First sector, for reads and writes.
    pub sector: U64,
}

/// Length of [`Header`] on the wire.
pub const HEADER_LEN: usize = size_of::<Header>();

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireRange {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub num_sectors: U32,
    /// Bit 0: UNMAP; the others are reserved.
    pub flags: U32,
}

/// Length of [`WireRange`] on the wire.
pub const RANGE_LEN: usize = size_of::<WireRange>();

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR: a device or driver error.
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP: the device does not do that.
    Unsupp = 2,
}

/// Which way data flows, for limits and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the disk.
    Read,
    /// Into the disk, and whatever else changes it.
    Write,
}

/// A range of bytes of the disk, inside its capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Extent {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// The three operations that name ranges instead of carrying data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeOp {
    /// VIRTIO_BLK_T_DISCARD
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES
    WriteZeroes,
    /// VIRTIO_BLK_T_SECURE_ERASE
    SecureErase,
}

/// A request that passed the checks on its header and lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the device-writable data from the disk.
    In(Extent),
    /// Store the driver-readable data on the disk.
    Out(Extent),
    /// Make completed writes stable.
    Flush,
    /// Write the serial number.
    GetId,
    /// The data are `count` range structures, to be checked one by one with [`Rules::check_range`].
    Ranges {
        /// What to do with them.
        op: RangeOp,
        /// How many there are, at least one.
        count: usize,
    },
}

impl From<RangeOp> for crate::stats::Op {
    fn from(op: RangeOp) -> Self {
        match op {
            RangeOp::Discard => Self::Discard,
            RangeOp::WriteZeroes => Self::WriteZeroes,
            RangeOp::SecureErase => Self::SecureErase,
        }
    }
}

impl Request {
    /// Its counter.
    #[inline]
    pub fn op(&self) -> crate::stats::Op {
        use crate::stats::Op;
        match self {
            Self::In(_) => Op::Read,
            Self::Out(_) => Op::Write,
            Self::Flush => Op::Flush,
            Self::GetId => Op::GetId,
            Self::Ranges { op, .. } => (*op).into(),
        }
    }
}

/// What the parser needs to know about the disk.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Limits of the configuration space.
    pub geometry: &'a Geometry,
    /// Capacity in sectors.
    pub capacity: u64,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Operations with ranges that were negotiated.
    pub discard: bool,
    /// See `discard`.
    pub write_zeroes: bool,
    /// See `discard`.
    pub secure_erase: bool,
    /// Bytes to which the offset and the length of reads and writes must be aligned: a sector, or what
    /// O_DIRECT asks for.
    pub align: u64,
}

/// Lengths of the data of a request: without the header, without the status byte.
#[derive(Clone, Copy, Debug)]
pub struct DataLen {
    /// Driver-readable bytes.
    pub readable: u64,
    /// Device-writable bytes.
    pub writable: u64,
}

impl Rules<'_> {
    /// `sector` and `len` bytes as an extent, when aligned and inside the disk.
    fn extent(&self, sector: u64, len: u64) -> Result<Extent, Status> {
        let sectors = len / SECTOR;
        let fits = sector.checked_add(sectors).is_some_and(|end| end <= self.capacity);
        if !len.is_multiple_of(SECTOR) || !fits {
            return Err(Status::IoErr);
        }
        let offset = sector * SECTOR;
        // Capacity is at most 2^55 sectors, so neither this product nor `end` can overflow.
        if !offset.is_multiple_of(self.align) || !len.is_multiple_of(self.align) {
            return Err(Status::IoErr);
        }
        Ok(Extent { offset, len })
    }

    /// Checks a request: type first (an unknown type is UNSUPP even on a read-only disk), then permission,
    /// then lengths and range.
    pub fn parse(&self, header: &Header, data: DataLen) -> Result<Request, Status> {
        match header.kind.get() {
            VIRTIO_BLK_T_IN => Ok(Request::In(self.extent(header.sector.get(), data.writable)?)),
            // §5.2.6.2: a write to a read-only device is IOERR.
            VIRTIO_BLK_T_OUT if self.read_only => Err(Status::IoErr),
            VIRTIO_BLK_T_OUT => Ok(Request::Out(self.extent(header.sector.get(), data.readable)?)),
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
            VIRTIO_BLK_T_DISCARD if self.discard => self.ranges(RangeOp::Discard, data),
            VIRTIO_BLK_T_WRITE_ZEROES if self.write_zeroes => self.ranges(RangeOp::WriteZeroes, data),
            VIRTIO_BLK_T_SECURE_ERASE if self.secure_erase => self.ranges(RangeOp::SecureErase, data),
            _ => Err(Status::Unsupp),
        }
    }

    fn ranges(&self, op: RangeOp, data: DataLen) -> Result<Request, Status> {
        if self.read_only {
            return Err(Status::IoErr);
        }
        let count = data.readable / RANGE_LEN as u64;
        let most = u64::from(self.geometry.max_discard_seg);
        if !data.readable.is_multiple_of(RANGE_LEN as u64) || count == 0 || count > most {
            return Err(Status::IoErr);
        }
        Ok(Request::Ranges { op, count: count as usize })
    }

    /// Checks one range. Flags come first: an unknown one, or UNMAP where it has no meaning, is UNSUPP by
    /// §5.2.6.2; the range itself must obey the limits of the configuration space. Returns the extent and
    /// whether it may be deallocated.
    pub fn check_range(&self, op: RangeOp, range: &WireRange) -> Result<(Extent, bool), Status> {
        let allowed = match op {
            RangeOp::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            RangeOp::Discard | RangeOp::SecureErase => 0,
        };
        if range.flags.get() & !allowed != 0 {
            return Err(Status::Unsupp);
        }
        let most = match op {
            RangeOp::WriteZeroes => self.geometry.max_write_zeroes_sectors,
            RangeOp::Discard | RangeOp::SecureErase => self.geometry.max_discard_sectors,
        };
        if range.num_sectors.get() > most {
            return Err(Status::IoErr);
        }
        let sectors = Rules { align: SECTOR, ..*self };
        let extent = sectors.extent(range.sector.get(), u64::from(range.num_sectors.get()) * SECTOR)?;
        let unmap = range.flags.get() & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Ok((extent, unmap || op == RangeOp::Discard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: u64 = 2048;

    fn rules(geometry: &Geometry) -> Rules<'_> {
        Rules {
            geometry,
            capacity: CAPACITY,
            read_only: false,
            discard: true,
            write_zeroes: true,
            secure_erase: true,
            align: SECTOR,
        }
    }

    fn header(kind: u32, sector: u64) -> Header {
        Header { kind: kind.into(), ioprio: 7.into(), sector: sector.into() }
    }

    fn parse(kind: u32, sector: u64, readable: u64, writable: u64) -> Result<Request, Status> {
        rules(&Geometry::default()).parse(&header(kind, sector), DataLen { readable, writable })
    }

    #[test]
    fn reads_and_writes_become_byte_extents() {
        let extent = Extent { offset: 8 * 512, len: 4096 };
        assert_eq!(parse(VIRTIO_BLK_T_IN, 8, 0, 4096), Ok(Request::In(extent)));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 8, 4096, 0), Ok(Request::Out(extent)));
    }

    #[test]
    fn the_last_sector_is_inside_and_the_next_is_not() {
        assert!(parse(VIRTIO_BLK_T_IN, CAPACITY - 1, 0, 512).is_ok());
        assert_eq!(parse(VIRTIO_BLK_T_IN, CAPACITY - 1, 0, 1024), Err(Status::IoErr));
        assert_eq!(parse(VIRTIO_BLK_T_IN, CAPACITY, 0, 512), Err(Status::IoErr));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, u64::MAX, 512, 0), Err(Status::IoErr));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 1 << 55, 512, 0), Err(Status::IoErr));
    }

    #[test]
    fn a_length_that_is_no_multiple_of_a_sector_is_an_error() {
        assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 0, 513), Err(Status::IoErr));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, 100, 0), Err(Status::IoErr));
    }

    #[test]
    fn direct_io_asks_for_its_own_alignment() {
        let geometry = Geometry::default();
        let direct = Rules { align: 4096, ..rules(&geometry) };
        let read = |sector, writable| {
            direct.parse(&header(VIRTIO_BLK_T_IN, sector), DataLen { readable: 0, writable })
        };
        assert!(read(8, 4096).is_ok());
        assert_eq!(read(1, 4096), Err(Status::IoErr));
        assert_eq!(read(8, 512), Err(Status::IoErr));
    }

    #[test]
    fn a_read_only_disk_refuses_every_change_and_still_reads_and_flushes() {
        let geometry = Geometry::default();
        let rules = Rules { read_only: true, ..rules(&geometry) };
        let one = |kind| rules.parse(&header(kind, 0), DataLen { readable: 512, writable: 512 });
        for kind in
            [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_SECURE_ERASE]
        {
            assert_eq!(one(kind), Err(Status::IoErr), "type {kind}");
        }
        assert!(one(VIRTIO_BLK_T_IN).is_ok());
        assert_eq!(one(VIRTIO_BLK_T_FLUSH), Ok(Request::Flush));
    }

    #[test]
    fn unknown_and_unnegotiated_types_are_unsupported() {
        for kind in [2, 3, 5, 6, 10, 15, 24, 0x8000_0000, u32::MAX] {
            assert_eq!(parse(kind, 0, 512, 512), Err(Status::Unsupp), "type {kind}");
        }
        let geometry = Geometry::default();
        let without = Rules { discard: false, write_zeroes: false, secure_erase: false, ..rules(&geometry) };
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_SECURE_ERASE] {
            let data = DataLen { readable: 16, writable: 0 };
            assert_eq!(without.parse(&header(kind, 0), data), Err(Status::Unsupp));
        }
    }

    #[test]
    fn range_lists_are_whole_and_within_the_limit() {
        let count = |readable| parse(VIRTIO_BLK_T_DISCARD, 0, readable, 0);
        assert_eq!(count(16 * 32), Ok(Request::Ranges { op: RangeOp::Discard, count: 32 }));
        assert_eq!(count(16 * 33), Err(Status::IoErr));
        assert_eq!(count(0), Err(Status::IoErr));
        assert_eq!(count(24), Err(Status::IoErr));
    }

    fn range(sector: u64, num_sectors: u32, flags: u32) -> WireRange {
        WireRange { sector: sector.into(), num_sectors: num_sectors.into(), flags: flags.into() }
    }

    #[test]
    fn unmap_is_honoured_for_write_zeroes_and_unsupported_elsewhere() {
        let geometry = Geometry::default();
        let rules = rules(&geometry);
        let extent = Extent { offset: 512, len: 1024 };
        let check = |op, flags| rules.check_range(op, &range(1, 2, flags));
        assert_eq!(check(RangeOp::WriteZeroes, 0), Ok((extent, false)));
        assert_eq!(check(RangeOp::WriteZeroes, 1), Ok((extent, true)));
        assert_eq!(check(RangeOp::Discard, 0), Ok((extent, true)));
        assert_eq!(check(RangeOp::Discard, 1), Err(Status::Unsupp));
        assert_eq!(check(RangeOp::SecureErase, 1), Err(Status::Unsupp));
        assert_eq!(check(RangeOp::WriteZeroes, 2), Err(Status::Unsupp));
        assert_eq!(check(RangeOp::WriteZeroes, 0x8000_0001), Err(Status::Unsupp));
    }

    #[test]
    fn ranges_beyond_the_disk_or_the_limit_are_errors() {
        let geometry = Geometry { max_discard_sectors: 64, ..Geometry::default() };
        let rules = rules(&geometry);
        let discard = |sector, sectors| rules.check_range(RangeOp::Discard, &range(sector, sectors, 0));
        assert!(discard(0, 64).is_ok());
        assert_eq!(discard(0, 65), Err(Status::IoErr));
        assert_eq!(discard(CAPACITY - 1, 2), Err(Status::IoErr));
        assert_eq!(discard(u64::MAX, 2), Err(Status::IoErr));
    }

    proptest! {
        /// Whatever the guest puts in a header, an accepted extent lies inside the disk.
        #[test]
        fn accepted_extents_lie_inside_the_disk(
            kind in 0u32..16,
            sector in prop_oneof![0..CAPACITY + 4, any::<u64>()],
            readable in any::<u64>(),
            writable in prop_oneof![(0..CAPACITY + 4).prop_map(|s| s * 512), any::<u64>()],
        ) {
            match parse(kind, sector, readable, writable) {
                Ok(Request::In(e) | Request::Out(e)) => {
                    prop_assert!(e.offset.checked_add(e.len).is_some_and(|end| end <= CAPACITY * 512));
                }
                Ok(Request::Ranges { count, .. }) => prop_assert!((1..=32).contains(&count)),
                Ok(_) | Err(Status::IoErr | Status::Unsupp) => {}
                Err(Status::Ok) => prop_assert!(false, "an error is never OK"),
            }
        }

        #[test]
        fn accepted_ranges_lie_inside_the_disk(sector in any::<u64>(), sectors in any::<u32>(), flags in 0u32..2) {
            let geometry = Geometry::default();
            if let Ok((e, _)) = rules(&geometry).check_range(RangeOp::WriteZeroes, &range(sector, sectors, flags)) {
                prop_assert!(e.end() <= CAPACITY * 512);
            }
        }
    }
}
