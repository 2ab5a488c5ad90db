#![expect(
    unsafe_code,
    reason = "memfd_create, mlock, madvise and the registration of a buffer with io_uring"
)]
//! Pages whose physical addresses are known and stay what they are.
//!
//! 1. Huge pages (hugetlb), when enough of them are free: the kernel neither swaps nor compacts them.
//! 2. Else ordinary pages, as large as the kernel makes them, locked into memory. Locked is not enough: the kernel may
//!    move a locked page to another physical place when it looks for contiguous memory (`vm.compact_unevictable_allowed`).
//!    So they are registered as a buffer of an io_uring, which takes a long-term reference to each page, and a page that
//!    somebody refers to is not moved. The addresses are read after that.
//! 3. Where there is no io_uring either, nothing holds ordinary pages, and there is no arena: a device that writes to pages
//!    that are somebody else's by now is worse than none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use io_uring::IoUring;
use memory::HostRange;

use super::PAGE;

/// Bytes of the huge pages that are asked for.
const HUGE: usize = 2 << 20;

/// MADV_COLLAPSE (Linux 6.1): make huge pages of these now, whatever the setting for later.
const MADV_COLLAPSE: libc::c_int = 25;

/// Why physical addresses are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The kernel tells them to nobody without CAP_SYS_ADMIN.
    #[error("Physical addresses are told to root only")]
    Unprivileged,
    /// A page is not there after it was written to.
    #[error("A page of the device's memory is not there")]
    Absent,
    /// Nothing keeps them from changing.
    #[error("Nothing holds the device's memory in place: no free huge pages, and no io_uring to refer to it")]
    Movable(#[source] io::Error),
    /// The page map cannot be read.
    #[error("Cannot read the page map")]
    Pagemap(#[source] io::Error),
}

/// Memory in a file without a name.
pub struct Pages {
    file: File,
    len: usize,
    huge: bool,
    /// Refers to the pages for as long as it is open.
    holder: Option<IoUring>,
}

impl Pages {
    /// At least `len` bytes.
    pub fn allocate(len: usize) -> io::Result<Self> {
        let huge = len.next_multiple_of(HUGE);
        if let Ok(file) = memfd(huge, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
            && reserved(&file, huge)
        {
            return Ok(Self { file, len: huge, huge: true, holder: None });
        }
        // Whole huge pages all the same: the kernel may find some.
        let len = if len >= HUGE { huge } else { len.next_multiple_of(PAGE) };
        Ok(Self { file: memfd(len, 0)?, len, huge: false, holder: None })
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "there is always a page")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The file that refers to the pages.
    pub fn holder(&self) -> Option<RawFd> {
        self.holder.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Holds the pages, which all exist and are mapped at `range`, and learns where they are.
    pub fn hold(&mut self, range: HostRange) -> Result<Frames, PageError> {
        if !self.huge {
            collapse(range);
            lock(range).map_err(PageError::Movable)?;
        }
        match refer(range) {
            Ok(holder) => self.holder = Some(holder),
            Err(error) if !self.huge => return Err(PageError::Movable(error)),
            Err(error) => tracing::debug!(%error, "Huge pages are not held by a reference"),
        }
        let size = if self.huge { HUGE } else { PAGE };
        let frames = physical(range, size)?;
        Ok(Frames::new(size, frames))
    }
}

fn memfd(len: usize, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"vhostd-dma".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and ours alone.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len as u64)?;
    Ok(file)
}

/// Whether the pages are there: a file of huge pages can be made without any, and would raise SIGBUS.
fn reserved(file: &File, len: usize) -> bool {
    // SAFETY: a descriptor and integers.
    unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len as libc::off_t) == 0 }
}

/// Fewer and longer pieces, if the kernel can; it need not.
fn collapse(range: HostRange) {
    // SAFETY: the range is a live mapping of ours, and the advice changes nothing of what is in it.
    unsafe { libc::madvise(range.base, range.len, MADV_COLLAPSE) };
}

