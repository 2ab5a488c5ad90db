//! Copies between private and shared memory.
//!
//! The other side of shared memory writes at any moment. Two things follow: a value must be fetched once (the
//! compiler may not read the source again after the check), and no reference to it may exist. Small objects are moved
//! by volatile accesses of their natural width; larger ones by `memcpy` behind a compiler barrier, so that the copy
//! cannot be replaced by later reads of the source.

#![expect(unsafe_code, reason = "raw copies to and from shared memory")]

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use zerocopy::{FromBytes, IntoBytes};

/// Reads a `T`, at any alignment.
///
/// # Safety
/// `src` is valid for reads of `size_of::<T>()` bytes.
#[inline(always)]
pub(crate) unsafe fn read_obj<T: FromBytes>(src: *const u8) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the caller vouches for `src`; `value` is a `T` of our own. `FromBytes`: any bytes make a `T`.
    unsafe {
        read_small(src, value.as_mut_ptr().cast(), size_of::<T>());
        value.assume_init()
    }
}

/// Writes a `T`, at any alignment.
///
/// # Safety
/// `dst` is valid for writes of `size_of::<T>()` bytes.
#[inline(always)]
pub(crate) unsafe fn write_obj<T: IntoBytes>(dst: *mut u8, value: T) {
    // SAFETY: the caller vouches for `dst`; `IntoBytes`: a `T` has no uninitialised bytes.
    unsafe { write_small(ptr::from_ref(&value).cast(), dst, size_of::<T>()) }
}

/// As [`read_bytes`], with volatile accesses when `len` (a constant at every call) and the alignment allow.
#[inline(always)]
unsafe fn read_small(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller vouches for `len` bytes at both ends; the alignment of the volatile side is checked here and
    // the private side is written unaligned.
    unsafe {
        match len {
            1 => dst.write(src.read_volatile()),
            2 if src.cast::<u16>().is_aligned() => {
                dst.cast::<u16>().write_unaligned(src.cast::<u16>().read_volatile());
            }
            4 if src.cast::<u32>().is_aligned() => {
                dst.cast::<u32>().write_unaligned(src.cast::<u32>().read_volatile());
            }
            8 | 16 if src.cast::<u64>().is_aligned() => {
                for word in 0..len / 8 {
                    let value = src.cast::<u64>().add(word).read_volatile();
                    dst.cast::<u64>().add(word).write_unaligned(value);
                }
            }
            _ => read_bytes(src, dst, len),
        }
    }
}

/// As [`write_bytes`], with volatile accesses when `len` (a constant at every call) and the alignment allow.
#[inline(always)]
unsafe fn write_small(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as in `read_small`, with the ends exchanged.
    unsafe {
        match len {
            1 => dst.write_volatile(src.read()),
            2 if dst.cast::<u16>().is_aligned() => {
                dst.cast::<u16>().write_volatile(src.cast::<u16>().read_unaligned());
            }
            4 if dst.cast::<u32>().is_aligned() => {
                dst.cast::<u32>().write_volatile(src.cast::<u32>().read_unaligned());
            }
            8 | 16 if dst.cast::<u64>().is_aligned() => {
                for word in 0..len / 8 {
                    let value = src.cast::<u64>().add(word).read_unaligned();
                    dst.cast::<u64>().add(word).write_volatile(value);
                }
            }
            _ => write_bytes(src, dst, len),
        }
    }
}

/// Copies `len` bytes out of shared memory.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes; `dst` is private, so they do not overlap.
#[inline(always)]
pub(crate) unsafe fn read_bytes(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: handed on to the caller.
    unsafe { ptr::copy_nonoverlapping(src, dst, len) };
    compiler_fence(Ordering::SeqCst);
}

/// Copies `len` bytes into shared memory.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes; `src` is private, so they do not overlap.
#[inline(always)]
pub(crate) unsafe fn write_bytes(src: *const u8, dst: *mut u8, len: usize) {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: handed on to the caller.
    unsafe { ptr::copy_nonoverlapping(src, dst, len) };
}
