//! Memory for keys: locked, left out of core files, wiped.
//!
//! Everything that a key can be found in lies in one arena of the process: what the guest sent ([`Secret`]), expanded
//! keys ([`LockedBox`]), and whatever the cryptographic library allocates by itself, from a prime of an RSA key to
//! the temporaries of a signature. The arena's pages never reach a swap device (`mlock`), a core file
//! (`MADV_DONTDUMP`) or a child process (`MADV_DONTFORK`), and what is given back to it is wiped first.
//!
//! Locked memory is limited (`RLIMIT_MEMLOCK`). A part of it is kept for the temporaries of operations: a new key is
//! refused with [`NoMemory`] before that part is touched, so that a guest with too many sessions fails to create
//! another one, and no operation of any guest fails. The rest is shared equally: the keys of each device are charged to its
//! [`Account`], whatever makes them, and the last session of one device does not keep another one from its first.

#![expect(unsafe_code, reason = "values in memory of our own")]

mod arena;

use arena::Arena;
use std::alloc::Layout;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

pub use arena::Account;
pub(crate) use arena::{Building, allocate, release, usable_size};

/// There is no more locked memory for keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory {
    /// Bytes that were asked for.
    pub wanted: usize,
    /// Bytes that are locked already.
    pub locked: usize,
    /// What stands against it.
    pub why: Why,
}

/// What a lack of memory for keys comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// `RLIMIT_MEMLOCK`, which is this.
    Limit(u64),
    /// The arena is full.
    ArenaFull,
    /// The device has its share of this many bytes.
    Share(usize),
}

impl NoMemory {
    /// So many bytes could not be had just now.
    pub(crate) fn of(wanted: usize) -> Self {
        Self { wanted, locked: usage().locked, why: Why::Limit(arena::limit()) }
    }
}

impl std::error::Error for NoMemory {}

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, locked, why } = self;
        write!(f, "Cannot lock {wanted} more bytes of memory for keys, {locked} are locked: ")?;
        match why {
            Why::Limit(limit) => write!(
                f,
                "the limit (RLIMIT_MEMLOCK) is {limit}; raise it with LimitMEMLOCK= in the unit, --ulimit memlock= for a \
                 container, or ulimit -l"
            ),
            Why::ArenaFull => f.write_str("the arena is full; give the device fewer sessions"),
            Why::Share(share) => write!(
                f,
                "the device has its equal share, {share} bytes; raise the limit (LimitMEMLOCK=, ulimit -l), or serve fewer \
                 devices by one daemon"
            ),
        }
    }
}

/// How much memory keys take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes that are locked. Never shrinks.
    pub locked: usize,
    /// Bytes of these that are in use.
    pub used: usize,
}

/// Locks what the first keys need, and the part that is kept for operations. For the start of a daemon: so that it
/// says what is wrong when there is someone to read it.
pub fn start() -> Result<(), NoMemory> {
    Arena::get()?.keep_reserve()
}

/// How much memory keys take now.
pub fn usage() -> Usage {
    Arena::get().map(|arena| arena.usage()).unwrap_or_default()
}

/// Secret bytes.
pub struct Secret {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, as a `Box<[u8]>` does.
unsafe impl Send for Secret {}
// SAFETY: as above.
unsafe impl Sync for Secret {}

impl Secret {
    /// Zeros.
    pub fn zeroed(len: usize) -> Result<Self, NoMemory> {
        let start = allocate(len)?;
        // SAFETY: `allocate` gave at least `len` bytes, which nobody else knows of.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { start, len })
    }

    /// A copy.
    pub fn copy(bytes: &[u8]) -> Result<Self, NoMemory> {
        Self::concat(bytes, &[])
    }

    /// A copy of two parts, one behind the other.
    pub fn concat(first: &[u8], second: &[u8]) -> Result<Self, NoMemory> {
        let mut secret = Self::zeroed(first.len() + second.len())?;
        let (start, rest) = secret.split_at_mut(first.len());
        start.copy_from_slice(first);
        rest.copy_from_slice(second);
        Ok(secret)
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that this value owns.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes that this value owns.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: `zeroed` got it from `allocate`, and this is the end of its only owner.
        unsafe { release(self.start) };
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len)
    }
}

/// A value in locked memory. Dropped, then wiped.
pub struct LockedBox<T> {
    value: NonNull<T>,
}

// SAFETY: it owns its value, as a `Box<T>` does.
unsafe impl<T: Send> Send for LockedBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for LockedBox<T> {}

