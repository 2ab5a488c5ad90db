//! Private memory for what must not lie in the guest's: sources that somebody else decodes, results that somebody else made.
//!
//! Buffers come in powers of two, and a worker keeps those it has used for the next request: after the first few there are no
//! allocations. What it keeps is bounded, so that a burst of large requests does not stay in memory for ever.

/// The smallest buffer.
const LEAST: usize = 4096;
/// Sizes there are: 4 KiB to 2 GiB.
const CLASSES: usize = 20;
/// Most bytes that a pool keeps.
const KEPT: usize = 32 << 20;

/// Memory of at least the size that was asked for. Whatever its last user left is still in it.
#[derive(Debug, Default)]
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// Its first `len` bytes.
    ///
    /// # Panics
    ///
    /// When it is shorter.
    #[inline]
    pub fn front(&self, len: usize) -> &[u8] {
        &self.0[..len]
    }

    /// Its first `len` bytes.
    ///
    /// # Panics
    ///
    /// When it is shorter.
    #[inline]
    pub fn front_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[..len]
    }
}

/// The buffers of one worker.
#[derive(Debug, Default)]
pub struct Buffers {
    free: [Vec<Buffer>; CLASSES],
    kept: usize,
}

/// The class of buffers that hold `len` bytes.
fn class_of(len: usize) -> usize {
    (len.max(LEAST).next_power_of_two() / LEAST).trailing_zeros() as usize
}

impl Buffers {
    /// A buffer of at least `len` bytes; an empty one for none.
    #[inline]
    pub fn take(&mut self, len: usize) -> Buffer {
        if len == 0 {
            return Buffer::default();
        }
        let class = class_of(len);
        match self.free.get_mut(class).and_then(Vec::pop) {
            Some(buffer) => {
                self.kept -= buffer.0.len();
                buffer
            }
            None => Buffer(vec![0; LEAST << class].into()),
        }
    }

    /// Gives a buffer back.
    #[inline]
    pub fn give(&mut self, buffer: Buffer) {
        let len = buffer.0.len();
        if len > 0 && self.kept + len <= KEPT {
            self.kept += len;
            self.free[class_of(len)].push(buffer);
        }
    }

    /// Bytes that wait for their next use.
    pub fn kept(&self) -> usize {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_for_whatever_fits_it() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take(5000);
        buffer.front_mut(5000).fill(7);
        buffers.give(buffer);
        assert_eq!(buffers.kept(), 8192);
        assert_eq!(buffers.take(4097).front(4097), [7; 4097], "the same one");
        assert_eq!(buffers.kept(), 0);
        assert_eq!(buffers.take(8192).front(8192), [0; 8192], "another one");
    }

    #[test]
    fn lengths_get_the_smallest_class_that_holds_them() {
        for (len, size) in
            [(1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20), ((1 << 20) + 1, 2 << 20)]
        {
            assert_eq!(Buffers::default().take(len).0.len(), size);
        }
        assert_eq!(Buffers::default().take(0).0.len(), 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut buffers = Buffers::default();
        let many: Vec<_> = (0..100).map(|_| buffers.take(1 << 20)).collect();
        many.into_iter().for_each(|buffer| buffers.give(buffer));
        assert_eq!(buffers.kept(), KEPT);
        buffers.give(Buffer::default());
        assert_eq!(buffers.kept(), KEPT);
    }
}
