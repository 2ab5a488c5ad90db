//! A checked piece of a guest buffer.

#![expect(unsafe_code, reason = "copies to and from guest memory")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use zerocopy::{FromBytes, IntoBytes};

use crate::addr::HostRange;
use crate::copy;
use crate::table::MemoryTable;

/// A contiguous piece of guest memory that lies inside one region of the table it borrows.
///
/// It is only ever copied from and to: the guest may write at the same time, so no reference into it exists and two
/// reads of the same byte may differ. Read once, then look at the copy.
#[derive(Clone, Copy)]
pub struct GuestSlice<'m> {
    ptr: NonNull<u8>,
    len: usize,
    table: PhantomData<&'m MemoryTable>,
}

impl<'m> GuestSlice<'m> {
    /// # Safety
    /// `len` bytes from `ptr` stay mapped, readable and writable, for `'m`.
    #[inline(always)]
    pub(crate) unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, table: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` on, or `None` when the slice has fewer.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        if !self.holds(offset, len) {
            return None;
        }
        // SAFETY: `holds`: the piece lies inside this slice, which is valid for `'m`.
        Some(unsafe { Self::new(self.ptr.add(offset), len) })
    }

    /// The first `mid` bytes and the rest, or `None` when the slice is shorter than `mid`.
    #[inline]
    pub fn split_at(&self, mid: usize) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(mid)?;
        Some((self.sub(0, mid)?, self.sub(mid, rest)?))
    }

    /// Copies `dst.len()` bytes from `offset` on into `dst`.
    ///
    /// # Panics
    /// When they reach past the end: a mistake of the caller, who knows the length.
    #[inline]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        self.check(offset, dst.len());
        // SAFETY: `check`: the source is inside the slice; `dst` is exclusively ours.
        unsafe { copy::read_bytes(self.ptr.as_ptr().add(offset), dst.as_mut_ptr(), dst.len()) }
    }

    /// Copies `src` into the slice from `offset` on.
    ///
    /// # Panics
    /// When it reaches past the end: a mistake of the caller, who knows the length.
    #[inline]
    pub fn write(&self, offset: usize, src: &[u8]) {
        self.check(offset, src.len());
        // SAFETY: `check`: the destination is inside the slice; `src` is private memory.
        unsafe { copy::write_bytes(src.as_ptr(), self.ptr.as_ptr().add(offset), src.len()) }
    }

    /// Reads a `T` at `offset`, whatever its alignment, or `None` when it reaches past the end.
    #[inline]
    pub fn read_obj<T: FromBytes>(&self, offset: usize) -> Option<T> {
        // SAFETY: `holds`: the object is inside the slice.
        self.holds(offset, size_of::<T>()).then(|| unsafe { copy::read_obj(self.ptr.as_ptr().add(offset)) })
    }

    /// Writes a `T` at `offset`, whatever its alignment, or returns `None` when it reaches past the end.
    #[inline]
    #[must_use = "None means that nothing was written"]
    pub fn write_obj<T: IntoBytes>(&self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `holds`: the object is inside the slice.
        self.holds(offset, size_of::<T>())
            .then(|| unsafe { copy::write_obj(self.ptr.as_ptr().add(offset), value) })
    }

    /// Sets every byte.
    #[inline]
    pub fn fill(&self, byte: u8) {
        // SAFETY: the slice is valid for writes of its length.
        unsafe { ptr::write_bytes(self.ptr.as_ptr(), byte, self.len) }
    }

    /// Copies the whole slice to the front of `dst`; the two may overlap.
    ///
    /// # Panics
    /// When `dst` is shorter.
    #[inline]
    pub fn copy_to(&self, dst: GuestSlice<'_>) {
        dst.check(0, self.len);
        // SAFETY: both ends are valid for `self.len` bytes; `copy` allows overlap.
        unsafe { ptr::copy(self.ptr.as_ptr(), dst.ptr.as_ptr(), self.len) }
    }

    /// The slice as plain data, for an `iovec` or for storing beside a request.
    #[inline]
    pub fn range(&self) -> HostRange {
        HostRange { base: self.ptr.as_ptr().cast(), len: self.len }
    }

    #[inline(always)]
    fn holds(&self, offset: usize, len: usize) -> bool {
        offset <= self.len && len <= self.len - offset
    }

    #[inline(always)]
    fn check(&self, offset: usize, len: usize) {
        if !self.holds(offset, len) {
            past_the_end(offset, len, self.len);
        }
    }
}

#[cold]
#[inline(never)]
fn past_the_end(offset: usize, len: usize, have: usize) -> ! {
    panic!("{len} bytes at {offset} reach past the end of a guest slice of {have} bytes")
}

impl fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestSlice({:p}, {} bytes)", self.ptr, self.len)
    }
}
