//! Where a request is in its buffers: ranges of memory cut into runs of blocks that are contiguous on both sides.
#![expect(
    unsafe_code,
    reason = "a block that lies across a boundary is collected from raw ranges and given out again"
)]

use super::{BLOCK, Block};
use crate::engine::{self, Ranges};

/// The next bytes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// Whole blocks, contiguous on both sides.
    Run(Run),
    /// One block that lies across a boundary: use [`Cursor::through_copy`].
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
    src: engine::Cursor,
    dst: engine::Cursor,
    remaining: usize,
}

impl Cursor {
    /// At the start of both.
    ///
    /// # Safety
    /// While the cursor lives, the lists that the ranges were made of are where they were, unchanged. The ranges have
    /// the same length.
    #[inline]
    pub(super) unsafe fn new(src: &Ranges, dst: &Ranges) -> Self {
        debug_assert_eq!(src.len(), dst.len());
        // SAFETY: the caller's promise.
        unsafe { Self { src: engine::Cursor::new(src), dst: engine::Cursor::new(dst), remaining: src.len() } }
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
        let blocks = self.src.together().min(self.dst.together()) / BLOCK;
        if blocks == 0 {
            return Some(Piece::Copy);
        }
        let len = blocks * BLOCK;
        let run = Run { src: self.src.take(len), dst: self.dst.take(len), blocks };
        self.remaining -= len;
        Some(Piece::Run(run))
    }

    /// Passes one block through `encrypt` by way of a private copy.
    ///
    /// # Safety
    /// The source ranges can be read and the destination ranges written.
    pub(super) unsafe fn through_copy(&mut self, encrypt: impl FnOnce(&mut Block)) {
        let mut block = Block::default();
        // SAFETY: the caller's promise.
        let read = unsafe { self.src.read(&mut block.0) };
        encrypt(&mut block);
        // SAFETY: the caller's promise.
        let written = unsafe { self.dst.write(&block.0) };
        debug_assert!(
            read == BLOCK && written == BLOCK,
            "as many bytes remain on both sides, a multiple of 16"
        );
        self.remaining -= BLOCK;
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
    fn buffers_that_overlap_make_no_more_pieces_than_others() {
        let mut buffer = [0; 512];
        let at = |buffer: &mut [u8; 512], offset: usize| {
            [HostRange { base: buffer[offset..].as_mut_ptr().cast(), len: 64 }]
        };
        for (src, dst) in [(0, 0), (0, 1), (0, 127), (1, 0), (100, 84)] {
            assert_eq!(pieces(&at(&mut buffer, src), &at(&mut buffer, dst)), [4], "{src} {dst}");
        }
    }
}
