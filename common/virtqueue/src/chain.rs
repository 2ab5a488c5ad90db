//! A request as the device sees it: the buffers of one descriptor chain, translated.

use memory::{HostRange, MemoryView};

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

/// Room for segments that [`Chain::trim`] leaves: those of a request of 1 MiB in pages.
const SEGMENTS_KEPT: usize = 512;

/// One descriptor chain. Lives in the device's request slot and is used again and again: it allocates only when a chain
/// has more segments than any before.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    token: Token,
    segments: Vec<HostRange>,
    /// Readable segments already consumed by `read_prefix`.
    consumed: usize,
    /// Segments that are readable; the writable ones follow.
    split: usize,
    readable_len: u64,
    writable_len: u64,
    /// The byte cut off the end by `detach_status`.
    status: Option<HostRange>,
    /// How many bytes at the end `write_suffix` has written.
    suffix: usize,
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
        match self.segments[..self.split].get_mut(self.consumed) {
            // Nearly always.
            Some(first) if first.len > buf.len() && !buf.is_empty() => {
                let together = HostRange { base: first.base, len: buf.len() };
                mem.reenter(together).ok_or(Short)?.read(0, buf);
                first.base = first.base.wrapping_byte_add(buf.len());
                first.len -= buf.len();
                self.readable_len -= buf.len() as u64;
            }
            Some(first) if first.len == buf.len() => {
                mem.reenter(*first).ok_or(Short)?.read(0, buf);
                self.consumed += 1;
                self.readable_len -= buf.len() as u64;
            }
            _ => {
                copy_out(mem, self.readable(), 0, buf)?;
                self.advance(buf.len());
            }
        }
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

    /// Writes the last `bytes.len()` writable bytes. While a dirty log is set they are marked in it with the chain, whether
    /// the number of bytes written that the chain is completed with reaches them or not.
    pub fn write_suffix(&mut self, mem: &MemoryView, bytes: &[u8]) -> Result<(), Short> {
        let offset = self.writable_len.checked_sub(bytes.len() as u64).ok_or(Short)?;
        self.suffix = self.suffix.max(bytes.len());
        copy_in(mem, self.writable(), offset as usize, bytes)
    }

    /// Calls `each` for the pieces that hold what `write_suffix` has written.
    pub(crate) fn suffix(&self, mut each: impl FnMut(HostRange)) {
        let offset = (self.writable_len as usize).saturating_sub(self.suffix);
        // It was found to fit when it was written.
        let _ = walk(self.writable(), offset, self.suffix, |piece| {
            each(piece);
            Ok(())
        });
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

    /// Gives back what a chain of unusually many segments has allocated. For the end of a request, so that a guest that once
    /// had many such requests at a time does not keep that memory.
    #[inline]
    pub fn trim(&mut self) {
        if self.segments.capacity() > SEGMENTS_KEPT {
            self.reset();
            self.split = 0;
            self.segments = Vec::new();
        }
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
    #[inline(always)]
    pub(crate) fn reset(&mut self) {
        self.segments.clear();
        self.consumed = 0;
        self.status = None;
        self.suffix = 0;
    }

    /// Adds a segment; returns how many there are.
    #[inline(always)]
    pub(crate) fn push(&mut self, range: HostRange) -> usize {
        self.segments.push(range);
        self.segments.len()
    }

    /// Ends a chain of which the first `split` segments are readable.
    #[inline(always)]
    pub(crate) fn seal(&mut self, split: usize, readable_len: u64, writable_len: u64) {
        self.split = split;
        self.readable_len = readable_len;
        self.writable_len = writable_len;
    }

    /// Makes it a chain of one buffer.
    #[inline(always)]
    pub(crate) fn set_single(&mut self, range: HostRange, writable: bool, token: Token) {
        self.reset();
        self.push(range);
        let len = range.len as u64;
        match writable {
            true => self.seal(0, 0, len),
            false => self.seal(1, len, 0),
        }
        self.token = token;
    }

    /// What the chain is for its ring, once it is taken.
    #[inline(always)]
    pub(crate) fn set_token(&mut self, token: Token) {
        self.token = token;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceRing;
    use crate::driver::Segment;
    use crate::tests::rig::{Rig, SPLIT};

    /// A chain of these buffers, of which the readable ones hold 0, 1, 2, ...
    fn chain(rig: &Rig, readable: &[u32], writable: &[u32]) -> Chain {
        let buffers = |lens: &[u32]| lens.iter().map(|&len| rig.buffer(len)).collect::<Vec<Segment>>();
        let (readable, writable) = (buffers(readable), buffers(writable));
        let mut byte = 0u8;
        for segment in &readable {
            let slice = rig.memory.slice(segment.addr, segment.len as usize).unwrap();
            (0..segment.len as usize).for_each(|offset| {
                slice.write(offset, &[byte]);
                byte += 1;
            });
        }
        let (mut driver, mut ring) = (rig.driver(), rig.device());
        driver.add(&readable, &writable, 0).unwrap();
        let _ = driver.publish();
        assert_eq!(ring.fetch(1), 1);
        rig.next(&mut ring)
    }

    fn bytes(rig: &Rig, ranges: &[HostRange]) -> Vec<u8> {
        let mut all = Vec::new();
        for range in ranges {
            let mut piece = vec![0; range.len];
            rig.view.reenter(*range).unwrap().read(0, &mut piece);
            all.extend(piece);
        }
        all
    }

    #[test]
    fn a_header_is_read_however_it_is_spread_over_descriptors() {
        for layout in [&[16, 8][..], &[1, 15, 8], &[24], &[5, 5, 5, 5, 4], &[4, 0, 12, 8]] {
            let rig = Rig::new(16, SPLIT);
            let mut chain = chain(&rig, layout, &[8]);
            let mut header = [0; 16];
            chain.read_prefix(&rig.view, &mut header).unwrap();
            assert_eq!(header.to_vec(), (0..16).collect::<Vec<u8>>());
            assert_eq!((chain.readable_len(), chain.writable_len()), (8, 8));
            assert_eq!(bytes(&rig, chain.readable()), (16..24).collect::<Vec<u8>>());
            let mut two = [0; 2];
            chain.read_at(&rig.view, 3, &mut two).unwrap();
            assert_eq!(two, [19, 20]);
        }
    }

    #[test]
    fn a_header_longer_than_the_chain_is_short_and_consumes_nothing() {
        let rig = Rig::new(8, SPLIT);
        let mut chain = chain(&rig, &[4, 4], &[100]);
        assert_eq!(chain.read_prefix(&rig.view, &mut [0; 9]), Err(Short));
        assert_eq!(chain.read_at(&rig.view, 7, &mut [0; 2]), Err(Short));
        assert_eq!((chain.readable().len(), chain.readable_len()), (2, 8));
    }

    #[test]
    fn the_status_byte_is_cut_off_the_end_and_written_alone() {
        for (layout, left) in [(&[8, 1][..], 1), (&[9], 1), (&[1], 0), (&[3, 4, 2], 3)] {
            let rig = Rig::new(8, SPLIT);
            let mut chain = chain(&rig, &[], layout);
            let (all, len) = (chain.writable().to_vec(), chain.writable_len());
            chain.detach_status().unwrap();
            assert_eq!(chain.detach_status(), Err(Short));
            assert_eq!((chain.writable().len(), chain.writable_len()), (left, len - 1));
            chain.write_status(&rig.view, 0x5a).unwrap();
            let mut expected = vec![0; len as usize - 1];
            expected.push(0x5a);
            assert_eq!(bytes(&rig, &all), expected);
        }
    }

    #[test]
    fn a_chain_without_writable_bytes_has_no_status() {
        let rig = Rig::new(8, SPLIT);
        let mut chain = chain(&rig, &[8], &[]);
        assert_eq!((chain.detach_status(), chain.write_status(&rig.view, 0)), (Err(Short), Err(Short)));
    }

    #[test]
    fn writes_land_at_their_offset_and_at_the_end() {
        let rig = Rig::new(8, SPLIT);
        let mut chain = chain(&rig, &[], &[3, 3, 3]);
        chain.write_at(&rig.view, 2, &[1, 2]).unwrap();
        chain.write_suffix(&rig.view, &[8, 9]).unwrap();
        assert_eq!(bytes(&rig, chain.writable()), [0, 0, 1, 2, 0, 0, 0, 8, 9]);
        assert_eq!(chain.write_at(&rig.view, 8, &[1, 2]), Err(Short));
        assert_eq!(chain.write_suffix(&rig.view, &[0; 10]), Err(Short));
    }

    #[test]
    fn a_chain_of_many_segments_does_not_keep_their_memory() {
        let rig = Rig::new(1024, SPLIT);
        let mut few = chain(&rig, &[8], &[1, 1, 1]);
        few.trim();
        assert_eq!(few.writable().len(), 3, "what is kept is as it was");
        let mut many = chain(&rig, &[8], &[1; 600]);
        many.detach_status().unwrap();
        many.trim();
        assert_eq!(many.segments.capacity(), 0);
        assert!(many.readable().is_empty() && many.writable().is_empty());
    }

    #[test]
    fn memory_that_was_taken_away_is_not_touched() {
        let rig = Rig::new(8, SPLIT);
        let mut chain = chain(&rig, &[8], &[8]);
        let empty = MemoryView::new(memory::MemoryTable::empty());
        assert_eq!(chain.read_prefix(&empty, &mut [0; 4]), Err(Short));
        assert_eq!(chain.write_at(&empty, 0, &[0]), Err(Short));
    }
}
