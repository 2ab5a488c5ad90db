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

    /// Where the `len` bytes from `offset` on start.
    ///
    /// # Panics
    /// When they reach past the end.
    #[inline(always)]
    pub(crate) fn start_of(&self, offset: usize, len: usize) -> *const u8 {
        self.check(offset, len);
        self.ptr.as_ptr().wrapping_add(offset)
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

#[cfg(test)]
mod tests {
    use zerocopy::little_endian::{U16, U64};

    use crate::addr::{GuestAddr, UserAddr};
    use crate::table::{MemoryTable, RegionConfig};

    fn table() -> std::sync::Arc<MemoryTable> {
        let config = RegionConfig { guest: GuestAddr(0), len: 4096, user: UserAddr(0), mmap_offset: 0 };
        MemoryTable::anonymous(&[config]).expect("usable region")
    }

    #[test]
    fn objects_survive_any_alignment() {
        let table = table();
        let slice = table.slice(GuestAddr(0), 256).expect("inside");
        for offset in 0..40 {
            let bytes: [u8; 16] = std::array::from_fn(|index| (index + offset) as u8);
            slice.write_obj(offset, bytes).expect("room");
            assert_eq!(slice.read_obj::<[u8; 16]>(offset), Some(bytes));
            slice.write_obj(offset, 0x0123_4567_89ab_cdef_u64).expect("room");
            assert_eq!(slice.read_obj::<u64>(offset), Some(0x0123_4567_89ab_cdef));
            slice.write_obj(offset, 0x1122_3344_u32).expect("room");
            assert_eq!(slice.read_obj::<u32>(offset), Some(0x1122_3344));
            slice.write_obj(offset, U16::new(0x5566)).expect("room");
            assert_eq!(slice.read_obj::<[u8; 2]>(offset), Some([0x66, 0x55]));
            slice.write_obj(offset, [9_u8; 3]).expect("room");
            assert_eq!(slice.read_obj::<[u8; 3]>(offset), Some([9; 3]));
        }
    }

    #[test]
    fn objects_past_the_end_are_refused_and_write_nothing() {
        let table = table();
        let slice = table.slice(GuestAddr(0), 12).expect("inside");
        assert!(slice.read_obj::<U64>(4).is_some());
        assert!(slice.read_obj::<U64>(5).is_none());
        assert!(slice.read_obj::<u8>(usize::MAX).is_none());
        assert_eq!(slice.write_obj(5, u64::MAX), None);
        let mut bytes = [1; 16];
        table.slice(GuestAddr(0), 16).expect("inside").read(0, &mut bytes);
        assert_eq!(bytes, [0; 16]);
    }

    #[test]
    fn parts_stay_inside_the_whole() {
        let table = table();
        let slice = table.slice(GuestAddr(16), 32).expect("inside");
        let (front, back) = slice.split_at(10).expect("long enough");
        assert_eq!((front.len(), back.len()), (10, 22));
        assert_eq!(table.guest_of(back.range()), Some(GuestAddr(26)));
        assert!(slice.split_at(33).is_none());
        assert!(slice.split_at(32).is_some_and(|(_, rest)| rest.is_empty()));
        assert!(slice.sub(30, 3).is_none());
        assert!(slice.sub(1, usize::MAX).is_none());
    }

    #[test]
    fn overlapping_copies_move_the_bytes() {
        let table = table();
        let whole = table.slice(GuestAddr(0), 8).expect("inside");
        whole.write(0, b"abcdefgh");
        whole.sub(0, 6).expect("inside").copy_to(whole.sub(2, 6).expect("inside"));
        let mut bytes = [0; 8];
        whole.read(0, &mut bytes);
        assert_eq!(&bytes, b"ababcdef");
    }

    #[test]
    #[should_panic(expected = "past the end of a guest slice")]
    fn a_write_past_the_end_stops_the_caller() {
        let table = table();
        table.slice(GuestAddr(0), 8).expect("inside").write(1, &[0; 8]);
    }
}
