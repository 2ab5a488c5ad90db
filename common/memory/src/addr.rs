//! Addresses of the three address spaces a vhost-user back-end meets.

#![expect(unsafe_code, reason = "HostRange is plain data that crosses threads, and prefetches")]

use std::ffi::c_void;
use std::fmt;

/// A guest physical address, or whatever the frontend calls one (user-space drivers use their own addresses).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct GuestAddr(pub u64);

/// An address in the frontend's own address space; `SET_VRING_ADDR` names the rings with these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct UserAddr(pub u64);

impl GuestAddr {
    /// The address `offset` bytes further on, or `None` when it leaves the address space.
    #[inline]
    pub fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }
}

impl UserAddr {
    /// The address `offset` bytes further on, or `None` when it leaves the address space.
    #[inline]
    pub fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }
}

impl fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for UserAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A host pointer and a length as plain data, laid out as `struct iovec`.
///
/// Anybody may make or change one: by itself it gives no access. To touch the memory, pass it to
/// [`MemoryTable::reenter`](crate::MemoryTable::reenter), which checks it again; to let the kernel do so, submit it
/// while the [`Epoch`](crate::Epoch) under which it was translated is held.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// First byte, in this process.
    pub base: *mut c_void,
    /// Length in bytes.
    pub len: usize,
}

// The cast of a slice of ranges to `*const libc::iovec` relies on this.
const _: () = {
    assert!(size_of::<HostRange>() == size_of::<libc::iovec>());
    assert!(align_of::<HostRange>() == align_of::<libc::iovec>());
    assert!(std::mem::offset_of!(HostRange, base) == std::mem::offset_of!(libc::iovec, iov_base));
    assert!(std::mem::offset_of!(HostRange, len) == std::mem::offset_of!(libc::iovec, iov_len));
};

// SAFETY: a range is plain data; nothing dereferences it without checking it against a table again.
unsafe impl Send for HostRange {}
// SAFETY: as above, and it has no interior mutability.
unsafe impl Sync for HostRange {}

impl HostRange {
    /// A range of no bytes.
    pub const EMPTY: Self = Self { base: std::ptr::null_mut(), len: 0 };

    /// Whether the range has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks for the cache line at `offset`, to read it soon. A hint: any address will do.
    #[inline(always)]
    pub fn prefetch(&self, offset: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch is a hint and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.wrapping_byte_add(offset).cast()) }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = offset;
    }

    /// Asks for the cache line at `offset`, to write it soon: other processors give up their copies. A hint as well.
    #[inline(always)]
    pub fn prefetch_write(&self, offset: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let place = self.base.wrapping_byte_add(offset);
            // SAFETY: as above. The intrinsic would be a plain prefetch unless the whole build were for newer processors;
            // those without this instruction take it for one that does nothing.
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = offset;
    }

    /// `len` bytes from `offset` on, or `None` when the range has fewer.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let available = self.len.checked_sub(offset)?;
        (len <= available).then(|| Self { base: self.base.wrapping_byte_add(offset), len })
    }
}

impl Default for HostRange {
    fn default() -> Self {
        Self::EMPTY
    }
}
