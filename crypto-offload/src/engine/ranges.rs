//! Pieces of guest memory, as engines read and write them.
//!
//! A [`Ranges`] is plain data: where a list of [`HostRange`]s lies, and which bytes of it are meant. It is made without
//! copying the list, which stays where the request keeps it (the segments of a descriptor chain). Nothing here makes a
//! reference to the bytes: the guest may change them at any time, so that only raw copies touch them.

#![expect(unsafe_code, reason = "engines work on raw memory that the caller of Engine::submit vouches for")]

use memory::HostRange;
use std::ptr;

/// `len` bytes that begin `skip` bytes into a list of ranges: less than 4 GiB, as what a descriptor chain has.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    first: *const HostRange,
    skip: u32,
    len: u32,
}

// SAFETY: plain data, like the `HostRange`s it points at; every access is unsafe and has its own contract.
unsafe impl Send for Ranges {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for Ranges {}

impl Ranges {
    /// No bytes.
    pub const EMPTY: Self = Self { first: ptr::null(), skip: 0, len: 0 };

    /// `len` bytes that begin `skip` bytes into `list`, or `None` when it has fewer.
    #[inline]
    pub fn new(list: &[HostRange], skip: usize, len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self::EMPTY);
        }
        let end = u32::try_from(skip.checked_add(len)?).ok()?;
        let (skip, len) = (end - len as u32, len as u32);
        let mut total = 0u64;
        let mut first = None;
        for range in list {
            let start = total;
            total = total.checked_add(range.len as u64)?;
            if first.is_none() && total > skip.into() {
                first = Some(Self { first: range, skip: skip - start as u32, len });
            }
            if total >= end.into() {
                return first;
            }
        }
        None
    }

    /// Every byte of `list`.
    pub fn whole(list: &[HostRange]) -> Self {
        let len = list.iter().map(|range| range.len).sum();
        Self::new(list, 0, len).unwrap_or(Self::EMPTY)
    }

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` of these bytes, `offset` bytes on, or `None` when there are fewer.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let available = self.len().checked_sub(offset)?;
        (len <= available).then(|| match len {
            0 => Self::EMPTY,
            // Both are at most as long as the whole, which ends below 4 GiB.
            _ => Self { first: self.first, skip: self.skip + offset as u32, len: len as u32 },
        })
    }

    /// The contiguous pieces, none of them empty.
    ///
    /// # Safety
    ///
    /// While the iterator lives, the list that these ranges were made of is where it was, unchanged.
    #[inline]
    pub unsafe fn pieces(&self) -> Pieces {
        Pieces { next: self.first, skip: self.skip as usize, left: self.len() }
    }

    /// The piece, when there is exactly one.
    ///
    /// # Safety
    ///
    /// As for [`pieces`](Self::pieces).
    #[inline]
    pub unsafe fn single(&self) -> Option<HostRange> {
        // SAFETY: the caller's promise.
        let mut pieces = unsafe { self.pieces() };
        let first = pieces.next()?;
        (first.len == self.len()).then_some(first)
    }

    /// Copies the bytes from `offset` on to `bytes`.
    ///
    /// # Safety
    ///
    /// As for [`pieces`](Self::pieces), and every range of the list is readable memory.
    ///
    /// # Panics
    ///
    /// When there are fewer bytes.
    pub unsafe fn read(&self, offset: usize, bytes: &mut [u8]) {
        let part = self.sub(offset, bytes.len()).expect("within the ranges");
        let mut done = 0;
        // SAFETY: the caller's promise; the pieces have `bytes.len()` bytes together, and private memory does not
        // overlap them.
        unsafe {
            for piece in part.pieces() {
                ptr::copy_nonoverlapping(piece.base.cast::<u8>(), bytes.as_mut_ptr().add(done), piece.len);
                done += piece.len;
            }
        }
    }

    /// Copies `bytes` over those from `offset` on.
    ///
    /// # Safety
    ///
    /// As for [`pieces`](Self::pieces), and every range of the list is writable memory.
    ///
    /// # Panics
    ///
    /// When there are fewer bytes.
    pub unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let part = self.sub(offset, bytes.len()).expect("within the ranges");
        let mut done = 0;
        // SAFETY: the caller's promise; the pieces have `bytes.len()` bytes together, and private memory does not
        // overlap them.
        unsafe {
            for piece in part.pieces() {
                ptr::copy_nonoverlapping(bytes.as_ptr().add(done), piece.base.cast::<u8>(), piece.len);
                done += piece.len;
            }
        }
    }

    /// Sets every byte to zero.
    ///
    /// # Safety
    ///
    /// As for [`write`](Self::write).
    pub unsafe fn wipe(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            for piece in self.pieces() {
                ptr::write_bytes(piece.base.cast::<u8>(), 0, piece.len);
            }
        }
    }
}

impl Default for Ranges {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// The contiguous pieces of a [`Ranges`].
#[derive(Clone, Debug)]
pub struct Pieces {
    next: *const HostRange,
    skip: usize,
    left: usize,
}

impl Iterator for Pieces {
    type Item = HostRange;

    #[inline]
    fn next(&mut self) -> Option<HostRange> {
        while self.left > 0 {
            // SAFETY: `Ranges::new` saw that the list has `skip + left` bytes from here on, so that it goes on while
            // bytes are left; that it is still there is what the caller of `Ranges::pieces` promised.
            let range = unsafe { *self.next };
            self.next = self.next.wrapping_add(1);
            if range.len <= self.skip {
                self.skip -= range.len;
                continue;
            }
            let len = (range.len - self.skip).min(self.left);
            let piece = HostRange { base: range.base.wrapping_byte_add(self.skip), len };
            self.skip = 0;
            self.left -= len;
            return Some(piece);
        }
        None
    }
}

/// A place in a [`Ranges`] that moves forward. What it gives is read and written by whoever asked for it.
#[derive(Clone, Debug)]
pub struct Cursor {
    rest: Pieces,
    piece: HostRange,
}

impl Cursor {
    /// At the first byte.
    ///
    /// # Safety
    ///
    /// As for [`Ranges::pieces`], for as long as the cursor lives.
    #[inline]
    pub unsafe fn new(ranges: &Ranges) -> Self {
        // SAFETY: the caller's promise.
        Self { rest: unsafe { ranges.pieces() }, piece: HostRange::EMPTY }
    }

    /// How many bytes lie together from here on; 0 at the end.
    #[inline]
    pub fn together(&mut self) -> usize {
        if self.piece.is_empty() {
            self.piece = self.rest.next().unwrap_or(HostRange::EMPTY);
        }
        self.piece.len
    }

    /// The address of `len` bytes that lie together, and goes behind them.
    ///
    /// # Panics
    ///
    /// When fewer lie [`together`](Self::together).
    #[inline]
    pub fn take(&mut self, len: usize) -> *mut u8 {
        let here = self.piece;
        let rest = here.len.checked_sub(len).expect("no more than lie together");
        self.piece = HostRange { base: here.base.wrapping_byte_add(len), len: rest };
        here.base.cast()
    }

    /// Copies the next bytes to `bytes`; how many there were.
    ///
    /// # Safety
    ///
    /// The ranges are readable memory.
    pub unsafe fn read(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() && self.together() > 0 {
            let len = self.together().min(bytes.len() - done);
            // SAFETY: the caller's promise; private memory does not overlap it.
            unsafe { ptr::copy_nonoverlapping(self.take(len), bytes[done..].as_mut_ptr(), len) };
            done += len;
        }
        done
    }

    /// Copies `bytes` over the next ones; how many there were.
    ///
    /// # Safety
    ///
    /// The ranges are writable memory.
    pub unsafe fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() && self.together() > 0 {
            let len = self.together().min(bytes.len() - done);
            // SAFETY: the caller's promise; private memory does not overlap it.
            unsafe { ptr::copy_nonoverlapping(bytes[done..].as_ptr(), self.take(len), len) };
            done += len;
        }
        done
    }
}

/// Runs of a source and a destination of the same length that are contiguous in both: `(from, to, bytes)`.
#[derive(Clone, Debug)]
pub struct Pairs {
    sources: Pieces,
    targets: Pieces,
    source: HostRange,
    target: HostRange,
}

impl Pairs {
    /// The runs from the beginning of both; ends with the shorter one.
    ///
    /// # Safety
    ///
    /// As for [`Ranges::pieces`], for both.
    #[inline]
    pub unsafe fn new(src: &Ranges, dst: &Ranges) -> Self {
        // SAFETY: the caller's promise.
        let (sources, targets) = unsafe { (src.pieces(), dst.pieces()) };
        Self { sources, targets, source: HostRange::EMPTY, target: HostRange::EMPTY }
    }
}

impl Iterator for Pairs {
    type Item = (*const u8, *mut u8, usize);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.source.is_empty() {
            self.source = self.sources.next()?;
        }
        if self.target.is_empty() {
            self.target = self.targets.next()?;
        }
        let len = self.source.len.min(self.target.len);
        let run = (self.source.base.cast::<u8>().cast_const(), self.target.base.cast::<u8>(), len);
        self.source = HostRange { base: self.source.base.wrapping_byte_add(len), len: self.source.len - len };
        self.target = HostRange { base: self.target.base.wrapping_byte_add(len), len: self.target.len - len };
        Some(run)
    }
}
