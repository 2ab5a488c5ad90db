//! Where an engine writes.

#![expect(unsafe_code, reason = "an address that may be a guest's")]

use std::marker::PhantomData;
use std::ptr;

use memory::HostRange;

/// What stands for a buffer without bytes in a call to a C library. An empty slice's address is any number, 1 for instance, and
/// libraries count back from the end of a buffer (`iend - MFLIMIT` in LZ4) without regard to what is not there.
static NOWHERE: [u8; 128] = [0; 128];

/// The address of a source, for a C library.
pub(crate) fn start_of(src: &[u8]) -> *const u8 {
    if src.is_empty() { NOWHERE[64..].as_ptr() } else { src.as_ptr() }
}

/// A destination: an address and a length, private memory or a guest's.
///
/// A guest may read and write its range at any time, so that no reference to it may exist; libraries that take pointers
/// write to it all the same, where [`Engine::may_write_to_guest`](super::Engine::may_write_to_guest) says that nothing but
/// the guest's own data can suffer.
#[derive(Debug)]
pub struct Output<'a> {
    start: *mut u8,
    len: usize,
    guest: bool,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Output<'a> {
    /// A guest's range.
    ///
    /// # Safety
    ///
    /// For `'a`, the range is mapped and writable, and nothing in this process has a reference to it. The guest may change
    /// its bytes at any time.
    pub unsafe fn guest(range: HostRange) -> Self {
        Self { start: range.base.cast(), len: range.len, guest: true, memory: PhantomData }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing fits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the guest can write to it.
    pub fn is_guest(&self) -> bool {
        self.guest
    }

    /// Its first byte. [`len`](Self::len) bytes from there may be written.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        if self.len == 0 { start_of(&[]).cast_mut() } else { self.start }
    }

    /// The memory, when it is private.
    pub fn private_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: private memory came as a unique reference of this length, which `self` stands for.
        (!self.guest).then(|| unsafe { std::slice::from_raw_parts_mut(self.start, self.len) })
    }

    /// What begins `offset` bytes behind the start.
    ///
    /// # Panics
    ///
    /// When that is behind the end.
    pub fn tail(&mut self, offset: usize) -> Output<'_> {
        assert!(offset <= self.len, "{offset} of {}", self.len);
        // SAFETY: inside of the memory, or one past its end.
        let start = unsafe { self.start.add(offset) };
        Output { start, len: self.len - offset, guest: self.guest, memory: PhantomData }
    }

    /// The same, for a call that takes it.
    pub fn again(&mut self) -> Output<'_> {
        self.tail(0)
    }

    /// The first `len` bytes, or all when there are fewer.
    pub fn at_most(self, len: usize) -> Self {
        Self { len: self.len.min(len), ..self }
    }

    /// Copies `bytes` to the start.
    ///
    /// # Panics
    ///
    /// When they are more than fit.
    pub fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "{} into {}", bytes.len(), self.len);
        // SAFETY: `bytes` is private memory, and the destination has room for them.
        unsafe { ptr::copy(bytes.as_ptr(), self.start, bytes.len()) }
    }
}

impl<'a> From<&'a mut [u8]> for Output<'a> {
    fn from(memory: &'a mut [u8]) -> Self {
        Self { start: memory.as_mut_ptr(), len: memory.len(), guest: false, memory: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_inside_of_the_whole() {
        let mut memory = [0u8; 8];
        let mut output = Output::from(&mut memory[1..7]);
        assert_eq!(output.again().at_most(100).len(), 6);
        assert!(output.tail(6).is_empty());
        output.tail(4).write(&[9, 9]);
        output.again().at_most(2).write(&[7]);
        assert_eq!(memory, [0, 7, 0, 0, 0, 9, 9, 0]);
    }

    #[test]
    fn there_is_memory_around_the_address_of_nothing() {
        assert_eq!(Output::from(&mut [][..]).as_mut_ptr().cast_const(), start_of(&[]));
        assert!(NOWHERE.as_ptr_range().contains(&start_of(&[])));
    }

    #[test]
    #[should_panic(expected = "3 into 2")]
    fn more_than_fits_is_refused() {
        let mut memory = [0u8; 8];
        Output::from(&mut memory[..]).at_most(2).write(&[1, 2, 3]);
    }

    #[test]
    fn a_guests_range_gives_no_reference() {
        let mut memory = [0u8; 4];
        let range = HostRange { base: memory.as_mut_ptr().cast(), len: 4 };
        // SAFETY: the array is there, and nobody refers to it.
        let mut output = unsafe { Output::guest(range) };
        assert!(output.is_guest() && output.private_mut().is_none());
        output.write(&[1]);
        assert_eq!(memory[0], 1);
    }
}
