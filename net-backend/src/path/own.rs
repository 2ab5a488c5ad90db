//! Private memory for one frame that lies nowhere else: one of our own making, or one that was read in place and must be changed.

use std::io;

use memory::{GuestAddr, HostRange, MemoryView, OwnMemory};

use crate::frame::Body;

use super::MAX_FRAME;

/// A place for one frame.
pub(super) struct OwnFrame {
    pub view: MemoryView,
    place: HostRange,
}

impl OwnFrame {
    pub fn new() -> io::Result<Self> {
        let memory = OwnMemory::anonymous(MAX_FRAME.next_multiple_of(4096), GuestAddr(0))?;
        let place = memory.slice(GuestAddr(0), MAX_FRAME).map_err(io::Error::other)?.range();
        Ok(Self { view: MemoryView::new(memory.table().clone()), place })
    }

    /// Copies a frame here, in the place of the one before; `None` when it is too long.
    pub fn put(&self, head: &[u8], body: Body<'_>) -> Option<HostRange> {
        let frame = self.view.reenter(self.place.sub(0, head.len() + body.len())?)?;
        frame.write(0, head);
        let mut at = head.len();
        for piece in body.pieces() {
            piece.copy_to(frame.sub(at, piece.len())?);
            at += piece.len();
        }
        (at == frame.len()).then(|| frame.range())
    }
}