impl<T> LockedBox<T> {
    const FITS: () = assert!(align_of::<T>() <= arena::ALIGN, "the arena aligns to a cache line");

    /// Moves a value there. What `T` is made of may remain on the stack: secrets should be written in place, with
    /// [`zeroed`](LockedBox::zeroed).
    pub fn new(value: T) -> Result<Self, NoMemory> {
        let place = Self::place()?;
        // SAFETY: room for a `T`, aligned, that nobody else knows of.
        unsafe { place.write(value) };
        Ok(Self { value: place })
    }

    fn place() -> Result<NonNull<T>, NoMemory> {
        const { Self::FITS };
        Ok(allocate(Layout::new::<T>().size())?.cast())
    }
}

impl<T: Plain> LockedBox<T> {
    /// A value of zero bytes, to be filled in.
    pub fn zeroed() -> Result<Self, NoMemory> {
        let place = Self::place()?;
        // SAFETY: room for a `T`, and `Plain` says that zeros are one.
        unsafe { ptr::write_bytes(place.as_ptr(), 0, 1) };
        Ok(Self { value: place })
    }
}

/// Types for which zero bytes are a value.
///
/// # Safety
///
/// A `T` whose bytes are all zero is valid.
pub unsafe trait Plain {}

impl<T> Deref for LockedBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: an initialised value that this one owns.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for LockedBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: an initialised value that this one owns.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for LockedBox<T> {
    fn drop(&mut self) {
        // SAFETY: the value is initialised, and this is the end of its only owner, who got the memory from `allocate`.
        unsafe {
            ptr::drop_in_place(self.value.as_ptr());
            release(self.value.cast());
        }
    }
}

impl<T> fmt::Debug for LockedBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockedBox(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The flags of the mapping that `address` is in, as `/proc/self/smaps` has them.
    fn flags_of(address: usize) -> Vec<String> {
        let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_whitespace().next().and_then(|word| word.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&address);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("address is not mapped");
    }

    #[test]
    fn secrets_are_locked_and_left_out_of_cores_and_children() {
        let secret = Secret::copy(b"attack at dawn").expect("memory");
        let flags = flags_of(secret.as_ptr().addr());
        for flag in ["lo", "dd", "dc"] {
            assert!(flags.iter().any(|have| have == flag), "{flag} is not among {flags:?}");
        }
    }

    #[test]
    fn secrets_are_wiped_when_they_are_dropped() {
        for len in [1, 63, 64, 65, 1000, 32 << 10, 70_000] {
            let secret = Secret::copy(&vec![0xa5; len]).expect("memory");
            let (start, len) = (secret.start, secret.len);
            drop(secret);
            // Another thread of the tests may have taken the same slot, but hardly with the same bytes.
            // SAFETY: the arena never unmaps anything.
            let left = (0..len).filter(|&i| unsafe { start.add(i).read_volatile() } == 0xa5).count();
            assert!(left < len / 4 + 1, "{left} of {len} bytes are still there");
        }
    }

    #[test]
    fn concatenated_parts_lie_one_behind_the_other() {
        let secret = Secret::concat(b"abc", b"de").expect("memory");
        assert_eq!(&*secret, b"abcde");
        assert!(Secret::copy(b"").expect("memory").is_empty());
    }

    #[test]
    fn boxes_are_aligned_as_their_type_wants_it() {
        #[repr(align(64))]
        struct Line([u8; 100]);
        let boxes: Vec<_> = (0..100).map(|i| LockedBox::new(Line([i; 100])).expect("memory")).collect();
        for (i, line) in boxes.iter().enumerate() {
            assert_eq!(line.value.addr().get() % 64, 0);
            assert!(line.0.iter().all(|byte| usize::from(*byte) == i), "boxes overlap");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let secret = Secret::copy(b"attack at dawn").expect("memory");
        assert_eq!(format!("{secret:?}"), "Secret(14 bytes)");
        assert_eq!(format!("{:?}", LockedBox::new(7u8).expect("memory")), "LockedBox(..)");
    }

    #[test]
    fn lack_of_memory_says_what_to_do() {
        let text = NoMemory { wanted: 65536, locked: 131072, why: Why::Limit(131072) }.to_string();
        assert!(
            text.contains("RLIMIT_MEMLOCK") && text.contains("LimitMEMLOCK=") && text.contains("131072"),
            "{text}"
        );
    }
}
