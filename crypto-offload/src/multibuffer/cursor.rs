//! Where a request is in its buffers: ranges of memory cut into runs of blocks that are contiguous on both sides.
#![expect(unsafe_code, reason = "a block that lies across a boundary is collected from raw ranges and given out again")]

use super::{BLOCK, Block};
use crate::engine::{Pieces, Ranges};

/// How near after its source a destination must not begin: kernels read this many bytes before they write the first.
pub(super) const READ_AHEAD: usize = 128;

/// The next bytes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// Whole blocks, contiguous on both sides.
    Run(Run),
    /// One block that lies across a boundary, or whose writing changes what is read next: use
    /// [`Cursor::through_copy`].
    Copy,
}

/// Blocks that lie one after the other, in the source and in the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub src: *const u8,
    pub dst: *mut u8,
    pub blocks: usize,
}

/// A position in the source and one in the destination of a request.
pub(super) struct Cursor {
    src: Side,
    dst: Side,
    remaining: usize,
}

impl Cursor {
    /// At the start of both.
    ///
    /// # Safety
    /// While the cursor lives, the lists that the ranges were made of are where they were, unchanged. The ranges have
    /// the same length.
    pub(super) unsafe fn new(src: &Ranges, dst: &Ranges) -> Self {
        debug_assert_eq!(src.len(), dst.len());
        // SAFETY: the caller's promise.
        unsafe { Self { src: Side::new(src), dst: Side::new(dst), remaining: src.len() } }
    }

    /// Bytes that no piece was taken for yet.
    #[inline]
    pub(super) fn remaining(&self) -> usize {
        self.remaining
    }

    /// Takes the next piece: a run is then behind the cursor, a block to copy still before it. `None` at the end.
    #[inline]
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        if self.remaining == 0 {
            return None;
        }
        let blocks = self.src.contiguous().min(self.dst.contiguous()) / BLOCK;
        if blocks == 0 || self.writes_into_what_comes() {
            return Some(Piece::Copy);
        }
        let len = blocks * BLOCK;
        let run = Run { src: self.src.at, dst: self.dst.at, blocks };
        self.src.skip(len);
        self.dst.skip(len);
        self.remaining -= len;
        Some(Piece::Run(run))
    }

    /// Passes one block through `encrypt` by way of a private copy.
    ///
    /// # Safety
    /// The ranges that the cursor was made of can be read and written.
    pub(super) unsafe fn through_copy(&mut self, encrypt: impl FnOnce(&mut Block)) {
        let mut block = Block::default();
        // SAFETY: the caller's promise for the ranges; there are at least 16 bytes left on both sides, because as many
        // remain of both and they are a multiple of 16.
        unsafe { self.src.gather(&mut block) };
        encrypt(&mut block);
        // SAFETY: as above.
        unsafe { self.dst.scatter(&block) };
        self.remaining -= BLOCK;
    }

    /// Whether the destination begins inside what a kernel would already have read.
    #[inline]
    fn writes_into_what_comes(&self) -> bool {
        let ahead = (self.dst.at as usize).wrapping_sub(self.src.at as usize);
        ahead != 0 && ahead < READ_AHEAD
    }
}

/// A position in one of them.
struct Side {
    at: *mut u8,
    left: usize,
    next: Pieces,
}

impl Side {
    /// # Safety
    /// As for [`Cursor::new`].
    unsafe fn new(ranges: &Ranges) -> Self {
        // SAFETY: the caller's promise.
        Self { at: std::ptr::null_mut(), left: 0, next: unsafe { ranges.pieces() } }
    }

    /// Bytes from here that are contiguous; 0 only at the end.
    #[inline]
    fn contiguous(&mut self) -> usize {
        if self.left == 0
            && let Some(piece) = self.next.next()
        {
            (self.at, self.left) = (piece.base.cast(), piece.len);
        }
        self.left
    }

    /// Goes `len` contiguous bytes on.
    #[inline]
    fn skip(&mut self, len: usize) {
        self.at = self.at.wrapping_add(len);
        self.left -= len;
    }

