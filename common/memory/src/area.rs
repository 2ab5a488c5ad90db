//! A ring area: mapped memory with a frozen length and atomic access.

#![expect(unsafe_code, reason = "atomics and copies in shared memory")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use zerocopy::{FromBytes, IntoBytes};

use crate::addr::GuestAddr;
use crate::copy;
use crate::mapping::{MappableFile, Mapping};

/// Memory for a ring or another shared structure.
///
/// The length is frozen when the area is made and every offset is checked against it; an area keeps its mapping alive
/// by itself, whatever becomes of the table it came from. Integers are little-endian in memory, as virtio 1.x has them,
/// and in the machine's order in the arguments.
///
/// # Panics
///
/// All accessors panic when the offset is past the end, and the atomic ones when the address is not aligned: mistakes
/// of the ring code, which sizes and aligns its areas at set-up ([`is_aligned`](Self::is_aligned)) and masks what it
/// reads from them.
#[derive(Clone)]
pub struct Area {
    ptr: NonNull<u8>,
    len: usize,
    guest: GuestAddr,
    mapping: Arc<Mapping>,
}

// SAFETY: an area is a checked address plus shared ownership of the mapping; every access is atomic, volatile or a copy.
unsafe impl Send for Area {}

/// The atomic load and store of one integer type.
macro_rules! atomic_access {
    ($int:ty, $atomic:ty, $load:ident, $store:ident) => {
        /// Atomic load of a little-endian integer.
        #[inline(always)]
        pub fn $load(&self, offset: usize, order: Ordering) -> $int {
            <$int>::from_le(self.atomic(offset, size_of::<$int>(), <$atomic>::from_ptr_checked).load(order))
        }

        /// Atomic store of a little-endian integer.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $int, order: Ordering) {
            self.atomic(offset, size_of::<$int>(), <$atomic>::from_ptr_checked).store(value.to_le(), order);
        }
    };
}

