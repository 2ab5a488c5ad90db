//! A mapping for secrets: locked as far as it is used, left out of core files and child processes.
#![expect(unsafe_code, reason = "mmap, mlock and copies in shared memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// What is locked at a time, a multiple of the page size.
const PIECE: usize = 64 << 10;

/// A file of secrets, mapped whole.
///
/// # Panics
/// All accesses, when they reach past the end: mistakes of the caller, which checks what it has read.
pub(super) struct Locked {
    base: NonNull<u8>,
    len: usize,
    /// Which pieces are locked.
    locked: Vec<bool>,
}

// SAFETY: a mapping of our own, which is accessed through `&self` and `&mut self` only; no other thread has its address.
unsafe impl Send for Locked {}

impl Locked {
    /// Maps a file whose size is sealed.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        // SAFETY: integers only.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the vault's memory can be cut off"));
        }
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let locked = vec![false; len.div_ceil(PIECE)];
        let memory = Self { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len, locked };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: the range is the mapping made above.
            if unsafe { libc::madvise(base, len, advice) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(memory)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Keeps a range from the swap device.
    pub fn lock(&mut self, at: usize, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        for piece in at / PIECE..=(at + len - 1) / PIECE {
            if self.locked[piece] {
                continue;
            }
            let from = piece * PIECE;
            let ptr = self.at(from, PIECE.min(self.len - from));
            // SAFETY: inside the mapping.
            if unsafe { libc::mlock(ptr.cast(), PIECE.min(self.len - from)) } < 0 {
                return Err(io::Error::last_os_error());
            }
            self.locked[piece] = true;
        }
        Ok(())
    }

    pub fn read<T: FromBytes + IntoBytes + FromZeros>(&self, at: usize) -> T {
        let mut value = T::new_zeroed();
        self.read_bytes(at, value.as_mut_bytes());
        value
    }

    pub fn write(&mut self, at: usize, value: &(impl IntoBytes + Immutable)) {
        self.write_bytes(at, value.as_bytes());
    }

    pub fn read_bytes(&self, at: usize, to: &mut [u8]) {
        let from = self.at(at, to.len());
        // SAFETY: inside the mapping; `to` is private.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    pub fn write_bytes(&mut self, at: usize, from: &[u8]) {
        let to = self.at(at, from.len());
        // SAFETY: inside the mapping; `from` is private.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Stores a word after everything before, and before everything after: as another process sees it that finds what
    /// this one left.
    pub fn commit(&mut self, at: usize, word: u32) {
        let ptr = self.at(at, size_of::<u32>()).cast::<u32>();
        assert!(ptr.is_aligned());
        // SAFETY: inside the mapping and aligned.
        unsafe { AtomicU32::from_ptr(ptr) }.store(word, Ordering::SeqCst);
        compiler_fence(Ordering::SeqCst);
    }

    /// Overwrites a range with zeros, which the compiler does not leave out.
    pub fn wipe(&mut self, at: usize, len: usize) {
        let ptr = self.at(at, len);
        // SAFETY: inside the mapping, which nobody else refers to meanwhile.
        zeroize::Zeroize::zeroize(unsafe { std::slice::from_raw_parts_mut(ptr, len) });
    }

    fn at(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} of {}", self.len);
        // SAFETY: just checked.
        unsafe { self.base.add(at).as_ptr() }
    }
}

/// A number that nobody can guess.
pub(super) fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: `bytes` has room for what is asked for.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
