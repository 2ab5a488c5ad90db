//! Aligned buffers for direct I/O on guest buffers that are not: pooled, bounded, one pool a worker.

#![expect(unsafe_code, reason = "memory that the kernel writes to, at a fixed alignment")]

use crate::backend::file::DIRECT_BUFFER_ALIGN;
use memory::HostRange;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Length of a bounce buffer. A longer request goes through it piece by piece.
pub const BOUNCE_LEN: usize = 256 << 10;

/// Most buffers of one worker: 16 MiB. A request that finds none waits for one to come back.
pub const MAX_BUFFERS: usize = 64;

const LAYOUT: Layout = match Layout::from_size_align(BOUNCE_LEN, DIRECT_BUFFER_ALIGN) {
    Ok(layout) => layout,
    Err(_) => panic!("the alignment is a power of two"),
};

/// One buffer. Between handing its [`range`](Self::range) to the kernel and the completion nobody touches it.
#[derive(Debug)]
pub struct BounceBuffer(NonNull<u8>);

// SAFETY: the buffer owns its allocation, like a Box.
unsafe impl Send for BounceBuffer {}

impl BounceBuffer {
    fn new() -> Option<Self> {
        // SAFETY: the layout has a non-zero size.
        NonNull::new(unsafe { alloc_zeroed(LAYOUT) }).map(Self)
    }

    /// The first `len` bytes for an I/O.
    ///
    /// # Panics
    /// When the buffer is shorter.
    pub fn range(&self, len: usize) -> HostRange {
        assert!(len <= BOUNCE_LEN);
        HostRange { base: self.0.as_ptr().cast(), len }
    }

    /// The first `len` bytes. Only while no I/O uses the buffer.
    ///
    /// # Panics
    /// When the buffer is shorter.
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= BOUNCE_LEN);
        // SAFETY: BOUNCE_LEN initialised bytes, owned by `self`; whoever gave the range to the kernel promised
        // there to leave the buffer alone until the completion.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), len) }
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.0.as_ptr(), LAYOUT) }
    }
}

/// The buffers of one worker; made when first needed, kept for the next request.
#[derive(Debug)]
pub struct BouncePool {
    free: Vec<BounceBuffer>,
    made: usize,
    limit: usize,
}

impl Default for BouncePool {
    fn default() -> Self {
        Self::new(MAX_BUFFERS)
    }
}

impl BouncePool {
    /// An empty pool that makes at most `limit` buffers.
    pub fn new(limit: usize) -> Self {
        Self { free: Vec::new(), made: 0, limit }
    }

    /// A buffer, or `None` when all are in use or the host has no memory.
    pub fn take(&mut self) -> Option<BounceBuffer> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        if self.made == self.limit {
            return None;
        }
        let buffer = BounceBuffer::new()?;
        self.made += 1;
        Some(buffer)
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: BounceBuffer) {
        self.free.push(buffer);
    }

    /// Whether [`take`](Self::take) can succeed without waiting.
    pub fn available(&self) -> bool {
        !self.free.is_empty() || self.made < self.limit
    }

    /// Buffers in use.
    pub fn in_use(&self) -> usize {
        self.made - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_reuses_buffers() {
        let mut pool = BouncePool::new(2);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        assert!(!pool.available());
        let address = first.range(1).base;
        pool.give(first);
        assert_eq!(pool.in_use(), 1);
        assert_eq!(pool.take().unwrap().range(1).base, address);
        drop(second);
    }

    #[test]
    fn buffers_are_aligned_and_hold_what_is_put_in() {
        let mut buffer = BounceBuffer::new().unwrap();
        assert_eq!(buffer.range(BOUNCE_LEN).base as usize % DIRECT_BUFFER_ALIGN, 0);
        assert!(buffer.bytes_mut(BOUNCE_LEN).iter().all(|b| *b == 0));
        buffer.bytes_mut(3).copy_from_slice(b"abc");
        assert_eq!(buffer.bytes_mut(4), b"abc\0");
    }
}