impl Area {
    /// Zeroed private memory; works everywhere, under Miri too.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn anonymous(len: usize) -> Self {
        let mapping = Mapping::heap(len).expect("heap memory for an anonymous area");
        Self::whole(mapping)
    }

    /// Zeroed memory in a new memfd that can neither grow nor shrink, for sending to the other side. `name` shows in
    /// `/proc/PID/maps`.
    pub fn shared(len: usize, name: &str) -> io::Result<(Self, OwnedFd)> {
        let fd = sealed_memfd(len, name)?;
        let area = Self::map(&fd, len, 0)?;
        Ok((area, fd))
    }

    /// Maps `len` bytes at `offset` of a file, which must have that many.
    pub fn map(fd: impl AsFd, len: usize, offset: u64) -> io::Result<Self> {
        let file = MappableFile::examine(fd.as_fd())?;
        Ok(Self::whole(Mapping::of_file(&file, offset, len as u64)?))
    }

    fn whole(mapping: Mapping) -> Self {
        Self { ptr: mapping.data(), len: mapping.len(), guest: GuestAddr(0), mapping: Arc::new(mapping) }
    }

    /// `len` bytes at `offset` of a mapping, or `None` when it has fewer.
    pub(crate) fn inside(
        mapping: &Arc<Mapping>,
        offset: usize,
        len: usize,
        guest: GuestAddr,
    ) -> Option<Self> {
        let available = mapping.len().checked_sub(offset)?;
        // SAFETY: offset <= length of the mapping.
        let ptr = unsafe { mapping.data().add(offset) };
        (len <= available).then(|| Self { ptr, len, guest, mapping: Arc::clone(mapping) })
    }

    /// A part of the area as an area of its own, or `None` when the area has fewer bytes.
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let available = self.len.checked_sub(offset)?;
        // SAFETY: offset <= len.
        let ptr = unsafe { self.ptr.add(offset) };
        let guest = GuestAddr(self.guest.0.wrapping_add(offset as u64));
        (len <= available).then(|| Self { ptr, len, guest, mapping: Arc::clone(&self.mapping) })
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the area has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the area is in the guest; 0 for one that did not come out of a [`MemoryTable`](crate::MemoryTable).
    #[inline]
    pub fn guest_addr(&self) -> GuestAddr {
        self.guest
    }

    /// Whether the area starts at a multiple of `align` in this process.
    #[inline]
    pub fn is_aligned(&self, align: usize) -> bool {
        self.ptr.as_ptr().addr().is_multiple_of(align)
    }

    /// Whether an access to the memory file has raised SIGBUS.
    #[inline]
    pub fn failed(&self) -> bool {
        self.mapping.failed()
    }

    atomic_access!(u16, AtomicU16, load_u16, store_u16);
    atomic_access!(u32, AtomicU32, load_u32, store_u32);
    atomic_access!(u64, AtomicU64, load_u64, store_u64);

    /// Copies a `T` out; up to 16 bytes are read by volatile accesses of their natural width.
    #[inline(always)]
    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        let src = self.at(offset, size_of::<T>());
        // SAFETY: `at`: inside the area.
        unsafe { copy::read_obj(src) }
    }

    /// Copies a `T` in; up to 16 bytes are written by volatile accesses of their natural width.
    #[inline(always)]
    pub fn write<T: IntoBytes>(&self, offset: usize, value: T) {
        let dst = self.at(offset, size_of::<T>());
        // SAFETY: `at`: inside the area.
        unsafe { copy::write_obj(dst, value) }
    }

    /// Copies bytes out.
    pub fn read_bytes(&self, offset: usize, dst: &mut [u8]) {
        let src = self.at(offset, dst.len());
        // SAFETY: `at`: inside the area; `dst` is exclusively ours.
        unsafe { copy::read_bytes(src, dst.as_mut_ptr(), dst.len()) }
    }

    /// Copies bytes in.
    pub fn write_bytes(&self, offset: usize, src: &[u8]) {
        let dst = self.at(offset, src.len());
        // SAFETY: `at`: inside the area; `src` is private memory.
        unsafe { copy::write_bytes(src.as_ptr(), dst, src.len()) }
    }

    /// Asks for the cache line at `offset`; a hint, so an offset past the end does no harm.
    #[inline(always)]
    pub fn prefetch(&self, offset: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch is a hint and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.ptr.as_ptr().wrapping_add(offset).cast()) }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = offset;
    }

    /// Pointer to `len` bytes at `offset`, checked.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        if offset > self.len || len > self.len - offset {
            past_the_end(offset, len, self.len);
        }
        // SAFETY: just checked.
        unsafe { self.ptr.add(offset).as_ptr() }
    }

    #[inline(always)]
    fn atomic<'a, A>(&'a self, offset: usize, size: usize, make: unsafe fn(*mut u8) -> &'a A) -> &'a A {
        let ptr = self.at(offset, size);
        if !ptr.addr().is_multiple_of(size) {
            misaligned(offset, size);
        }
        // SAFETY: inside the area (`at`), which lives as long as the borrow of `self`, and aligned. The memory is
        // accessed by atomics and by volatile copies only; that the other side of the ring mixes the two is the virtio
        // memory model, which orders them by the index that is loaded here.
        unsafe { make(ptr) }
    }
}

/// `from_ptr` of the standard atomics, from an untyped pointer.
trait FromPtrChecked: Sized {
    /// # Safety
    /// `ptr` is valid for atomic accesses of this type, and aligned, for `'a`.
    unsafe fn from_ptr_checked<'a>(ptr: *mut u8) -> &'a Self;
}

macro_rules! from_ptr_checked {
    ($atomic:ty) => {
        impl FromPtrChecked for $atomic {
            #[inline(always)]
            unsafe fn from_ptr_checked<'a>(ptr: *mut u8) -> &'a Self {
                // SAFETY: handed on to the caller.
                unsafe { Self::from_ptr(ptr.cast()) }
            }
        }
    };
}
from_ptr_checked!(AtomicU16);
from_ptr_checked!(AtomicU32);
from_ptr_checked!(AtomicU64);

#[cold]
#[inline(never)]
fn past_the_end(offset: usize, len: usize, have: usize) -> ! {
    panic!("{len} bytes at {offset} reach past the end of an area of {have} bytes")
}

#[cold]
#[inline(never)]
fn misaligned(offset: usize, size: usize) -> ! {
    panic!("An atomic access of {size} bytes at {offset} of an area is not aligned")
}

