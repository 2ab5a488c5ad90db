//! One shared mapping of a file, or heap memory that stands in for one.

#![expect(unsafe_code, reason = "mmap, munmap, fstat and heap memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use thiserror::Error;

use crate::sigbus;

/// Heap areas are aligned as a mapping would be.
const HEAP_ALIGN: usize = 4096;

/// Why a file could not be mapped.
#[derive(Debug, Error)]
pub enum MappingError {
    /// No bytes were asked for.
    #[error("A mapping of no bytes was asked for")]
    Empty,
    /// Offset and length do not fit this machine's address space.
    #[error("{len} bytes at offset {offset} of a file are more than can be mapped")]
    TooLarge {
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A page past the end of the file would raise SIGBUS.
    #[error("The file has {actual} bytes, but the mapping needs {needed}")]
    FileTooShort {
        /// Offset plus length of the mapping.
        needed: u64,
        /// Size of the file.
        actual: u64,
    },
    /// The table of mappings that are guarded against SIGBUS is full.
    #[error("More than {0} mappings at a time")]
    TooMany(usize),
    /// fstat or fstatfs failed.
    #[error("The file descriptor cannot be examined")]
    Stat(#[source] io::Error),
    /// mmap failed.
    #[error("The file cannot be mapped")]
    Map(#[source] io::Error),
}

impl From<MappingError> for io::Error {
    fn from(error: MappingError) -> Self {
        match error {
            MappingError::Stat(source) | MappingError::Map(source) => source,
            MappingError::TooMany(_) => Self::new(io::ErrorKind::OutOfMemory, error),
            _ => Self::new(io::ErrorKind::InvalidInput, error),
        }
    }
}

/// Most bytes that one connection may map, of the 128 TiB of addresses that the process has for all. A file without
/// contents can be that long, and costs its owner nothing.
pub(crate) const MAX_MAPPED: u64 = 16 << 40;

/// What tells one file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileId {
    dev: libc::dev_t,
    ino: libc::ino_t,
}

/// A file that a mapping can be made of, examined once.
pub(crate) struct MappableFile<'fd> {
    fd: BorrowedFd<'fd>,
    id: FileId,
    /// `None` where the size says nothing (devices).
    size: Option<u64>,
    page_size: usize,
}

impl<'fd> MappableFile<'fd> {
    pub(crate) fn examine(fd: BorrowedFd<'fd>) -> Result<Self, MappingError> {
        let stat = fstat(fd).map_err(MappingError::Stat)?;
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        Ok(Self {
            fd,
            id: FileId { dev: stat.st_dev, ino: stat.st_ino },
            size: is_file.then_some(stat.st_size as u64),
            page_size: page_size_of(fd).map_err(MappingError::Stat)?,
        })
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// Refuses a range that the file does not have.
    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<(), MappingError> {
        if len == 0 {
            return Err(MappingError::Empty);
        }
        let needed = offset.checked_add(len).filter(|&end| end <= isize::MAX as u64 - self.page_size as u64);
        let needed = needed.filter(|_| len <= MAX_MAPPED);
        let needed = needed.ok_or(MappingError::TooLarge { offset, len })?;
        match self.size {
            Some(actual) if actual < needed => Err(MappingError::FileTooShort { needed, actual }),
            _ => Ok(()),
        }
    }
}

enum Backing {
    File { id: FileId, slot: sigbus::Slot },
    Heap(Layout),
}

/// Memory that stays where it is until the last user has dropped it.
pub(crate) struct Mapping {
    /// What was mapped: whole pages.
    base: NonNull<u8>,
    mapped: usize,
    /// The part that was asked for.
    data: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: the memory is process-wide, and all access goes through raw pointers with atomic, volatile or copy
// semantics in `GuestSlice`, `Area` and `DirtyLog`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset`, shared. The mapping itself is of whole pages of the file's own page size (2 MiB
    /// or more on hugetlbfs), since the offset of a region need not be aligned to that.
    pub(crate) fn of_file(file: &MappableFile<'_>, offset: u64, len: u64) -> Result<Self, MappingError> {
        file.check(offset, len)?;
        let page = file.page_size as u64;
        let start = offset - offset % page;
        let mapped = (offset + len).next_multiple_of(page) as usize - start as usize;
        let slot = sigbus::Slot::claim().ok_or(MappingError::TooMany(sigbus::MAX_MAPPINGS))?;
        let base = mmap_shared(file.fd, start, mapped).map_err(MappingError::Map)?;
        slot.guard(base, mapped, file.page_size);
        // SAFETY: offset - start < page <= mapped.
        let data = unsafe { base.add((offset - start) as usize) };
        Ok(Self { base, mapped, data, len: len as usize, backing: Backing::File { id: file.id, slot } })
    }

    /// Zeroed heap memory, for what is never shared with another process.
    pub(crate) fn heap(len: usize) -> Result<Self, MappingError> {
        let too_large = MappingError::TooLarge { offset: 0, len: len as u64 };
        let layout = Layout::from_size_align(len.max(1), HEAP_ALIGN).map_err(|_| too_large)?;
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or_else(|| MappingError::Map(io::ErrorKind::OutOfMemory.into()))?;
        Ok(Self { base, mapped: layout.size(), data: base, len, backing: Backing::Heap(layout) })
    }

    /// First byte of what was asked for.
    pub(crate) fn data(&self) -> NonNull<u8> {
        self.data
    }

    /// Length of what was asked for.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The mapped file; heap memory has none.
    pub(crate) fn file(&self) -> Option<FileId> {
        match &self.backing {
            Backing::File { id, .. } => Some(*id),
            Backing::Heap(_) => None,
        }
    }

    /// Whether an access has raised SIGBUS.
    pub(crate) fn failed(&self) -> bool {
        match &self.backing {
            Backing::File { slot, .. } => slot.failed(),
            Backing::Heap(_) => false,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match &self.backing {
            Backing::File { slot, .. } => {
                slot.unguard();
                // SAFETY: we mapped exactly this, and the last user is gone. A part may have been replaced by zero
                // pages meanwhile; unmapping takes those with it.
                unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
            }
            // SAFETY: allocated in `heap` with this layout.
            Backing::Heap(layout) => unsafe { dealloc(self.base.as_ptr(), *layout) },
        }
    }
}

fn mmap_shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // NORESERVE: the frontend owns the memory and has reserved what it wants reserved.
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let base =
        unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd.as_raw_fd(), offset as libc::off_t) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // A kernel that refuses costs us a larger core dump, nothing else.
        // SAFETY: the range is the mapping made above; neither advice changes its contents.
        unsafe { libc::madvise(base, len, advice) };
    }
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn fstat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for the result.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by the successful call.
    Ok(unsafe { stat.assume_init() })
}

/// Page size of the file: of its huge pages on hugetlbfs, else the machine's.
fn page_size_of(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut statfs = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `statfs` has room for the result.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), statfs.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by the successful call.
    let statfs = unsafe { statfs.assume_init() };
    let huge = statfs.f_type == libc::HUGETLBFS_MAGIC && (statfs.f_bsize as usize).is_power_of_two();
    Ok(if huge { statfs.f_bsize as usize } else { base_page_size() })
}

/// The machine's page size.
pub(crate) fn base_page_size() -> usize {
    // SAFETY: no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
