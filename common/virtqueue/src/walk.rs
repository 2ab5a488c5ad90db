//! From copied descriptors to the segments of a chain: every check of a buffer or an indirect table is here.

use memory::{GuestAddr, GuestSlice, MemoryView};
use zerocopy::FromBytes;

use crate::broken::{BadIndirect, Broken};
use crate::chain::Chain;
use crate::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, PackedDescriptor, SplitDescriptor};

/// Longest indirect table. Drivers may make tables longer than the queue (Linux does), so the queue size is no limit;
/// 4096 entries are four times what one readv or writev takes (IOV_MAX, 1024) and bound what a request can cost.
const MAX_INDIRECT_BYTES: u32 = 4096 * DESC_BYTES as u32;

/// Fills a chain, buffer by buffer. The sums stay in registers until the end.
pub(crate) struct Walk<'a> {
    mem: &'a MemoryView,
    chain: &'a mut Chain,
    indirect: bool,
    readable_segments: usize,
    readable: u64,
    writable: u64,
}

impl<'a> Walk<'a> {
    /// Starts an empty chain; `indirect` is whether INDIRECT_DESC was negotiated.
    #[inline(always)]
    pub fn new(mem: &'a MemoryView, chain: &'a mut Chain, indirect: bool) -> Self {
        chain.reset();
        Self { mem, chain, indirect, readable_segments: 0, readable: 0, writable: 0 }
    }

    /// One buffer. An empty one is allowed and leaves nothing.
    #[inline(always)]
    pub fn buffer(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
        if len == 0 {
            return Ok(());
        }
        let write = flags & DESC_WRITE != 0;
        if !write && self.writable != 0 {
            return Err(Broken::ReadableAfterWritable);
        }
        let segments = match self.mem.slice(GuestAddr(addr), len as usize) {
            Ok(slice) => self.chain.push(slice.range()),
            Err(_) => across_regions(self.mem, self.chain, addr, len)?,
        };
        if write {
            self.writable += u64::from(len);
        } else {
            self.readable += u64::from(len);
            self.readable_segments = segments;
        }
        Ok(())
    }

    /// All buffers are there.
    #[inline(always)]
    pub fn finish(self) -> Result<(), Broken> {
        // Neither sum can overflow: at most 2^16 buffers of less than 2^32 bytes.
        if self.readable + self.writable > u64::from(u32::MAX) {
            return Err(Broken::TooLong);
        }
        self.chain.seal(self.readable_segments, self.readable, self.writable);
        Ok(())
    }

    /// The last descriptor of a split chain is a table; `flags` are that descriptor's. Ends the chain.
    #[inline(never)]
    pub fn split_table(mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
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
                return self.finish();
            }
            index = descriptor.next.get();
            if index >= table.entries {
                return Err(Broken::IndexOutOfRange { index, limit: table.entries });
            }
        }
        Err(Broken::DescriptorLoop)
    }

    /// The last descriptor of a packed chain is a table: all of its entries are buffers, in order, and NEXT means
    /// nothing in them (virtio 1.3 §2.8.8). Ends the chain.
    #[inline(never)]
    pub fn packed_table(mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
        let table = self.table(addr, len, flags)?;
        for index in 0..table.entries {
            let descriptor: PackedDescriptor = table.read(self.mem, index)?;
            let flags = descriptor.flags.get();
            if flags & DESC_INDIRECT != 0 {
                return Err(Broken::BadIndirect(BadIndirect::Nested));
            }
            self.buffer(descriptor.addr.get(), descriptor.len.get(), flags)?;
        }
        self.finish()
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

/// A buffer that is not in one region: all of its pieces, when they are in regions that touch.
#[cold]
#[inline(never)]
fn across_regions(mem: &MemoryView, chain: &mut Chain, addr: u64, len: u32) -> Result<usize, Broken> {
    let mut segments = 0;
    mem.pieces(GuestAddr(addr), len as usize, |piece| segments = chain.push(piece.range()))?;
    Ok(segments)
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