fn lock(range: HostRange) -> io::Result<()> {
    // SAFETY: the range is a live mapping of ours.
    let result = unsafe { libc::mlock(range.base, range.len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A long-term reference to every page of the range.
fn refer(range: HostRange) -> io::Result<IoUring> {
    /// The kernel takes no longer buffer.
    const MAX: usize = 1 << 30;
    let ring = IoUring::new(2)?;
    let pieces: Vec<_> = (0..range.len)
        .step_by(MAX)
        .map(|at| libc::iovec {
            iov_base: range.base.wrapping_byte_add(at),
            iov_len: MAX.min(range.len - at),
        })
        .collect();
    // SAFETY: the pieces lie in a live mapping; nothing is submitted that uses them, and the kernel refers to the pages and
    // not to the mapping.
    unsafe { ring.submitter().register_buffers(&pieces)? };
    Ok(ring)
}

/// Physical addresses of the pages of `size` bytes at `range` (Documentation/admin-guide/mm/pagemap.rst).
fn physical(range: HostRange, size: usize) -> Result<Box<[u64]>, PageError> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let map = File::open("/proc/self/pagemap").map_err(PageError::Pagemap)?;
    let start = range.base.addr();
    let frame = |at: usize| {
        let mut entry = [0; 8];
        let offset = (start + at) / PAGE * entry.len();
        map.read_exact_at(&mut entry, offset as u64).map_err(PageError::Pagemap)?;
        let entry = u64::from_ne_bytes(entry);
        match entry & FRAME {
            _ if entry & PRESENT == 0 => Err(PageError::Absent),
            0 => Err(PageError::Unprivileged),
            frame => Ok(frame * PAGE as u64),
        }
    };
    (0..range.len).step_by(size).map(frame).collect()
}

/// Physical addresses of the pages of an arena.
pub struct Frames {
    size: usize,
    addresses: Box<[u64]>,
}

impl Frames {
    /// Of pages of `size` bytes.
    pub fn new(size: usize, addresses: Box<[u64]>) -> Self {
        Self { size, addresses }
    }

    /// The address of the byte at `offset`, and how many of the `len` bytes from there on follow it without a gap.
    #[inline]
    pub fn run(&self, offset: usize, len: usize) -> (u64, usize) {
        let (page, inside) = (offset / self.size, offset % self.size);
        let start = self.addresses[page] + inside as u64;
        let mut run = self.size - inside;
        let mut next = page + 1;
        while run < len && self.addresses.get(next) == Some(&(start + run as u64)) {
            run += self.size;
            next += 1;
        }
        (start, run.min(len))
    }

    /// How many, how large, and in how many pieces.
    pub fn describe(&self) -> String {
        let pieces =
            self.addresses.windows(2).filter(|pair| pair[0] + self.size as u64 != pair[1]).count() + 1;
        let (count, kib) = (self.addresses.len(), self.size >> 10);
        let kind = if self.size == HUGE { "huge pages" } else { "locked pages" };
        format!("{count} {kind} of {kib} KiB in {pieces} contiguous pieces")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_at_a_gap_or_with_what_was_asked_for() {
        let frames = Frames::new(4096, [0x1000, 0x2000, 0x4000].into());
        assert_eq!(frames.run(0, 100), (0x1000, 100));
        assert_eq!(frames.run(100, 9000), (0x1064, 8092));
        assert_eq!(frames.run(8192, 4096), (0x4000, 4096));
        assert_eq!(frames.describe(), "3 locked pages of 4 KiB in 2 contiguous pieces");
    }

    #[test]
    fn ordinary_pages_exist_and_are_held_before_their_addresses_are_read() {
        let mut pages = Pages::allocate(64 << 10).unwrap();
        let (area, _keep) = memory::Area::shared(64 << 10, "test").unwrap();
        assert!(area.is_aligned(PAGE));
        let map = memory::MemoryMap::new().set_table(vec![(
            memory::RegionConfig {
                guest: memory::GuestAddr(4096),
                len: pages.len() as u64,
                user: memory::UserAddr(4096),
                mmap_offset: 0,
            },
            pages.fd().try_clone_to_owned().unwrap(),
        )]);
        let map = map.unwrap();
        let whole = map.slice(memory::GuestAddr(4096), pages.len()).unwrap();
        whole.fill(1);
        match pages.hold(whole.range()) {
            Ok(frames) => assert_eq!(frames.addresses.len() * frames.size, pages.len()),
            // Without the right to lock, to refer or to look; never wrong addresses.
            Err(error) => assert!(!matches!(error, PageError::Absent), "{error}"),
        }
    }
}
