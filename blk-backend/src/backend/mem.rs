//! A disk in memory, gone when the process ends. Pages appear when they are first touched and go back to the
//! host when the guest discards them.

use super::{Inline, sys};
use crate::request::{Extent, RangeOp, Status};
use memory::{GuestAddr, GuestSlice, OwnMemory};
use std::fs::File;
use std::io;

/// The memory of a disk: a memfd mapped once. Guests write to it concurrently, so it is accessed like guest
/// memory: copies only, no references.
#[derive(Debug)]
pub struct MemBackend {
    memory: OwnMemory,
    /// A second descriptor of the memfd, for deallocating.
    file: File,
}

impl MemBackend {
    /// `bytes` bytes of zeroes.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let memory = OwnMemory::new(len, GuestAddr(0))?;
        let file = File::from(memory.fd().try_clone_to_owned()?);
        Ok(Self { memory, file })
    }

    fn slice(&self, offset: u64, len: usize) -> Option<GuestSlice<'_>> {
        self.memory.slice(GuestAddr(offset), len).ok()
    }

    fn fill_zeroes(&self, extent: Extent) -> Status {
        match self.slice(extent.offset, extent.len as usize) {
            Some(sectors) => {
                sectors.fill(0);
                Status::Ok
            }
            None => Status::IoErr,
        }
    }
}

impl Inline for MemBackend {
    #[inline]
    fn read(&self, offset: u64, buffer: GuestSlice<'_>) -> Status {
        match self.slice(offset, buffer.len()) {
            Some(sectors) => {
                sectors.copy_to(buffer);
                Status::Ok
            }
            None => Status::IoErr,
        }
    }

    #[inline]
    fn write(&self, offset: u64, buffer: GuestSlice<'_>) -> Status {
        match self.slice(offset, buffer.len()) {
            Some(sectors) => {
                buffer.copy_to(sectors);
                Status::Ok
            }
            None => Status::IoErr,
        }
    }

    /// Discarding and zeroing free the pages; erasing overwrites them first, because a freed page keeps its
    /// contents until the host uses it again.
    fn range(&self, op: RangeOp, extent: Extent) -> Status {
        if op == RangeOp::SecureErase && self.fill_zeroes(extent) != Status::Ok {
            return Status::IoErr;
        }
        if extent.len == 0 || sys::punch_hole(&self.file, extent.offset, extent.len).is_ok() {
            return Status::Ok;
        }
        if op == RangeOp::Discard { Status::Ok } else { self.fill_zeroes(extent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    fn written() -> (MemBackend, OwnMemory) {
        let disk = MemBackend::new(4 * MIB).unwrap();
        let guest = OwnMemory::new(MIB as usize, GuestAddr(0)).unwrap();
        let buffer = guest.slice(GuestAddr(0), MIB as usize).unwrap();
        buffer.fill(0xa5);
        assert_eq!(disk.write(MIB, buffer), Status::Ok);
        (disk, guest)
    }

    fn byte(disk: &MemBackend, guest: &OwnMemory, offset: u64) -> u8 {
        let buffer = guest.slice(GuestAddr(0), 512).unwrap();
        assert_eq!(disk.read(offset, buffer), Status::Ok);
        let mut copy = [0];
        buffer.read(0, &mut copy);
        copy[0]
    }

    #[test]
    fn what_was_written_is_read_back() {
        let (disk, guest) = written();
        assert_eq!(byte(&disk, &guest, MIB), 0xa5);
        assert_eq!(byte(&disk, &guest, 2 * MIB - 512), 0xa5);
        assert_eq!(byte(&disk, &guest, 2 * MIB), 0);
    }

    #[test]
    fn discarding_gives_the_pages_back() {
        let (disk, guest) = written();
        let blocks = |disk: &MemBackend| disk.file.metadata().unwrap().blocks();
        assert!(blocks(&disk) * 512 >= MIB);
        assert_eq!(disk.range(RangeOp::Discard, Extent { offset: MIB, len: MIB }), Status::Ok);
        assert_eq!(blocks(&disk), 0);
        assert_eq!(byte(&disk, &guest, MIB), 0);
    }

    #[test]
    fn zeroing_part_of_a_page_leaves_the_rest() {
        let (disk, guest) = written();
        assert_eq!(disk.range(RangeOp::WriteZeroes, Extent { offset: MIB, len: 512 }), Status::Ok);
        assert_eq!(byte(&disk, &guest, MIB), 0);
        assert_eq!(byte(&disk, &guest, MIB + 512), 0xa5);
    }

    #[test]
    fn access_past_the_end_is_an_error() {
        let (disk, guest) = written();
        let buffer = guest.slice(GuestAddr(0), 1024).unwrap();
        assert_eq!(disk.read(4 * MIB - 512, buffer), Status::IoErr);
        assert_eq!(disk.write(u64::MAX, buffer), Status::IoErr);
    }
}
