//! What follows the head of a frame, left where it is.

use memory::{GuestSlice, HostRange, MemoryView};

use super::checksum::Sum;
use super::{Head, NetHeader};

/// The part of a frame that was not copied: bytes `skip..skip + len` of the memory `ranges` name, one after another.
///
/// The ranges were checked when they were taken from a ring; each access checks them again against the same table.
#[derive(Clone, Copy)]
pub struct Body<'m> {
    view: &'m MemoryView,
    ranges: &'m [HostRange],
    skip: usize,
    len: usize,
}

/// One frame at its source.
#[derive(Clone, Copy)]
pub struct Frame<'m> {
    /// What the sender left undone.
    pub header: NetHeader,
    /// Its first bytes.
    pub head: &'m Head,
    /// The others.
    pub body: Body<'m>,
}

/// One frame as it leaves.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    /// What the receiver has to do.
    pub header: NetHeader,
    /// Its first bytes.
    pub head: &'a [u8],
    /// The others.
    pub body: Body<'a>,
}

impl Frame<'_> {
    /// Bytes of the frame.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least its addresses")]
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl<'m> Frame<'m> {
    /// The frame as it is.
    #[inline]
    pub fn packet(&self) -> Packet<'m> {
        Packet { header: self.header, head: self.head.as_slice(), body: self.body }
    }
}

impl Packet<'_> {
    /// Bytes of the frame, without the virtio-net header.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least its addresses")]
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl<'m> Body<'m> {
    /// `len` bytes of `ranges`, which are of `view`'s table, after the first `skip`. What the ranges do not hold is not
    /// there: the length is cut down to it only while walking, so that this costs nothing.
    #[inline]
    pub fn new(view: &'m MemoryView, ranges: &'m [HostRange], skip: usize, len: usize) -> Self {
        Self { view, ranges, skip, len }
    }

    /// No bytes.
    #[inline]
    pub fn empty(view: &'m MemoryView) -> Self {
        Self { view, ranges: &[], skip: 0, len: 0 }
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` on, or what there is of them.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self { skip: self.skip + offset, len: len.min(self.len - offset), ..*self }
    }

    /// Takes the first `len` bytes off, or what there is of them, and returns them. Walking through a body this way
    /// looks at each range once, however many pieces are taken.
    #[inline]
    pub fn take(&mut self, len: usize) -> Self {
        let front = self.sub(0, len);
        self.skip += front.len;
        self.len -= front.len;
        while let Some((first, rest)) = self.ranges.split_first().filter(|(first, _)| first.len <= self.skip)
        {
            self.skip -= first.len;
            self.ranges = rest;
        }
        front
    }

    /// The contiguous pieces, in order; empty ones are left out.
    #[inline]
    pub fn pieces(&self) -> Pieces<'m> {
        Pieces(*self)
    }

    /// Calls `piece` for each of the [`pieces`](Self::pieces).
    #[inline]
    pub fn for_each(&self, piece: impl FnMut(GuestSlice<'m>)) {
        self.pieces().for_each(piece);
    }

    /// Copies the first bytes into `out`; the answer is how many there were.
    #[inline]
    pub fn read(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.sub(0, out.len()).pieces() {
            piece.read(0, &mut out[done..done + piece.len()]);
            done += piece.len();
        }
        done
    }

    /// The Internet checksum over all of it.
    #[inline]
    pub fn checksum(&self) -> Sum {
        let mut sum = Sum::default();
        self.for_each(|piece| sum.add_slice(piece));
        sum
    }
}

/// Iterator over the contiguous pieces of a [`Body`].
pub struct Pieces<'m>(Body<'m>);

impl<'m> Iterator for Pieces<'m> {
    type Item = GuestSlice<'m>;

    #[inline]
    fn next(&mut self) -> Option<GuestSlice<'m>> {
        let body = &mut self.0;
        while body.len > 0 {
            let (first, rest) = body.ranges.split_first()?;
            let skip = body.skip.min(first.len);
            let len = (first.len - skip).min(body.len);
            (body.ranges, body.skip, body.len) = (rest, body.skip - skip, body.len - len);
            if len > 0 {
                return body.view.reenter(first.sub(skip, len)?);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use memory::{GuestAddr, OwnMemory};

    use super::*;

    /// A memory with the bytes 0, 1, 2, ... in ranges of these lengths, with gaps in between.
    fn ranges(memory: &OwnMemory, lens: &[usize]) -> Vec<HostRange> {
        let (mut value, mut ranges) = (0_u8, Vec::new());
        for &len in lens {
            let addr = memory.alloc(len + 3, 1).expect("room");
            let slice = memory.slice(addr, len).expect("inside");
            let bytes: Vec<u8> = (0..len).map(|at| value + at as u8).collect();
            slice.write(0, &bytes);
            value += len as u8;
            ranges.push(slice.range());
        }
        ranges
    }

    fn bytes(body: &Body<'_>) -> Vec<u8> {
        let mut bytes = vec![0; body.len()];
        assert_eq!(body.read(&mut bytes), body.len());
        bytes
    }

    #[test]
    fn any_part_of_a_body_is_the_same_bytes() {
        let memory = OwnMemory::new(4096, GuestAddr(0)).expect("memory");
        let ranges = ranges(&memory, &[0, 5, 1, 0, 30, 7]);
        let view = MemoryView::new(memory.table().clone());
        for skip in 0..43 {
            let body = Body::new(&view, &ranges, skip, 43 - skip);
            let whole: Vec<u8> = (skip as u8..43).collect();
            assert_eq!(bytes(&body), whole);
            for offset in 0..=body.len() {
                for len in 0..=body.len() - offset {
                    assert_eq!(bytes(&body.sub(offset, len)), whole[offset..offset + len]);
                }
            }
        }
    }

    #[test]
    fn taking_pieces_off_goes_through_all_of_it() {
        let memory = OwnMemory::new(4096, GuestAddr(0)).expect("memory");
        let ranges = ranges(&memory, &[0, 5, 1, 0, 30, 7]);
        let view = MemoryView::new(memory.table().clone());
        for step in 1..50 {
            let (mut body, mut all) = (Body::new(&view, &ranges, 2, 41), Vec::new());
            while !body.is_empty() {
                let front = body.take(step);
                assert!(front.pieces().all(|piece| !piece.is_empty()));
                all.extend(bytes(&front));
            }
            assert_eq!(all, (2..43).collect::<Vec<u8>>());
            assert!(body.take(step).is_empty());
        }
    }

    #[test]
    fn what_is_not_there_ends_the_pieces() {
        let memory = OwnMemory::new(4096, GuestAddr(0)).expect("memory");
        let (ranges, view) = (ranges(&memory, &[4, 4]), MemoryView::new(memory.table().clone()));
        let body = Body::new(&view, &ranges, 0, 12);
        assert_eq!(body.read(&mut [0; 12]), 8);
        let foreign = [ranges[0], HostRange { base: std::ptr::null_mut(), len: 4 }, ranges[1]];
        assert_eq!(Body::new(&view, &foreign, 0, 12).read(&mut [0; 12]), 4);
        assert_eq!(Body::empty(&view).pieces().count(), 0);
    }
}