    /// # Safety
    /// The ranges can be read.
    unsafe fn gather(&mut self, block: &mut Block) {
        let mut filled = 0;
        while filled < BLOCK {
            let step = self.contiguous().min(BLOCK - filled);
            assert!(step > 0, "a request is no longer than its ranges");
            // SAFETY: `step` bytes of a range (the caller's promise) into the block, whose end is at least as far.
            unsafe { self.at.copy_to_nonoverlapping(block.0.as_mut_ptr().add(filled), step) };
            self.skip(step);
            filled += step;
        }
    }

    /// # Safety
    /// The ranges can be written.
    unsafe fn scatter(&mut self, block: &Block) {
        let mut given = 0;
        while given < BLOCK {
            let step = self.contiguous().min(BLOCK - given);
            assert!(step > 0, "a request is no longer than its ranges");
            // SAFETY: `step` bytes of the block into a range (the caller's promise); the block is private.
            unsafe { self.at.copy_from_nonoverlapping(block.0.as_ptr().add(given), step) };
            self.skip(step);
            given += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::HostRange;

    use super::*;

    fn ranges(buffer: &mut [u8], lens: &[usize]) -> Vec<HostRange> {
        let mut at = buffer.as_mut_ptr();
        lens.iter()
            .map(|&len| {
                let range = HostRange { base: at.cast(), len };
                at = at.wrapping_add(len);
                range
            })
            .collect()
    }

    /// Lengths in blocks of the pieces, 0 for a copied one.
    fn pieces(src: &[HostRange], dst: &[HostRange]) -> Vec<usize> {
        // SAFETY: the lists live as long as the cursor, and are of one length.
        let mut cursor = unsafe { Cursor::new(&Ranges::whole(src), &Ranges::whole(dst)) };
        let mut pieces = Vec::new();
        while let Some(piece) = cursor.next_piece() {
            match piece {
                Piece::Run(run) => pieces.push(run.blocks),
                Piece::Copy => {
                    pieces.push(0);
                    // SAFETY: the ranges are parts of buffers that live.
                    unsafe { cursor.through_copy(|_| ()) };
                }
            }
        }
        assert_eq!(cursor.remaining(), 0);
        pieces
    }

    #[test]
    fn blocks_across_a_boundary_are_copied_and_the_rest_is_not() {
        let (mut src, mut dst) = ([7; 160], [0; 160]);
        assert_eq!(pieces(&ranges(&mut src, &[160]), &ranges(&mut dst, &[160])), [10]);
        assert_eq!(pieces(&ranges(&mut src, &[32, 0, 128]), &ranges(&mut dst, &[160])), [2, 8]);
        assert_eq!(pieces(&ranges(&mut src, &[40, 120]), &ranges(&mut dst, &[160])), [2, 0, 7]);
        assert_eq!(pieces(&ranges(&mut src, &[40, 120]), &ranges(&mut dst, &[0, 72, 88])), [2, 0, 1, 0, 5]);
        assert_eq!(pieces(&ranges(&mut src, &[5; 32]), &ranges(&mut dst, &[160])), [0; 10]);
        assert_eq!(dst, [7; 160]);
    }

    #[test]
    fn a_destination_just_behind_its_source_goes_block_by_block() {
        let mut buffer = [0; 512];
        let at = |buffer: &mut [u8; 512], offset: usize| {
            [HostRange { base: buffer[offset..].as_mut_ptr().cast(), len: 64 }]
        };
        for (src, dst, expected) in [
            (0, 0, &[4][..]),
            (0, 1, &[0, 0, 0, 0]),
            (0, READ_AHEAD - 1, &[0, 0, 0, 0]),
            (0, READ_AHEAD, &[4]),
            (1, 0, &[4]),
            (100, 84, &[4]),
        ] {
            assert_eq!(pieces(&at(&mut buffer, src), &at(&mut buffer, dst)), expected, "{src} {dst}");
        }
    }
}
