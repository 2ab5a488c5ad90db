//! What lz4-sys compiles and does not declare, and what its numbers mean.

#![expect(unsafe_code, reason = "a C library")]

use std::ffi::{c_char, c_int, c_void};

use lz4_sys::{
    BlockChecksum, BlockMode, BlockSize, ContentChecksum, FrameType, LZ4FCompressionContext, LZ4FFrameInfo,
    LZ4FPreferences,
};

unsafe extern "C" {
    // lz4.h
    pub(super) fn LZ4_sizeofState() -> c_int;
    pub(super) fn LZ4_compress_fast_extState(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_len: c_int,
        dst_len: c_int,
        acceleration: c_int,
    ) -> c_int;
    // lz4hc.h
    pub(super) fn LZ4_sizeofStateHC() -> c_int;
    pub(super) fn LZ4_compress_HC_extStateHC(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_len: c_int,
        dst_len: c_int,
        level: c_int,
    ) -> c_int;
    // lz4frame.h
    fn LZ4F_compressFrameBound(src_len: usize, preferences: *const LZ4FPreferences) -> usize;
    pub(super) fn LZ4F_compressFrame_usingCDict(
        context: LZ4FCompressionContext,
        dst: *mut c_void,
        dst_len: usize,
        src: *const c_void,
        src_len: usize,
        dictionary: *const c_void,
        preferences: *const LZ4FPreferences,
    ) -> usize;
}

/// `LZ4F_ERROR_allocation_failed`.
pub(super) const NO_MEMORY: usize = 9;
/// `LZ4F_ERROR_maxCode`: errors are the numbers below, negated.
const MAX_CODE: usize = 24;

/// What a function of lz4frame.h returned: a number, or the number of an error.
pub(super) fn check(result: usize) -> Result<usize, usize> {
    match result.wrapping_neg() {
        code @ 1..MAX_CODE => Err(code),
        _ => Ok(result),
    }
}

/// A frame as the `lz4` tool makes it, with a checksum of its content, and blocks of 64 KiB that refer to each other. Its
/// length is told, unless it is 0.
pub(super) fn preferences(level: i32, content_size: u64) -> LZ4FPreferences {
    LZ4FPreferences {
        frame_info: LZ4FFrameInfo {
            block_size_id: BlockSize::Max64KB,
            block_mode: BlockMode::Linked,
            content_checksum_flag: ContentChecksum::ChecksumEnabled,
            frame_type: FrameType::Frame,
            content_size,
            dict_id: 0,
            block_checksum_flag: BlockChecksum::NoBlockChecksum,
        },
        // An `int` in the library, where negative levels are fast ones.
        compression_level: level.cast_unsigned(),
        auto_flush: 0,
        favor_dec_speed: 0,
        reserved: [0; 3],
    }
}

/// The room that the library wants for a frame.
pub(super) fn frame_bound(len: usize, preferences: &LZ4FPreferences) -> usize {
    // SAFETY: a function of a number and of preferences that are there.
    unsafe { LZ4F_compressFrameBound(len, preferences) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_from_lengths() {
        assert_eq!(check(0), Ok(0));
        assert_eq!(check(1 << 30), Ok(1 << 30));
        assert_eq!(check(usize::MAX), Err(1));
        assert_eq!(check(9usize.wrapping_neg()), Err(NO_MEMORY));
    }
}
