//! The frames of one burst between their source and their destinations.

use memory::{HostRange, MemoryView};

use crate::frame::NetHeader;

/// Most frames in work at once: their private heads should stay in the first-level cache.
pub const STRIDE: usize = 32;

/// Frames in work, up to [`STRIDE`]. Lives as long as its worker and allocates only until it has seen the largest frame.
#[derive(Default)]
pub struct Burst {
    len: usize,
}

impl Burst {
    /// How many more frames it takes.
    pub fn room(&self) -> usize {
        STRIDE - self.len
    }

    /// Adds a frame that lies in `ranges` of `view`, from the destination address on. The first bytes are copied at once;
    /// the rest must stay until the burst is delivered.
    pub fn push(&mut self, view: &MemoryView, header: NetHeader, ranges: &[HostRange]) {
        let _ = (view, header, ranges);
        self.len += 1;
    }
}
