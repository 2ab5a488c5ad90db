//! A request as the device sees it: the buffers of one descriptor chain, translated.

use memory::{HostRange, MemoryView};
use smallvec::SmallVec;

/// Which chain this is, for its ring. Plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Head index (split) or buffer id (packed): unique among the chains in flight.
    pub(crate) id: u16,
    /// Ring slots the chain takes (packed).
    pub(crate) slots: u16,
    /// First entry of the chain in the inflight region (packed).
    pub(crate) entry: u16,
    /// Counts the chains taken from this ring.
    pub(crate) serial: u32,
    /// Whether a predecessor had taken the chain already (inflight region).
    pub(crate) again: bool,
}

impl Token {
    /// Head index (split) or buffer id (packed): unique among the chains of the ring that are in flight.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Whether the request was in flight when a predecessor was killed, and may have been executed before.
    pub fn resubmitted(&self) -> bool {
        self.again
    }
}

/// The chain has fewer bytes, of the kind asked for, than the device needs; or its memory was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The chain is shorter than its request")]
pub struct Short;

/// One descriptor chain. Lives in the device's request slot and is used again and again: it allocates only when a chain
/// has more segments than any before.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    token: Token,
    segments: SmallVec<[HostRange; 8]>,
    /// Readable segments already consumed by `read_prefix`.
    consumed: usize,
    /// Segments that are readable; the writable ones follow.
    split: usize,
    readable_len: u64,
    writable_len: u64,
    /// The byte cut off the end by `detach_status`.
    status: Option<HostRange>,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Identity of the chain.
    #[inline]
    pub fn token(&self) -> Token {
        self.token
    }

    /// What the device may read, in order, less what `read_prefix` consumed.
    #[inline]
    pub fn readable(&self) -> &[HostRange] {
        &self.segments[self.consumed..self.split]
    }

    /// What the device may write, in order, less the byte cut off by `detach_status`.
    #[inline]
    pub fn writable(&self) -> &[HostRange] {
        &self.segments[self.split..]
    }

    /// Bytes in [`readable`](Self::readable).
    #[inline]
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    #[inline]
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Copies the next `buf.len()` readable bytes out, however they are spread over descriptors (ANY_LAYOUT, virtio 1.3
    /// §2.7.4.3), and advances past them. On an error nothing is consumed.
    #[inline]
    pub fn read_prefix(&mut self, mem: &MemoryView, buf: &mut [u8]) -> Result<(), Short> {
        if self.readable_len < buf.len() as u64 {
            return Err(Short);
        }
        copy_out(mem, self.readable(), 0, buf)?;
        self.advance(buf.len());
        Ok(())
    }

    /// Copies readable bytes from `offset` on, without consuming any.
    pub fn read_at(&self, mem: &MemoryView, offset: usize, buf: &mut [u8]) -> Result<(), Short> {
        copy_out(mem, self.readable(), offset, buf)
    }

    /// Writes `bytes` into the writable buffers from `offset` on.
    pub fn write_at(&self, mem: &MemoryView, offset: usize, bytes: &[u8]) -> Result<(), Short> {
        copy_in(mem, self.writable(), offset, bytes)
    }

    /// Writes the last `bytes.len()` writable bytes.
    pub fn write_suffix(&self, mem: &MemoryView, bytes: &[u8]) -> Result<(), Short> {
        let offset = self.writable_len.checked_sub(bytes.len() as u64).ok_or(Short)?;
        copy_in(mem, self.writable(), offset as usize, bytes)
    }

    /// Cuts the last writable byte off, for the devices that put their status there: what remains in
    /// [`writable`](Self::writable) is data. At most once per chain.
    #[inline]
    pub fn detach_status(&mut self) -> Result<(), Short> {
        if self.status.is_some() || self.segments.len() == self.split {
            return Err(Short);
        }
        let last = self.segments.last_mut().ok_or(Short)?;
        last.len -= 1;
        self.status = Some(HostRange { base: last.base.wrapping_byte_add(last.len), len: 1 });
        if last.len == 0 {
            self.segments.pop();
        }
        self.writable_len -= 1;
        Ok(())
    }

    /// Writes the byte that `detach_status` cut off.
    #[inline]
    pub fn write_status(&self, mem: &MemoryView, status: u8) -> Result<(), Short> {
        let range = self.status.ok_or(Short)?;
        mem.reenter(range).ok_or(Short)?.write(0, &[status]);
        Ok(())
    }

    /// The byte that `detach_status` cut off.
    pub fn status(&self) -> Option<HostRange> {
        self.status
    }

    fn advance(&mut self, bytes: usize) {
        self.readable_len -= bytes as u64;
        let mut left = bytes;
        while left > 0 {
            let segment = &mut self.segments[self.consumed];
            if segment.len > left {
                segment.base = segment.base.wrapping_byte_add(left);
                segment.len -= left;
                return;
            }
            left -= segment.len;
            self.consumed += 1;
        }
    }

    /// Forgets the previous chain, keeps its allocation.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.segments.clear();
        self.consumed = 0;
        self.split = 0;
        self.readable_len = 0;
        self.writable_len = 0;
        self.status = None;
    }

    #[inline]
    pub(crate) fn set_token(&mut self, token: Token) {
        self.token = token;
    }

    #[inline]
    pub(crate) fn push_readable(&mut self, range: HostRange) {
        self.segments.push(range);
        self.split = self.segments.len();
        self.readable_len += range.len as u64;
    }

    #[inline]
    pub(crate) fn push_writable(&mut self, range: HostRange) {
        self.segments.push(range);
        self.writable_len += range.len as u64;
    }
}

fn copy_out(mem: &MemoryView, from: &[HostRange], offset: usize, buf: &mut [u8]) -> Result<(), Short> {
    let mut done = 0;
    walk(from, offset, buf.len(), |piece| {
        mem.reenter(piece).ok_or(Short)?.read(0, &mut buf[done..done + piece.len]);
        done += piece.len;
        Ok(())
    })
}

fn copy_in(mem: &MemoryView, to: &[HostRange], offset: usize, bytes: &[u8]) -> Result<(), Short> {
    let mut done = 0;
    walk(to, offset, bytes.len(), |piece| {
        mem.reenter(piece).ok_or(Short)?.write(0, &bytes[done..done + piece.len]);
        done += piece.len;
        Ok(())
    })
}

/// Visits the pieces that hold `len` bytes from `offset` on.
#[inline]
fn walk(
    segments: &[HostRange],
    mut offset: usize,
    len: usize,
    mut visit: impl FnMut(HostRange) -> Result<(), Short>,
) -> Result<(), Short> {
    let mut left = len;
    for segment in segments {
        if left == 0 {
            break;
        }
        if offset >= segment.len {
            offset -= segment.len;
            continue;
        }
        let here = left.min(segment.len - offset);
        visit(segment.sub(offset, here).ok_or(Short)?)?;
        offset = 0;
        left -= here;
    }
    if left == 0 { Ok(()) } else { Err(Short) }
}
