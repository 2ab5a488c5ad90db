//! The library's memory, which is the arena of keys, and its list of errors.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use crate::keys::{self, NoMemory};
use aws_lc_sys as ffi;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

/// Makes the library ready: from here on it allocates locked memory, and needs no file or device any more. Tens of
/// milliseconds.
///
/// Everything that makes it allocate calls this first.
pub fn start() -> Result<(), NoMemory> {
    static STARTED: OnceLock<Result<(), NoMemory>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        keys::start()?;
        // SAFETY: the functions keep the contract of malloc, realloc and free. Nothing was allocated before: the rest
        // of this module is only reached by values whose constructors called `start`.
        unsafe {
            let set = ffi::CRYPTO_set_mem_functions(Some(allocate), Some(reallocate), Some(release));
            assert_eq!(set, 1, "somebody else manages the library's memory, and keys would not be locked");
            ffi::CRYPTO_library_init();
            ffi::CRYPTO_pre_sandbox_init();
            // The first random number is what opens and seeds everything behind it.
            let mut seed = [0u8; 32];
            ffi::RAND_bytes(seed.as_mut_ptr(), seed.len());
        }
        Ok(())
    })
}

/// Whether both are the same, in a time that depends on their lengths only.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    // SAFETY: both have `a.len()` bytes where the call is reached.
    a.len() == b.len() && unsafe { ffi::CRYPTO_memcmp(a.as_ptr().cast(), b.as_ptr().cast(), a.len()) == 0 }
}

/// Empties the library's list of errors of this thread.
pub(super) fn clear_errors() {
    // SAFETY: touches nothing but that list.
    unsafe { ffi::ERR_clear_error() }
}

unsafe extern "C" fn allocate(len: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    keys::allocate(len).map_or(ptr::null_mut(), |piece| piece.as_ptr().cast())
}

unsafe extern "C" fn release(piece: *mut c_void, _file: *const c_char, _line: c_int) {
    if let Some(piece) = NonNull::new(piece.cast()) {
        // SAFETY: the library frees what it allocated, once.
        unsafe { keys::release(piece) }
    }
}

unsafe extern "C" fn reallocate(
    old: *mut c_void,
    len: usize,
    file: *const c_char,
    line: c_int,
) -> *mut c_void {
    let Some(piece) = NonNull::new(old.cast::<u8>()) else {
        // SAFETY: as malloc.
        return unsafe { allocate(len, file, line) };
    };
    // SAFETY: the library has the old piece from `allocate`; the new one is apart from it and has `len` bytes.
    unsafe {
        let size = keys::usable_size(piece);
        if len <= size {
            return old;
        }
        let new = allocate(len, file, line);
        if !new.is_null() {
            ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast::<u8>(), size);
            keys::release(piece);
        }
        new
    }
}