impl std::fmt::Debug for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Area({}, {} bytes)", self.guest, self.len)
    }
}

/// A memfd of `len` zero bytes that can neither grow nor shrink.
pub(crate) fn sealed_memfd(len: usize, name: &str) -> io::Result<OwnedFd> {
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let name = CString::new(name)?;
    // SAFETY: `name` is a C string; no other pointers are passed. The descriptor is new, and ours alone.
    let fd = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: both take a descriptor and integers.
    let failed = unsafe {
        libc::ftruncate(fd.as_raw_fd(), len) < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ordering::{Acquire, Relaxed, Release};

    #[test]
    fn integers_are_little_endian_in_memory() {
        let area = Area::anonymous(64);
        area.store_u16(2, 0x1122, Release);
        area.store_u32(4, 0x3344_5566, Release);
        area.store_u64(8, 0x7788_99aa_bbcc_ddee, Release);
        let expected =
            [0, 0, 0x22, 0x11, 0x66, 0x55, 0x44, 0x33, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88, 0x77];
        assert_eq!(area.read::<[u8; 16]>(0), expected);
        assert_eq!(area.load_u16(2, Acquire), 0x1122);
        assert_eq!(area.load_u32(4, Acquire), 0x3344_5566);
        assert_eq!(area.load_u64(8, Relaxed), 0x7788_99aa_bbcc_ddee);
    }

    #[test]
    fn a_part_ends_where_it_was_cut() {
        let area = Area::anonymous(64);
        let part = area.sub(16, 8).expect("inside");
        part.write_bytes(0, &[5; 8]);
        let mut bytes = [0; 64];
        area.read_bytes(0, &mut bytes);
        assert!(bytes.iter().enumerate().all(|(at, &byte)| (byte == 5) == (16..24).contains(&at)));
        assert_eq!(part.len(), 8);
        assert!(part.sub(1, 8).is_none());
        assert!(area.sub(65, 0).is_none());
        assert!(area.sub(64, 0).is_some_and(|empty| empty.is_empty()));
    }

    #[test]
    #[should_panic(expected = "past the end of an area")]
    fn a_load_past_the_end_stops_the_caller() {
        Area::anonymous(64).load_u32(62, Relaxed);
    }

    #[test]
    #[should_panic(expected = "past the end of an area")]
    fn an_offset_that_wraps_stops_the_caller() {
        Area::anonymous(64).read::<u64>(usize::MAX - 3);
    }

    #[test]
    #[should_panic(expected = "not aligned")]
    fn a_misaligned_atomic_stops_the_caller() {
        Area::anonymous(64).load_u32(2, Relaxed);
    }

    #[test]
    fn an_area_outlives_the_table_it_came_from() {
        let memory = crate::OwnMemory::new(8192, GuestAddr(0x10_0000)).expect("memory");
        let area = memory.area(GuestAddr(0x10_1000), 16).expect("inside");
        drop(memory);
        area.store_u64(8, 42, Release);
        assert_eq!(area.load_u64(8, Acquire), 42);
        assert_eq!(area.guest_addr(), GuestAddr(0x10_1000));
        assert_eq!(area.sub(8, 8).map(|part| part.guest_addr()), Some(GuestAddr(0x10_1008)));
        assert!(area.is_aligned(4096) && !area.failed());
    }

    #[test]
    fn two_threads_hand_over_data_by_an_index() {
        let area = Area::anonymous(64);
        let (reader, rounds) = (area.clone(), if cfg!(miri) { 20 } else { 2000 });
        let thread = std::thread::spawn(move || {
            for round in 1..=rounds {
                while reader.load_u16(0, Acquire) != round {
                    std::thread::yield_now();
                }
                assert_eq!(reader.read::<[u8; 16]>(16), [round as u8; 16]);
                reader.store_u16(2, round, Release);
            }
        });
        for round in 1..=rounds {
            area.write(16, [round as u8; 16]);
            area.store_u16(0, round, Release);
            while area.load_u16(2, Acquire) != round {
                std::thread::yield_now();
            }
        }
        thread.join().expect("the reader saw every round");
    }
}
