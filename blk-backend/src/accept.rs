//! From a chain to a checked request: takes the header and the status byte off, whatever the layout.

use crate::disk::Disk;
use crate::request::{
    DataLen, HEADER_LEN, Header, MAX_RANGES, RANGE_LEN, RangeOp, Request, Rules, Status, WireRange,
};
use crate::stats::Fault;
use crate::transfer::Range;
use memory::MemoryView;
use virtqueue::Chain;
use zerocopy::{FromBytes, IntoBytes};

/// A request that ends before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to tell the driver; `None` when there is nowhere to put it.
    pub status: Option<Status>,
    /// What to count.
    pub fault: Fault,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let fault = if status == Status::Unsupp { Fault::Unsupported } else { Fault::Invalid };
        Self { status: Some(status), fault }
    }
}

/// Consumes header and status of `chain`; what remains readable and writable is data.
#[inline]
pub fn accept(chain: &mut Chain, mem: &MemoryView, rules: &Rules<'_>) -> Result<Request, Refusal> {
    let mut header = Header::default();
    let complete = chain.read_prefix(mem, header.as_mut_bytes());
    if chain.detach_status().is_err() {
        return Err(Refusal { status: None, fault: Fault::Malformed });
    }
    if complete.is_err() {
        return Err(Refusal { status: Some(Status::IoErr), fault: Fault::Malformed });
    }
    const { assert!(size_of::<Header>() == HEADER_LEN) };
    let data = DataLen { readable: chain.readable_len(), writable: chain.writable_len() };
    Ok(rules.parse(&header, data)?)
}

/// Copies and checks the ranges of a request; all must be good before any is touched.
#[cold]
pub fn read_ranges(
    chain: &mut Chain,
    mem: &MemoryView,
    rules: &Rules<'_>,
    (op, count): (RangeOp, usize),
    mut range: impl FnMut(Range),
) -> Result<(), Refusal> {
    let mut bytes = [0; MAX_RANGES * RANGE_LEN];
    let bytes = &mut bytes[..count * RANGE_LEN];
    let malformed = |_| Refusal { status: Some(Status::IoErr), fault: Fault::Malformed };
    chain.read_prefix(mem, bytes).map_err(malformed)?;
    let wire = || bytes.chunks_exact(RANGE_LEN).map(|b| WireRange::read_from_bytes(b).unwrap_or_default());
    for each in wire() {
        rules.check_range(op, &each)?;
    }
    for each in wire() {
        let (extent, unmap) = rules.check_range(op, &each)?;
        range(Range { extent, unmap });
    }
    Ok(())
}

/// Writes the serial number into the data part, as much as fits. Returns how many bytes.
#[cold]
pub fn write_id(chain: &Chain, mem: &MemoryView, disk: &Disk) -> Result<u32, Refusal> {
    let serial = disk.serial();
    let len = serial.len().min(chain.writable_len() as usize);
    let malformed = |_| Refusal { status: Some(Status::IoErr), fault: Fault::Malformed };
    chain.write_at(mem, 0, &serial[..len]).map_err(malformed)?;
    Ok(len as u32)
}
