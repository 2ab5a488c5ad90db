//! The ring's part of dirty logging during a migration (vhost-user "Migration").

use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, HostRange, MemoryView};

use crate::chain::Chain;

/// Where this ring logs what it writes. A page is marked after it was written: a mark taken away by the frontend
/// before the write would lose it.
pub(crate) struct RingLog {
    log: Arc<DirtyLog>,
    /// Log address of the area with the used elements: split the used ring, packed the descriptor ring.
    used: GuestAddr,
    /// Log address of the device area.
    device: GuestAddr,
}

impl RingLog {
    pub fn new(log: Arc<DirtyLog>, used: GuestAddr, device: GuestAddr) -> Self {
        Self { log, used, device }
    }

    /// Marks the first `written` bytes of the chain's writable buffers, its status byte, and what was written at the end.
    #[cold]
    pub fn chain(&self, mem: &MemoryView, chain: &Chain, written: u32) {
        let mut left = written as usize;
        for segment in chain.writable() {
            if left == 0 {
                break;
            }
            let here = left.min(segment.len);
            self.log.mark_range(mem, HostRange { base: segment.base, len: here }, here);
            left -= here;
        }
        if let Some(status) = chain.status() {
            self.log.mark_range(mem, status, status.len);
        }
        chain.suffix(|piece| self.log.mark_range(mem, piece, piece.len));
    }

    /// Marks `len` bytes at `offset` of the area with the used elements.
    #[cold]
    pub fn used(&self, offset: usize, len: usize) {
        self.log.mark(GuestAddr(self.used.0.wrapping_add(offset as u64)), len as u64);
    }

    /// Marks the entries `from..to` (free-running, modulo `size`) of that area.
    #[cold]
    pub fn entries(&self, first: usize, bytes: usize, size: usize, from: usize, count: usize) {
        let before_wrap = count.min(size - from);
        self.used(first + from * bytes, before_wrap * bytes);
        if count > before_wrap {
            self.used(first, (count - before_wrap) * bytes);
        }
    }

    /// Marks `len` bytes at `offset` of the device area.
    #[cold]
    pub fn device(&self, offset: usize, len: usize) {
        self.log.mark(GuestAddr(self.device.0.wrapping_add(offset as u64)), len as u64);
    }
}
