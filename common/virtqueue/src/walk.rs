//! From copied descriptors to the segments of a chain: every check of a buffer or an indirect table is here.

use memory::{GuestAddr, GuestSlice, MemoryView};
use zerocopy::FromBytes;

use crate::broken::{BadIndirect, Broken};
use crate::chain::Chain;
use crate::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, PackedDescriptor, SplitDescriptor};

/// Longest indirect table. Drivers may make tables longer than the queue (Linux does), so the queue size is no limit;
/// 4096 entries are four times what one readv or writev takes (IOV_MAX, 1024) and bound what a request can cost.
const MAX_INDIRECT_BYTES: u32 = 4096 * DESC_BYTES as u32;

/// Fills a chain, buffer by buffer.
pub(crate) struct Walk<'a> {
    mem: &'a MemoryView,
    chain: &'a mut Chain,
    indirect: bool,
}

impl<'a> Walk<'a> {
    /// Starts an empty chain; `indirect` is whether INDIRECT_DESC was negotiated.
    #[inline]
    pub fn new(mem: &'a MemoryView, chain: &'a mut Chain, indirect: bool) -> Self {
        chain.reset();
        Self { mem, chain, indirect }
    }

    /// One buffer. An empty one is allowed and leaves nothing.
    #[inline]
    pub fn buffer(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
        if len == 0 {
            return Ok(());
        }
        let (mem, chain) = (self.mem, &mut *self.chain);
        if flags & DESC_WRITE != 0 {
            mem.pieces(GuestAddr(addr), len as usize, |piece| chain.push_writable(piece.range()))?;
        } else if chain.writable_len() == 0 {
            mem.pieces(GuestAddr(addr), len as usize, |piece| chain.push_readable(piece.range()))?;
        } else {
            return Err(Broken::ReadableAfterWritable);
        }
        Ok(())
    }

    /// All buffers are there.
    #[inline]
    pub fn finish(self) -> Result<(), Broken> {
        // Neither sum can overflow: at most 2^16 buffers of less than 2^32 bytes.
        if self.chain.readable_len() + self.chain.writable_len() > u64::from(u32::MAX) {
            return Err(Broken::TooLong);
        }
        Ok(())
    }

    /// The last descriptor of a split chain is a table; `flags` are that descriptor's.
    pub fn split_table(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
        let table = self.table(addr, len, flags)?;
        let mut index = 0;
        for _ in 0..table.entries {
            let descriptor: SplitDescriptor = table.read(self.mem, index)?;
            let flags = descriptor.flags.get();
            if flags & DESC_INDIRECT != 0 {
                return Err(Broken::BadIndirect(BadIndirect::Nested));
            }
            self.buffer(descriptor.addr.get(), descriptor.len.get(), flags)?;
            if flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next.get();
            if index >= table.entries {
                return Err(Broken::IndexOutOfRange { index, limit: table.entries });
            }
        }
        Err(Broken::DescriptorLoop)
    }

    /// The last descriptor of a packed chain is a table: all of its entries are buffers, in order, and NEXT means
    /// nothing in them (virtio 1.3 §2.8.8).
    pub fn packed_table(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
        let table = self.table(addr, len, flags)?;
        for index in 0..table.entries {
            let descriptor: PackedDescriptor = table.read(self.mem, index)?;
            let flags = descriptor.flags.get();
            if flags & DESC_INDIRECT != 0 {
                return Err(Broken::BadIndirect(BadIndirect::Nested));
            }
            self.buffer(descriptor.addr.get(), descriptor.len.get(), flags)?;
        }
        Ok(())
    }

    fn table(&self, addr: u64, len: u32, flags: u16) -> Result<Table<'a>, Broken> {
        if !self.indirect {
            return Err(Broken::BadIndirect(BadIndirect::NotNegotiated));
        }
        if flags & DESC_NEXT != 0 {
            return Err(Broken::BadIndirect(BadIndirect::WithNext));
        }
        if len == 0 || len > MAX_INDIRECT_BYTES || !len.is_multiple_of(DESC_BYTES as u32) {
            return Err(Broken::BadIndirect(BadIndirect::Length(len)));
        }
        let whole = self.mem.slice(GuestAddr(addr), len as usize).ok();
        if whole.is_none() {
            self.mem.pieces(GuestAddr(addr), len as usize, |_| {})?;
        }
        Ok(Table { addr, entries: (len / DESC_BYTES as u32) as u16, whole })
    }
}

/// An indirect table in guest memory.
struct Table<'a> {
    addr: u64,
    entries: u16,
    /// All of it, unless it crosses regions that touch.
    whole: Option<GuestSlice<'a>>,
}

impl Table<'_> {
    /// Copies one entry, with `index < entries`.
    #[inline]
    fn read<T: FromBytes>(&self, mem: &MemoryView, index: u16) -> Result<T, Broken> {
        let offset = usize::from(index) * DESC_BYTES;
        match self.whole.and_then(|table| table.read_obj(offset)) {
            Some(entry) => Ok(entry),
            None => self.read_alone(mem, offset),
        }
    }

    #[cold]
    fn read_alone<T: FromBytes>(&self, mem: &MemoryView, offset: usize) -> Result<T, Broken> {
        let out_of_range = memory::OutOfRange { addr: self.addr, len: DESC_BYTES };
        let addr = self.addr.checked_add(offset as u64).ok_or(out_of_range)?;
        let slice = mem.slice(GuestAddr(addr), DESC_BYTES)?;
        slice.read_obj(0).ok_or(Broken::OutOfRange(out_of_range))
    }
}
