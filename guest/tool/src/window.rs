//! Input with a look ahead.

use std::io::{self, Read};

use crate::failure::Failure;
use crate::signal;

/// Bytes that are read at a time, at least.
const STEP: usize = 128 << 10;

/// What is next in the input, as far as it was asked for.
pub struct Window<'a> {
    input: &'a mut dyn Read,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    finished: bool,
    taken: u64,
}

impl<'a> Window<'a> {
    /// At the start of the input.
    pub fn new(input: &'a mut dyn Read) -> Self {
        Self { input, buffer: Vec::new(), start: 0, end: 0, finished: false, taken: 0 }
    }

    /// Bytes that are there.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads until `len` bytes are there; `false` when the input has fewer.
    pub fn fill(&mut self, len: usize) -> Result<bool, Failure> {
        while self.end - self.start < len && !self.finished {
            self.make_room(len);
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.finished = true,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => signal::check()?,
                Err(error) => return Err(Failure::Read(error)),
            }
        }
        Ok(self.end - self.start >= len)
    }

    fn make_room(&mut self, len: usize) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = len.max(self.end + STEP);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
    }

    /// Goes on behind `len` of the bytes that are there.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn take(&mut self, len: usize) {
        assert!(len <= self.end - self.start, "only bytes that are there can be taken");
        self.start += len;
        self.taken += len as u64;
    }

    /// Goes on behind `len` bytes, there or not; `false` when the input has fewer.
    pub fn skip(&mut self, mut len: usize) -> Result<bool, Failure> {
        while len > 0 {
            if !self.fill(1)? {
                return Ok(false);
            }
            let step = len.min(self.end - self.start);
            self.take(step);
            len -= step;
        }
        Ok(true)
    }

    /// Whether nothing follows what is there.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// Bytes so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time.
    struct Drops(Vec<u8>);

    impl Read for Drops {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.pop() {
                Some(byte) => {
                    buf[0] = byte;
                    Ok(1)
                }
                None => Ok(0),
            }
        }
    }

    #[test]
    fn what_was_looked_at_stays_until_it_is_taken() {
        let mut input = Drops(b"9876543210".to_vec());
        let mut window = Window::new(&mut input);
        assert!(window.fill(4).unwrap());
        assert_eq!(window.bytes(), b"0123");
        window.take(2);
        assert!(window.fill(5).unwrap());
        assert_eq!(window.bytes(), b"23456");
        assert!(window.skip(6).unwrap());
        assert!(!window.fill(3).unwrap());
        assert_eq!((window.bytes(), window.finished(), window.taken()), (&b"89"[..], true, 8));
        assert!(!window.skip(3).unwrap());
    }
}
