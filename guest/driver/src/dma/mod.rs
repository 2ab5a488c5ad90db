//! Memory that the device reaches, by addresses that it understands.
//!
//! An [`Arena`] is one mapping that is handed out front to back and never given back: a driver takes what it needs when it
//! starts. Where the device is in another process the addresses are ours to choose ([`Arena::shared`]). On PCI they are
//! physical ones, which must not change while the device may use them ([`Arena::physical`]); how that is made sure of
//! is said in [`pages`].

pub mod pages;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memory::{
    Area, GuestAddr, MapError, MemoryMap, MemoryTable, OutOfRange, OwnMemory, RegionConfig, UserAddr,
};
use virtqueue::driver::Segment;

use pages::{Frames, PageError, Pages};

/// Where arenas begin in their own table, and for a device that takes any address: not at 0, so that a null address is an
/// error.
const BASE: GuestAddr = GuestAddr(1 << 30);

/// Everything starts on a page of its own, so that no ring shares one with a buffer.
pub const PAGE: usize = 4096;

/// Why there is no memory for a device.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// The memory itself could not be had.
    #[error("Cannot set up memory for the device")]
    Memory(#[from] io::Error),
    /// It could not be mapped.
    #[error("Cannot map memory for the device")]
    Map(#[from] MapError),
    /// Its physical addresses are not to be had, or would not stay.
    #[error(transparent)]
    Pages(#[from] PageError),
    /// The arena is used up.
    #[error("{0} bytes are more than is left of the memory for the device")]
    Exhausted(usize),
    /// A ring needs neighbouring pages.
    #[error("No {0} bytes of physically contiguous memory; reserve huge pages")]
    Scattered(usize),
    /// Outside of the arena.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

/// A piece of an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    offset: usize,
    len: usize,
}

impl Buffer {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Panics
    /// When it is not inside.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "a part of a buffer lies inside of it");
        Self { offset: self.offset + offset, len }
    }
}

/// What the device calls the bytes of the arena.
enum Addresses {
    /// What our own table calls them.
    Linear,
    /// Physical pages.
    Frames(Frames),
}

/// Memory shared with a device.
pub struct Arena {
    table: Arc<MemoryTable>,
    config: RegionConfig,
    fd: OwnedFd,
    addresses: Addresses,
    used: AtomicUsize,
    /// Holds the pages where they are.
    pages: Option<Pages>,
}

impl Arena {
    /// For a device in another process of this machine, which maps [`Arena::region`].
    pub fn shared(len: usize) -> Result<Self, DmaError> {
        let memory = OwnMemory::new(len.next_multiple_of(PAGE), BASE)?;
        let fd = memory.fd().try_clone_to_owned()?;
        Ok(Self {
            table: Arc::clone(memory.table()),
            config: memory.config(),
            fd,
            addresses: Addresses::Linear,
            used: AtomicUsize::new(0),
            pages: None,
        })
    }

    /// For a device on a bus of this machine: huge pages if there are any, else ordinary ones that are held in place.
    ///
    /// # Errors
    /// When the addresses cannot be learned (that takes CAP_SYS_ADMIN), or nothing holds the pages in place.
    pub fn physical(len: usize) -> Result<Self, DmaError> {
        let mut pages = Pages::allocate(len)?;
        let mut map = MemoryMap::new();
        let len = pages.len() as u64;
        let config = RegionConfig { guest: BASE, len, user: UserAddr(BASE.0), mmap_offset: 0 };
        let table = map.set_table(vec![(config, pages.fd().try_clone_to_owned()?)])?;
        let whole = table.slice(BASE, pages.len())?;
        // Every page exists from here on.
        whole.fill(0);
        let frames = pages.hold(whole.range())?;
        let fd = pages.fd().try_clone_to_owned()?;
        Ok(Self {
            table,
            config,
            fd,
            addresses: Addresses::Frames(frames),
            used: AtomicUsize::new(0),
            pages: Some(pages),
        })
    }

    /// What a vhost-user backend is told of it.
    pub fn region(&self) -> (RegionConfig, BorrowedFd<'_>) {
        (self.config, self.fd.as_fd())
    }

    /// What holds the pages in place, where that is a file: whoever is to hold them too keeps it open.
    pub fn holder(&self) -> Option<RawFd> {
        self.pages.as_ref().and_then(Pages::holder)
    }

    /// Size in words for people: how many pages, and of which kind.
    pub fn describe(&self) -> String {
        match &self.addresses {
            Addresses::Linear => format!("{} KiB shared with the device's process", self.config.len >> 10),
            Addresses::Frames(frames) => frames.describe(),
        }
    }

    /// Takes memory that starts on a page.
    pub fn alloc(&self, len: usize) -> Result<Buffer, DmaError> {
        self.take(len, |_| true)
    }

    /// Takes memory that is one piece for the device too. Pages that are passed over are not used by anybody.
    pub fn alloc_contiguous(&self, len: usize) -> Result<Buffer, DmaError> {
        let contiguous = |offset| self.contiguous(offset, len);
        self.take(len, contiguous).map_err(|error| match error {
            DmaError::Exhausted(len) if matches!(self.addresses, Addresses::Frames(_)) => {
                DmaError::Scattered(len)
            }
            error => error,
        })
    }

    fn take(&self, len: usize, fits: impl Fn(usize) -> bool) -> Result<Buffer, DmaError> {
        let whole = self.config.len as usize;
        let place = |used: usize| {
            let last = whole.checked_sub(len)?;
            (used.next_multiple_of(PAGE)..=last).step_by(PAGE).find(|&offset| fits(offset))
        };
        let next = |used| place(used).map(|offset| offset + len);
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let offset = used.ok().and_then(place).ok_or(DmaError::Exhausted(len))?;
        Ok(Buffer { offset, len })
    }

    fn contiguous(&self, offset: usize, len: usize) -> bool {
        match &self.addresses {
            Addresses::Linear => true,
            Addresses::Frames(frames) => frames.run(offset, len).1 == len,
        }
    }

    /// A contiguous buffer as an area of a ring, whose guest address is the device's.
    pub fn area(&self, buffer: Buffer) -> Result<Area, DmaError> {
        match &self.addresses {
            Addresses::Linear => Ok(self.table.area(self.linear(buffer.offset), buffer.len)?),
            Addresses::Frames(frames) => {
                let (address, run) = frames.run(buffer.offset, buffer.len);
                if run < buffer.len {
                    return Err(DmaError::Scattered(buffer.len));
                }
                // The same memory once more, in a table whose addresses are the device's.
                let guest = GuestAddr(address);
                let len = buffer.len.next_multiple_of(PAGE) as u64;
                let mmap_offset = buffer.offset as u64;
                let config = RegionConfig { guest, len, user: UserAddr(BASE.0), mmap_offset };
                let table = MemoryMap::new().set_table(vec![(config, self.fd.try_clone()?)])?;
                Ok(table.area(guest, buffer.len)?)
            }
        }
    }

    /// The pieces of a buffer as the device sees them, appended to `segments`.
    #[inline]
    pub fn segments(&self, buffer: Buffer, segments: &mut Vec<Segment>) {
        let mut at = buffer.offset;
        let end = at + buffer.len;
        while at < end {
            let (addr, len) = match &self.addresses {
                Addresses::Linear => (self.linear(at), end - at),
                Addresses::Frames(frames) => {
                    let (address, len) = frames.run(at, end - at);
                    (GuestAddr(address), len)
                }
            };
            // The arena is far smaller than 4 GiB.
            segments.push(Segment { addr, len: len as u32 });
            at += len;
        }
    }

    /// Copies bytes to the start of a buffer.
    ///
    /// # Panics
    /// When they do not fit.
    #[inline]
    pub fn write(&self, buffer: Buffer, bytes: &[u8]) {
        self.slice(buffer).write(0, bytes);
    }

    /// Copies bytes from the start of a buffer.
    ///
    /// # Panics
    /// When it has fewer.
    #[inline]
    pub fn read(&self, buffer: Buffer, bytes: &mut [u8]) {
        self.slice(buffer).read(0, bytes);
    }

    #[inline]
    fn slice(&self, buffer: Buffer) -> memory::GuestSlice<'_> {
        let slice = self.table.slice(self.linear(buffer.offset), buffer.len);
        slice.expect("a buffer lies inside of the arena it came from")
    }

    #[inline]
    fn linear(&self, offset: usize) -> GuestAddr {
        GuestAddr(BASE.0 + offset as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(frames: &[u64]) -> Arena {
        let mut arena = Arena::shared(frames.len() * PAGE).unwrap();
        arena.addresses = Addresses::Frames(Frames::new(PAGE, frames.into()));
        arena
    }

    #[test]
    fn neighbouring_pages_are_one_segment_and_others_are_not() {
        let arena = arena(&[0x5000, 0x6000, 0x2000, 0x9000]);
        let buffer = arena.alloc(4 * PAGE).unwrap();
        let mut segments = Vec::new();
        arena.segments(buffer.part(100, 3 * PAGE), &mut segments);
        let expected = [(0x5064, 2 * 4096 - 100), (0x2000, 4096), (0x9000, 100)];
        let expected = expected.map(|(addr, len)| Segment { addr: GuestAddr(addr), len });
        assert_eq!(segments, expected);
    }

    #[test]
    fn rings_skip_pages_that_are_not_neighbours() {
        let arena = arena(&[0x5000, 0x2000, 0x3000, 0x9000]);
        let ring = arena.alloc_contiguous(PAGE + 1).unwrap();
        assert_eq!(ring, Buffer { offset: PAGE, len: PAGE + 1 });
        let area = arena.area(ring).unwrap();
        assert_eq!(area.guest_addr(), GuestAddr(0x2000));
        area.write_bytes(PAGE, &[7]);
        let mut byte = [0];
        arena.read(ring.part(PAGE, 1), &mut byte);
        assert_eq!(byte, [7]);
        assert!(matches!(arena.alloc_contiguous(PAGE + 1), Err(DmaError::Scattered(_))));
        assert!(matches!(arena.alloc(2 * PAGE), Err(DmaError::Exhausted(_))));
        assert!(arena.alloc(PAGE).is_ok());
    }

    #[test]
    fn a_device_of_another_process_has_one_segment_whatever_the_pages() {
        let arena = Arena::shared(1 << 20).unwrap();
        let buffer = arena.alloc(700_000).unwrap();
        let mut segments = Vec::new();
        arena.segments(buffer, &mut segments);
        assert_eq!(segments.len(), 1);
        arena.write(buffer.part(699_997, 3), b"end");
        let mut bytes = [0; 3];
        arena.read(buffer.part(699_997, 3), &mut bytes);
        assert_eq!(&bytes, b"end");
    }
}
